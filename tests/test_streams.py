"""Bytes under load: bulk, trickle, stall, many at once, and nobody starved."""

import hashlib
import threading
import time

import pytest
from support.bulk import Pump, echo, exchange_bulk, pattern, read_digest, send_pattern
from support.lab import NODE, Lab, exchange, finish
from support.leaks import assert_no_spin, memory_bytes, under_sanitizer
from support.peer import Peer
from support.timing import MB, patience, scaled

pytestmark = pytest.mark.engines("splice", "mirror")

SIDES = ["client", "service"]


@pytest.mark.parametrize("side", SIDES)
def test_two_hundred_megabytes_one_way(lab: Lab, side: str) -> None:
    path = lab.path()
    client, service = path.connect()
    sender, receiver = (client, service) if side == "client" else (service, client)
    size = scaled(200 * MB)
    with Pump(read_digest, receiver) as reader:
        sent = send_pattern(sender, size)
        sender.fin()
        assert reader.finish() == (size, sent)
    receiver.fin()
    sender.expect_fin()
    counter = "bytes_to_service" if side == "client" else "bytes_to_peer"
    path.running.wait_count(counter, size)
    if path.running.carries:
        assert path.count("bytes_spliced") > size // 2
        assert path.count("bytes_spliced") + path.count("bytes_copied") == size


