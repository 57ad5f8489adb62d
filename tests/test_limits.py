"""--max-connections and --max-per-source: waiting in the backlog, and a reset, exactly counted."""

import time

import pytest
from support.bulk import Pump
from support.lab import NODE, REFLECTOR, Lab, exchange, finish
from support.peer import Peer, Service
from support.timing import wait_until


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_connections_past_the_limit_wait_and_are_served_in_turn(lab: Lab, workers: int) -> None:
    path = lab.path(max_connections=1, workers=workers)
    client, service = path.connect()
    exchange(client, service)
    waiting = [path.dial() for _ in range(8)]
    path.service.expect_none(0.3)
    for peer in waiting:
        assert not peer.is_reset()
    finish(client, service)
    for served in range(len(waiting)):
        service = path.service.accept()
        path.service.expect_none(0.02)
        assert path.count("active") == 1
        service.send(b"%d" % served)
        service.close()
        _close_the_one_that_got(waiting, b"%d" % served)
    path.running.wait_count("closed_finished", 9)
    assert path.count("accepted") == 9
    assert path.count("pauses_connections") >= 1


def _close_the_one_that_got(waiting: list[Peer], data: bytes) -> None:
    """The kernel chose whose turn it was; find the client that was served and end it."""
    served: list[Peer] = []

    def found() -> bool:
        for peer in waiting:
            peer.sock.setblocking(False)
            try:
                got = peer.sock.recv(100)
            except BlockingIOError:
                continue
            assert got == data
            served.append(peer)
            return True
        return False

    wait_until(found, "one of the waiting clients to be served")
    served[0].close()
    waiting.remove(served[0])


@pytest.mark.parametrize("workers", [1, 3])
def test_the_limit_of_connections_holds_over_all_workers(lab: Lab, workers: int) -> None:
    path = lab.path(max_connections=10, workers=workers)
    clients = [path.dial() for _ in range(40)]
    for _ in range(10):
        path.service.accept()
    path.service.expect_none(0.3)
    assert path.count("active") == 10
    for client in clients:
        assert not client.is_reset()
    for accepted in list(path.service.accepted):
        accepted.rst()
    for _ in range(10):
        path.service.accept()
    path.service.expect_none(0.2)
    assert path.count("active") == 10


def test_waiting_connection_that_leaves_takes_no_place(lab: Lab) -> None:
    path = lab.path(max_connections=1, workers=2)
    client, service = path.connect()
    for _ in range(5):
        path.dial().rst()
    last = path.dial()
    finish(client, service)
    exchange(last, _first_alive(path.service))


def _first_alive(service: Service) -> Peer:
    """The first connection that a client is still behind; those that left may be seen reset."""
    while True:
        peer = service.accept()
        time.sleep(0.05)
        if not peer.is_reset():
            return peer
        peer.close()


def test_limit_reached_and_left_again_many_times(lab: Lab) -> None:
    path = lab.path(max_connections=3, workers=2)
    rounds = 100

    def serve() -> None:
        for _ in range(rounds):
            peer = path.service.accept()
            peer.expect_fin(before=b"?")
            peer.send(b"!")
            peer.close()

    with Pump(serve):
        for start in range(0, rounds, 10):
            clients = [path.dial() for _ in range(10)]
            for client in clients:
                client.send(b"?")
                client.fin()  # so a connection ends, and makes room, without waiting for its turn
            for client in clients:
                client.expect_fin(before=b"!")
                client.close()
            assert path.count("accepted") >= start
    path.running.wait_count("closed_finished", rounds)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_exactly_the_limit_of_one_source_is_served(lab: Lab, workers: int) -> None:
    path = lab.path(max_per_source=7, workers=workers)
    clients = [path.dial() for _ in range(21)]
    for _ in range(7):
        path.service.accept()
    path.running.wait_count("limited_source", 14)
    path.service.expect_none(0.1)
    wait_until(lambda: sum(c.is_reset() for c in clients) == 14, "14 clients to be reset")
    for name, value in (("legs_limited", 14), ("closed_leg_failed", 14), ("legs_connected", 7)):
        path.running.wait_count(name, value)


def test_past_the_limit_of_its_source_a_client_sees_a_reset(lab: Lab) -> None:
    path = lab.path(max_per_source=1)
    client, service = path.connect()
    for _ in range(20):
        path.dial().expect_rst()
    exchange(client, service)


def test_limit_of_one_source_leaves_others_alone(lab: Lab) -> None:
    path = lab.path(max_per_source=2)
    for _ in range(2):
        path.connect()
    path.dial().expect_rst()
    other_service = lab.serve("127.0.0.9", path.service.port)
    client = lab.dial("127.0.0.9", REFLECTOR, path.running.port)
    exchange(client, other_service.accept())
    path.dial().expect_rst()


def test_place_of_a_source_is_free_again_after_close(lab: Lab) -> None:
    path = lab.path(max_per_source=2)
    first = path.connect()
    path.connect()
    for _ in range(10):
        path.dial().expect_rst()
        finish(*first)
        first[0].close()
        first[1].close()
        path.running.wait_active(1)
        first = path.connect()
        exchange(*first)


@pytest.mark.parametrize("end", ["rst", "close"])
def test_place_of_a_source_is_free_again_however_it_ended(lab: Lab, end: str) -> None:
    path = lab.path(max_per_source=1)
    for round_number in range(20):
        client, service = path.connect()
        getattr(client if round_number % 2 else service, end)()
        (service if round_number % 2 else client).read_to_end()
        (service if round_number % 2 else client).close()
        path.running.wait_idle()
    assert path.count("limited_source") == 0


def test_failed_legs_give_their_place_back(lab: Lab) -> None:
    path = lab.unserved_path(max_per_source=1, max_connections=1)
    for _ in range(50):
        path.dial().expect_rst()
        path.running.wait_idle()
    assert path.count("legs_refused") == 50


def test_sources_are_whole_addresses(lab: Lab) -> None:
    """Neighbours do not share a limit."""
    path = lab.path(max_per_source=1)
    for last in range(10, 60):
        node = f"127.0.1.{last}"
        service = lab.serve(node, path.service.port)
        client = lab.dial(node, REFLECTOR, path.running.port)
        exchange(client, service.accept())
    assert path.count("limited_source") == 0


def test_v4_mapped_and_plain_peers_are_one_source(lab: Lab) -> None:
    service = lab.serve(NODE)
    running = lab.reflector(f"0:{service.port}", f"{REFLECTOR}:0:{service.port}", max_per_source=1)
    wildcard, plain = running.reflector.ports
    client = lab.dial(NODE, REFLECTOR, wildcard)
    exchange(client, service.accept())
    lab.dial(NODE, REFLECTOR, plain).expect_rst()
    running.wait_count("limited_source", 1)
