"""UDP across network namespaces: routers, ICMP, path MTU, addresses that must not be answered."""

import json
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.datagram import Udp, ask, drain
from support.lab import Lab, Running
from support.leaks import assert_no_spin
from support.namespaces import Namespace, join
from support.programs import Program, find_program, run
from support.timing import patience, wait_until

NODE, HOST = "10.7.1.2", "10.7.2.2"
NODE6, HOST6 = "fd00:1::2", "fd00:2::2"
PORT, SERVICE_PORT = 7053, 53
IDLE = patience(1.0)

MakeNamespace = Callable[[str], Namespace]


@dataclass
class Site:
    """A node and the reflector's host, with a router between them; IPv4 and IPv6."""

    node: Namespace
    router: Namespace
    host: Namespace

    def udp(self, address: str = NODE, port: int = 0) -> Udp:
        """A UDP socket on the node."""
        with self.node:
            return Udp(address, port)

    def reflect(self, lab: Lab, *mappings: str, **settings: object) -> Running:
        """A reflector on the host."""
        settings.setdefault("udp_idle_timeout", IDLE)
        with self.host:
            return lab.reflector(*(mappings or (f"{PORT}:{SERVICE_PORT}/udp",)), **settings)


@pytest.fixture
def site(namespace: MakeNamespace) -> Site:
    node, router, host = namespace("node"), namespace("router"), namespace("host")
    for end, cable, net in ((node, "node", 1), (host, "host", 2)):
        join(end, "v0", router, cable)
        end.ip(f"address add 10.7.{net}.2/24 dev v0")
        end.ip(f"address add fd00:{net}::2/64 dev v0 nodad")
        router.ip(f"address add 10.7.{net}.1/24 dev {cable}")
        router.ip(f"address add fd00:{net}::1/64 dev {cable} nodad")
        end.ip(f"route add default via 10.7.{net}.1")
        end.ip(f"route add default via fd00:{net}::1")
    router.sysctl("net/ipv4/ip_forward", "1")
    router.sysctl("net/ipv6/conf/all/forwarding", "1")
    return Site(node, router, host)


@pytest.fixture
def ends() -> Iterator[list[Udp]]:
    """Sockets of a test, closed at its end."""
    made: list[Udp] = []
    yield made
    for end in made:
        end.close()


@pytest.mark.parametrize(("node", "host"), [(NODE, HOST), (NODE6, HOST6)])
def test_question_and_answer_cross_the_network(
    lab: Lab, site: Site, ends: list[Udp], node: str, host: str
) -> None:
    ends += [site.udp(node, SERVICE_PORT), site.udp(node)]
    site.reflect(lab)
    for size in (0, 40, 1400, 9000, 65_000):
        seen = ask(ends[1], (host, PORT), ends[0], b"q" * size)
        assert seen[0] == host


def test_link_local_peer_is_answered_on_its_link(
    lab: Lab, namespace: MakeNamespace, ends: list[Udp]
) -> None:
    node, host = namespace("node"), namespace("host")
    join(node, "v0", host, "v0")
    node.ip("address add fe80::7/64 dev v0 nodad")
    host.ip("address add fe80::8/64 dev v0 nodad")
    with host:
        lab.reflector(f"{PORT}:{SERVICE_PORT}/udp", udp_idle_timeout=IDLE)
        lab.reflector(f"[fe80::8%v0]:7054:{SERVICE_PORT}/udp", udp_idle_timeout=IDLE)
    with node:
        ends += [Udp("fe80::7%v0", SERVICE_PORT), Udp("fe80::7%v0")]
        for port in (PORT, 7054):
            ends[1].sock.sendto(b"ping", ("fe80::8%v0", port))
            seen = ends[0].expect(b"ping")
            assert seen[0].startswith("fe80::8")
            ends[0].sock.sendto(b"pong", (f"fe80::8%{socket.if_nametoindex('v0')}", seen[1]))
            ends[1].expect(b"pong")


def test_host_without_ipv6_serves_ipv4(lab: Lab, namespace: MakeNamespace, ends: list[Udp]) -> None:
    host = namespace("old")
    host.sysctl("net/ipv6/conf/all/disable_ipv6", "1")
    with host:
        lab.reflector(f"{PORT}:{SERVICE_PORT}/udp", udp_idle_timeout=IDLE)
        ends += [Udp("127.0.0.2", SERVICE_PORT), Udp("127.0.0.2")]
    assert ask(ends[1], ("127.0.0.3", PORT), ends[0])[0] == "127.0.0.3"


