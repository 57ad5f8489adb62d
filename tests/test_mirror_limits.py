"""Who may open a connection through the mirror, and what is told to whoever may not."""

import time
from collections.abc import Iterator

import pytest

pytest.importorskip("reflector._mirror", reason="the mirror was not built")
pytest.importorskip("scapy", reason="scapy cannot be installed here")

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from support.namespaces import why_no_namespaces
from support.wire import (
    HOST,
    HOST6,
    HOST_MAC,
    PEER,
    PEER6,
    PEER_MAC,
    PORT,
    RETURN_PORT,
    SENTINEL_PEER,
    CountingMirror,
    Frame,
    Wire,
    internet_sum,
    network,
)

CLIENT_PORT = 45678


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    reason = why_no_namespaces()
    if reason:
        pytest.skip(reason)
    made = Wire()
    yield made
    made.close()


@pytest.fixture
def mirror(wire: Wire) -> CountingMirror:
    return wire.mirror()


def ether() -> Packet:
    return Ether(src=PEER_MAC, dst=HOST_MAC)


def ip(version: int, source: str = "") -> Packet:
    if version == 4:
        return IP(src=source or PEER, dst=HOST, id=7, flags="DF")
    return IPv6(src=source or PEER6, dst=HOST6)


def syn(port: int = CLIENT_PORT, **fields: object) -> Packet:
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("WScale", 7)]
    return TCP(**{"sport": port, "dport": PORT, "seq": 0xFFFFFFFF, "options": options} | fields)


def opening(version: int = 4, source: str = "", port: int = CLIENT_PORT) -> bytes:
    return bytes(ether() / ip(version, source) / syn(port))


def datagram(version: int = 4, source: str = "") -> bytes:
    return bytes(ether() / ip(version, source) / UDP(sport=CLIENT_PORT, dport=PORT))


def refusal(version: int, seq: int = 0xFFFFFFFF, shim: Packet | None = None) -> bytes:
    """The reset that answers a SYN: RFC 9293, 3.10.7.1."""
    host, peer = (HOST, PEER) if version == 4 else (HOST6, PEER6)
    answer = TCP(sport=PORT, dport=CLIENT_PORT, flags="RA", seq=0, ack=(seq + 1) % 2**32, window=0)
    head = Ether(src=HOST_MAC, dst=PEER_MAC)
    if shim is not None:
        head /= shim
    if version == 4:
        return bytes(head / IP(src=host, dst=peer, id=7, flags="DF", ttl=63) / answer)
    return bytes(head / IPv6(src=host, dst=peer, hlim=63) / answer)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("payload", [b"", b"x", b"early data" * 100])
