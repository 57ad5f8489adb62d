"""What the mirror makes of a packet, judged byte by byte on a cable."""

import random
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("reflector._mirror", reason="the mirror was not built")
pytest.importorskip("scapy", reason="scapy cannot be installed here")

from scapy.layers.inet import IP, TCP, UDP, IPOption, fragment
from scapy.layers.inet6 import (
    HBHOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from support.namespaces import why_no_namespaces
from support.wire import (
    GSO_TCPV4,
    GSO_TCPV6,
    HOST,
    HOST6,
    HOST_MAC,
    PEER,
    PEER6,
    PEER_MAC,
    PORT,
    RETURN_PORT,
    CountingMirror,
    Frame,
    Wire,
    internet_sum,
    mapped,
    routes,
)

CLIENT_PORT = 45678
TEXT = b"what a check says\n"


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


def ip(version: int, /, **fields: Any) -> Packet:
    if version == 4:
        return IP(**{"src": PEER, "dst": HOST, "ttl": 64, "id": 7, "tos": 0x12} | fields)
    return IPv6(**{"src": PEER6, "dst": HOST6, "hlim": 64, "fl": 0x12345, "tc": 0x12} | fields)


def tcp(direction: str = "request", **fields: Any) -> Packet:
    fields = {"flags": "PA", "seq": 1000, "ack": 2000, "options": [("Timestamp", (1, 2))]} | fields
    return TCP(**ports(direction), **fields)


def udp(direction: str = "request", **fields: Any) -> Packet:
    return UDP(**ports(direction), **fields)


def ports(direction: str) -> dict[str, int]:
    if direction == "request":
        return {"sport": CLIENT_PORT, "dport": PORT}
    return {"sport": RETURN_PORT, "dport": CLIENT_PORT}


def layer(packet: Packet, *kinds: type[Packet]) -> Packet:
    """The first layer of one of these kinds."""
    return next(packet[kind] for kind in kinds if kind in packet)


def turned(sent: Packet) -> bytes:
    """What has to come back for a packet, its checksums computed anew."""
    packet = Ether(bytes(sent))
    packet.src, packet.dst = packet.dst, packet.src
    network = layer(packet, IP, IPv6)
    network.src, network.dst = network.dst, network.src
    transport = layer(packet, TCP, UDP)
    if transport.dport == PORT:
        transport.dport = RETURN_PORT
    else:
        transport.sport = PORT
    if IP in packet:
        network.ttl -= 1
        del network.chksum
    else:
        network.hlim -= 1
    if not (UDP in packet and transport.chksum == 0):
        del transport.chksum
    return bytes(packet)


def half_done(sent: Packet) -> Frame:
    """The packet as a host with checksum offload hands it to its card."""
    packet = Ether(bytes(sent))
    data = bytearray(bytes(packet))
    transport = layer(packet, TCP, UDP)
    start = len(data) - len(bytes(transport))
    offset = 16 if TCP in packet else 6
    length = len(data) - start
    network = layer(packet, IP, IPv6)
    pseudo = mapped(network.src)[12 if IP in packet else 0 :]
    pseudo += mapped(network.dst)[12 if IP in packet else 0 :]
    pseudo += length.to_bytes(4, "big") + (6 if TCP in packet else 17).to_bytes(4, "big")
    data[start + offset : start + offset + 2] = internet_sum(pseudo).to_bytes(2, "big")
    return Frame(bytes(data), start, offset)


TRANSPORTS = {"tcp": tcp, "udp": udp}
BOTH_WAYS = pytest.mark.parametrize("direction", ["request", "reply"])
EITHER_IP = pytest.mark.parametrize("version", [4, 6])
EITHER_TRANSPORT = pytest.mark.parametrize("transport", sorted(TRANSPORTS))


# --- rewriting -----------------------------------------------------------------------------------


@EITHER_IP
@EITHER_TRANSPORT
@BOTH_WAYS
@pytest.mark.parametrize("size", [0, 1, 18, 1400])
def test_packet_comes_back_rewritten(
    wire: Wire, mirror: CountingMirror, version: int, transport: str, direction: str, size: int
) -> None:
    payload = random.Random(size).randbytes(size)
    packet = ether() / ip(version) / TRANSPORTS[transport](direction) / Raw(payload)
    seen = wire.send(bytes(packet))
    assert (seen.back, seen.stack) == ([turned(packet)], [])


@EITHER_IP
@EITHER_TRANSPORT
@BOTH_WAYS
def test_checksum_left_to_the_device_stays_so_and_comes_out_right(
    wire: Wire, mirror: CountingMirror, version: int, transport: str, direction: str
) -> None:
    packet = ether() / ip(version) / TRANSPORTS[transport](direction) / Raw(TEXT)
    frame = half_done(packet)
    assert frame.completed() == bytes(packet)
    seen = wire.send(frame)
    assert seen.frames[0].checksum_start, "it is not left to the device any more"
    assert (seen.back, seen.stack) == ([turned(packet)], [])


@EITHER_IP
@BOTH_WAYS
def test_large_segments_of_an_offloading_host_pass_whole(
    wire: Wire, mirror: CountingMirror, version: int, direction: str
) -> None:
    packet = ether() / ip(version) / tcp(direction) / Raw(random.Random(3).randbytes(60000))
    frame = half_done(packet)
    frame.gso_type, frame.gso_size = GSO_TCPV4 if version == 4 else GSO_TCPV6, 1400
    seen = wire.send(frame)
    assert (seen.back, seen.stack) == ([turned(packet)], [])
    assert (seen.frames[0].gso_type, seen.frames[0].gso_size) == (frame.gso_type, 1400)


def test_udp_without_a_checksum_stays_without(wire: Wire, mirror: CountingMirror) -> None:
    packet = ether() / ip(4) / udp(chksum=0) / Raw(TEXT)
    seen = wire.send(bytes(packet))
    assert seen.back == [turned(packet)]
    assert Ether(seen.back[0])[UDP].chksum == 0


@EITHER_IP
def test_udp_checksum_that_comes_out_as_zero_is_sent_as_its_other_form(
    wire: Wire, mirror: CountingMirror, version: int
) -> None:
    # A payload that is the checksum of all the rest makes the whole sum come out so.
    rest = ether() / ip(version) / udp() / Raw(b"\0\0")
    word = Ether(turned(rest))[UDP].chksum
    packet = ether() / ip(version) / udp() / Raw(word.to_bytes(2, "big"))
    seen = wire.send(bytes(packet))
    assert Ether(seen.back[0])[UDP].chksum == 0xFFFF


@EITHER_IP
@EITHER_TRANSPORT
def test_wrong_checksum_stays_wrong_by_as_much(
    wire: Wire, mirror: CountingMirror, version: int, transport: str
) -> None:
    packet = ether() / ip(version) / TRANSPORTS[transport]() / Raw(TEXT)
    right = layer(Ether(turned(packet)), TCP, UDP).chksum
    before = layer(Ether(bytes(packet)), TCP, UDP)
    layer(packet, TCP, UDP).chksum = (before.chksum + 0x101) % 0xFFFF
    (back,) = wire.send(bytes(packet)).back
    assert (layer(Ether(back), TCP, UDP).chksum - right) % 0xFFFF == 0x101


@EITHER_IP
@EITHER_TRANSPORT
@BOTH_WAYS
@pytest.mark.parametrize("tags", ["802.1Q", "802.1ad", "QinQ"])
def test_tagged_packet_comes_back_with_its_tags(
    wire: Wire, mirror: CountingMirror, version: int, transport: str, direction: str, tags: str
) -> None:
    shims = {
        "802.1Q": Dot1Q(vlan=7, prio=5),
        "802.1ad": Dot1AD(vlan=9),
        "QinQ": Dot1AD(vlan=9) / Dot1Q(vlan=7, prio=2),
    }
    packet = ether() / shims[tags] / ip(version) / TRANSPORTS[transport](direction) / Raw(TEXT)
    seen = wire.send(bytes(packet))
    assert (seen.back, seen.stack) == ([turned(packet)], [])


@EITHER_TRANSPORT
@BOTH_WAYS
@pytest.mark.parametrize(
    "options",
    [
        b"\x01" * 4,  # no-operations
        b"\x94\x04\x00\x00",  # router alert
        b"\x07\x0b\x04" + b"\0" * 8 + b"\0",  # record route
        b"\x44\x0c\x05\x00" + b"\0" * 8 + b"\x94\x04\0\0" + b"\x01" * 3 + b"\0",
    ],
)
def test_ipv4_options_stay_as_they_are(
    wire: Wire, mirror: CountingMirror, transport: str, direction: str, options: bytes
) -> None:
    header = ip(4, options=[IPOption(options)])
    packet = ether() / header / TRANSPORTS[transport](direction) / Raw(TEXT)
    assert Ether(bytes(packet))[IP].ihl == 5 + len(options) // 4
    seen = wire.send(bytes(packet))
    assert (seen.back, seen.stack) == ([turned(packet)], [])


EXTENSIONS = {
    "hop-by-hop": IPv6ExtHdrHopByHop(options=[HBHOptUnknown(otype=0x1E, optdata=b"x" * 20)]),
    "destination": IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x1E, optdata=b"x" * 250)]),
    "both": IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt(),
}


