"""The mirror engine on a host: where it runs, what it leaves to the splice engine, how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cli_support import one_line, run_command
from support.lab import Lab, exchange, finish
from support.mirror import why_no_mirror
from support.namespaces import Namespace, join
from support.peer import Peer, Service
from support.programs import ROOT, Command, find_program
from support.site import HOST, NODE, PORT, SERVICE_PORT, Site
from support.timing import scaled, wait_until

import reflector

pytestmark = pytest.mark.skipif(bool(why_no_mirror()), reason=why_no_mirror() or "none")

MAPPING = f"{PORT}:{SERVICE_PORT}"


@pytest.fixture
def site(lab: Lab, namespace: Callable[[str], Namespace]) -> Site:
    return Site.build(namespace)


@pytest.fixture
def ends() -> Iterator[ExitStack]:
    """Closes what a test puts on it."""
    with ExitStack() as stack:
        yield stack


class Runs:
    """The command on a host, as often as a test wants it."""

    def __init__(self, host: Namespace, folder: Path) -> None:
        self.host, self.folder = host, folder
        self.started: list[Command] = []

    def start(self, *arguments: str) -> Command:
        """Start it with the mirror engine."""
        log = self.folder / f"reflector-{len(self.started)}.log"
        with self.host:
            self.started.append(Command(log, "--engine", "mirror", *arguments))
        return self.started[-1]

    def stop_all(self) -> None:
        """Stop what still runs."""
        for command in self.started:
            command.stop()


@pytest.fixture
def runs(site: Site, tmp_path: Path) -> Iterator[Runs]:
    made = Runs(site.host, tmp_path)
    yield made
    made.stop_all()
    assert left_on(site.host) == ""


def left_on(host: Namespace) -> str:
    """What of a mirror is in a network namespace: its tcx links, its filters and their qdisc."""
    with host:
        found = host.run("tc", "qdisc", "show", "dev", "v0")
        left = found if "clsact" in found else ""
        if find_program("bpftool"):
            (shown,) = json.loads(host.run("bpftool", "-j", "net", "show", "dev", "v0"))
            left += "".join(str(entry) for entry in shown["tc"])
        return left


def serve(site: Site, ends: ExitStack, port: int = SERVICE_PORT) -> Service:
    with site.node:
        service = Service(NODE, port)
    ends.callback(service.close)
    return service


def dial(site: Site, ends: ExitStack, port: int = PORT, target: str = HOST) -> Peer:
    with site.node:
        peer = Peer.dial((NODE, 0), (target, port))
    ends.callback(peer.close)
    return peer


def check(site: Site, service: Service, port: int = PORT) -> None:
    """A connection through the mirror, and its end."""
    with ExitStack() as ends:
        client = dial(site, ends, port)
        accepted = service.accept()
        exchange(client, accepted)
        finish(client, accepted)
        accepted.close()


# --- how it ends ----------------------------------------------------------------------------------


def test_nothing_is_left_after_a_stop(site: Site, runs: Runs) -> None:
    command = runs.start(MAPPING)
    assert command.stop() == 0, command.output()
    assert left_on(site.host) == ""


def test_nothing_is_left_after_kill_9(site: Site, runs: Runs, ends: ExitStack) -> None:
    """The link is the process's own: the mirror is gone with it, as the listener is."""
    service = serve(site, ends)
    command = runs.start(MAPPING)
    check(site, service)
    os.kill(command.pid, signal.SIGKILL)
    wait_until(lambda: left_on(site.host) == "", "the link to go with its process")
    with pytest.raises(ConnectionRefusedError):
        dial(site, ends).expect_rst()
    runs.start(MAPPING)
    check(site, service)


def test_two_reflectors_on_one_interface(site: Site, runs: Runs, ends: ExitStack) -> None:
    services = [serve(site, ends, SERVICE_PORT + number) for number in range(2)]
    commands = [runs.start(f"{PORT + n}:{SERVICE_PORT + n}") for n in range(2)]
    for number, service in enumerate(services):
        check(site, service, PORT + number)
    assert commands[0].stop() == 0
    check(site, services[1], PORT + 1)


