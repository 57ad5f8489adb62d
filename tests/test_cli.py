"""The command: arguments, help, exit codes, and one line for every mistake."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_support import COMMAND, Foreground, environment, is_listening, one_line, run_command
from support.leaks import under_sanitizer
from support.namespaces import Namespace

from reflector import __version__, cli, lifecycle
from reflector.settings import SETTINGS

CAP_NET_BIND_SERVICE = "-net_bind_service"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody else's listener, on a port that is therefore taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken


@pytest.fixture
def never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started: what would run is a failure of the test."""

    def refuse(*_: object) -> int:
        raise AssertionError("these arguments were accepted")

    monkeypatch.setattr(lifecycle, "run", refuse)


WRONG_ARGUMENTS = [
    (["10022:65536"], "10022:65536"),
    (["65536"], "65536"),
    (["-1:22"], "-1"),
    ([""], "mapping ''"),
    (["10022:22:22"], "10022:22:22"),
    (["localhost:10022:22"], "localhost"),
    (["::1:10022:22"], "brackets"),
    (["10022:22/udp"], "UDP"),
    (["10022:22\nreflector: fine"], "\\n"),
    (["\udcff:22"], "\\udcff"),
    (["x" * 100_000], "mapping"),
    (["10022:22", "10022:23"], "10022:22 and 10022:23 clash"),
    (["10022:22", "127.0.0.1:10022:23"], "127.0.0.1:10022:23 clash"),
    (["--bind", "localhost", "10022:22"], "--bind 'localhost'"),
    (["--bind", "", "10022:22"], "--bind ''"),
    (["--return-port", "0", "10022"], "--return-port '0'"),
    (["--return-port", "22/tcp", "10022"], "--return-port '22/tcp'"),
    (["--return-source", "here", "10022:22"], "--return-source 'here'"),
    (
        ["--return-source", "127.0.0.1", "--return-source", "127.0.0.2", "10022:22"],
        "at most one of IPv4",
    ),
    (["--workers", "0", "10022:22"], "--workers '0': expected a whole number"),
    (["--workers", "-2", "10022:22"], "--workers '-2'"),
    (["--max-connections", "0", "10022:22"], "--max-connections '0'"),
    (["--max-connections", "many", "10022:22"], "--max-connections 'many'"),
    (["--max-per-source", "0", "10022:22"], "--max-per-source '0'"),
    (["--connect-timeout", "0", "10022:22"], "--connect-timeout '0': expected a time"),
    (["--connect-timeout", "3 seconds", "10022:22"], "--connect-timeout '3 seconds'"),
    (["--idle-timeout", "-1s", "10022:22"], "--idle-timeout '-1s'"),
    (["--half-close-timeout", "0ms", "10022:22"], "--half-close-timeout '0ms'"),
    (["--drain-timeout", "never", "10022:22"], "--drain-timeout 'never'"),
    (["--log-level", "loud", "10022:22"], "--log-level 'loud': expected one of debug, info"),
    (["--workers"], "--workers needs a value: a whole number of threads"),
    (["--deny"], "--deny needs a value: a network such as 192.0.2.0/24"),
    (["--share-ports=yes", "10022:22"], "--share-ports takes no value"),
    (["--allow", "10.0.0.1/8", "10022:22"], "--allow '10.0.0.1/8': "),
    (["--workers", "2"], "no mapping given"),
    (["run"], "no mapping given"),
    (["--retrun-port", "22", "10022"], "--retrun-port (did you mean --return-port?)"),
    (["--maxconnections=9", "10022"], "(did you mean --max-connections?)"),
    (["run", "--hepl"], "no such option: --hepl (did you mean --help?)"),
    (["--zzz", "10022"], "no such option: --zzz"),
    (["-p", "22", "10022"], "no such option: -p"),
    (["--version=2"], "--version"),
    (["--log-level", "debug", "demo"], "(did you mean reflector demo?)"),
    (["dmeo"], "(did you mean reflector demo?)"),
    (["rnu", "10022:22"], "(did you mean reflector run?)"),
    (["10022:22", "--", "--workers"], "--workers"),
    (["demo", "--jsno"], "(did you mean --json?)"),
]


