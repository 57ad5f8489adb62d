"""Urgent (out-of-band) bytes: carried as urgent, the stream whole, the loop at rest."""

import time

import pytest
from support.bulk import Pump, pattern
from support.lab import Lab, Path, exchange
from support.leaks import assert_no_spin
from support.peer import Peer
from support.timing import MB, scaled

pytestmark = pytest.mark.engines("splice", "mirror")

SIDES = ["client", "service"]


def ends(path: Path, sender: str) -> tuple[Peer, Peer]:
    """A connection's ends: the one that sends urgent bytes, then the one that gets them."""
    client, service = path.connect()
    return (client, service) if sender == "client" else (service, client)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", b""), (b"", b"after"), (b"before", b""), (b"before", b"after")],
    ids=["alone", "head", "end", "middle"],
)
def test_urgent_byte_arrives_as_urgent(lab: Lab, side: str, before: bytes, after: bytes) -> None:
    path = lab.path()
    sender, receiver = ends(path, side)
    if before:
        sender.send(before)
    sender.urgent(b"!")
    if after:
        sender.send(after)
    assert receiver.read_urgent() == b"!"
    receiver.expect(before + after)
    exchange(sender, receiver)
    sender.fin()
    receiver.expect_fin()
    path.running.wait_count("urgent_bytes", 1)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", b""), (b"", b"after"), (b"before", b""), (b"before", b"after")],
    ids=["alone", "head", "end", "middle"],
)
def test_urgent_byte_stays_in_its_place(lab: Lab, side: str, before: bytes, after: bytes) -> None:
    path = lab.path()
    sender, receiver = ends(path, side)
    receiver.urgent_inline()
    if before:
        sender.send(before)
    sender.urgent(b"!")
    if after:
        sender.send(after)
    receiver.wait_urgent()
    assert receiver.read_to_mark() == before
    receiver.expect(b"!" + after)
    exchange(sender, receiver)


@pytest.mark.parametrize("side", SIDES)
def test_urgent_byte_before_fin(lab: Lab, side: str) -> None:
    path = lab.path()
    for data in (b"", b"before"):
        sender, receiver = ends(path, side)
        receiver.urgent_inline()
        if data:
            sender.send(data)
        sender.urgent(b"!")
        sender.fin()
        receiver.expect_fin(before=data + b"!")
        assert_no_spin(0.2)
        receiver.fin()
        sender.expect_fin()


@pytest.mark.parametrize("side", SIDES)
def test_urgent_byte_before_rst(lab: Lab, side: str) -> None:
    path = lab.path()
    sender, receiver = ends(path, side)
    receiver.urgent_inline()
    sender.send(b"before")
    sender.urgent(b"!")
    sender.send(b"after")
    sender.wait_acknowledged()
    sender.rst()
    receiver.expect_rst(before=b"before!after")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize(
    "pieces",
    [[b"!"], [b"before", b"!"], [b"!", b"after"], [b"before", b"!", b"after"], [b"!", b"!"]],
    ids=["alone", "end", "head", "middle", "two"],
)
def test_urgent_bytes_all_at_once_with_the_end(
    lab: Lab, side: str, pieces: list[bytes], end: str
) -> None:
    """Often all of it has arrived before the reflector looks for the first time."""
    path = lab.path()
    for _ in range(30):
        client = path.dial()
        client.urgent_inline()
        service = path.service.accept()
        service.urgent_inline()
        sender, receiver = (client, service) if side == "client" else (service, client)
        for piece in pieces:
            (sender.urgent if piece == b"!" else sender.send)(piece)
        if end == "rst":
            sender.wait_acknowledged()
        getattr(sender, end)()
        seen = receiver.read_to_end()
        assert (seen.data, seen.ending.value) == (b"".join(pieces), end.upper())
        for peer in (client, service):
            peer.close()


@pytest.mark.parametrize("side", SIDES)
def test_urgent_byte_leaves_the_loop_at_rest(lab: Lab, side: str) -> None:
    path = lab.path()
    sender, receiver = ends(path, side)
    sender.urgent(b"!")
    assert receiver.read_urgent() == b"!"
    assert_no_spin()
    sender.send(b"and on")
    receiver.expect(b"and on")
    assert_no_spin()


