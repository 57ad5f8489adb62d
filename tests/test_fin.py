"""FIN from either side: passed on after every byte before it, while the other direction goes on."""

import pytest
from support.bulk import Pump, pattern
from support.lab import Lab, Path, exchange, finish
from support.peer import Peer
from support.timing import MB, scaled

pytestmark = pytest.mark.engines("splice", "mirror")

SIZES = [0, 1, 100, 5000, 1 * MB, 5 * MB]
SIDES = ["client", "service"]


def first_and_second(path: Path, first: str) -> tuple[Peer, Peer]:
    """A connection's ends: the one named, then the other."""
    client, service = path.connect()
    return (client, service) if first == "client" else (service, client)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", SIZES)
def test_fin_arrives_after_every_byte_before_it(lab: Lab, side: str, size: int) -> None:
    path = lab.path()
    sender, receiver = first_and_second(path, side)
    data = pattern(scaled(size, min(size, 5000)))
    with Pump(receiver.expect_fin, before=data):
        sender.send(data)
        sender.fin()
    receiver.fin()
    sender.expect_fin()
    path.running.wait_count("closed_finished", 1)


@pytest.mark.parametrize("first", SIDES)
def test_half_closed_connection_carries_the_other_direction(lab: Lab, first: str) -> None:
    path = lab.path()
    one, other = first_and_second(path, first)
    exchange(one, other)
    one.fin()
    other.expect_fin()
    for data in (b"small", pattern(scaled(3 * MB)), b"small again"):
        with Pump(other.send, data):
            one.expect(data)
    other.fin()
    one.expect_fin()
    path.running.wait_count("closed_finished", 1)


@pytest.mark.parametrize("first", SIDES)
def test_fin_during_a_bulk_transfer_of_the_other_direction(lab: Lab, first: str) -> None:
    path = lab.path()
    one, other = first_and_second(path, first)
    data = pattern(scaled(20 * MB))
    with Pump(other.send, data) as sending:
        one.expect(data[: 1 * MB // 2])
        one.fin()
        other.expect_fin()
        one.expect(data[1 * MB // 2 :])
        sending.finish()
    other.fin()
    one.expect_fin()
    path.running.wait_count("closed_finished", 1)


def test_fins_that_cross_end_the_connection(lab: Lab) -> None:
    path = lab.path()
    for _ in range(50):
        client, service = path.connect()
        client.send(b"question")
        service.send(b"answer")
        client.fin()
        service.fin()
        client.expect_fin(before=b"answer")
        service.expect_fin(before=b"question")
    path.running.wait_count("closed_finished", 50)


@pytest.mark.parametrize("first", SIDES)
def test_fin_with_the_last_bytes_arrives_at_a_slow_reader(lab: Lab, first: str) -> None:
    path = lab.path(receive_buffer=4096)
    client, service = path.connect(receive_buffer=4096)
    sender, receiver = (client, service) if first == "client" else (service, client)
    data = pattern(scaled(1 * MB, 100_000))
    with Pump(sender.send, data):
        got = receiver.read(len(data) - 2000)
    sender.fin()
    seen = receiver.read_to_end(chunk=100, pause_s=0.001)
    assert (got + seen.data, seen.ending.value) == (data, "FIN")


def test_client_that_closes_gets_the_connection_ended(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    exchange(client, service)
    client.close()
    service.expect_fin()
    service.close()
    path.running.wait_idle()
    path.running.wait_count("closed_finished", 1)


def test_service_that_greets_and_closes(lab: Lab) -> None:
    path = lab.path()
    for _ in range(100):
        client, service = path.connect()
        service.send(b"SSH-2.0-test\r\n")
        service.close()
        client.expect_fin(before=b"SSH-2.0-test\r\n")
        client.close()
    path.running.wait_count("closed_finished", 100)


def test_fin_of_both_sides_before_any_byte(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    finish(client, service)
    path.running.wait_count("closed_finished", 1)
    if path.running.carries:
        assert path.count("bytes_to_service") == path.count("bytes_to_peer") == 0
