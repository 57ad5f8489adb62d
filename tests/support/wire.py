"""A cable with the mirror at one end and raw sockets at both: what goes in, and what becomes of it.

The far end (the peer) has no addresses: all that it sends is what a test made, to the byte. The
near end (the host) has the mirror at its ingress, and a stack that is silenced by a firewall. A
packet socket for one protocol hears what is left to that stack: the kernel serves it after ingress.
"""

import os
import socket
import struct
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from reflector._mirror import Mirror
from support.namespaces import Namespace, join

HOST, PEER = "10.9.0.1", "10.9.0.2"
HOST6, PEER6 = "fd09::1", "fd09::2"
HOST_MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"

# The mapping of the tests, the one of the sentinels, and where those come from.
PORT, RETURN_PORT = 10022, 22
SENTINEL_PORT, SENTINEL_RETURN_PORT, SENTINEL_PEER = 4, 5, "10.9.0.250"
MAPPINGS, SENTINELS = 2, 1

_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6, _ETH_P_ARP = 3, 0x0800, 0x86DD, 0x0806
_SOL_PACKET, _PACKET_AUXDATA, _PACKET_VNET_HDR = 263, 8, 15
_VLAN_VALID = 1 << 4
_TIMEOUT_S = 5

# struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_VNET = struct.Struct("=BBHHHH")
_NEEDS_CHECKSUM = 1
GSO_TCPV4, GSO_TCPV6 = 1, 4


def mapped(address: str) -> bytes:
    """16 bytes of an address, v4-mapped for IPv4."""
    parsed = ip_address(address)
    return parsed.packed if parsed.version == 6 else b"\0" * 10 + b"\xff\xff" + parsed.packed


def network(text: str, allow: bool) -> tuple[bytes, int, bool]:
    """An entry for Mirror.set_networks."""
    parsed = ip_network(text)
    shift = 96 if parsed.version == 4 else 0
    return mapped(str(parsed.network_address)), parsed.prefixlen + shift, allow


def internet_sum(data: bytes) -> int:
    """The one's complement sum of RFC 1071, not inverted."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass
class Frame:
    """One frame, with what a network card would know of it beside its bytes."""

    data: bytes
    checksum_start: int = 0  # where a checksum is still to be computed from; 0: nowhere
    checksum_offset: int = 0
    gso_type: int = 0
    gso_size: int = 0

    def completed(self) -> bytes:
        """The bytes, with the checksum that the card would have put in."""
        if not self.checksum_start:
            return self.data
        total = internet_sum(self.data[self.checksum_start :]) ^ 0xFFFF
        at = self.checksum_start + self.checksum_offset
        # Cards write what is computed as 0 as its other form: 0 would mean "none" to UDP.
        return self.data[:at] + struct.pack("!H", total or 0xFFFF) + self.data[at + 2 :]


@dataclass
class Seen:
    """What became of what was sent."""

    back: list[bytes] = field(default_factory=list)  # came back over the cable
    frames: list[Frame] = field(default_factory=list)  # the same as the card has them
    stack: list[bytes] = field(default_factory=list)  # was left to the host's stack


class CountingMirror(Mirror):
    """A mirror that serves one test after another, for it takes a while to load."""

    def begin(self) -> None:
        """Count from here."""
        self._before = super().stats(0)
        self._times = super().histogram()

    def counted(self) -> dict[str, int]:
        """The counters of the tests' mapping that have changed, and by how much."""
        now = super().stats(0)
        return {
            name: now[name] - self._before[name] for name in now if now[name] != self._before[name]
        }

    def refuse_all(self) -> None:
        """Deny everyone but the sentinel."""
        self.set_networks([network(f"{SENTINEL_PEER}/32", True)])
        self.set_limits(default_allow=False)

    def timed(self) -> list[int]:
        """The handshakes timed since then."""
        return [now - then for now, then in zip(super().histogram(), self._times, strict=True)]