@pytest.mark.parametrize("options", [True, False])
def test_refused_connection_is_reset_by_no_more_bytes_than_it_took(
    wire: Wire, mirror: CountingMirror, version: int, payload: bytes, options: bool
) -> None:
    mirror.refuse_all()
    segment = syn() if options else syn(options=[])
    sent = bytes(ether() / ip(version) / segment / Raw(payload))
    seen = wire.send(sent)
    assert (seen.back, seen.stack) == ([refusal(version)], [])
    assert len(seen.back[0]) <= len(sent)
    assert mirror.counted() == {"limited_denied": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_reset_is_right_when_the_device_was_to_sum_up_the_syn(
    wire: Wire, mirror: CountingMirror, version: int
) -> None:
    mirror.refuse_all()
    data = bytearray(opening(version))
    start = 34 if version == 4 else 54
    addresses = bytes(data[26:34] if version == 4 else data[22:54])
    pseudo = addresses + (len(data) - start).to_bytes(4, "big") + b"\0\0\0\6"
    data[start + 16 : start + 18] = internet_sum(pseudo).to_bytes(2, "big")
    seen = wire.send(Frame(bytes(data), start, 16))
    assert seen.frames[0].checksum_start == start, "the sum is not left to the device any more"
    assert seen.back == [refusal(version)]


def test_refused_connection_keeps_its_tags(wire: Wire, mirror: CountingMirror) -> None:
    mirror.refuse_all()
    shim = Dot1AD(vlan=3) / Dot1Q(vlan=4)
    sent = bytes(ether() / shim / ip(4) / syn() / Raw(b"early data"))
    assert wire.send(sent).back == [refusal(4, shim=shim)]


def test_refused_connection_with_extension_headers(wire: Wire, mirror: CountingMirror) -> None:
    mirror.refuse_all()
    sent = bytes(ether() / ip(6) / IPv6ExtHdrDestOpt() / syn())
    (back,) = wire.send(sent).back
    want = Ether(refusal(6))
    host, peer = Ether(src=HOST_MAC, dst=PEER_MAC), IPv6(src=HOST6, dst=PEER6, hlim=63)
    segment = want[TCP]
    del segment.chksum
    assert back == bytes(host / peer / IPv6ExtHdrDestOpt() / segment)


def test_reset_is_never_answered_by_one(wire: Wire, mirror: CountingMirror) -> None:
    mirror.refuse_all()
    assert not wire.send(bytes(ether() / ip(4) / syn(flags="SR"))).back


def test_draining_lets_go_on_what_is_open(wire: Wire, mirror: CountingMirror) -> None:
    mirror.set_limits(accepting=False)
    segments = [
        TCP(sport=CLIENT_PORT, dport=PORT, flags="A"),
        TCP(sport=RETURN_PORT, dport=CLIENT_PORT, flags="SA"),
        TCP(sport=RETURN_PORT, dport=CLIENT_PORT, flags="FA"),
    ]
    seen = wire.send(*(bytes(ether() / ip(4) / segment) for segment in segments))
    assert len(seen.back) == 3


def test_draining_leaves_what_is_new_to_whoever_comes_next(
    wire: Wire, mirror: CountingMirror
) -> None:
    mirror.set_limits(accepting=False)
    for new in (opening(4), opening(6), datagram()):
        seen = wire.send(new)
        assert (seen.back, seen.stack) == ([], [new])
    assert not mirror.counted()


NETWORKS = [
    network("10.9.0.0/24", False),
    network("10.9.0.128/25", True),
    network("10.9.0.130/32", False),
    network("fd09::/64", False),
    network("fd09::8000/113", True),
]
VERDICTS = {
    "10.9.0.2": False,
    "10.9.0.129": True,
    "10.9.0.130": False,
    "10.8.0.1": None,
    "fd09::2": False,
    "fd09::8001": True,
    "fd08::1": None,
}


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("source", sorted(VERDICTS))
def test_longest_network_decides(
    wire: Wire, mirror: CountingMirror, source: str, default: bool
) -> None:
    version = 6 if ":" in source else 4
    verdict = VERDICTS[source]
    allowed = default if verdict is None else verdict
    mirror.set_networks(NETWORKS)
    mirror.set_limits(default_allow=default)
    (back,) = wire.send(opening(version, source)).back
    assert bool(Ether(back)[TCP].flags & "R") is not allowed
    assert len(wire.send(datagram(version, source)).back) == allowed
    running = bytes(ether() / ip(version, source) / syn(flags="A"))
    assert len(wire.send(running).back) == allowed
    if not allowed:
        assert mirror.counted() == {"limited_denied": 2, "dropped_denied": 1}


@pytest.mark.parametrize("default", [True, False])
def test_network_of_all_ipv6_says_nothing_of_ipv4(
    wire: Wire, mirror: CountingMirror, default: bool
) -> None:
    sentinel = network(f"{SENTINEL_PEER}/32", True)
    mirror.set_networks([network("::/0", not default), sentinel])
    mirror.set_limits(default_allow=default)
    assert bool(wire.send(datagram(4)).back) is default
    assert bool(wire.send(datagram(6)).back) is not default
    all_ipv4 = network("0.0.0.0/0", not default)
    mirror.set_networks([network("::/0", default), all_ipv4, sentinel])
    assert bool(wire.send(datagram(4)).back) is not default
    assert bool(wire.send(datagram(6)).back) is default


def patched(frame: bytes, at: int, what: bytes) -> bytes:
    """The frame with other bytes at that offset; the mirror checks no checksum."""
    return frame[:at] + what + frame[at + len(what) :]


def count_opened(back: list[bytes]) -> int:
    """How many of these are SYNs that were sent on."""
    return sum(Ether(one)[TCP].flags == "S" for one in back)


def test_rate_of_all_lets_a_burst_of_a_second_pass(wire: Wire, mirror: CountingMirror) -> None:
    mirror.set_limits(rate=50)
    began = time.monotonic()
    sources = [f"10.9.{i // 200 + 1}.{i % 200 + 1}" for i in range(300)]
    seen = wire.send(*(opening(4, source) for source in sources))
    grown = (time.monotonic() - began) * 50
    opened = count_opened(seen.back)
    assert len(seen.back) == 300, "who is refused is told"
    assert 50 <= opened <= 51 + grown
    assert mirror.counted()["limited_rate"] == 300 - opened
    time.sleep(1 / 50 + 0.01)
    assert count_opened(wire.send(opening()).back) == 1


@pytest.mark.parametrize("version", [4, 6])
def test_rate_per_source_leaves_the_others_alone(
    wire: Wire, mirror: CountingMirror, version: int
) -> None:
    mirror.set_limits(rate_per_source=2)  # a burst of 10
    greedy, modest = ("10.9.7.7", "10.9.7.8") if version == 4 else ("fd0a::7", "fd0b::8")
    began = time.monotonic()
    seen = wire.send(*(opening(version, greedy, 1000 + i) for i in range(100)))
    grown = (time.monotonic() - began) * 2
    assert 10 <= count_opened(seen.back) <= 11 + grown
    assert mirror.counted()["limited_source"] == 100 - count_opened(seen.back)
    assert count_opened(wire.send(opening(version, modest)).back) == 1


def test_source_of_ipv6_is_its_64_bit_network(wire: Wire, mirror: CountingMirror) -> None:
    mirror.set_limits(rate_per_source=1)
    began = time.monotonic()
    seen = wire.send(*(opening(6, f"fd0c::{i:x}") for i in range(1, 101)))
    assert count_opened(seen.back) <= 11 + (time.monotonic() - began)


def test_greedy_source_does_not_use_up_the_rate_of_all(wire: Wire, mirror: CountingMirror) -> None:
    mirror.set_limits(rate=100, rate_per_source=1)
    wire.send(*(opening(4, "10.9.8.8", 1000 + i) for i in range(500)))
    others = [opening(4, f"10.9.9.{i}") for i in range(1, 51)]
    assert count_opened(wire.send(*others).back) == 50
    assert "limited_rate" not in mirror.counted()


def test_flood_of_sources_is_bounded_and_harmless(wire: Wire, mirror: CountingMirror) -> None:
    # Four times as many sources as the table holds.
    mirror.set_limits(rate_per_source=1)
    whole = opening()
    frames = [patched(whole, 26, bytes((10, 20, i >> 8, i & 0xFF))) for i in range(4096)]
    opened = 0
    for start in range(0, len(frames), 256):
        seen = wire.send(*frames[start : start + 256])
        opened += sum(one[47] == 0x02 for one in seen.back)  # TCP's flags
    assert opened == len(frames)


def test_counters_tell_the_course_of_a_connection(wire: Wire, mirror: CountingMirror) -> None:
    def reply(**fields: object) -> bytes:
        segment = TCP(**{"sport": RETURN_PORT, "dport": CLIENT_PORT} | fields)
        return bytes(ether() / ip(4) / segment / Raw(b"x" * 100))

    wire.send(
        opening(),
        reply(flags="SA"),
        bytes(ether() / ip(4) / syn(flags="A")),
        reply(flags="A", seq=1),
        opening(),
        reply(flags="RA", seq=0),
        reply(flags="RA", seq=5),
    )
    assert mirror.counted() == {
        "accepted": 2,
        "connected": 1,
        "refused": 1,
        "packets_to_service": 3,
        "bytes_to_service": 2 * 60 + 60,
        "packets_to_peer": 4,
        "bytes_to_peer": 4 * 140,
    }


def test_handshakes_are_timed_for_one_connection_in_sixty_four(
    wire: Wire, mirror: CountingMirror
) -> None:
    answer = bytes(ether() / ip(4) / TCP(sport=RETURN_PORT, dport=0, flags="SA"))
    ports = [port.to_bytes(2, "big") for port in range(1024, 1024 + 6400)]
    request = opening()
    requests = [patched(request, 34, port) for port in ports]
    answers = [patched(answer, 36, port) for port in ports]

    def send(frames: list[bytes]) -> None:
        for start in range(0, len(frames), 256):
            wire.send(*frames[start : start + 256])

    send(requests)
    time.sleep(0.01)
    send(answers)
    timed = mirror.timed()
    assert 50 <= sum(timed) <= 200, "about 100 are expected"
    assert not any(timed[:13]), "none took less than 8,192 microseconds"
    send(answers)
    assert mirror.timed() == timed, "each is counted once"