@EITHER_TRANSPORT
@BOTH_WAYS
@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_ipv6_extension_headers_stay_as_they_are(
    wire: Wire, mirror: CountingMirror, transport: str, direction: str, extension: str
) -> None:
    header = ip(6) / EXTENSIONS[extension]
    packet = ether() / header / TRANSPORTS[transport](direction) / Raw(TEXT)
    seen = wire.send(bytes(packet))
    assert (seen.back, seen.stack) == ([turned(packet)], [])


@pytest.mark.parametrize("count, mirrored", [(8, True), (9, False)])
def test_ipv6_extension_headers_are_walked_up_to_a_limit(
    wire: Wire, mirror: CountingMirror, count: int, mirrored: bool
) -> None:
    packet = ether() / ip(6)
    for _ in range(count):
        packet /= IPv6ExtHdrDestOpt()
    seen = wire.send(bytes(packet / tcp()))
    assert (len(seen.back), len(seen.stack)) == ((1, 0) if mirrored else (0, 1))


def test_padding_of_a_short_frame_is_no_part_of_it(wire: Wire, mirror: CountingMirror) -> None:
    packet = ether() / ip(4) / tcp(options=[])
    padding = b"\0" * 6
    assert wire.send(bytes(packet) + padding).back == [turned(packet) + padding]