class Wire:
    """The cable, the two hosts, and the sockets."""

    def __init__(self) -> None:
        self.peer, self.host = Namespace("peer"), Namespace("host")
        self.peer.sysctl("net/ipv6/conf/default/disable_ipv6", "1")
        join(self.peer, "v0", self.host, "v0")
        self.peer.ip(f"link set v0 address {PEER_MAC}")
        self.host.ip(f"link set v0 address {HOST_MAC}")
        self.host.ip(f"address add {HOST}/24 dev v0")
        self.host.ip(f"address add {HOST6}/64 dev v0 nodad")
        for hook in ("prerouting", "output"):
            rules = f"add chain inet mute {hook} {{ type filter hook {hook} priority -300; }}\n"
            rules += f"add rule inet mute {hook} drop\n"
            with self.host:
                self.host.run("nft", "-f", "-", stdin=f"add table inet mute\n{rules}")
        with self.host:
            self.ifindex = socket.if_nametoindex("v0")
            self._mirror = CountingMirror(MAPPINGS, 1024)
            self._mirror.attach(self.ifindex, 14)
            self._stack = [_packet_socket(kind) for kind in (_ETH_P_IP, _ETH_P_IPV6)]
        with self.peer:
            self._cable = _packet_socket(_ETH_P_ALL)
            self._cable.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        self._sentinels = 0

    def close(self) -> None:
        self._mirror.close()
        for one in (*self._stack, self._cable):
            one.close()
        self.peer.close()
        self.host.close()

    def mirror(self) -> CountingMirror:
        """The mirror, as good as new: PORT to RETURN_PORT for TCP and UDP, no limits."""
        self._mirror.set_routes(routes())
        self._mirror.set_never([mapped(one) for one in (HOST, HOST6, "10.9.0.255")])
        self._mirror.set_networks([])
        self._mirror.set_limits()
        self._drain()
        self._mirror.begin()
        return self._mirror

    def detach(self) -> None:
        """Take the mirror away; another one has to answer from now on."""
        self._mirror.detach(self.ifindex)

    def send(self, *sent: bytes | Frame) -> Seen:
        """Put frames on the cable; returns when the mirror is done with all of them."""
        frames = [one if isinstance(one, Frame) else Frame(one) for one in sent]
        # Packets keep their order on one processor only.
        processors = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(processors)})
        try:
            for frame in frames:
                self._transmit(frame)
            self._transmit(Frame(self._sentinel()))
            return self._collect()
        finally:
            os.sched_setaffinity(0, processors)

    def leave(self, data: bytes) -> bytes:
        """Put an IPv4 frame on the cable that no mirror will take; what the stack gets."""
        self._transmit(Frame(data))
        return self._stack[0].recv(65536)

    def _sentinel(self) -> bytes:
        self._sentinels += 1
        ip = IP(src=SENTINEL_PEER, dst=HOST) / TCP(
            sport=SENTINEL_PORT, dport=SENTINEL_PORT, flags="A", seq=self._sentinels
        )
        return bytes(Ether(src=PEER_MAC, dst=HOST_MAC) / ip)

    def _is_sentinel(self, data: bytes) -> bool:
        source = socket.inet_aton(SENTINEL_PEER)
        wanted = struct.pack("!I", self._sentinels)
        return data[12:14] == b"\x08\0" and data[30:34] == source and data[38:42] == wanted

    def _transmit(self, frame: Frame) -> None:
        head = _VNET.pack(
            _NEEDS_CHECKSUM if frame.checksum_start else 0,
            frame.gso_type,
            frame.checksum_start + 20 if frame.gso_type else 0,
            frame.gso_size,
            frame.checksum_start,
            frame.checksum_offset,
        )
        self._cable.send(head + frame.data)

    def _collect(self) -> Seen:
        seen = Seen()
        while True:
            frame = _receive(self._cable)
            if self._is_sentinel(frame.data):
                break
            if frame.data[12:14] != struct.pack("!H", _ETH_P_ARP):
                seen.frames.append(frame)
                seen.back.append(frame.completed())
        seen.stack = self._left_to_stack()
        return seen

    def _left_to_stack(self) -> list[bytes]:
        return [one for stack in self._stack for one in _take_all(stack)]

    def _drain(self) -> None:
        """Throw away what earlier tests left, and what the kernel says of its own accord."""
        self._left_to_stack()
        _take_all(self._cable)


def routes(return_port: int = RETURN_PORT) -> list[tuple[int, int, int, int, bytes]]:
    """The routes of the tests, on both addresses of the host."""
    made = [
        (protocol, PORT, return_port, 0, mapped(address))
        for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
        for address in (HOST, HOST6)
    ]
    sentinel = (SENTINEL_PORT, SENTINEL_RETURN_PORT, SENTINELS)
    return [*made, (socket.IPPROTO_TCP, *sentinel, mapped(HOST))]


def _take_all(one: socket.socket) -> list[bytes]:
    """All frames that are there already."""
    taken = []
    one.setblocking(False)
    try:
        while True:
            taken.append(one.recv(1 << 18))
    except BlockingIOError:
        return taken
    finally:
        one.settimeout(_TIMEOUT_S)


def _packet_socket(protocol: int) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    made.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
    made.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
    made.settimeout(_TIMEOUT_S)
    made.bind(("v0", protocol))
    return made


def _receive(cable: socket.socket) -> Frame:
    """The next frame that came in; its tag, which the kernel keeps aside, back in its place."""
    while True:
        data, ancillary, _, address = cable.recvmsg(1 << 18, 256)
        if address[2] != 4:  # PACKET_OUTGOING: our own
            break
    flags, gso_type, _, gso_size, start, offset = _VNET.unpack_from(data)
    data = data[_VNET.size :]
    shift = 0
    for _, kind, value in ancillary:
        status, _, _, _, _, tag, type_ = struct.unpack("=IIIHHHH", value)
        if kind == _PACKET_AUXDATA and status & _VLAN_VALID:
            data = data[:12] + struct.pack("!HH", type_, tag) + data[12:]
            shift = 4
    if flags & _NEEDS_CHECKSUM:
        return Frame(data, start + shift, offset, gso_type, gso_size)
    return Frame(data, gso_type=gso_type, gso_size=gso_size)