@pytest.mark.parametrize("side", SIDES)
def test_urgent_byte_that_nobody_reads_leaves_the_loop_at_rest(lab: Lab, side: str) -> None:
    path = lab.path()
    sender, receiver = ends(path, side)
    sender.send(b"before")
    sender.urgent(b"!")
    receiver.wait_urgent()
    assert_no_spin()


@pytest.mark.parametrize("side", SIDES)
def test_many_urgent_bytes_leave_the_stream_whole(lab: Lab, side: str) -> None:
    path = lab.path()
    sender, receiver = ends(path, side)
    receiver.urgent_inline()
    wanted = b""
    for number in range(300):
        piece = b"<%d>" % number
        sender.send(piece)
        sender.urgent(b"!")
        wanted += piece + b"!"
    sender.fin()
    receiver.expect_fin(before=wanted)
    assert_no_spin(0.2)
    receiver.fin()
    sender.expect_fin()


@pytest.mark.parametrize("side", SIDES)
def test_urgent_bytes_one_at_a_time_all_arrive_as_urgent(lab: Lab, side: str) -> None:
    path = lab.path()
    sender, receiver = ends(path, side)
    for number in range(30):
        sender.urgent(bytes((65 + number,)))
        assert receiver.read_urgent() == bytes((65 + number,))
        exchange(sender, receiver, b"in between")
    path.running.wait_count("urgent_bytes", 30)


@pytest.mark.parametrize("side", SIDES)
def test_urgent_byte_within_a_bulk_stream(lab: Lab, side: str) -> None:
    """The stream is spliced by the time that the urgent byte comes."""
    path = lab.path()
    sender, receiver = ends(path, side)
    receiver.urgent_inline()
    data = pattern(scaled(40 * MB, 10 * MB))
    half = len(data) // 2
    with Pump(receiver.expect_fin, before=data[:half] + b"!" + data[half:]):
        sender.send(data[:half])
        sender.urgent(b"!")
        sender.send(data[half:])
        sender.fin()
    if path.running.carries:
        assert path.count("urgent_bytes") == 1
        assert path.count("bytes_spliced") > 0
    assert_no_spin()


def test_urgent_bytes_with_bulk_in_both_directions(lab: Lab) -> None:
    path = lab.path()
    client, service = path.connect()
    block = pattern(scaled(5 * MB, 1 * MB))
    wanted = (block + b"!") * 4

    def talk(peer: Peer) -> None:
        for _ in range(4):
            peer.send(block)
            peer.urgent(b"!")
        peer.fin()

    for peer in (client, service):
        peer.urgent_inline()
    with (
        Pump(talk, client),
        Pump(talk, service),
        Pump(client.expect_fin, before=wanted),
        Pump(service.expect_fin, before=wanted),
    ):
        pass
    path.running.wait_count("closed_finished", 1)
    assert_no_spin(0.2)


@pytest.mark.parametrize("side", SIDES)
def test_urgent_byte_behind_a_stalled_reader(lab: Lab, side: str) -> None:
    path = lab.path()
    sender, receiver = ends(path, side)
    receiver.urgent_inline()
    data = pattern(50 * MB)
    sent = sender.send_until_full(data)
    with Pump(_urgent_when_there_is_room, sender):
        time.sleep(0.2)
        assert_no_spin()
        receiver.expect(data[:sent] + b"!tail")


def _urgent_when_there_is_room(peer: Peer) -> None:
    peer.urgent(b"!")
    peer.send(b"tail")


def test_urgent_bytes_before_the_leg_connects(lab: Lab) -> None:
    """The client is quicker than the return leg: its urgent byte is in the queue already."""
    path = lab.path()
    for _ in range(50):
        client = path.dial()
        client.urgent(b"!")
        client.send(b"tail")
        service = path.service.accept()
        service.urgent_inline()
        service.expect(b"!tail")
        client.close()
        service.close()
    assert_no_spin(0.2)