@EITHER_IP
def test_return_port_that_is_the_listening_port(
    wire: Wire, mirror: CountingMirror, version: int
) -> None:
    mirror.set_routes([*routes(PORT)])
    packet = ether() / ip(version) / tcp() / Raw(TEXT)
    (back,) = wire.send(bytes(packet)).back
    want = Ether(turned(packet))
    want[TCP].dport = PORT
    del want[TCP].chksum
    assert back == bytes(want)


@EITHER_IP
def test_ports_that_fit_both_ways(wire: Wire, mirror: CountingMirror, version: int) -> None:
    # From the return port to the listening port: a SYN opens a connection, all else is a reply.
    def answer(flags: str) -> TCP:
        segment = TCP(sport=RETURN_PORT, dport=PORT, flags=flags)
        (back,) = wire.send(bytes(ether() / ip(version) / segment)).back
        return Ether(back)[TCP]

    opened, other = answer("S"), answer("A")
    assert (opened.sport, opened.dport) == (RETURN_PORT, RETURN_PORT)
    assert (other.sport, other.dport) == (PORT, PORT)


# --- what is left to the stack -------------------------------------------------------------------


def left_alone() -> dict[str, Packet]:
    """Frames that the mirror has to leave to the stack, by what is the matter with them."""
    other = "02:00:00:00:00:99"
    request, text = tcp(), Raw(TEXT)
    return {
        "broadcast MAC": Ether(src=PEER_MAC, dst="ff:ff:ff:ff:ff:ff") / ip(4) / request,
        "multicast MAC": Ether(src=PEER_MAC, dst="33:33:00:00:00:01") / ip(6) / request,
        "someone else's MAC": Ether(src=PEER_MAC, dst=other) / ip(4) / request,
        "another port, IPv4": ether() / ip(4) / TCP(sport=CLIENT_PORT, dport=PORT + 1),
        "another port, IPv6": ether() / ip(6) / UDP(sport=CLIENT_PORT, dport=PORT + 1),
        "another address, IPv4": ether() / ip(4, dst="10.9.0.77") / request,
        "another address, IPv6": ether() / ip(6, dst="fd09::77") / request,
        "from another service": ether() / ip(4) / TCP(sport=RETURN_PORT + 1, dport=CLIENT_PORT),
        "SYN from the return port": ether() / ip(4) / tcp("reply", flags="S"),
        "another protocol": ether() / ip(4, proto=132) / text,
        "another protocol, IPv6": ether() / ip(6, nh=132) / text,
        "AH": ether() / ip(6, nh=51) / text,
        "ESP": ether() / ip(6, nh=50) / text,
        "loose source route": ether()
        / ip(4, options=[IPOption(b"\x83\x07\x04\x0a\x09\0\2\0")])
        / request,
        "strict source route": ether()
        / ip(4, options=[IPOption(b"\x01\x89\x07\x04\x0a\x09\0\2")])
        / request,
        "hidden source route": ether()
        / ip(4, options=[IPOption(b"\x01" * 12 + b"\x83\x07\x04\x0a\x09\0\2\0")])
        / request,
        "malformed option": ether() / ip(4, options=[IPOption(b"\x94\x01\0\0")]) / request,
        "routing header": ether() / ip(6) / IPv6ExtHdrRouting(addresses=["fd09::3"]) / request,
        "hop-by-hop not first": ether()
        / ip(6)
        / IPv6ExtHdrDestOpt()
        / IPv6ExtHdrHopByHop()
        / request,
        "atomic fragment": ether() / ip(6) / IPv6ExtHdrFragment(id=9) / request / text,
        "later fragment, IPv4": ether() / ip(4, frag=5, flags="MF", proto=6) / text,
        "last fragment, IPv6": ether() / ip(6) / IPv6ExtHdrFragment(id=9, offset=5, nh=6) / text,
        "first fragment of UDP": fragment(ether() / ip(4) / udp() / Raw(b"x" * 600), 400)[0],
        "first fragment of UDP, IPv6": ether()
        / ip(6)
        / IPv6ExtHdrFragment(id=9, m=1)
        / udp()
        / text,
        "IP version 5": ether() / ip(4, version=5) / request,
        "IP header of 16 bytes": ether() / ip(4, ihl=4) / request,
        "longer than it is, IPv4": ether() / ip(4, len=1000) / request,
        "longer than it is, IPv6": ether() / ip(6, plen=1000) / request,
        "shorter than its header": ether() / ip(4, len=19) / request,
        "TCP cut short": ether() / ip(4, len=30) / request,
        "TCP header of 16 bytes": ether() / ip(4) / tcp(dataofs=4),
        "TCP header beyond the end": ether() / ip(6) / tcp(dataofs=15, options=[]),
        "UDP longer than it is": ether() / ip(4) / udp(len=100) / text,
        "UDP shorter than its header": ether() / ip(6) / udp(len=7) / text,
        "v4-mapped destination": ether() / ip(6, dst=f"::ffff:{HOST}") / request,
    }


