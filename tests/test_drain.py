"""The end: draining lets running connections finish, stopping resets them, ports come free."""

import time
from collections.abc import Callable

import pytest
from support.bulk import Pump, pattern, read_digest, send_pattern
from support.lab import NODE, REFLECTOR, Lab, Path, exchange, finish
from support.namespaces import Namespace
from support.peer import Peer
from support.timing import MB, patience, scaled, wait_until


def assert_port_is_closed(lab: Lab, port: int) -> None:
    """A new connection is refused."""
    with pytest.raises(ConnectionRefusedError):
        lab.dial(NODE, REFLECTOR, port)


def draining(path: Path, seconds: float) -> Pump:
    """Drain in a thread; returns once the port is closed."""
    pump = Pump(path.running.reflector.drain, seconds)

    def closed() -> bool:
        try:
            Peer.dial((path.node, 0), (path.target, path.running.port)).rst()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(closed, "the port to be closed")
    return pump


def test_drain_of_an_idle_reflector_is_done_at_once(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    finish(client, service)
    path.running.wait_idle()
    began = time.monotonic()
    assert path.running.reflector.drain(60) is True
    assert time.monotonic() - began < patience(10)
    assert_port_is_closed(lab, path.running.port)


@pytest.mark.parametrize("workers", [1, 3])
def test_drain_lets_running_connections_finish(lab: Lab, workers: int) -> None:
    path = lab.path(workers=workers)
    pairs = [path.connect() for _ in range(6)]
    with draining(path, patience(30)) as drain:
        assert_port_is_closed(lab, path.running.port)
        for pair in pairs:
            exchange(*pair)
            assert drain.is_alive()
            finish(*pair)
        assert drain.finish() is True
    for name in ("legs_connected", "closed_finished"):
        assert path.count(name) >= 6
    assert path.count("closed_stopped") == 0


def test_drain_lets_a_transfer_finish(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    size = scaled(50 * MB)
    with Pump(read_digest, client) as reader, draining(path, patience(30)) as drain:
        sent = send_pattern(service, size)
        service.fin()
        assert reader.finish() == (size, sent)
        client.fin()
        service.expect_fin()
        assert drain.finish() is True


def test_drain_lets_a_half_closed_connection_finish(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    client.fin()
    service.expect_fin()
    with draining(path, patience(30)) as drain:
        service.send(b"at last")
        service.fin()
        client.expect_fin(before=b"at last")
        assert drain.finish() is True


def test_drain_resets_what_is_left_after_its_time(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    exchange(client, service)
    began = time.monotonic()
    assert path.running.reflector.drain(0.4) is False
    assert time.monotonic() - began >= 0.4
    client.expect_rst()
    service.expect_rst()
    assert path.count("closed_stopped") == 1
    assert path.count("closed_stopped") == 1


def test_drain_of_no_time_resets_at_once(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    exchange(client, service)
    assert path.running.reflector.drain(0) is False
    client.expect_rst()
    service.expect_rst()


def test_drain_serves_what_the_kernel_had_let_in(lab: Lab) -> None:
    """Clients that are connected as far as they know are not sent away."""
    path = lab.path(workers=2)
    for _ in range(20):
        path.dial()
    drain = Pump(path.running.reflector.drain, patience(30))
    accepted = [path.service.accept() for _ in range(20)]
    for client, service in zip(lab.peers, accepted, strict=True):
        service.close()
        client.close()
    assert drain.finish() is True
    path.running.wait_count("closed_finished", 20)


def test_drain_resets_what_waits_past_the_limit(lab: Lab) -> None:
    """There is no telling whether their turn would come: they can try elsewhere at once."""
    path = lab.path(max_connections=1, workers=2)
    client, service = path.connect()
    exchange(client, service)
    waiting = [path.dial() for _ in range(4)]
    with Pump(path.running.reflector.drain, patience(30)) as drain:
        for peer in waiting:
            peer.expect_rst()
        exchange(client, service)
        finish(client, service)
        assert drain.finish() is True
    path.running.wait_count("closed_finished", 1)


def test_stop_cuts_a_drain_short(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    exchange(client, service)
    with draining(path, 1000) as drain:
        path.running.reflector.stop()
        drain.finish()
    client.expect_rst()
    service.expect_rst()


@pytest.mark.parametrize("workers", [1, 3])
def test_stop_resets_every_connection(lab: Lab, workers: int) -> None:
    path = lab.path(workers=workers)
    pairs = [path.connect() for _ in range(20)]
    for pair in pairs:
        exchange(*pair)
    path.running.reflector.stop()
    for client, service in pairs:
        client.expect_rst()
        service.expect_rst()
    assert path.count("closed_stopped") == 20
    assert_port_is_closed(lab, path.running.port)


def test_stop_resets_a_half_closed_connection(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    client.fin()
    service.expect_fin()
    path.running.reflector.stop()
    client.expect_rst()
    service.expect_rst_after_fin()


def test_stop_in_the_middle_of_bulk(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    assert client.send_until_full(pattern(50 * MB)) > 0
    path.running.reflector.stop()
    service.read_to_end()
    assert client.is_reset()
    assert path.count("closed_stopped") == 1
    assert path.count("closed_stopped") == 1


def test_stop_while_the_leg_connects_resets_the_client(
    lab: Lab, namespace: Callable[[str], Namespace]
) -> None:
    alone = namespace("alone")
    alone.reject("tcp dport 7022 drop")
    with alone:
        running = lab.reflector(f"{REFLECTOR}:0:7022", connect_timeout=60.0)
        client = lab.dial(NODE, REFLECTOR, running.port)
        running.wait_active(1)
    running.reflector.stop()
    client.expect_rst()
    assert running.count("legs_stopped") == running.count("closed_stopped") == 1


def test_stop_resets_what_waits_in_the_backlog(lab: Lab) -> None:
    path = lab.path(max_connections=1)
    exchange(*path.connect())
    waiting = [path.dial() for _ in range(4)]
    path.running.reflector.stop()
    for peer in waiting:
        peer.expect_rst()


def test_stop_may_be_repeated_and_counters_stay(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    finish(client, service)
    path.running.wait_idle()
    before = path.running.counts()
    for _ in range(3):
        path.running.reflector.stop()
    after = path.running.counts()
    for gauge in ("pipes_idle", "spare_legs"):
        before[gauge] = after[gauge] = 0
    assert after == before


def test_port_can_be_bound_again_at_once(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    exchange(client, service)
    path.running.reflector.stop()
    again = lab.reflector(f"{REFLECTOR}:{path.running.port}:{path.service.port}")
    assert again.port == path.running.port
    new_client = path.dial()
    exchange(new_client, path.service.accept())