def test_upgrade_drops_no_packet(site: Site, runs: Runs, ends: ExitStack) -> None:
    """The new one starts beside the old one, which then stops: nothing fails or is sent again."""
    service = serve(site, ends)
    old = runs.start("--share-ports", "--drain-timeout", "500ms", MAPPING)
    client = dial(site, ends)
    accepted = service.accept()
    over = threading.Event()
    checks = [0]
    wrong: list[BaseException] = []

    def go_on() -> None:
        try:
            while not over.is_set():
                exchange(client, accepted)
                check(site, service)
                checks[0] += 1
        except BaseException as error:
            wrong.append(error)

    going = threading.Thread(target=go_on)
    going.start()
    try:
        for _ in range(scaled(5, 2)):
            new = runs.start("--share-ports", "--drain-timeout", "500ms", MAPPING)
            before = checks[0]
            wait_until(lambda b=before: checks[0] > b + 20 or bool(wrong), "checks to go on")
            assert old.stop() == 0
            old = new
    finally:
        over.set()
        going.join()
    assert not wrong
    finish(client, accepted)
    accepted.close()
    assert retransmitted(site.node) == 0


def retransmitted(host: Namespace) -> int:
    """Segments that TCP sent again, in a network namespace."""
    with host:
        told = host.run("nstat", "-asz", "TcpRetransSegs")
    return int(told.split("TcpRetransSegs")[1].split()[0])


def test_drain_refuses_new_connections_and_lets_running_ones_end(
    site: Site, runs: Runs, ends: ExitStack
) -> None:
    service = serve(site, ends)
    command = runs.start(MAPPING)
    client = dial(site, ends)
    accepted = service.accept()
    ends.callback(accepted.close)
    for _ in range(3):
        exchange(client, accepted)
    os.kill(command.pid, signal.SIGTERM)

    def is_refused() -> bool:
        try:
            with ExitStack() as probe:
                dial(site, probe)
                service.accept().close()
        except ConnectionRefusedError:
            return True
        finally:
            exchange(client, accepted)
        return False

    wait_until(is_refused, "new connections to be refused")
    finish(client, accepted)
    wait_until(lambda: "stopped:" in command.output(), "the drain to be over")
    assert command.stop() == 0
    assert "warning" not in command.output()


# --- where it runs --------------------------------------------------------------------------------


def test_an_address_that_comes_later_is_mirrored(site: Site, runs: Runs, ends: ExitStack) -> None:
    service = serve(site, ends)
    runs.start(MAPPING)
    site.host.ip("address add 10.7.2.9/24 dev v0")

    def is_mirrored() -> bool:
        with ExitStack() as probe:
            client = dial(site, probe, target="10.7.2.9")
            accepted = service.accept()
            probe.callback(accepted.close)
            exchange(client, accepted)
            return accepted.remote[1] == client.sock.getsockname()[1]  # the port is the client's

    wait_until(is_mirrored, "the address to be mirrored")


def test_an_interface_that_comes_later_is_mirrored(
    site: Site, runs: Runs, ends: ExitStack, namespace: Callable[[str], Namespace]
) -> None:
    runs.start(MAPPING)
    other = namespace("other")
    join(other, "v0", site.host, "v1")
    other.ip("address add 10.7.3.2/24 dev v0")
    site.host.ip("address add 10.7.3.1/24 dev v1")

    def is_mirrored() -> bool:
        """Only the mirror passes the refusal on before a handshake."""
        try:
            with other, ExitStack() as probe:
                probe.callback(Peer.dial(("10.7.3.2", 0), ("10.7.3.1", PORT)).close)
        except ConnectionRefusedError:
            return True
        return False

    wait_until(is_mirrored, "the interface to be mirrored")


def test_interfaces_not_named_are_served_by_the_splice_engine(
    site: Site, runs: Runs, ends: ExitStack, namespace: Callable[[str], Namespace]
) -> None:
    other = namespace("other")
    join(other, "v0", site.host, "v1")
    other.ip("address add 10.7.3.2/24 dev v0")
    site.host.ip("address add 10.7.3.1/24 dev v1")
    runs.start("--interface", "v0", MAPPING)
    with pytest.raises(ConnectionRefusedError):  # the service's own answer to the SYN
        dial(site, ends).expect_rst()
    with other:
        peer = Peer.dial(("10.7.3.2", 0), ("10.7.3.1", PORT))  # a handshake, and then a reset
    ends.callback(peer.close)
    peer.expect_rst()


# --- which engine ---------------------------------------------------------------------------------


def test_auto_takes_the_mirror_and_says_so(site: Site, tmp_path: Path) -> None:
    with site.host:
        command = Command(tmp_path / "log", "--engine", "auto", MAPPING)
    assert command.stop() == 0
    assert "info: engine auto: mirror on v0 (tcx)" in command.output()
    assert re.search(r"ready: .*\(mirror engine on v0 \(tcx\)", command.output())