@pytest.mark.parametrize("matter", sorted(left_alone()))
def test_left_to_the_stack(wire: Wire, mirror: CountingMirror, matter: str) -> None:
    sent = bytes(left_alone()[matter])
    seen = wire.send(sent)
    assert (seen.back, seen.stack) == ([], [sent])
    assert not mirror.counted()


def test_other_protocols_are_let_alone(wire: Wire, mirror: CountingMirror) -> None:
    odd = bytes(Ether(src=PEER_MAC, dst=HOST_MAC, type=0x88B5) / Raw(b"x" * 60))
    assert not wire.send(odd).back


def test_frames_cut_anywhere_are_not_mirrored(wire: Wire, mirror: CountingMirror) -> None:
    for version in (4, 6):
        whole = bytes(ether() / ip(version) / tcp(options=[]))
        assert not wire.send(*(whole[:length] for length in range(15, len(whole)))).back


# --- the host's own traffic ----------------------------------------------------------------------


@EITHER_IP
@EITHER_TRANSPORT
def test_replies_to_the_hosts_own_sockets_are_its_own(
    wire: Wire, mirror: CountingMirror, version: int, transport: str
) -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
    with wire.host, socket.socket(family, kind) as own:
        own.setblocking(False)
        own.bind((HOST if version == 4 else HOST6, CLIENT_PORT))
        own.connect_ex((PEER if version == 4 else PEER6, RETURN_PORT))
        packet = bytes(ether() / ip(version) / TRANSPORTS[transport]("reply") / Raw(TEXT))
        seen = wire.send(packet)
        assert (seen.back, seen.stack) == ([], [packet])
        # The same port of another peer is a client's.
        far = {"src": "10.9.0.3"} if version == 4 else {"src": "fd09::3"}
        stranger = ether() / ip(version, **far) / tcp("reply")
        assert wire.send(bytes(stranger)).back == [turned(stranger)]


@EITHER_IP
def test_listener_of_the_host_is_not_in_the_way_of_a_client_with_its_port(
    wire: Wire, mirror: CountingMirror, version: int
) -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with wire.host, socket.socket(family) as listener:
        listener.bind(("", CLIENT_PORT))
        listener.listen()
        packet = ether() / ip(version) / tcp("reply")
        assert wire.send(bytes(packet)).back == [turned(packet)]


def test_socket_of_the_splice_engine_is_not_in_the_way_of_replies(
    wire: Wire, mirror: CountingMirror
) -> None:
    # A client whose port is the listening port: what comes back looks like a datagram for the
    # splice engine, whose socket is there for fragments.
    with wire.host, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("", PORT))
        packet = bytes(ether() / ip(4) / UDP(sport=RETURN_PORT, dport=PORT) / Raw(TEXT))
        (back,) = wire.send(packet).back
        assert (Ether(back)[UDP].sport, Ether(back)[UDP].dport) == (PORT, PORT)


