"""Where the mirror is attached: devices without link headers, two mirrors, a process that dies."""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("reflector._mirror", reason="the mirror was not built")
pytest.importorskip("scapy", reason="scapy cannot be installed here")

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from support.namespaces import Namespace, why_no_namespaces
from support.timing import wait_until
from support.wire import (
    HOST,
    HOST6,
    HOST_MAC,
    PEER,
    PEER6,
    PEER_MAC,
    PORT,
    RETURN_PORT,
    SENTINELS,
    Wire,
    mapped,
    routes,
)

from reflector._mirror import Mirror

ROOT = Path(__file__).parent.parent
CLIENT_PORT = 45678


@pytest.fixture
def wire() -> Iterator[Wire]:
    reason = why_no_namespaces()
    if reason:
        pytest.skip(reason)
    made = Wire()
    yield made
    made.close()


def request(version: int = 4) -> Packet:
    segment = TCP(sport=CLIENT_PORT, dport=PORT, flags="A")
    return (IP(src=PEER, dst=HOST) if version == 4 else IPv6(src=PEER6, dst=HOST6)) / segment


def answer(version: int = 4) -> bytes:
    segment = TCP(sport=CLIENT_PORT, dport=RETURN_PORT, flags="A")
    if version == 4:
        return bytes(IP(src=HOST, dst=PEER, ttl=63) / segment)
    return bytes(IPv6(src=HOST6, dst=PEER6, hlim=63) / segment)


def frame() -> bytes:
    return bytes(Ether(src=PEER_MAC, dst=HOST_MAC) / request())


def new_mirror(count: int = 2) -> Mirror:
    made = Mirror(count, 1024)
    made.set_routes(routes())
    made.set_limits()
    return made


@pytest.mark.parametrize("version", [4, 6])
def test_device_without_link_header(version: int) -> None:
    reason = why_no_namespaces()
    if reason:
        pytest.skip(reason)
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("no /dev/net/tun here")
    space = Namespace("host")
    with space:
        tunnel = os.open("/dev/net/tun", os.O_RDWR)
        try:
            # TUNSETIFF with IFF_TUN | IFF_NO_PI
            fcntl.ioctl(tunnel, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))
            Path("/proc/sys/net/ipv6/conf/tun0/disable_ipv6").write_text("1")
            space.ip("link set tun0 up")
            mirror = new_mirror()
            mirror.attach(socket.if_nametoindex("tun0"), 0)
            os.write(tunnel, bytes(request(version)))
            assert os.read(tunnel, 65536) == answer(version)
            mirror.close()
        finally:
            os.close(tunnel)
            space.close()


def test_program_that_dies_leaves_nothing_behind(wire: Wire) -> None:
    script = (
        "import socket, sys, time\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from test_mirror_attachment import new_mirror\n"
        "made = new_mirror()\n"
        "made.attach(socket.if_nametoindex('v0'), 14)\n"
        "print('attached', flush=True)\n"
        "time.sleep(60)\n"
    )
    with wire.host:
        wire.detach()
        child = subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "attached\n"
        assert wire.send(frame()).back
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert wire.leave(frame()) == frame()
    with wire.host:
        assert not wire.host.run("tc", "filter", "show", "dev", "v0", "ingress")
        assert "clsact" not in wire.host.run("tc", "qdisc", "show", "dev", "v0")


def test_new_mirror_takes_over_from_the_old_one_without_a_gap(wire: Wire) -> None:
    old = wire.mirror()
    assert len(wire.send(*[frame()] * 100).back) == 100
    with wire.host:
        new = new_mirror()
    try:
        with wire.host:
            new.attach(wire.ifindex, 14)
        assert len(wire.send(*[frame()] * 100).back) == 100, "one of the two takes each"
        assert old.counted()["packets_to_service"] == 200
        with wire.host:
            wire.detach()
        assert len(wire.send(*[frame()] * 100).back) == 100
        assert new.stats(0)["packets_to_service"] == 100
    finally:
        new.close()


def test_two_mirrors_that_face_each_other_die_out(wire: Wire) -> None:
    host = wire.mirror()
    tcp = socket.IPPROTO_TCP
    with wire.peer:
        peer = Mirror(SENTINELS + 1, 1024)
        peer.set_routes([(tcp, RETURN_PORT, PORT, 0, mapped(PEER))])
        peer.set_limits()
        peer.attach(socket.if_nametoindex("v0"), 14)
    try:
        wire.send(frame())
        wait_until(
            lambda: host.counted().get("dropped_ttl", 0) + peer.stats(0)["dropped_ttl"] == 1,
            "the packet ends at its last hop",
        )
        there, back = host.counted()["packets_to_service"], peer.stats(0)["packets_to_service"]
        assert there + back == 63
    finally:
        peer.close()


def test_closed_mirror_says_so(wire: Wire) -> None:
    with wire.host:
        mirror = new_mirror()
    mirror.close()
    mirror.close()
    with pytest.raises(ValueError, match="closed"):
        mirror.set_limits()


@pytest.mark.parametrize("mappings, sources", [(0, 1024), (65537, 1024), (1, 1 << 25)])
def test_numbers_out_of_range_are_refused(mappings: int, sources: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        Mirror(mappings, sources)


def test_values_that_no_table_takes_are_refused(wire: Wire) -> None:
    mirror = wire.mirror()
    local = mapped(HOST)
    for route in ((6, 0, 22, 0, local), (6, 22, 0, 0, local), (6, 22, 22, 2, local)):
        with pytest.raises(OSError, match="Invalid argument"):
            mirror.set_routes([route])
    with pytest.raises(ValueError, match="16"):
        mirror.set_never([b"1234"])
    with pytest.raises(OverflowError):
        mirror.set_routes([(6, 65536, 22, 0, local)])
    with pytest.raises(OSError, match="Invalid argument"):
        mirror.set_networks([(local, 129, True)])
    with pytest.raises(OSError, match="Argument list too long"):
        mirror.set_never(number.to_bytes(16, "big") for number in range(65537))
    with pytest.raises(OSError, match="No such file"):
        mirror.stats(2)
    with pytest.raises(OSError, match="No such file"):
        mirror.detach(1 << 20)
    with pytest.raises(OSError, match="Invalid argument"):
        mirror.attach(wire.ifindex + 1, 13)


def test_large_tables_change_without_a_trace_of_the_old(wire: Wire) -> None:
    mirror = wire.mirror()
    many = [(6, 40000 + i, 50000 + i, 0, mapped(HOST)) for i in range(10000)]
    mirror.set_routes([*routes(), *many])
    last = bytes(Ether(src=PEER_MAC, dst=HOST_MAC) / IP(src=PEER, dst=HOST) / TCP(dport=49999))
    assert Ether(wire.send(last).back[0])[TCP].dport == 59999
    mirror.set_routes([*many[:5], *routes()])
    seen = wire.send(last, frame())
    assert len(seen.back) == 1
    assert seen.stack == [last]
