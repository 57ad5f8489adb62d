"""ICMP errors about mirrored packets, turned round to the host that they are about."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("reflector._mirror", reason="the mirror was not built")
pytest.importorskip("scapy", reason="scapy cannot be installed here")

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.layers.l2 import Ether
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
    CountingMirror,
    Wire,
    network,
)

CLIENT_PORT = 45678
ROUTER, ROUTER6 = "10.9.0.254", "fd09::fe"
TEXT = b"what was in the packet"

# What the errors say, and the counters that they move beside icmp_turned.
V4_KINDS = {
    "net unreachable": (ICMP(type=3, code=0), "unreachable"),
    "host unreachable": (ICMP(type=3, code=1), "unreachable"),
    "port unreachable": (ICMP(type=3, code=3), "refused"),
    "fragmentation needed": (ICMP(type=3, code=4, nexthopmtu=1280), ""),
    "prohibited": (ICMP(type=3, code=13), "unreachable"),
}
V6_KINDS = {
    "no route": (ICMPv6DestUnreach(code=0), "unreachable"),
    "prohibited": (ICMPv6DestUnreach(code=1), "unreachable"),
    "port unreachable": (ICMPv6DestUnreach(code=4), "refused"),
    "packet too big": (ICMPv6PacketTooBig(mtu=1280), ""),
}
KINDS = {(4, name): kind for name, kind in V4_KINDS.items()}
KINDS |= {(6, name): kind for name, kind in V6_KINDS.items()}


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


def ip(version: int, source: str, destination: str, **fields: Any) -> Packet:
    kind = IP if version == 4 else IPv6
    return kind(src=source, dst=destination, **fields)


def home(version: int) -> tuple[str, str]:
    """The addresses of host and peer."""
    return (HOST, PEER) if version == 4 else (HOST6, PEER6)


def segment(transport: str, source: int, destination: int) -> Packet:
    return {
        "tcp": TCP(sport=source, dport=destination, seq=7, flags="PA"),
        "udp": UDP(sport=source, dport=destination),
    }[transport]


def quote(version: int, transport: str, sent_on: str, cut: int = 0) -> Packet:
    """What the host had sent, as the error quotes it: a request or a reply that was mirrored."""
    host, peer = home(version)
    ports = (CLIENT_PORT, RETURN_PORT) if sent_on == "request" else (PORT, CLIENT_PORT)
    whole = bytes(ip(version, host, peer) / segment(transport, *ports) / Raw(TEXT))
    header = 20 if version == 4 else 40
    return Raw(whole[: header + cut] if cut else whole)


def original(version: int, transport: str, sent_on: str, cut: int = 0) -> bytes:
    """What the peer had sent, or was to get, before the mirror: what it has to find quoted."""
    host, peer = home(version)
    ports = (CLIENT_PORT, PORT) if sent_on == "request" else (RETURN_PORT, CLIENT_PORT)
    whole = bytes(ip(version, peer, host) / segment(transport, *ports) / Raw(TEXT))
    header = 20 if version == 4 else 40
    return whole[: header + cut] if cut else whole


def error(version: int, head: Packet, quoted: Packet, sender: str = "", **fields: Any) -> Packet:
    host, peer = home(version)
    outer = ip(version, sender or peer, host, **fields)
    return Ether(src=PEER_MAC, dst=HOST_MAC) / outer / head.copy() / quoted


def turned(version: int, head: Packet, quoted: bytes, hops: int = 63) -> bytes:
    """What has to come: from the host to the peer, about the peer's own packet."""
    host, peer = home(version)
    outer = ip(version, host, peer, **{"ttl" if version == 4 else "hlim": hops})
    return bytes(Ether(src=HOST_MAC, dst=PEER_MAC) / outer / head.copy() / Raw(quoted))


@pytest.mark.parametrize("sender", ["peer", "router"])
@pytest.mark.parametrize("sent_on", ["request", "reply"])
@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("version, kind", sorted(KINDS))
@pytest.mark.parametrize("cut", [0, 8])
def test_error_is_turned_round(
    wire: Wire,
    mirror: CountingMirror,
    version: int,
    kind: str,
    transport: str,
    sent_on: str,
    sender: str,
    cut: int,
) -> None:
    head, counter = KINDS[version, kind]
    source = "" if sender == "peer" else ROUTER if version == 4 else ROUTER6
    hops = {"ttl" if version == 4 else "hlim": 64}
    sent = error(version, head, quote(version, transport, sent_on, cut), source, **hops)
    seen = wire.send(bytes(sent))
    assert seen.stack == []
    assert seen.back == [turned(version, head, original(version, transport, sent_on, cut))]
    want = {"icmp_turned": 1}
    if counter and sent_on == "request":
        want[counter] = 1
    assert mirror.counted() == want