def test_auto_takes_splice_without_the_privilege_and_says_why(site: Site, tmp_path: Path) -> None:
    told = run_without_privilege(site, tmp_path, "auto")
    assert "info: engine auto: splice, since the mirror needs CAP_BPF and CAP_NET_ADMIN" in told
    assert "(splice engine" in told


def test_mirror_without_the_privilege_is_one_line_with_the_mend(site: Site, tmp_path: Path) -> None:
    told = run_without_privilege(site, tmp_path, "mirror")
    assert told.count("\n") == 1
    assert "the mirror needs CAP_BPF and CAP_NET_ADMIN" in told


def run_without_privilege(site: Site, folder: Path, engine: str) -> str:
    """What the command says without CAP_BPF; it is stopped after its first lines."""
    if find_program("setpriv") is None:
        pytest.skip("no setpriv here")
    drop = "-bpf,-sys_admin,-net_admin,-perfmon"
    with site.host:
        process = subprocess.Popen(
            ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", "--",
             sys.executable, "-m", "reflector", "--engine", engine, MAPPING],
            stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    assert process.stderr is not None
    told = ""
    for line in process.stderr:
        told += line
        if "ready" in line:
            process.terminate()
            break
    process.stderr.close()
    process.wait(10)
    return told


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--engine", "splice", "--rate", "5"], 2, "--rate: the splice engine has no such thing"),
        (["--interface", "v0"], 2, "--interface: the splice engine has no such thing"),
        (["--engine", "mirror", "--interface", "nope"], 1, "--interface nope: this host has no"),
        (["--engine", "mirror", "--interface", "lo"], 1, "--interface lo: packets of this kind"),
        (["--engine", "mirror", "--bind", "127.0.0.1"], 1, "no interface with an address"),
        (["--engine", "wrong"], 2, "expected one of splice, mirror, auto"),
        (["--rate", "0"], 2, "expected a whole number of connections a second"),
        (["--interface", "a/b"], 2, "expected the name of a network interface"),
    ],
)
def test_wrong_arguments_are_one_line(
    site: Site, arguments: list[str], status: int, told: str
) -> None:
    with site.host:
        done = run_command(*arguments, MAPPING)
    assert done.returncode == status
    assert told in one_line(done.stderr)


def test_mappings_that_return_to_one_port_are_refused_by_name(site: Site) -> None:
    with site.host:
        done = run_command("--engine", "mirror", "10022:22", "10023:22")
    assert done.returncode == 1
    line = one_line(done.stderr)
    assert "mappings 10022:22 and 10023:22 return to the same port" in line


def test_counters_say_what_became_of_checks(lab: Lab, site: Site, ends: ExitStack) -> None:
    service = serve(site, ends)
    with site.host:
        running = reflector.Reflector([MAPPING], engine="mirror")
        running.start()
    try:
        check(site, service)
        service.close()
        with pytest.raises(ConnectionRefusedError):
            dial(site, ends).expect_rst()
        stats = running.stats()
        assert (stats.accepted, stats.mirrored) == (2, 2)
        assert (stats.legs_connected, stats.legs_refused) == (1, 1)
        assert stats.packets_to_service >= 4
        assert stats.bytes_to_peer > 0
    finally:
        running.stop()
    assert running.stats() == stats, "they stay readable"


def test_handshakes_with_the_service_are_timed(site: Site, runs: Runs, ends: ExitStack) -> None:
    service = serve(site, ends)
    command = runs.start("--log-level", "debug", MAPPING)
    for _ in range(640):  # one in 64 is timed
        check(site, service)
    command.stop()
    told = re.search(
        r"handshakes .*: 50 % within [\d,]+ us, 99 % .* us, (\d+) timed", command.output()
    )
    assert told, command.output()
    assert 1 <= int(told[1]) <= 64


def test_connections_of_an_old_splice_engine_go_on_beside_a_new_mirror(
    site: Site, runs: Runs, ends: ExitStack, tmp_path: Path
) -> None:
    service = serve(site, ends)
    with site.host:
        old = Command(tmp_path / "old.log", "--share-ports", MAPPING)
    ends.callback(old.stop)
    client = dial(site, ends)
    accepted = service.accept()
    ends.callback(accepted.close)
    exchange(client, accepted)
    runs.start("--share-ports", MAPPING)
    check(site, service)
    exchange(client, accepted)
    finish(client, accepted)
