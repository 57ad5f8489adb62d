"""Idle and half-close time-outs: never early, put off by every byte, a reset on both sides."""

import select
import time

import pytest
from support.bulk import Pump, pattern
from support.lab import Lab, exchange
from support.peer import Ending, Peer
from support.timing import MB, patience

SIDES = ["client", "service"]


def reset_times(peers: list[Peer], seconds: float) -> dict[int, float]:
    """When each peer (by its place in the list) saw the end of its connection."""
    poll = select.poll()
    places = {}
    for place, peer in enumerate(peers):
        poll.register(peer.sock, select.POLLRDHUP)
        places[peer.sock.fileno()] = place
    seen: dict[int, float] = {}
    deadline = time.monotonic() + seconds
    while len(seen) < len(peers) and time.monotonic() < deadline:
        for descriptor, _ in poll.poll(100):
            seen[places[descriptor]] = time.monotonic()
            poll.unregister(descriptor)
    return seen


def test_idle_connection_is_reset_on_both_sides(lab: Lab) -> None:
    path = lab.path(idle_timeout=0.5)
    client, service = path.connect()
    began = time.monotonic()
    exchange(client, service)
    client.expect_rst()
    assert time.monotonic() - began >= 0.5
    service.expect_rst()
    path.running.wait_count("closed_idle", 1)


def test_connection_without_any_byte_is_idle(lab: Lab) -> None:
    path = lab.path(idle_timeout=0.4)
    client, service = path.connect()
    client.expect_rst()
    service.expect_rst()
    path.running.wait_count("closed_idle", 1)


def test_idle_timeout_is_never_early(lab: Lab) -> None:
    idle = patience(1.2)
    path = lab.path(idle_timeout=idle, workers=1)
    pairs, touched = [path.connect() for _ in range(30)], []
    for number, pair in enumerate(pairs):
        sender, receiver = pair if number % 2 else pair[::-1]
        time.sleep(0.01)
        touched.append(time.monotonic())
        sender.send(b"x")
        receiver.expect(b"x")
    seen = reset_times([client for client, _ in pairs], patience(10))
    assert len(seen) == len(pairs)
    for place, when in seen.items():
        assert when - touched[place] >= idle


@pytest.mark.parametrize("side", SIDES)
def test_activity_in_one_direction_keeps_a_connection_alive(lab: Lab, side: str) -> None:
    path = lab.path(idle_timeout=patience(0.8))
    client, service = path.connect()
    sender, receiver = (client, service) if side == "client" else (service, client)
    for _ in range(10):
        time.sleep(patience(0.2))
        sender.send(b"x")
        receiver.expect(b"x")
    assert path.count("closed_idle") == 0
    exchange(client, service)


def test_activity_of_one_connection_does_not_keep_another_alive(lab: Lab) -> None:
    path = lab.path(idle_timeout=patience(0.8), workers=1)
    quiet, quiet_service = path.connect()
    client, service = path.connect()
    for _ in range(12):
        time.sleep(patience(0.15))
        exchange(client, service)
    quiet.expect_rst()
    quiet_service.expect_rst()
    exchange(client, service)


def test_stalled_reader_is_idle_once_nothing_moves(lab: Lab) -> None:
    path = lab.path(idle_timeout=patience(1.0))
    client, service = path.connect()
    data = pattern(50 * MB)
    sent = service.send_until_full(data, quiet_s=0.1)
    service.expect_rst()
    seen = client.read_to_end()
    assert seen.ending is Ending.RST
    assert len(seen.data) <= sent
    assert seen.data == data[: len(seen.data)]
    path.running.wait_count("closed_idle", 1)


def test_slow_reader_is_not_idle(lab: Lab) -> None:
    path = lab.path(idle_timeout=patience(0.6), receive_buffer=4096)
    client, service = path.connect()
    data = pattern(6 * MB)
    with Pump(client.send, data):
        got, end = b"", time.monotonic() + patience(1.8)
        while time.monotonic() < end:
            got += service.read(40_000)
            time.sleep(patience(0.05))
        got += service.read(len(data) - len(got))
    assert got == data
    exchange(client, service)


@pytest.mark.parametrize("first", SIDES)
def test_half_closed_connection_without_activity_is_reset(lab: Lab, first: str) -> None:
    path = lab.path(half_close_timeout=0.5)
    client, service = path.connect()
    one, other = (client, service) if first == "client" else (service, client)
    exchange(one, other)
    began = time.monotonic()
    one.fin()
    other.expect_fin()
    one.expect_rst()
    assert time.monotonic() - began >= 0.5
    other.expect_rst_after_fin()
    path.running.wait_count("closed_half_close", 1)


@pytest.mark.parametrize("first", SIDES)
def test_activity_keeps_a_half_closed_connection_alive(lab: Lab, first: str) -> None:
    path = lab.path(half_close_timeout=patience(0.8))
    client, service = path.connect()
    one, other = (client, service) if first == "client" else (service, client)
    one.fin()
    other.expect_fin()
    for _ in range(10):
        time.sleep(patience(0.2))
        other.send(b"x")
        one.expect(b"x")
    other.fin()
    one.expect_fin()
    path.running.wait_count("closed_finished", 1)


def test_half_close_timeout_leaves_open_connections_alone(lab: Lab) -> None:
    path = lab.path(half_close_timeout=0.2)
    client, service = path.connect()
    client.expect_silence(1.0)
    exchange(client, service)


def test_idle_timeout_leaves_half_closed_connections_alone(lab: Lab) -> None:
    path = lab.path(idle_timeout=0.3, half_close_timeout=60.0)
    client, service = path.connect()
    client.fin()
    service.expect_fin()
    client.expect_silence(1.0)
    service.send(b"at last")
    service.fin()
    client.expect_fin(before=b"at last")
    path.running.wait_count("closed_finished", 1)