def test_quoted_datagram_without_checksum_stays_without(wire: Wire, mirror: CountingMirror) -> None:
    head = ICMP(type=3, code=3)
    quoted = IP(src=HOST, dst=PEER) / UDP(sport=CLIENT_PORT, dport=RETURN_PORT, chksum=0)
    back = IP(src=PEER, dst=HOST) / UDP(sport=CLIENT_PORT, dport=PORT, chksum=0)
    seen = wire.send(bytes(error(4, head, quoted)))
    assert seen.back == [turned(4, head, bytes(back))]


def unturned() -> dict[str, Packet]:
    """Errors that are none of the mirror's business."""
    port = ICMP(type=3, code=3)
    other = IP(src=HOST, dst=PEER) / TCP(sport=CLIENT_PORT, dport=RETURN_PORT + 1)
    elsewhere = IP(src="10.9.0.77", dst=PEER) / TCP(sport=CLIENT_PORT, dport=RETURN_PORT)
    later = IP(src=HOST, dst=PEER, frag=9, proto=6) / Raw(TEXT)
    return {
        "echo request": Ether(src=PEER_MAC, dst=HOST_MAC) / IP(src=PEER, dst=HOST) / ICMP(),
        "time exceeded": error(4, ICMP(type=11), quote(4, "tcp", "request")),
        "time exceeded, IPv6": error(6, ICMPv6TimeExceeded(), quote(6, "tcp", "request")),
        "source quench": error(4, ICMP(type=4), quote(4, "tcp", "request")),
        "about another port": error(4, port, other),
        "about what another host sent": error(4, port, elsewhere),
        "about a later fragment": error(4, port, later),
        "quotes too little": error(4, port, quote(4, "tcp", "request", 7)),
        "quotes too little, IPv6": error(6, ICMPv6DestUnreach(), quote(6, "udp", "reply", 4)),
        "quotes nothing": error(4, port, Raw(b"")),
        "a fragment itself": error(4, port, quote(4, "udp", "request"), flags="MF"),
    }


@pytest.mark.parametrize("matter", sorted(unturned()))
def test_error_is_left_to_the_stack(wire: Wire, mirror: CountingMirror, matter: str) -> None:
    sent = bytes(unturned()[matter])
    seen = wire.send(sent)
    assert (seen.back, seen.stack) == ([], [sent])
    assert not mirror.counted()


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("version", [4, 6])
def test_error_about_a_connection_of_the_host_itself_is_its_own(
    wire: Wire, mirror: CountingMirror, version: int, transport: str
) -> None:
    import socket

    host, peer = home(version)
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
    head, _ = KINDS[version, "port unreachable"]
    with wire.host, socket.socket(family, kind) as own:
        own.setblocking(False)
        own.bind((host, CLIENT_PORT))
        own.connect_ex((peer, RETURN_PORT))
        sent = bytes(error(version, head, quote(version, transport, "request")))
        seen = wire.send(sent)
        assert (seen.back, seen.stack) == ([], [sent])


@pytest.mark.parametrize("peer", ["224.0.0.1", "127.0.0.1", "10.9.0.255", HOST, "0.0.0.0"])
def test_error_is_never_sent_to(wire: Wire, mirror: CountingMirror, peer: str) -> None:
    quoted = IP(src=HOST, dst=peer) / UDP(sport=CLIENT_PORT, dport=RETURN_PORT)
    seen = wire.send(bytes(error(4, ICMP(type=3, code=3), quoted, ROUTER)))
    assert (seen.back, seen.stack) == ([], [])
    assert mirror.counted() == {"forbidden": 1}


def test_error_at_its_last_hop_is_dropped(wire: Wire, mirror: CountingMirror) -> None:
    sent = error(4, ICMP(type=3, code=3), quote(4, "udp", "request"), ttl=1)
    assert not wire.send(bytes(sent)).back
    assert mirror.counted() == {"dropped_ttl": 1}


def test_error_about_a_denied_peer_is_dropped(wire: Wire, mirror: CountingMirror) -> None:
    mirror.set_networks([network("10.9.0.2/32", False)])
    sent = error(4, ICMP(type=3, code=3), quote(4, "udp", "request"), ROUTER)
    assert not wire.send(bytes(sent)).back
    assert mirror.counted() == {"dropped_denied": 1}


def test_errors_of_routers_are_limited_and_those_of_the_peer_are_not(
    wire: Wire, mirror: CountingMirror
) -> None:
    head, quoted = ICMP(type=3, code=1), quote(4, "udp", "request")
    count = 1000
    far = len(wire.send(*[bytes(error(4, head, quoted, ROUTER))] * count).back)
    assert far < count
    assert mirror.counted()["dropped_icmp"] == count - far
    assert len(wire.send(*[bytes(error(4, head, quoted))] * count).back) == count