@pytest.mark.parametrize(
    ("verdict", "counter"),
    [
        ("reject with icmp type port-unreachable", "legs_refused"),
        ("reject with icmp type host-unreachable", "legs_unreachable"),
        ("reject with icmp type net-unreachable", "legs_unreachable"),
        ("reject with icmp type admin-prohibited", "legs_unreachable"),
        ("drop", "legs_timed_out"),
    ],
)
def test_firewall_that_stands_in_the_way_of_the_return_leg(
    lab: Lab, site: Site, ends: list[Udp], verdict: str, counter: str
) -> None:
    ends += [site.udp(NODE, SERVICE_PORT), site.udp()]
    running = site.reflect(lab)
    site.router.reject(f"udp dport {SERVICE_PORT} {verdict}", "forward")
    ends[1].send(b"?", (HOST, PORT))
    running.wait_count(counter, 1)
    running.wait_idle()
    ends[1].expect_none(0.05)
    site.router.accept_all()
    ask(ends[1], (HOST, PORT), ends[0])


def test_local_firewall_is_counted_as_unreachable(lab: Lab, site: Site, ends: list[Udp]) -> None:
    ends.append(site.udp())
    running = site.reflect(lab)
    site.host.reject(f"udp dport {SERVICE_PORT} drop", "output")
    ends[0].send(b"?", (HOST, PORT))
    running.wait_count("legs_unreachable", 1)
    running.wait_count("datagrams_dropped", 1)


def test_node_that_nobody_answers_for_is_counted_as_unreachable(
    lab: Lab, namespace: MakeNamespace, ends: list[Udp]
) -> None:
    node, host = namespace("node"), namespace("host")
    join(node, "v0", host, "v0")
    node.ip("address add 10.7.0.1/24 dev v0")
    host.ip("address add 10.7.0.2/24 dev v0")
    node.ip("address add 10.7.0.9/32 dev lo")  # an address that the node does not answer ARP for
    node.sysctl("net/ipv4/conf/all/arp_ignore", "1")
    node.sysctl("net/ipv4/conf/all/arp_announce", "2")
    host.sysctl("net/ipv4/neigh/v0/retrans_time_ms", "50")
    with host:
        running = lab.reflector(f"{PORT}:{SERVICE_PORT}/udp", udp_idle_timeout=60.0)
    with node:
        ends.append(Udp("10.7.0.9"))
    ends[0].send(b"?", ("10.7.0.2", PORT))
    running.wait_count("legs_unreachable", 1)


def test_soft_error_does_not_end_a_session_that_was_answered(
    lab: Lab, site: Site, ends: list[Udp]
) -> None:
    """A stream must not change its port over a route that is away for a moment."""
    ends += [site.udp(NODE, SERVICE_PORT), site.udp()]
    running = site.reflect(lab, udp_idle_timeout=patience(3))
    seen = ask(ends[1], (HOST, PORT), ends[0])
    site.router.reject(
        f"udp dport {SERVICE_PORT} reject with icmp type host-unreachable", "forward"
    )
    for _ in range(100):
        ends[1].send(b"?", (HOST, PORT))
    running.wait_count("datagrams_to_service", 101)
    assert_no_spin(0.2)
    site.router.accept_all()
    assert ask(ends[1], (HOST, PORT), ends[0]) == seen
    running.wait_count("accepted", 1)


@pytest.mark.parametrize(("node", "host"), [(NODE, HOST), (NODE6, HOST6)])
def test_narrow_path_passes_large_datagrams_once_it_is_known(
    lab: Lab, site: Site, ends: list[Udp], node: str, host: str
) -> None:
    ends += [site.udp(node, SERVICE_PORT), site.udp(node)]
    running = site.reflect(lab, udp_idle_timeout=patience(3))
    seen = ask(ends[1], (host, PORT), ends[0])
    site.router.ip("link set node mtu 1300")
    site.node.ip("link set v0 mtu 1300")

    def passes() -> bool:
        ends[1].send(b"large" * 280, (host, PORT))
        try:
            data, came_from = ends[0].receive(0.2)
        except AssertionError:
            return False
        assert (data, came_from) == (b"large" * 280, seen)
        return True

    wait_until(passes, "a large datagram to pass")
    running.wait_count("accepted", 1)


