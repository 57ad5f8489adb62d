"""A foreground run: ready line, signals, drain, systemd, and what is logged."""

import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_support import COMMAND, Foreground, carried, environment, is_listening
from support.timing import patience, wait_until

Start = Callable[..., Foreground]


@pytest.fixture
def service() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def start(service: socket.socket, tmp_path: Path) -> Iterator[Start]:
    """Starts the command with a mapping that returns to `service`."""
    started: list[Foreground] = []

    def start(*options: str, **more: str) -> Foreground:
        mapping = f"127.0.0.1:0:{service.getsockname()[1]}"
        log = tmp_path / f"log{len(started)}"
        started.append(Foreground(log, *options, mapping, **more))
        started[-1].wait_ready()
        return started[-1]

    yield start
    for running in started:
        running.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_an_idle_run_at_once_with_0(start: Start, number: signal.Signals) -> None:
    running = start()
    time.sleep(0.1)
    began = time.monotonic()
    running.signal(number)
    assert running.wait() == 0
    assert time.monotonic() - began < patience(0.8)  # it looks at its counters every second
    assert running.output().splitlines()[1:] == [
        "reflector: info: stopped: 0 connections accepted, 0 returned, 0 bytes carried"
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_connection_finishes_after_the_signal(
    start: Start, service: socket.socket, number: signal.Signals
) -> None:
    running = start()
    with carried(running.ports[0], service) as (peer, accepted):
        running.signal(number)
        running.wait_for(f"{number.name}: no longer accepting; 1 connection may end within 30s")
        wait_until(lambda: not is_listening(running.ports[0]), "the listener to close")
        peer.sendall(b"still here")
        assert accepted.recv(100) == b"still here"
        accepted.sendall(b"so am I")
        accepted.close()
        assert peer.recv(100) == b"so am I"
        assert peer.recv(100) == b""
        assert running.process.poll() is None
    assert running.wait() == 0
    assert "reset" not in running.lines("stopped")[0]


def test_connection_left_at_the_drain_timeout_is_reset(
    start: Start, service: socket.socket
) -> None:
    running = start("--drain-timeout", "300ms")
    with carried(running.ports[0], service) as (peer, accepted):
        began = time.monotonic()
        running.signal(signal.SIGTERM)
        for end in (peer, accepted):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        assert time.monotonic() - began >= 0.3
    assert running.wait() == 0
    assert running.lines("drain timeout: 1 connection reset")


def test_drain_timeout_of_zero_resets_at_once(start: Start, service: socket.socket) -> None:
    running = start("--drain-timeout", "0")
    with carried(running.ports[0], service) as (peer, _):
        running.signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    assert running.wait() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_it_now(
    start: Start, service: socket.socket, second: signal.Signals
) -> None:
    running = start()
    with carried(running.ports[0], service) as (peer, _):
        running.signal(signal.SIGTERM)
        running.wait_for("no longer accepting")
        began = time.monotonic()
        running.signal(second)
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
        assert running.wait() == 0
        assert time.monotonic() - began < patience(5)
    assert running.lines("second signal: 1 connection reset")


def test_hangup_is_told_and_all_goes_on(start: Start, service: socket.socket) -> None:
    running = start()
    with carried(running.ports[0], service) as (peer, accepted):
        running.signal(signal.SIGHUP)
        running.wait_for("SIGHUP: there is no configuration file to reload")
        peer.sendall(b"x")
        assert accepted.recv(1) == b"x"
        running.signal(signal.SIGTERM)
        running.wait_for("no longer accepting")
        running.signal(signal.SIGHUP)
        wait_until(lambda: len(running.lines("SIGHUP")) == 2, "the second SIGHUP to be told")
        accepted.sendall(b"y")
        assert peer.recv(1) == b"y"
    assert running.wait() == 0


def test_run_waits_without_waking_up(start: Start) -> None:
    running = start()
    status = Path(f"/proc/{running.process.pid}/status")

    def switches() -> int:
        found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status.read_text(), re.MULTILINE)
        assert found
        return int(found[1])

    before = switches()
    time.sleep(2)
    assert switches() - before <= 5


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_of_the_start_and_the_stop(
    start: Start, tmp_path: Path, abstract: bool
) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(patience(10))
        manager.bind("\0" + path if abstract else path)
        running = start(NOTIFY_SOCKET="@" + path if abstract else path)
        assert manager.recv(1000).startswith(b"READY=1\nSTATUS=127.0.0.1:")
        running.signal(signal.SIGTERM)
        assert manager.recv(1000) == b"STOPPING=1"
    assert running.wait() == 0


