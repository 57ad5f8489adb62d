"""A reflector inside a larger program: several at once, forks, child processes, and no growth."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.bulk import Pump
from support.lab import NODE, REFLECTOR, Lab, exchange, finish
from support.leaks import assert_back_to, descriptors, holdings, memory_bytes, under_sanitizer
from support.peer import Peer, Service
from support.programs import ROOT
from support.timing import MB, patience, scaled


def test_several_reflectors_run_side_by_side(lab: Lab) -> None:
    paths = [lab.path(workers=2) for _ in range(4)]
    pairs = [path.connect() for path in paths]
    for pair in pairs:
        exchange(*pair)
    for path, pair in zip(paths, pairs, strict=True):
        finish(*pair)
        path.running.wait_count("closed_finished", 1)
        assert path.count("accepted") == 1


def test_stopping_one_reflector_leaves_another_alone(lab: Lab) -> None:
    one, other = lab.path(), lab.path()
    one_pair, other_pair = one.connect(), other.connect()
    one.running.reflector.stop()
    one_pair[0].expect_rst()
    exchange(*other_pair)
    with pytest.raises(ConnectionRefusedError):
        one.dial()
    lab.serve(REFLECTOR, one.running.port)  # the port is free although the other one runs
    exchange(*other.connect())


def test_a_reflector_started_later_holds_nothing_of_the_first(lab: Lab) -> None:
    """Its workers' descriptor tables began as copies: neither listeners nor peers stay in them."""
    first = lab.path()
    client, service = first.connect()
    second = lab.path()
    client.close()
    service.expect_fin()
    service.close()
    first.running.wait_idle()
    first.running.reflector.stop()
    with pytest.raises(ConnectionRefusedError):
        first.dial()
    exchange(*second.connect())


def test_descriptors_opened_before_the_start_are_not_kept_open(lab: Lab) -> None:
    plain = Service(NODE)
    client = Peer.dial((NODE, 0), (NODE, plain.port))
    accepted = plain.accept()
    reading, writing = os.pipe()
    lab.path(workers=2)
    client.close()
    accepted.expect_fin()
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)
    plain.close()
    with pytest.raises(ConnectionRefusedError):
        Peer.dial((NODE, 0), (NODE, plain.port))


def test_starting_and_stopping_leaks_nothing(engine: Callable[..., Any]) -> None:
    def once() -> None:
        service = Service(NODE)
        running = engine([f"{REFLECTOR}:0:{service.port}"], workers=2)
        client = Peer.dial((NODE, 0), (REFLECTOR, running.ports[0]))
        exchange(client, service.accept())
        running.stop()
        client.close()
        service.close()

    before = holdings()
    once()
    assert_back_to(before)
    memory = memory_bytes()
    for _ in range(scaled(50, 10)):
        once()
    assert_back_to(before)
    if not under_sanitizer():
        assert memory_bytes() - memory < 2 * MB


@pytest.mark.skipif(under_sanitizer(), reason="a sanitizer's memory is not the reflector's")
def test_memory_does_not_grow_with_the_number_of_connections(lab: Lab) -> None:
    path = lab.path(workers=2, max_per_source=5000)
    rounds, checks, held = 5, 1500, 300

    def serve() -> None:
        for _ in range(checks):
            peer = path.service.accept()
            peer.send(b"SSH-2.0-test\r\n")
            peer.close()
            path.service.accepted.clear()

    def one_round() -> None:
        with Pump(serve):
            for start in range(0, checks, held):
                clients = [path.dial() for _ in range(held)]
                for client in clients:
                    client.expect_fin(before=b"SSH-2.0-test\r\n")
                    client.close()
                lab.peers.clear()
                assert path.count("accepted") > start
        path.running.wait_idle()

    for _ in range(2):
        one_round()
    before = memory_bytes()
    for _ in range(rounds):
        one_round()
    assert memory_bytes() - before < 1 * MB
    path.running.wait_count("closed_finished", (rounds + 2) * checks)


def test_child_process_does_not_hold_connections_open(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    exchange(client, service)
    for peer in (client, service):  # the test's own ends must not be what is inherited
        assert not os.get_inheritable(peer.sock.fileno())
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        wait_for_exec(child.pid)
        inherited = set(descriptors(child.pid).values())
        own = {link for number, link in descriptors().items() if number > 2 and "socket" in link}
        assert own
        assert not own & inherited
        exchange(client, service)
        finish(client, service)
        path.running.wait_count("closed_finished", 1)
        path.running.reflector.stop()
        with pytest.raises(ConnectionRefusedError):
            path.dial()
    finally:
        child.kill()
        child.wait()


def wait_for_exec(pid: int) -> None:
    """Popen returns after the exec, or never; only make sure that it is the program's image."""
    deadline = time.monotonic() + patience(5)
    while "sleep" not in os.readlink(f"/proc/{pid}/exe") and time.monotonic() < deadline:
        time.sleep(0.01)


FORK_SCRIPT = """
import gc, os, signal, socket, sys
import reflector

signal.alarm({seconds})
service = socket.create_server(("{node}", 0))
mapping = "{target}:0:%d" % service.getsockname()[1]
running = reflector.Reflector([mapping])
running.start()
client = socket.create_connection(("{target}", running.ports[0]), source_address=("{node}", 0))
accepted, _ = service.accept()

def exchange():
    client.sendall(b"ping")
    assert accepted.recv(4) == b"ping"
    accepted.sendall(b"pong")
    assert client.recv(4) == b"pong"

exchange()
child = os.fork()
if child == 0:
    {child}
    sys.exit(0)  # all of Python's own end, with its finalizers
_, status = os.waitpid(child, 0)
assert status == 0, status
exchange()
assert running.stats().active == 1
client.shutdown(socket.SHUT_WR)
assert accepted.recv(1) == b""
accepted.close()
assert client.recv(1) == b""
assert running.drain(20) is True
print("parent is well")
"""


@pytest.mark.parametrize(
    "child",
    [
        "pass",
        "del running; gc.collect()",
        "running.stop()",
        "running.stats()",
        "second = reflector.Reflector([mapping]); second.start(); second.stop()",
    ],
    ids=["exits", "collects", "stops", "counts", "starts-its-own"],
)
def test_forked_child_leaves_the_parent_alone(child: str) -> None:
    script = FORK_SCRIPT.format(child=child, node=NODE, target=REFLECTOR, seconds=int(patience(20)))
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=patience(30),
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "parent is well\n"), done.stderr