def test_broadcast_and_multicast_are_not_reflected(
    lab: Lab, namespace: MakeNamespace, ends: list[Udp]
) -> None:
    """One datagram to all must not come back from every reflector."""
    node, host = namespace("node"), namespace("host")
    join(node, "v0", host, "v0")
    node.ip("address add 10.7.0.1/24 brd + dev v0")
    host.ip("address add 10.7.0.2/24 brd + dev v0")
    node.ip("address add fe80::7/64 dev v0 nodad")
    host.ip("address add fe80::8/64 dev v0 nodad")
    with host:
        running = lab.reflector(f"{PORT}:{SERVICE_PORT}/udp", udp_idle_timeout=IDLE)
    with node:
        ends += [Udp("10.7.0.1", SERVICE_PORT), Udp("10.7.0.1"), Udp("fe80::7%v0")]
        scope = socket.if_nametoindex("v0")
        ends[1].sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        ends[1].send(b"all", ("10.7.0.255", PORT))
        ends[1].send(b"all", ("255.255.255.255", PORT))
        ends[1].send(b"all", ("224.0.0.1", PORT))
        ends[2].sock.sendto(b"all", ("ff02::1", PORT, 0, scope))
        wait_until(lambda: running.count("datagrams_dropped") >= 3, "the datagrams to be dropped")
        assert running.count("accepted") == 0
        ask(ends[1], ("10.7.0.2", PORT), ends[0])


def test_source_that_nobody_has_does_not_reach_services_of_the_reflectors_host(
    lab: Lab, namespace: MakeNamespace, ends: list[Udp]
) -> None:
    """To connect(2) the address :: is loopback, and a v4-mapped one is IPv4; the kernel takes both
    from the wire for UDP."""
    node, host = namespace("node"), namespace("host")
    join(node, "v0", host, "v0")
    host.ip("address add fd00::8/64 dev v0 nodad")
    mac = bytes.fromhex(json.loads(host.ip("-j link show v0"))[0]["address"].replace(":", ""))
    with host:
        running = lab.reflector(f"{PORT}:{SERVICE_PORT}/udp", udp_idle_timeout=IDLE)
        ends += [Udp("::1", SERVICE_PORT), Udp("127.0.0.1", SERVICE_PORT)]
    with node, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("v0", 0))
        for source in ("::", "::ffff:127.0.0.1"):
            wire.send(mac + bytes(6) + b"\x86\xdd" + _ipv6_udp(source, "fd00::8"))
    running.wait_count("datagrams_dropped", 2)
    assert running.count("accepted") == 0
    for end in ends:
        end.expect_none(0.05)


def _ipv6_udp(source: str, target: str) -> bytes:
    """An IPv6 packet with a UDP datagram to PORT, its checksum right."""
    pair = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    data = struct.pack("!HHHH", 4000, PORT, 12, 0) + b"evil"
    covered = pair + struct.pack("!II", len(data), 17) + data
    total = sum(struct.unpack(f"!{len(covered) // 2}H", covered))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    data = data[:6] + struct.pack("!H", ~total & 0xFFFF) + data[8:]
    return struct.pack("!IHBB", 6 << 28, len(data), 17, 64) + pair + data


def test_facing_reflectors_on_two_hosts_stay_bounded(
    lab: Lab, namespace: MakeNamespace, ends: list[Udp]
) -> None:
    """One datagram between two bare mappings costs at most two limits' worth of datagrams."""
    left, right = namespace("left"), namespace("right")
    join(left, "v0", right, "v0")
    left.ip("address add 10.7.0.1/24 dev v0")
    right.ip("address add 10.7.0.2/24 dev v0")
    limits = {"max_per_source": 20, "udp_idle_timeout": IDLE}
    with left:
        one = lab.reflector("7022/udp", **limits)
    with right:
        other = lab.reflector("7022/udp", **limits)
    with left:
        ends.append(Udp("10.7.0.1"))
    for times in range(1, 4):
        ends[0].send(b"round", ("10.7.0.2", 7022))
        wait_until(
            lambda times=times: (
                one.count("limited_source") + other.count("limited_source") >= times
            ),
            "the end of it",
        )
    assert_no_spin(0.2)
    passed = one.count("datagrams_to_service") + other.count("datagrams_to_service")
    assert passed <= 3 * (2 * 20 + 1)
    assert one.count("limited_loop") == other.count("limited_loop") == 0


def test_datagram_between_facing_reflectors_dies_of_its_hops(
    lab: Lab, namespace: MakeNamespace, ends: list[Udp]
) -> None:
    """However many hops it starts with, and however many sessions a source may have."""
    left, right = namespace("left"), namespace("right")
    join(left, "v0", right, "v0")
    left.ip("address add 10.7.0.1/24 dev v0")
    right.ip("address add 10.7.0.2/24 dev v0")
    left.ip("address add fd00::1/64 dev v0 nodad")
    right.ip("address add fd00::2/64 dev v0 nodad")
    with left:
        one = lab.reflector("7022/udp", udp_idle_timeout=IDLE)
    with right:
        other = lab.reflector("7022/udp", udp_idle_timeout=IDLE)
    with left:
        ends += [Udp("10.7.0.1"), Udp("fd00::1")]
    ends[0].sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
    ends[1].sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
    for times, target in ((1, "10.7.0.2"), (2, "fd00::2")):
        ends[times - 1].send(b"round", (target, 7022))
        wait_until(
            lambda times=times: one.count("limited_loop") + other.count("limited_loop") == times,
            "the end of it",
        )
        passed = one.count("datagrams_to_service") + other.count("datagrams_to_service")
        assert passed == times * 64