@pytest.mark.parametrize("address", ["/nowhere/at/all", "@nobody", "relative", "vsock:1"])
def test_service_manager_that_is_not_there_is_passed_over(start: Start, address: str) -> None:
    running = start(NOTIFY_SOCKET=address)
    running.signal(signal.SIGTERM)
    assert running.wait() == 0


def test_mapping_that_would_loop_on_this_host_is_noted(tmp_path: Path) -> None:
    running = Foreground(tmp_path / "log", "127.0.0.1:0", "127.0.0.1:0:9")
    try:
        own, other = running.ports
        running.wait_for(f"127.0.0.1:{own} returns to a reflecting port")
        assert not running.lines(f"{other} returns")
    finally:
        running.close()


def test_what_was_refused_is_logged_once_a_second_with_the_mend(
    start: Start, service: socket.socket
) -> None:
    running = start("--max-per-source", "1")
    resets = 0
    with carried(running.ports[0], service):
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            resets += was_reset(running.ports[0])
            time.sleep(0.01)
        wait_until(lambda: logged_resets(running) == resets, "all resets to be logged")
    assert 2 <= len(running.lines("warning: last second")) <= 4
    assert all("--max-per-source" in line for line in running.lines("warning: "))


def test_wait_at_the_connection_limit_is_logged_with_the_mend(
    start: Start, service: socket.socket
) -> None:
    running = start("--max-connections", "1", "--workers", "1")
    with (
        carried(running.ports[0], service),
        socket.create_connection(("127.0.0.1", running.ports[0]), patience(5)),
    ):
        running.wait_for("at 1 connection, new ones wait (--max-connections)")


def test_loop_is_logged_with_the_reason(tmp_path: Path) -> None:
    running = Foreground(tmp_path / "log", "127.0.0.1:0")
    try:
        assert was_reset(running.ports[0])
        running.wait_for("1 connection reset as a loop")
    finally:
        running.close()


def test_error_level_leaves_the_ready_line_alone(start: Start, service: socket.socket) -> None:
    running = start("--log-level", "error")
    running.signal(signal.SIGHUP)
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert running.output() == running.wait_ready() + "\n"


def test_debug_level_tells_of_ordinary_traffic(start: Start, service: socket.socket) -> None:
    running = start("--log-level", "DEBUG")
    with carried(running.ports[0], service):
        running.wait_for("reflector: debug: last second: 1 accepted, 1 running")


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_run_without_standard_streams_keeps_the_connections_clean(
    service: socket.socket, closed: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserve:
        port = reserve.getsockname()[1]
    mapping = f"127.0.0.1:{port}:{service.getsockname()[1]}"
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "--max-per-source", "1", mapping],
        env=environment(),
    )
    try:
        wait_until(lambda: is_listening(port), "the listener")
        with carried(port, service) as (peer, accepted):
            assert was_reset(port)
            process.send_signal(signal.SIGHUP)
            time.sleep(1.2)  # a line about the reset would be written meanwhile
            accepted.sendall(b"clean")
            accepted.close()
            assert peer.recv(100) == b"clean"
            assert peer.recv(100) == b""
        process.terminate()
        assert process.wait(patience(10)) == 0
    finally:
        process.kill()
        process.wait()


def test_reader_of_stderr_that_leaves_is_no_error(service: socket.socket) -> None:
    process = subprocess.Popen(
        [*COMMAND, f"127.0.0.1:0:{service.getsockname()[1]}"],
        stderr=subprocess.PIPE,
        env=environment(),
    )
    try:
        assert process.stderr
        assert b"ready" in process.stderr.readline()
        process.stderr.close()
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        process.terminate()
        assert process.wait(patience(10)) == 0
    finally:
        process.kill()
        process.wait()


def was_reset(port: int) -> bool:
    """Connect, and tell whether the answer was a reset."""
    try:
        with socket.create_connection(("127.0.0.1", port), patience(5)) as peer:
            peer.recv(1)
    except ConnectionResetError:
        return True
    return False


def logged_resets(running: Foreground) -> int:
    counts = re.findall(r"last second: ([\d,]+) connections? reset", running.output())
    return sum(int(count.replace(",", "")) for count in counts)