def test_both_ways_at_once(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    exchange_bulk(client, service, scaled(100 * MB))
    path.running.wait_count("closed_finished", 1)


def test_echo_of_a_bulk_stream(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    size = scaled(100 * MB)
    with Pump(echo, service), Pump(read_digest, client) as reader:
        sent = send_pattern(client, size)
        client.fin()
        assert reader.finish() == (size, sent)
    path.running.wait_count("closed_finished", 1)


@pytest.mark.parametrize("size", [1, 100, 1460, 4095, 4096, 4097, 16384, 65536, 65537, 262144])
def test_messages_of_every_size_are_echoed(lab: Lab, size: int) -> None:
    path = lab.path()
    client, service = path.connect()
    with Pump(echo, service):
        for number in range(20):
            message = pattern(size, number)
            client.send(message)
            client.expect(message)
        client.fin()
        client.expect_fin()


def test_stream_that_swells_and_ebbs(lab: Lab) -> None:
    """Small, bulk, small, in turns: promotion to splice and back loses nothing."""
    path = lab.path()
    client, service = path.connect()
    digest = hashlib.sha1()
    with Pump(read_digest, service) as reader:
        for _ in range(6):
            for number in range(200):
                message = pattern(50, number)
                client.send(message)
                digest.update(message)
                if number % 20 == 0:
                    time.sleep(0.001)
            bulk = pattern(scaled(4 * MB, 1 * MB))
            client.send(bulk)
            digest.update(bulk)
        client.fin()
        size = 6 * (200 * 50 + len(bulk))
        assert reader.finish() == (size, digest.hexdigest())


@pytest.mark.parametrize("side", SIDES)
def test_trickled_bytes_arrive_one_by_one(lab: Lab, side: str) -> None:
    path = lab.path()
    client, service = path.connect()
    sender, receiver = (client, service) if side == "client" else (service, client)
    for byte in b"each byte arrives without waiting for the next":
        sender.trickle(bytes((byte,)))
        receiver.expect(bytes((byte,)))
    data = pattern(2000)
    with Pump(receiver.expect_fin, before=data):
        sender.trickle(data)
        sender.fin()


def test_small_answers_are_not_held_back(lab: Lab) -> None:
    """No 40 ms or 200 ms of a delayed segment: 200 questions and answers take no time."""
    path = lab.path()
    client, service = path.connect()
    began = time.monotonic()
    with Pump(echo, service):
        for number in range(200):
            for part in (b"question ", b"%d\n" % number):  # two writes: Nagle's worst case
                client.trickle(part[:1])
                client.send(part[1:])
                client.expect(part)
        client.fin()
        client.expect_fin()
    assert time.monotonic() - began < patience(200 * 2 * 0.020)


@pytest.mark.parametrize("side", SIDES)
def test_stalled_reader_holds_the_sender_and_nothing_is_lost(lab: Lab, side: str) -> None:
    path = lab.path()
    client, service = path.connect()
    sender, receiver = (client, service) if side == "client" else (service, client)
    data = pattern(50 * MB)
    sent = sender.send_until_full(data)
    assert 0 < sent < len(data), "the reflector took more than it may hold"
    assert_no_spin()
    receiver.send(b"the other direction does not care")
    sender.expect(b"the other direction does not care")
    sender.fin()
    seen = receiver.read_to_end()
    assert (seen.data, seen.ending.value) == (data[:sent], "FIN")


@pytest.mark.parametrize("side", SIDES)
def test_slow_reader_gets_every_byte(lab: Lab, side: str) -> None:
    path = lab.path(receive_buffer=16384)
    client, service = path.connect(receive_buffer=16384)
    sender, receiver = (client, service) if side == "client" else (service, client)
    size = scaled(10 * MB, 1 * MB)
    with Pump(read_digest, receiver, chunk=1 << 15, pause_s=0.001) as reader:
        sent = send_pattern(sender, size)
        sender.fin()
        assert reader.finish() == (size, sent)


@pytest.mark.skipif(under_sanitizer(), reason="a sanitizer's memory is not the reflector's")
def test_slow_readers_do_not_make_the_reflector_store(lab: Lab) -> None:
    path = lab.path(workers=1)
    data = pattern(30 * MB)
    before = memory_bytes()
    for _ in range(10):
        client, _ = path.connect()
        client.send_until_full(data, quiet_s=0.1)
    assert path.count("pipes_in_use") + path.count("buffers_in_use") <= 2 * 10
    assert memory_bytes() - before < 10 * MB


def test_stalls_in_both_directions_resolve(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    data = pattern(50 * MB)
    from_client = client.send_until_full(data)
    from_service = service.send_until_full(data)
    assert_no_spin(0.2)
    client.fin()
    service.fin()
    assert client.read_to_end().data == data[:from_service]
    assert service.read_to_end().data == data[:from_client]
    path.running.wait_count("closed_finished", 1)


def test_a_thousand_connections_at_once(lab: Lab) -> None:
    path = lab.path(max_per_source=2000)
    count = scaled(1000, 100)
    pairs = []
    for number in range(count):
        client = path.dial()
        client.send(b"%06d" % number)
        pairs.append(client)
    accepted = {}
    for _ in range(count):
        service = path.service.accept()
        accepted[service.read(6)] = service
    assert path.count("active") == (count if path.running.carries else 0)
    for number, client in enumerate(pairs):
        exchange(client, accepted[b"%06d" % number])
    for number, client in enumerate(pairs):
        finish(client, accepted[b"%06d" % number])
    path.running.wait_count("closed_finished", count)


def test_fat_stream_does_not_starve_small_checks(lab: Lab) -> None:
    """One worker carries a stream that never ends and, beside it, check after check."""
    path = lab.path(workers=1)
    fat_client, fat_service = path.connect()
    stop = threading.Event()

    def pour() -> None:
        block = pattern(1 << 18)
        while not stop.is_set():
            fat_client.send(block)
        fat_client.fin()

    slowest = 0.0
    with Pump(pour), Pump(read_digest, fat_service):
        try:
            for _ in range(100):
                began = time.monotonic()
                client, service = path.connect()
                service.send(b"SSH-2.0-test\r\n")
                client.expect(b"SSH-2.0-test\r\n")
                client.close()
                service.close()
                slowest = max(slowest, time.monotonic() - began)
        finally:
            stop.set()
    assert slowest < patience(2.0)
    assert path.count("bytes_to_service") > 10 * MB / patience(1)


def test_fat_streams_share_one_worker(lab: Lab) -> None:
    """Each of several fat streams moves on while all run."""
    path = lab.path(workers=1)
    pairs = [path.connect() for _ in range(4)]
    stop = threading.Event()
    moved = [0] * len(pairs)

    def pour(peer: Peer) -> None:
        block = pattern(1 << 17)
        while not stop.is_set():
            peer.send(block)
        peer.fin()

    def drink(place: int, peer: Peer) -> None:
        while isinstance(part := peer.receive(1 << 18), bytes):
            moved[place] += len(part)

    pumps = [Pump(drink, place, service) for place, (_, service) in enumerate(pairs)]
    pumps += [Pump(pour, client) for client, _ in pairs]
    time.sleep(patience(1.0))
    stop.set()
    for pump in pumps:
        pump.finish()
    assert min(moved) > sum(moved) / len(moved) / 20


@pytest.mark.engines("splice")
def test_connections_from_many_addresses(lab: Lab) -> None:
    service = lab.serve("0.0.0.0")
    running = lab.reflector(f"127.0.0.3:0:{service.port}")
    for last in range(20, 120):
        node = f"127.0.2.{last}"
        client = lab.dial(node, "127.0.0.3", running.port)
        accepted = service.accept()
        assert accepted.address == node != NODE
        exchange(client, accepted)
