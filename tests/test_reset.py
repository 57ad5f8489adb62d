"""RST from either side: every byte that had arrived, then RST. Never a FIN, never a byte eaten."""

import time

import pytest
from support.bulk import Pump, pattern
from support.lab import Lab, Path, exchange
from support.peer import Ending, Peer, Seen
from support.timing import MB, scaled

pytestmark = pytest.mark.engines("splice", "mirror")

SIDES = ["client", "service"]
SIZES = [0, 1, 100, 1 * MB, 5 * MB]


def ends(path: Path, sender: str, **options: int) -> tuple[Peer, Peer]:
    """A connection's ends: the one that will reset, then the one that watches."""
    client, service = path.connect(**options)
    return (client, service) if sender == "client" else (service, client)


def reason(side: str) -> str:
    """The counter of connections that this side reset."""
    return "closed_reset_by_peer" if side == "client" else "closed_reset_by_service"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", SIZES)
def test_rst_arrives_after_every_byte_before_it(lab: Lab, side: str, size: int) -> None:
    path = lab.path()
    sender, receiver = ends(path, side)
    data = pattern(scaled(size, min(size, 100_000)))
    with Pump(receiver.expect_rst, before=data):
        sender.send(data)
        sender.wait_acknowledged()
        sender.rst()
    path.running.wait_count(reason(side), 1)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", [100, 1 * MB, 5 * MB])
def test_rst_arrives_after_every_byte_at_a_slow_reader(lab: Lab, side: str, size: int) -> None:
    path = lab.path(receive_buffer=8192)
    sender, receiver = ends(path, side, receive_buffer=8192)
    data = pattern(scaled(size, 100))
    with Pump(receiver.read_to_end, chunk=64 * 1024, pause_s=0.001) as reader:
        sender.send(data)
        sender.wait_acknowledged()
        sender.rst()
        assert reader.finish() == Seen(data, Ending.RST)
    path.running.wait_count(reason(side), 1)


@pytest.mark.parametrize("side", SIDES)
def test_rst_of_a_sender_whose_reader_stalls_keeps_what_had_arrived(lab: Lab, side: str) -> None:
    path = lab.path()
    sender, receiver = ends(path, side)
    data = pattern(50 * MB)
    sent = sender.send_until_full(data)
    arrived = sent - sender.unacknowledged()
    assert 0 < arrived < len(data)
    sender.rst()
    time.sleep(0.3)
    seen = receiver.read_to_end()
    assert seen.ending is Ending.RST
    assert arrived <= len(seen.data) <= sent
    assert seen.data == data[: len(seen.data)]
    path.running.wait_count(reason(side), 1)


@pytest.mark.parametrize("side", SIDES)
def test_rst_after_a_bulk_stream_keeps_its_tail(lab: Lab, side: str) -> None:
    """The stream is in full swing, so spliced, when it is cut."""
    path = lab.path()
    sender, receiver = ends(path, side)
    data = pattern(scaled(30 * MB))
    with Pump(receiver.read_to_end) as reader:
        sender.send(data)
        sender.wait_acknowledged()
        sender.rst()
        assert reader.finish() == Seen(data, Ending.RST)


@pytest.mark.parametrize("side", SIDES)
def test_rst_in_the_middle_of_a_stream_is_never_a_fin(lab: Lab, side: str) -> None:
    path = lab.path()
    data = pattern(2 * MB)
    for size in (0, 1, 10, 1000, 4096, 50_000, 400_000, 2 * MB) * 4:
        sender, receiver = ends(path, side)
        with Pump(receiver.read_to_end) as reader:
            sender.send(data[:size])
            sender.rst()  # with bytes on their way: some of them are lost, the reset is not
            seen = reader.finish()
        assert isinstance(seen, Seen)
        assert seen.ending is Ending.RST
        assert seen.data == data[: len(seen.data)]


