"""Health checks of a real Consul agent through a reflector: which ones tell the truth.

Needs a consul binary; REFLECTOR_TEST_FETCH=1 lets the test fetch one with apt.
"""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.consul import Consul, why_no_consul
from support.lab import REFLECTOR, Lab
from support.namespaces import Namespace
from support.peer import Peer, Service

NODE = "127.0.0.1"  # where an agent's checks come from
HTTP_PORT, SSH_PORT = 7080, 7022
HTTP_LISTEN, SSH_LISTEN = 17080, 17022

pytestmark = pytest.mark.skipif(bool(why_no_consul()), reason=why_no_consul() or "none")


def answer_http(peer: Peer) -> None:
    peer.receive(4096)
    peer.send(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")


def answer_ssh(peer: Peer) -> None:
    peer.send(b"SSH-2.0-test\r\n")


class Answering:
    """A service that answers each connection in a thread, until it is taken down."""

    def __init__(self, port: int, answer: Callable[[Peer], None]) -> None:
        self.service = Service(NODE, port)
        self._answer = answer
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer = self.service.accept(wait=600)
                self._answer(peer)
                peer.close()
            except (OSError, AssertionError):
                if self.service.sock.fileno() < 0:
                    return

    def take_down(self) -> None:
        self.service.close()
        self._thread.join()


@pytest.fixture
def agent(lab: Lab, namespace: Callable[[str], Namespace], tmp_path: Path) -> Iterator[Consul]:
    """An agent whose checks all go through one reflector; no service runs yet."""
    bash = shutil.which("bash")
    read_banner = (  # exit 1 would be but a warning to Consul
        f"exec 3<>/dev/tcp/{REFLECTOR}/{SSH_LISTEN} || exit 2;"
        " read -t 2 -u 3 banner && [[ $banner == SSH-* ]] && echo $banner || exit 2"
    )
    every = {"interval": "1s", "timeout": "2s"}
    checks = [
        {"id": "http", "name": "http", "http": f"http://{REFLECTOR}:{HTTP_LISTEN}/", **every},
        {"id": "script", "name": "script", "args": [bash, "-c", read_banner], **every},
        {"id": "tcp", "name": "tcp", "tcp": f"{REFLECTOR}:{SSH_LISTEN}", **every},
    ]
    alone = namespace("alone")
    with alone:
        lab.reflector(
            f"{REFLECTOR}:{HTTP_LISTEN}:{HTTP_PORT}", f"{REFLECTOR}:{SSH_LISTEN}:{SSH_PORT}"
        )
        consul = Consul(tmp_path, checks)
        try:
            yield consul
        finally:
            consul.stop()


def test_checks_that_read_tell_whether_the_service_runs(agent: Consul) -> None:
    for name in ("http", "script"):
        agent.wait_output(name)
        assert agent.status(name) == "critical"
    services = [Answering(HTTP_PORT, answer_http), Answering(SSH_PORT, answer_ssh)]
    try:
        for name in ("http", "script"):
            agent.wait_status(name, "passing")
    finally:
        for service in services:
            service.take_down()
    for name in ("http", "script"):
        agent.wait_status(name, "critical")


def test_known_limit_a_plain_tcp_check_passes_while_the_service_is_down(agent: Consul) -> None:
    """The kernel completes the handshake before any user-space proxy knows of it. The README says
    so; should this ever fail, the engine became more honest than TCP allows."""
    agent.wait_status("tcp", "passing")