@pytest.mark.usefixtures("never_runs")
@pytest.mark.parametrize(
    ("arguments", "names"), WRONG_ARGUMENTS, ids=[" ".join(a)[:40] for a, _ in WRONG_ARGUMENTS]
)
def test_wrong_argument_is_one_line_that_names_it_and_exit_2(
    arguments: list[str], names: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    said = capfd.readouterr()
    assert said.out == ""
    line = one_line(said.err)
    assert line.startswith("reflector: ")
    assert names in line
    assert len(line) < 300


@pytest.mark.parametrize("arguments", [["10022:0"], ["--retrun-port", "22", "10022"]])
def test_process_with_a_wrong_argument_ends_with_2(arguments: list[str]) -> None:
    done = run_command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert arguments[0] in one_line(done.stderr)


def test_no_arguments_show_a_short_usage_and_exit_2() -> None:
    done = run_command()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: reflector [OPTIONS] MAPPING...")
    assert "reflector --help" in done.stderr
    assert len(done.stderr.splitlines()) <= 4


@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["run", "--help"]])
def test_help_teaches_by_example(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    help_text = capsys.readouterr().out
    assert "reflector --return-port 22 10022" in help_text
    assert "[::1]:10022:22" in help_text
    for setting in SETTINGS.values():
        assert setting.option in help_text
        assert f"[default: {setting.default_text}]" in " ".join(help_text.split())
    assert max(map(len, help_text.splitlines())) <= 80
    commands = re.findall(r"^  (\w+)  ", help_text[help_text.index("\nCommands:") :], re.MULTILINE)
    assert commands == ["run", "demo"]


def test_help_of_the_demo_tells_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "-h"]) == 0
    said = capsys.readouterr().out
    assert "sshd" in said
    assert "--json" in said
    assert "Commands:" not in said


@pytest.mark.parametrize("arguments", [["--version"], ["--workers", "2", "--version"]])
def test_version_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"reflector {__version__}\n"


def test_core_that_does_not_load_is_one_line_and_exit_1() -> None:
    program = (
        "import sys\n"
        "sys.modules['reflector._core'] = None\n"
        "from reflector.cli import main\n"
        "sys.exit(main(['127.0.0.1:0:22']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 1
    assert "reflector._core does not load" in one_line(done.stderr)


def test_version_loads_nothing_that_is_heavy() -> None:
    program = (
        "import sys\n"
        "from reflector.cli import main\n"
        "code = main(['--version'])\n"
        "heavy = {'click', 'reflector._core', 'importlib.metadata', 'socket', 'logging'}\n"
        "sys.exit(f'loaded {heavy & set(sys.modules)}' if heavy & set(sys.modules) else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment()
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(under_sanitizer(), reason="a sanitizer's own start takes longer")
def test_version_costs_little_cpu() -> None:
    program = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)\n"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", program, *COMMAND, "--version"],
            capture_output=True,
            text=True,
            env=environment(),
            check=True,
        )
        seconds.append(float(done.stdout))
    assert min(seconds) <= 0.120


@pytest.mark.parametrize(
    "arguments",
    [
        ["127.0.0.1:0:22"],
        ["run", "127.0.0.1:0:22"],
        ["--return-port", "22", "127.0.0.1:0"],
        ["127.0.0.1:0", "--return-port", "22"],
        ["--bind", "127.0.0.1", "0:22"],
        ["--bind", "127.0.0.1", "--return-port=22", "--", "0/tcp"],
    ],
)
def test_every_way_to_say_it_comes_out_the_same(arguments: list[str], tmp_path: Path) -> None:
    running = Foreground(tmp_path / "log", *arguments)
    try:
        line = running.wait_ready()
    finally:
        running.close()
    assert re.fullmatch(
        rf"reflector {re.escape(__version__)} ready: 127\.0\.0\.1:\d+ -> peer:22 "
        r"\(splice engine, \d+ workers?, at most [\d,]+ connections, 512 per source\)",
        line,
    )


