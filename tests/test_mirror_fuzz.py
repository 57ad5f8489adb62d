"""Random and malformed frames: nothing goes anywhere but to its own source, and all goes on."""

import random
from ipaddress import ip_address

import pytest

pytest.importorskip("reflector._mirror", reason="the mirror was not built")
pytest.importorskip("scapy", reason="scapy cannot be installed here")

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from support.namespaces import why_no_namespaces
from support.wire import HOST, HOST6, HOST_MAC, PEER, PEER6, PEER_MAC, PORT, RETURN_PORT, Wire

BATCHES, BATCH = 200, 128
TAGS = (b"\x81\x00", b"\x88\xa8")
ICMPS = (1, 58)


def seeds() -> list[bytes]:
    """Frames that the mirror has something to do with."""
    ether = Ether(src=PEER_MAC, dst=HOST_MAC)
    tagged = ether / Dot1AD(vlan=1) / Dot1Q(vlan=2)
    v4, v6 = IP(src=PEER, dst=HOST), IPv6(src=PEER6, dst=HOST6)
    text = Raw(bytes(range(64)))
    made: list[Packet] = []
    for inner in (
        TCP(sport=4000, dport=PORT, flags="S", options=[("MSS", 1460), ("WScale", 7)]),
        TCP(sport=4000, dport=PORT, flags="PA"),
        TCP(sport=RETURN_PORT, dport=4000, flags="SA"),
        UDP(sport=4000, dport=PORT),
        UDP(sport=RETURN_PORT, dport=4000),
    ):
        made += [ether / v4 / inner / text, ether / v6 / inner / text, tagged / v4 / inner / text]
        made += [ether / v6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / inner / text]
        made += [ether / v6 / IPv6ExtHdrFragment(m=1) / inner / text]
        made += [ether / IP(src=PEER, dst=HOST, options=b"\x94\x04\0\0\x01\x01\x01\0") / inner]
    quoted = IP(src=HOST, dst=PEER) / UDP(sport=4000, dport=RETURN_PORT) / text
    quoted6 = IPv6(src=HOST6, dst=PEER6) / TCP(sport=PORT, dport=4000) / text
    made += [ether / v4 / ICMP(type=3, code=3) / quoted, ether / v6 / ICMPv6DestUnreach() / quoted6]
    return [bytes(one) for one in made]


def mutated(generator: random.Random, corpus: list[bytes]) -> bytes:
    """A frame with some of its bytes, or its length, not as they should be."""
    frame = bytearray(generator.choice(corpus))
    for _ in range(generator.randrange(4)):
        # Mostly headers; the own MAC address has to stay, or nobody looks at the frame.
        at = generator.randrange(6, min(len(frame), generator.choice((16, 24, 60, 200))))
        frame[at] = generator.choice((0, 1, 0xFF, generator.randrange(256), frame[at] ^ 1))
    kind = generator.randrange(8)
    if kind == 0:
        del frame[generator.randrange(15, len(frame)) :]
    elif kind == 1:
        frame += generator.randbytes(generator.randrange(1, 200))
    elif kind == 2:
        other = generator.choice(corpus)
        at = generator.randrange(14, min(len(frame), len(other)))
        frame[at:] = other[at:]
    return bytes(frame)


def addresses(frame: bytes) -> tuple[bytes, bytes, int] | None:
    """Source, destination, and the protocol that the IP header names."""
    at = 12
    while frame[at : at + 2] in TAGS:
        at += 4
    if frame[at : at + 2] == b"\x08\x00" and len(frame) >= at + 22:
        return frame[at + 14 : at + 18], frame[at + 18 : at + 22], frame[at + 11]
    if frame[at : at + 2] == b"\x86\xdd" and len(frame) >= at + 42:
        return frame[at + 10 : at + 26], frame[at + 26 : at + 42], frame[at + 8]
    return None


@pytest.mark.parametrize("refusing", [False, True])
def test_fuzz(refusing: bool) -> None:
    reason = why_no_namespaces()
    if reason:
        pytest.skip(reason)
    generator = random.Random(2024)
    corpus = seeds()
    wire = Wire()
    try:
        mirror = wire.mirror()
        if refusing:
            mirror.refuse_all()
        came_back = 0
        for _ in range(BATCHES):
            frames = [mutated(generator, corpus) for _ in range(BATCH)]
            longest: dict[bytes, int] = {}
            for frame in frames:
                found = addresses(frame)
                if found:
                    longest[found[0]] = max(longest.get(found[0], 0), len(frame))
            back = wire.send(*frames).back
            assert len(back) <= len(frames)
            came_back += len(back)
            for frame in back:
                check_answer(frame, longest)
        assert came_back > BATCHES, "the fuzz is too wild to test much"
        packet = bytes(Ether(src=PEER_MAC, dst=HOST_MAC) / IP(src=PEER, dst=HOST) / TCP(dport=PORT))
        assert wire.send(packet).back
    finally:
        wire.close()


def check_answer(frame: bytes, longest: dict[bytes, int]) -> None:
    """It goes to the source of one that came in, from this host, and is no longer than that."""
    found = addresses(frame)
    assert found, frame.hex()
    source, destination, protocol = found
    assert str(ip_address(source)) in (HOST, HOST6)
    target = ip_address(destination)
    assert not (target.is_multicast or target.is_loopback or target.is_unspecified), target
    if protocol not in ICMPS:
        assert len(frame) <= longest.get(destination, 0), frame.hex()
