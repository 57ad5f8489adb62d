"""Real programs on both sides: OpenSSH, web servers, curl."""

import getpass
import hashlib
import os
import pwd
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.lab import NODE, REFLECTOR, Lab, Running
from support.programs import Program, Sshd, find_program, run
from support.timing import MB, scaled


def has_account() -> bool:
    """Whether the user of the test is one that sshd can log in."""
    try:
        shell = pwd.getpwuid(os.geteuid()).pw_shell
    except KeyError:
        return False
    return not shell.endswith(("nologin", "false"))


MISSING = {name: find_program(name) is None for name in ("sshd", "ssh", "scp", "curl", "nginx")}
needs_ssh = pytest.mark.skipif(
    MISSING["sshd"] or MISSING["ssh"] or MISSING["scp"] or not has_account(),
    reason="no sshd, ssh or scp here, or no account for this user",
)
needs_curl = pytest.mark.skipif(MISSING["curl"], reason="no curl here")
needs_nginx = pytest.mark.skipif(MISSING["nginx"] or MISSING["curl"], reason="no nginx or curl")

HTTP_SERVER = """
import functools, http.server, sys
handler = http.server.SimpleHTTPRequestHandler
handler.protocol_version = "HTTP/1.1"  # keep-alive
handler = functools.partial(handler, directory=sys.argv[3])
server = http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), handler)
print("serving", flush=True)
server.serve_forever()
"""

NGINX = """
daemon off; master_process off; user root; worker_processes 1;
pid {folder}/nginx.pid; error_log stderr notice;
events {{ worker_connections 256; }}
http {{
    access_log off; sendfile on; client_max_body_size 1g;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{
        listen {address}:{port};
        root {folder}/www;
        location /whoami {{ return 200 "$remote_addr $server_addr\\n"; }}
    }}
}}
"""


def free_port() -> int:
    """A port that is free on the node's address right now."""
    with socket.socket() as sock:
        sock.bind((NODE, 0))
        return int(sock.getsockname()[1])


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def random_file(path: Path, size: int) -> Path:
    path.write_bytes(random.Random(size).randbytes(size))
    return path


# --- OpenSSH ---


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"), NODE, free_port())
    yield server
    server.stop()


@pytest.fixture
def ssh_path(lab: Lab, sshd: Sshd) -> Running:
    return lab.reflector(f"{REFLECTOR}:0:{sshd.port}")


def login() -> str:
    return f"{getpass.getuser()}@{REFLECTOR}"


@needs_ssh
def test_ssh_login_runs_a_command(sshd: Sshd, ssh_path: Running) -> None:
    options = sshd.options("-p", ssh_path.port, NODE)
    done = run("ssh", *options, login(), "echo through; echo $SSH_CONNECTION")
    said, connection = done.stdout.splitlines()
    assert said == "through"
    client, _, server, port = connection.split()
    assert (client, server, int(port)) == (REFLECTOR, NODE, sshd.port)
    ssh_path.wait_count("closed_finished", 1)


@needs_ssh
def test_ssh_carries_much_output_and_input(sshd: Sshd, ssh_path: Running) -> None:
    options = sshd.options("-p", ssh_path.port, NODE)
    done = run("ssh", *options, login(), f"head -c {5 * MB} /dev/zero | tr '\\0' x")
    assert done.stdout == "x" * (5 * MB)


@needs_ssh
@pytest.mark.parametrize("direction", ["to the node", "from the node"])
def test_scp_of_two_hundred_megabytes(
    sshd: Sshd, ssh_path: Running, tmp_path: Path, direction: str
) -> None:
    size = scaled(200 * MB)
    original, copy = random_file(tmp_path / "original", size), tmp_path / "copy"
    options = sshd.options("-P", ssh_path.port, NODE)
    if direction == "to the node":
        run("scp", *options, str(original), f"{login()}:{copy}", seconds=120)
    else:
        run("scp", *options, f"{login()}:{original}", str(copy), seconds=120)
    assert digest(copy) == digest(original)
    counter = "bytes_to_service" if direction == "to the node" else "bytes_to_peer"
    assert ssh_path.count(counter) > size
    assert ssh_path.count("bytes_spliced") > size // 2


