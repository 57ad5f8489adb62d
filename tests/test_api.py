"""The Reflector object: life, counters, several at once, threads, forks, and being forgotten."""

import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from cli_support import carried, environment, is_listening
from support.timing import patience, wait_until

import reflector
from reflector import Mapping, Reflector, ReflectorError, StartError, Stats, UsageError


@pytest.fixture
def service() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def to(service: socket.socket) -> str:
    """A mapping at a free port that returns to `service`."""
    return f"127.0.0.1:0:{service.getsockname()[1]}"


def test_connection_is_carried_both_ways_inside_with(service: socket.socket) -> None:
    with (
        Reflector([to(service)]) as running,
        carried(running.ports[0], service) as (peer, accepted),
    ):
        peer.sendall(b"question")
        assert accepted.recv(100) == b"question"
        accepted.sendall(b"answer")
        assert peer.recv(100) == b"answer"
    assert not is_listening(running.ports[0])


def test_ports_and_mappings_are_those_that_were_bound(service: socket.socket) -> None:
    with Reflector([to(service), "127.0.0.1:0"]) as running:
        assert len(set(running.ports)) == 2
        assert 0 not in running.ports
        assert running.mappings == (
            Mapping("127.0.0.1", running.ports[0], service.getsockname()[1]),
            Mapping("127.0.0.1", running.ports[1], running.ports[1]),
        )
        assert str(running.ports[0]) in repr(running)


def test_address_and_return_port_come_from_keywords(service: socket.socket) -> None:
    port = service.getsockname()[1]
    with Reflector("0", bind="127.0.0.1", return_port=port) as running:
        assert running.mappings == (Mapping("127.0.0.1", running.ports[0], port),)


def test_return_leg_leaves_from_the_return_source(service: socket.socket) -> None:
    with (
        Reflector([to(service)], return_source="127.0.0.9") as running,
        carried(running.ports[0], service) as (_, accepted),
    ):
        assert accepted.getpeername()[0] == "127.0.0.9"


def test_stats_have_every_counter_and_stay_after_stop(service: socket.socket) -> None:
    with Reflector([to(service)]) as running:
        with carried(running.ports[0], service) as (peer, accepted):
            peer.sendall(b"12345")
            assert accepted.recv(100) == b"12345"
        wait_until(lambda: running.stats().active == 0, "the connection to end")
    stats = running.stats()
    assert isinstance(stats, Stats)
    assert (stats.accepted, stats.legs_connected, stats.bytes_to_service) == (1, 1, 5)
    assert stats.as_dict()["accepted"] == 1
    assert all(type(value) is int for value in stats.as_dict().values())


def test_drain_waits_for_a_running_connection(service: socket.socket) -> None:
    running = Reflector([to(service)])
    running.start()
    with carried(running.ports[0], service) as (peer, accepted):
        ended: list[bool] = []
        drain = threading.Thread(target=lambda: ended.append(running.drain(patience(10))))
        drain.start()
        wait_until(lambda: not is_listening(running.ports[0]), "the listener to close")
        accepted.sendall(b"the end")
        accepted.close()
        assert peer.recv(100) == b"the end"
        assert peer.recv(100) == b""
        peer.close()
        drain.join()
    assert ended == [True]


def test_drain_resets_what_is_left_after_its_time(service: socket.socket) -> None:
    with Reflector([to(service)]) as running, carried(running.ports[0], service) as (peer, _):
        assert not running.drain(0.05)
        with pytest.raises(ConnectionResetError):
            peer.recv(100)
    assert running.stats().closed_stopped == 1


def test_drain_of_no_connection_is_done_at_once() -> None:
    with Reflector("127.0.0.1:0:9") as running:
        assert running.drain(30)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "soon"])
def test_drain_for_a_time_that_is_none_changes_nothing(timeout: float) -> None:
    with Reflector("127.0.0.1:0:9") as running:
        with pytest.raises(UsageError):
            running.drain(timeout)
        assert is_listening(running.ports[0])


def test_stop_from_another_thread_cuts_a_drain_short(service: socket.socket) -> None:
    with Reflector([to(service)]) as running, carried(running.ports[0], service):
        ended: list[bool] = []
        drain = threading.Thread(target=lambda: ended.append(running.drain(600)))
        drain.start()
        wait_until(lambda: not is_listening(running.ports[0]), "the listener to close")
        running.stop()
        drain.join(patience(5))
    assert ended == [False]


def test_stop_may_be_called_again_and_by_many_threads() -> None:
    with Reflector("127.0.0.1:0:9") as running:
        threads = [threading.Thread(target=running.stop) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        running.stop()


def test_stop_before_start_is_nothing() -> None:
    Reflector("127.0.0.1:0:9").stop()


def test_reflector_starts_once() -> None:
    with Reflector("127.0.0.1:0:9") as running, pytest.raises(ReflectorError, match="starts once"):
        running.start()
    with pytest.raises(ReflectorError, match="starts once"):
        running.start()


def test_what_needs_a_start_says_so() -> None:
    waiting = Reflector("127.0.0.1:0:9")
    assert waiting.mappings == (Mapping("127.0.0.1", 0, 9),)
    for call in (lambda: waiting.ports, waiting.stats, lambda: waiting.drain(1)):
        with pytest.raises(ReflectorError, match="not started"):
            call()


def test_several_reflectors_run_in_one_process(service: socket.socket) -> None:
    with Reflector([to(service)]) as one, Reflector([to(service)], workers=1) as other:
        for running in (one, other):
            with carried(running.ports[0], service) as (peer, accepted):
                peer.sendall(b"x")
                assert accepted.recv(1) == b"x"
        assert one.stats().accepted == other.stats().accepted == 1


def test_forgotten_reflector_stops_when_it_is_collected() -> None:
    running = Reflector("127.0.0.1:0:9")
    running.start()
    port = running.ports[0]
    del running
    gc.collect()
    assert not is_listening(port)


def test_forgotten_reflector_does_not_keep_python_from_ending() -> None:
    program = (
        "import reflector\n"
        "running = reflector.Reflector('127.0.0.1:0:9')\n"
        "running.start()\n"
        "print(running.ports[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=patience(20),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_listening(int(done.stdout))


def test_forked_child_that_leaves_with_does_not_hang_or_stop_the_parent() -> None:
    with Reflector("127.0.0.1:0:9") as running:
        child = os.fork()
        if child == 0:
            running.stop()
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert is_listening(running.ports[0])


def test_port_that_is_taken_fails_with_the_mend(service: socket.socket) -> None:
    port = service.getsockname()[1]
    with pytest.raises(StartError, match=f"port {port} is taken") as caught:
        Reflector(["127.0.0.1:0:9", f"127.0.0.1:{port}:9"]).start()
    assert caught.value.errno is not None
    assert "ss -ltnp" in str(caught.value)


def test_failed_start_leaves_nothing_bound(service: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserve:
        free = reserve.getsockname()[1]
    taken = service.getsockname()[1]
    with pytest.raises(StartError):
        Reflector([f"127.0.0.1:{free}:9", f"127.0.0.1:{taken}:9"]).start()
    assert not is_listening(free)


def test_wrong_arguments_are_refused_before_anything_is_bound() -> None:
    with pytest.raises(UsageError, match="max_per_source=0"):
        Reflector("127.0.0.1:0:9", max_per_source=0)
    with pytest.raises(ValueError, match="clash"):
        Reflector(["10022:22", "10022:23"])


def test_package_tells_its_names_and_version() -> None:
    assert set(reflector.__all__) <= set(dir(reflector))
    assert reflector.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'Mirror'"):
        _ = reflector.Mirror