# --- what is dropped -----------------------------------------------------------------------------

FORBIDDEN = [
    *["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1"],
    *["255.255.255.255", "10.9.0.255", HOST],
    *["::", "::1", "ff02::1", "::ffff:10.9.0.2", HOST6],
]


@BOTH_WAYS
@EITHER_TRANSPORT
@pytest.mark.parametrize("source", FORBIDDEN)
def test_no_answer_goes_to(
    wire: Wire, mirror: CountingMirror, source: str, transport: str, direction: str
) -> None:
    version = 6 if ":" in source else 4
    flags = {"flags": "S"} if (transport, direction) == ("tcp", "request") else {}
    packet = ether() / ip(version, src=source) / TRANSPORTS[transport](direction, **flags)
    seen = wire.send(bytes(packet))
    assert (seen.back, seen.stack) == ([], [])
    assert mirror.counted() == {"forbidden": 1}


def test_no_answer_goes_to_a_group_of_hosts_by_mac(wire: Wire, mirror: CountingMirror) -> None:
    packet = Ether(src="03:00:00:00:00:02", dst=HOST_MAC) / ip(4) / tcp()
    seen = wire.send(bytes(packet))
    assert (seen.back, seen.stack) == ([], [])
    assert mirror.counted() == {"forbidden": 1}


@EITHER_IP
@EITHER_TRANSPORT
@BOTH_WAYS
def test_packet_at_its_last_hop_is_dropped(
    wire: Wire, mirror: CountingMirror, version: int, transport: str, direction: str
) -> None:
    name = "ttl" if version == 4 else "hlim"
    frames = [
        ether() / ip(version, **{name: hops}) / TRANSPORTS[transport](direction)
        for hops in (0, 1, 2)
    ]
    seen = wire.send(*map(bytes, frames))
    assert (seen.back, seen.stack) == ([turned(frames[2])], [])
    assert mirror.counted()["dropped_ttl"] == 2


@EITHER_IP
@BOTH_WAYS
def test_first_fragment_of_tcp_is_dropped(
    wire: Wire, mirror: CountingMirror, version: int, direction: str
) -> None:
    whole = ether() / ip(version) / tcp(direction) / Raw(TEXT)
    if version == 4:
        whole[IP].flags = "MF"
    else:
        whole = ether() / ip(6) / IPv6ExtHdrFragment(id=9, m=1) / tcp(direction) / Raw(TEXT)
    seen = wire.send(bytes(whole))
    assert (seen.back, seen.stack) == ([], [])
    assert mirror.counted() == {"dropped_fragment": 1}


# --- the table of routes -------------------------------------------------------------------------


def test_routes_that_are_gone_mirror_no_more(wire: Wire, mirror: CountingMirror) -> None:
    packet = bytes(ether() / ip(4) / tcp())
    assert wire.send(packet).back
    mirror.set_routes(routes()[-1:])
    seen = wire.send(packet)
    assert (seen.back, seen.stack) == ([], [packet])


def test_routes_that_contradict_each_other_are_refused(mirror: CountingMirror) -> None:
    for clash in ((6, PORT, 23, 0, mapped(HOST)), (6, PORT + 1, RETURN_PORT, 0, mapped(HOST))):
        with pytest.raises(FileExistsError):
            mirror.set_routes([*routes(), clash])


def test_interface_that_is_detached_is_let_alone(wire: Wire, mirror: CountingMirror) -> None:
    packet = bytes(ether() / ip(4) / tcp())
    with wire.host:
        mirror.detach(wire.ifindex)
        assert wire.leave(packet) == packet
        mirror.attach(wire.ifindex, 14)
        assert wire.send(packet).back
        with pytest.raises(FileExistsError):
            mirror.attach(wire.ifindex, 14)
        with pytest.raises(OSError, match="No such device"):
            mirror.attach(1 << 30, 14)


def test_nothing_is_mirrored_past_the_deadline(wire: Wire, mirror: CountingMirror) -> None:
    packet = bytes(ether() / ip(4) / tcp())
    now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    mirror.keep_alive(now_ns + 60 * 10**9)
    assert wire.send(packet).back
    mirror.keep_alive(now_ns)
    assert wire.leave(packet) == packet
    mirror.keep_alive(2**64 - 1)
    assert wire.send(packet).back