@pytest.mark.parametrize("side", SIDES)
def test_rst_passes_while_the_other_direction_is_stalled(lab: Lab, side: str) -> None:
    path = lab.path()
    one, other = ends(path, side)
    assert other.send_until_full(pattern(50 * MB)) > 0  # `one` does not read
    one.send(b"enough")
    one.wait_acknowledged()
    one.rst()
    other.expect_rst(before=b"enough")
    path.running.wait_count(reason(side), 1)


@pytest.mark.parametrize("side", SIDES)
def test_rst_passes_while_both_directions_are_stalled(lab: Lab, side: str) -> None:
    path = lab.path()
    one, other = ends(path, side)
    assert other.send_until_full(pattern(50 * MB)) > 0
    data = pattern(50 * MB)
    sent = one.send_until_full(data)
    arrived = sent - one.unacknowledged()
    one.rst()
    seen = other.read_to_end()
    assert seen.ending is Ending.RST
    assert arrived <= len(seen.data)
    assert seen.data == data[: len(seen.data)]
    path.running.wait_count(reason(side), 1)


@pytest.mark.parametrize("side", SIDES)
def test_rst_of_the_reading_side_does_not_wait_for_its_own_bytes(lab: Lab, side: str) -> None:
    """Nothing is left to deliver to the side that sends, so it learns at once."""
    path = lab.path()
    reader, writer = ends(path, side)
    with Pump(_send_until_cut, writer):
        reader.read(1 * MB)
        reader.rst()
    path.running.wait_count(reason(side), 1)


def _send_until_cut(peer: Peer) -> None:
    """Send without end; the connection is cut by a reset, not by a time-out of ours."""
    block = pattern(1 << 16)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        while True:
            peer.send(block)


def test_client_rst_right_after_connect(lab: Lab) -> None:
    path = lab.path()
    rounds = 200
    for _ in range(rounds):
        path.dial().rst()
    path.running.wait_count("accepted", rounds)
    path.running.wait_idle()
    for _ in range(path.count("legs_connected")):
        path.service.accept().expect_rst()


def test_service_rst_right_after_accept(lab: Lab) -> None:
    path = lab.path()
    for _ in range(200):
        client, service = path.connect()
        service.rst()
        client.expect_rst()
    path.running.wait_count("closed_reset_by_service", 200)


@pytest.mark.parametrize("side", SIDES)
def test_rst_after_own_fin_is_passed_on(lab: Lab, side: str) -> None:
    path = lab.path()
    one, other = ends(path, side)
    exchange(one, other)
    one.fin()
    other.expect_fin()
    other.send(b"more")
    one.expect(b"more")
    one.rst()
    other.expect_rst_after_fin()
    path.running.wait_count(reason(side), 1)


@pytest.mark.parametrize("side", SIDES)
def test_rst_answers_a_fin(lab: Lab, side: str) -> None:
    path = lab.path()
    one, other = ends(path, side)
    other.fin()
    one.expect_fin()
    one.send(b"last words")
    one.wait_acknowledged()
    one.rst()
    other.expect_rst(before=b"last words")
    path.running.wait_count(reason(side), 1)


@pytest.mark.parametrize("side", SIDES)
def test_close_with_bytes_unread_resets_the_other_side(lab: Lab, side: str) -> None:
    path = lab.path()
    one, other = ends(path, side)
    other.send(b"never read")
    one.read(1)
    one.close()
    other.expect_rst()
    path.running.wait_count(reason(side), 1)


@pytest.mark.parametrize("side", SIDES)
def test_bytes_to_a_closed_side_bring_a_reset_back(lab: Lab, side: str) -> None:
    path = lab.path()
    one, other = ends(path, side)
    one.close()
    other.expect_fin()
    other.send(b"too late")
    other.expect_rst_after_fin()
    path.running.wait_idle()


def test_rst_from_both_sides_at_once_leaves_nothing(lab: Lab) -> None:
    path = lab.path()
    for _ in range(100):
        client, service = path.connect()
        client.send(b"x" * 5000)
        service.send(b"y" * 5000)
        client.rst()
        service.rst()
    path.running.wait_idle()
    if path.running.carries:
        assert path.count("closed_reset_by_peer") + path.count("closed_reset_by_service") == 100