def test_session_that_would_be_its_own_service_is_refused(
    lab: Lab, namespace: MakeNamespace, ends: list[Udp]
) -> None:
    """Nobody has the return port, and sooner or later the kernel gives it to a session."""
    alone = namespace("alone")
    alone.sysctl("net/ipv4/ip_local_port_range", "40000 40003")
    with alone:
        running = lab.reflector("127.0.0.3:7022:40001/udp", workers=1, udp_idle_timeout=60.0)
        ends.append(Udp("127.0.0.3", 20000))
    for times in range(1, 41):
        ends[0].send(b"?", ("127.0.0.3", 7022))
        running.wait_count("legs_refused", times)
    ends[0].expect_none(0.05)
    assert running.count("datagrams_to_peer") == 0


def test_ports_that_run_out_are_counted_as_resources(
    lab: Lab, namespace: MakeNamespace, ends: list[Udp]
) -> None:
    alone = namespace("alone")
    alone.sysctl("net/ipv4/ip_local_port_range", "40000 40003")
    with alone:
        running = lab.reflector("127.0.0.3:7022:53/udp", udp_idle_timeout=IDLE)
        ends += [Udp("127.0.0.2", 53), *(Udp("127.0.0.2", 20000 + n) for n in range(10))]
    for end in ends[1:]:
        end.send(b"?", ("127.0.0.3", 7022))
    running.wait_count("limited_resources", 6)
    running.wait_idle()
    assert drain(ends[0]) == 4
    ask(ends[-1], ("127.0.0.3", 7022), ends[0])


# --- real programs ---


@pytest.mark.skipif(
    find_program("dig") is None or find_program("dnsmasq") is None, reason="no dig or no dnsmasq"
)
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_dig_asks_its_own_nodes_name_server(
    lab: Lab, site: Site, tmp_path: Path, transport: str
) -> None:
    mappings = [f"{PORT}:{SERVICE_PORT}", f"{PORT}:{SERVICE_PORT}/udp"]
    running = site.reflect(lab, *mappings)
    server = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv"]
    server += ["--no-hosts", "--log-facility=-", "--pid-file=", "--user=root"]
    server += ["--bind-interfaces", f"--listen-address={NODE}", f"--port={SERVICE_PORT}"]
    server += ["--address=/node.example/192.0.2.7", f"--txt-record=long.example,{'x' * 250}"]
    question = ["dig", f"@{HOST}", "-p", str(PORT), transport, "+tries=1", "+time=5", "+short"]
    with site.node:
        program = Program([find_program(server[0]) or "", *server[1:]], tmp_path / "dnsmasq.log")
        try:
            program.wait_output("started")
            assert run(*question, "node.example").stdout.split() == ["192.0.2.7"]
            assert "x" * 250 in run(*question, "long.example", "TXT").stdout
        finally:
            program.end()
        failed = run(*question, "node.example", check=False)
        assert failed.returncode != 0 or "192.0.2.7" not in failed.stdout
    assert running.count("legs_connected") == 2
    wait_until(lambda: running.count("legs_refused") >= 1, "the refusal to be counted")


@pytest.mark.skipif(find_program("iperf3") is None, reason="no iperf3 here")
@pytest.mark.parametrize("reverse", [False, True])
def test_iperf3_streams_datagrams_through_it(
    lab: Lab, site: Site, tmp_path: Path, reverse: bool
) -> None:
    """Its control connection is TCP, on the same port."""
    running = site.reflect(lab, "7201:5201", "7201:5201/udp", udp_idle_timeout=patience(2))
    with site.node:
        program = Program(["iperf3", "-s", "-1", "-B", NODE, "--forceflush"], tmp_path / "log")
        try:
            program.wait_output("listening")
            client = ["iperf3", "-c", HOST, "-p", "7201", "-u", "-b", "50M", "-l", "1400"]
            client += ["-t", "2", "-J", *(["-R"] if reverse else [])]
            report = json.loads(run(*client).stdout)
        finally:
            program.end()
    total = report["end"]["sum"]
    assert total["packets"] > 1000
    assert total["lost_percent"] < 50, total
    passed = running.count("datagrams_to_peer" if reverse else "datagrams_to_service")
    assert passed + running.count("datagrams_dropped") >= total["packets"] / 2
    assert running.count("closed_reset_by_service") <= 1
