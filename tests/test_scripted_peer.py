"""The scripted peer itself, on a direct connection: what the other tests take for granted."""

from collections.abc import Iterator

import pytest
from support.bulk import Pump, pattern, read_digest, send_pattern
from support.lab import exchange, finish
from support.peer import Peer, Service
from support.timing import MB, scaled

NODE = "127.0.0.2"


@pytest.fixture
def direct() -> Iterator[tuple[Peer, Peer]]:
    service = Service(NODE)
    client = Peer.dial((NODE, 0), (NODE, service.port))
    accepted = service.accept()
    yield client, accepted
    client.close()
    service.close()


def test_bytes_and_fins_are_seen(direct: tuple[Peer, Peer]) -> None:
    exchange(*direct)
    finish(*direct)


def test_fin_is_seen_after_the_bytes(direct: tuple[Peer, Peer]) -> None:
    client, service = direct
    client.send(b"last words")
    client.fin()
    service.expect_fin(before=b"last words")


def test_rst_is_seen_after_the_bytes(direct: tuple[Peer, Peer]) -> None:
    client, service = direct
    client.send(b"last words")
    client.wait_acknowledged()
    client.rst()
    service.expect_rst(before=b"last words")


def test_rst_is_told_from_fin(direct: tuple[Peer, Peer]) -> None:
    client, service = direct
    client.rst()
    with pytest.raises(AssertionError):
        service.expect_fin()


def test_rst_after_fin_is_seen(direct: tuple[Peer, Peer]) -> None:
    client, service = direct
    client.fin()
    service.expect_fin()
    assert not service.is_reset()
    client.rst()
    service.expect_rst_after_fin()


def test_close_with_unread_bytes_is_a_rst(direct: tuple[Peer, Peer]) -> None:
    client, service = direct
    service.send(b"never read")
    service.wait_acknowledged()
    client.close()
    service.expect_rst()


def test_silence_is_told_from_a_byte(direct: tuple[Peer, Peer]) -> None:
    client, service = direct
    service.expect_silence(0.05)
    client.send(b"x")
    with pytest.raises(AssertionError):
        service.expect_silence(5)


def test_urgent_byte_is_taken_out_of_the_stream(direct: tuple[Peer, Peer]) -> None:
    client, service = direct
    client.send(b"before")
    client.urgent(b"!")
    client.send(b"after")
    assert service.read_urgent() == b"!"
    service.expect(b"before" + b"after")


def test_urgent_byte_is_read_in_its_place(direct: tuple[Peer, Peer]) -> None:
    client, service = direct
    service.urgent_inline()
    client.send(b"before")
    client.urgent(b"!")
    client.send(b"after")
    service.wait_urgent()
    assert service.read_to_mark() == b"before"
    service.expect(b"!after")


def test_trickled_bytes_add_up(direct: tuple[Peer, Peer]) -> None:
    client, service = direct
    client.trickle(b"drop by drop")
    service.expect(b"drop by drop")


def test_sender_fills_up_behind_a_stalled_reader(direct: tuple[Peer, Peer]) -> None:
    client, service = direct
    data = pattern(64 * MB)
    sent = client.send_until_full(data)
    assert 0 < sent < len(data)
    client.fin()
    assert service.read_to_end().data == data[:sent]


def test_pumped_pattern_has_one_digest(direct: tuple[Peer, Peer]) -> None:
    client, service = direct
    size = scaled(20 * MB)
    with Pump(read_digest, service) as reader:
        sent = send_pattern(client, size)
        client.fin()
        assert reader.finish() == (size, sent)


def test_pattern_is_the_same_from_any_offset() -> None:
    whole = pattern(3 * MB)
    for start, size in ((0, 10), (1_048_570, 10), (2 * MB, 500_000)):
        assert pattern(size, start) == whole[start : start + size]