@needs_ssh
def test_ssh_fails_at_once_where_no_sshd_runs(sshd: Sshd, lab: Lab) -> None:
    running = lab.reflector(f"{REFLECTOR}:0:{free_port()}")
    options = sshd.options("-p", running.port, NODE)
    done = run("ssh", *options, login(), "true", check=False)
    assert done.returncode == 255
    running.wait_count("legs_refused", 1)


# --- the web ---


@pytest.fixture
def web(lab: Lab, tmp_path: Path) -> Iterator[tuple[Running, Path]]:
    """Python's own web server with keep-alive on the node; the reflector, and the root folder."""
    port, root = free_port(), tmp_path / "www"
    root.mkdir()
    command = [sys.executable, "-c", HTTP_SERVER, NODE, str(port), str(root)]
    server = Program(command, tmp_path / "http.log")
    server.wait_output("serving")
    yield lab.reflector(f"{REFLECTOR}:0:{port}"), root
    server.end()


@pytest.fixture
def nginx(lab: Lab, tmp_path: Path) -> Iterator[tuple[Running, Path]]:
    """nginx on the node; the reflector, and the root folder."""
    port, root = free_port(), tmp_path / "www"
    root.mkdir()
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(folder=tmp_path, address=NODE, port=port))
    binary = find_program("nginx")
    assert binary
    server = Program([binary, "-p", str(tmp_path), "-c", str(config)], tmp_path / "nginx.log")
    server.wait_output("start|using the")
    yield lab.reflector(f"{REFLECTOR}:0:{port}"), root
    server.end()


def curl(*arguments: str) -> str:
    """curl from the node's address; its output."""
    return run("curl", "-sS", "--fail", "--noproxy", "*", "--interface", NODE, *arguments).stdout


def fetch_each(running: Running, root: Path) -> None:
    """Several files in one connection, each as it is on disk, then one large one."""
    sizes = [0, 10, 5000, 100_000, 3 * MB]
    arguments = []
    for size in sizes:
        random_file(root / f"file{size}", size)
        url = f"http://{REFLECTOR}:{running.port}/file{size}"
        arguments += ["-o", str(root / f"got{size}"), url]
    connects = curl("-w", "%{num_connects}\n", *arguments).split()
    assert connects == ["1", "0", "0", "0", "0"]  # keep-alive: one connection carried them all
    for size in sizes:
        assert digest(root / f"got{size}") == digest(root / f"file{size}")
    assert running.count("accepted") == 1
    running.wait_idle()


@needs_curl
def test_http_keep_alive_with_curl(web: tuple[Running, Path]) -> None:
    fetch_each(*web)


@needs_curl
def test_http_fails_at_once_where_no_server_runs(lab: Lab) -> None:
    running = lab.reflector(f"{REFLECTOR}:0:{free_port()}")
    url = f"http://{REFLECTOR}:{running.port}/"
    done = run("curl", "-sS", "--noproxy", "*", "--interface", NODE, url, check=False)
    assert done.returncode in (7, 56), done.stderr  # reset while connecting, or right after


@needs_nginx
def test_nginx_keep_alive_with_curl(nginx: tuple[Running, Path]) -> None:
    fetch_each(*nginx)


@needs_nginx
def test_nginx_sees_the_reflectors_address(nginx: tuple[Running, Path]) -> None:
    running, _ = nginx
    assert curl(f"http://{REFLECTOR}:{running.port}/whoami").split() == [REFLECTOR, NODE]


@needs_nginx
def test_nginx_serves_a_large_file_to_several_at_once(nginx: tuple[Running, Path]) -> None:
    running, root = nginx
    original = random_file(root / "large", scaled(50 * MB))
    url = f"http://{REFLECTOR}:{running.port}/large"
    wanted = [item for number in range(4) for item in ("-o", str(root / f"got{number}"), url)]
    curl("--parallel", "--parallel-immediate", *wanted)
    for number in range(4):
        assert digest(root / f"got{number}") == digest(original)