def test_limits_given_are_those_told_at_start(tmp_path: Path) -> None:
    limits = ["--workers", "3", "--max-connections", "1000", "--max-per-source", "7"]
    running = Foreground(tmp_path / "log", *limits, "127.0.0.1:0:22", "127.0.0.1:0:80")
    try:
        line = running.wait_ready()
        assert len(set(running.ports)) == 2
    finally:
        running.close()
    assert "3 workers, at most 1,000 connections, 7 per source" in line


def test_port_that_is_taken_is_one_line_and_exit_1(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    done = run_command(f"127.0.0.1:{port}:22")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"port {port} is taken; choose another" in one_line(done.stderr)


def test_port_taken_by_another_reflector_is_not_shared_with_it(tmp_path: Path) -> None:
    first = Foreground(tmp_path / "log", "127.0.0.1:0:22")
    try:
        done = run_command(f"127.0.0.1:{first.ports[0]}:22")
    finally:
        first.close()
    assert done.returncode == 1
    assert "is taken" in one_line(done.stderr)


def test_second_mapping_that_fails_starts_nothing(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserve:
        free = reserve.getsockname()[1]
    done = run_command(f"127.0.0.1:{free}:22", f"127.0.0.1:{listener.getsockname()[1]}:22")
    assert done.returncode == 1
    assert "ready" not in one_line(done.stderr)
    assert not is_listening(free)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv here")
def test_privileged_port_without_the_right_is_one_line_and_exit_1() -> None:
    first_free = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first_free <= 1:
        pytest.skip("no port is privileged here")
    drop = ["setpriv", "--bounding-set", CAP_NET_BIND_SERVICE, "--inh-caps", CAP_NET_BIND_SERVICE]
    done = run_command(f"127.0.0.1:{first_free - 1}:22", prefix=drop)
    assert (done.returncode, done.stdout) == (1, "")
    line = one_line(done.stderr)
    assert f"ports below {first_free} need CAP_NET_BIND_SERVICE" in line
    assert "ip_unprivileged_port_start" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["192.0.2.1:0:22"], "192.0.2.1:0: not an address of this host"),
        (["[2001:db8::1]:0:22"], "[2001:db8::1]:0: not an address of this host"),
        (["[fe80::1%rfnone0]:0:22"], "no such interface"),
        (["--bind", "192.0.2.1", "0:22"], "192.0.2.1:0: not an address of this host"),
        (["--return-source", "192.0.2.1", "127.0.0.1:0:22"], "cannot leave from 192.0.2.1"),
    ],
)
def test_address_that_is_not_ours_is_one_line_and_exit_1(arguments: list[str], says: str) -> None:
    done = run_command(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in one_line(done.stderr)


def test_host_without_ipv6_listens_on_ipv4_alone(
    namespace: Callable[[str], Namespace], tmp_path: Path
) -> None:
    host = namespace("old")
    host.sysctl("net/ipv6/conf/all/disable_ipv6", "1")
    with host:
        done = run_command("[::1]:0:22")
        running = Foreground(tmp_path / "log", "0:22")
        try:
            assert is_listening(running.ports[0])
        finally:
            running.close()
    assert done.returncode == 1
    assert "[::1]:0: " in one_line(done.stderr)


def test_too_few_descriptors_are_one_line_and_exit_1() -> None:
    limit = ["sh", "-c", 'ulimit -n 24; exec "$@"', "sh"]
    done = run_command("--workers", "64", "127.0.0.1:0:22", prefix=limit)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ulimit -n" in one_line(done.stderr)


def test_help_into_a_pipe_that_nobody_reads_is_no_error() -> None:
    done = run_shell('"$@" --help | true')
    assert (done.returncode, done.stderr) == (0, "")


def test_version_onto_a_full_disk_is_one_line_and_exit_1() -> None:
    done = run_shell('"$@" --version > /dev/full')
    assert done.returncode == 1
    assert "No space left" in one_line(done.stderr)


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", "2>&-", "2>/dev/full", ">&-"])
def test_closed_output_does_not_change_the_exit_code(redirection: str) -> None:
    for arguments, code in (("--version", 0), ("10022:0", 2), ("192.0.2.1:0:22", 1), ("-h", 0)):
        done = run_shell(f'"$@" {arguments} {redirection}')
        assert done.returncode == code, arguments
        assert "Traceback" not in done.stderr


def run_shell(script: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which "$@" is the command."""
    return subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
