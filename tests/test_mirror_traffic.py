"""Real connections through the mirror: a node, a router and the mirror's host in a row."""

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("reflector._mirror", reason="the mirror was not built")
pytest.importorskip("scapy", reason="scapy cannot be installed here")

from support.bulk import pattern
from support.namespaces import Namespace, join, why_no_namespaces
from support.programs import clean_environment
from support.timing import wait_until
from support.wire import mapped

from reflector._mirror import Mirror

NODE = {4: "10.8.1.2", 6: "fd08:1::2"}
HOST = {4: "10.8.2.2", 6: "fd08:2::2"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
PORT, RETURN_PORT = 10022, 22
IPERF_PORT, IPERF_RETURN_PORT = 15201, 5201
BULK = 8 << 20
OFFLOADS = ["tx", "rx", "gso", "tso", "gro"]


@dataclass
class Site:
    """The three hosts, and the mirror on one of them."""

    node: Namespace
    router: Namespace
    host: Namespace
    mirror: Mirror

    def counted(self) -> dict[str, int]:
        """The counters that are not 0."""
        return {name: count for name, count in self.mirror.stats(0).items() if count}

    def serve(self, version: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """The service, on the node."""
        with self.node:
            made = socket.socket(FAMILY[version], kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.settimeout(10)
        made.bind((NODE[version], RETURN_PORT))
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    def dial(self, version: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A check: from the node to the mirror's host."""
        with self.node:
            made = socket.socket(FAMILY[version], kind)
        made.settimeout(10)
        made.connect((HOST[version], PORT))
        return made


@pytest.fixture(params=["offload on", "offload off"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    reason = why_no_namespaces()
    if reason:
        pytest.skip(reason)
    node, router, host = Namespace("node"), Namespace("router"), Namespace("host")
    for one in (node, router, host):
        # Nobody else is there, and a router that is not sure of its address yet forwards nothing.
        one.sysctl("net/ipv6/conf/default/accept_dad", "0")
    join(node, "v0", router, "node")
    join(host, "v0", router, "host")
    for family, bits, ends in (("4", 24, "10.8.{}.{}"), ("6", 64, "fd08:{}::{}")):
        nodad = " nodad" if family == "6" else ""
        for end, one in ((1, node), (2, host)):
            one.ip(f"address add {ends.format(end, 2)}/{bits} dev v0{nodad}")
            device = "node" if one is node else "host"
            router.ip(f"address add {ends.format(end, 1)}/{bits} dev {device}{nodad}")
            one.ip(f"-{family} route add default via {ends.format(end, 1)}")
    router.sysctl("net/ipv4/ip_forward", "1")
    router.sysctl("net/ipv6/conf/all/forwarding", "1")
    if request.param == "offload off":
        if not shutil.which("ethtool"):
            pytest.skip("ethtool is not installed")
        for one, device in ((node, "v0"), (router, "node"), (router, "host"), (host, "v0")):
            words = [word for name in OFFLOADS for word in (name, "off")]
            with one:
                one.run("ethtool", "-K", device, *words)
    with host:
        mirror = Mirror(1, 1024)
        mirror.set_routes(
            (protocol, port, return_port, 0, mapped(address))
            for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP)
            for port, return_port in ((PORT, RETURN_PORT), (IPERF_PORT, IPERF_RETURN_PORT))
            for address in HOST.values()
        )
        mirror.set_limits()
        mirror.attach(socket.if_nametoindex("v0"), 14)
    yield Site(node, router, host, mirror)
    mirror.close()
    for one in (node, router, host):
        one.close()


def pump(one: socket.socket) -> threading.Thread:
    """Sends the pattern, then FIN."""

    def run() -> None:
        for start in range(0, BULK, 1 << 18):
            one.sendall(pattern(1 << 18, start))
        one.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def digest_of(one: socket.socket) -> str:
    """Reads up to FIN."""
    digest = hashlib.sha1()
    while part := one.recv(1 << 18):
        digest.update(part)
    return digest.hexdigest()


def exchange_bulk(client: socket.socket, accepted: socket.socket) -> None:
    """Bulk both ways at once, each byte of it checked."""
    want = hashlib.sha1(pattern(BULK)).hexdigest()
    threads = [pump(client), pump(accepted)]
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(digest_of(accepted)))
    reader.start()
    got.append(digest_of(client))
    for thread in (*threads, reader):
        thread.join()
    assert got == [want, want]


@pytest.mark.parametrize("version", [4, 6])
def test_connection_reaches_the_service_and_every_byte_arrives(site: Site, version: int) -> None:
    with site.serve(version) as service, site.dial(version) as client:
        accepted, remote = service.accept()
        with accepted:
            assert remote[0] == HOST[version]
            assert remote[1] == client.getsockname()[1]
            exchange_bulk(client, accepted)
    counted = site.counted()
    assert (counted["accepted"], counted["connected"]) == (1, 1)
    assert counted["bytes_to_service"] > BULK
    assert counted["bytes_to_peer"] > BULK


@pytest.mark.parametrize("version", [4, 6])
def test_refused_service_is_refused(site: Site, version: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        site.dial(version)
    assert site.counted()["refused"] == 1


@pytest.mark.parametrize("version", [4, 6])
def test_connection_that_the_mirror_refuses_is_refused_at_once(site: Site, version: int) -> None:
    site.mirror.set_limits(default_allow=False)
    with site.serve(version), pytest.raises(ConnectionRefusedError):
        site.dial(version)
    assert site.counted() == {"limited_denied": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_unreachable_service_is_unreachable(site: Site, version: int) -> None:
    kind = "icmp" if version == 4 else "icmpv6"
    site.node.reject(
        f"tcp dport {RETURN_PORT} reject with {kind} type "
        + ("host-unreachable" if version == 4 else "no-route")
    )
    with site.serve(version), pytest.raises(OSError, match=r"unreachable|No route"):
        site.dial(version)
    assert site.counted()["unreachable"] >= 1


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [0, 1, 1200])
def test_datagram_reaches_the_service_and_its_answer_the_peer(
    site: Site, version: int, size: int
) -> None:
    with (
        site.serve(version, socket.SOCK_DGRAM) as service,
        site.dial(version, socket.SOCK_DGRAM) as client,
    ):
        client.send(b"q" * size)
        question, remote = service.recvfrom(65536)
        assert (len(question), remote[0]) == (size, HOST[version])
        service.sendto(b"a" * size, remote)
        assert len(client.recv(65536)) == size


@pytest.mark.parametrize("version", [4, 6])
def test_refused_datagram_is_refused(site: Site, version: int) -> None:
    with site.dial(version, socket.SOCK_DGRAM) as client:
        client.send(b"is anyone there?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(1)
    assert site.counted()["refused"] == 1


@pytest.mark.parametrize("version", [4, 6])
def test_narrow_path_is_found_out(site: Site, version: int) -> None:
    site.router.ip(f"-{version} route add {NODE[version]} dev node mtu 1300")
    with site.serve(version) as service, site.dial(version) as client:
        accepted, _ = service.accept()
        with accepted:
            exchange_bulk(client, accepted)
    assert site.counted()["icmp_turned"] >= 1


@pytest.mark.parametrize("version", [4, 6])
def test_connection_of_the_host_to_the_service_is_its_own(site: Site, version: int) -> None:
    with site.serve(version) as service:
        with site.host:
            client = socket.create_connection((NODE[version], RETURN_PORT), 10)
        accepted, remote = service.accept()
        with client, accepted:
            assert remote[0] == HOST[version]
            exchange_bulk(client, accepted)
    assert not site.counted()


@pytest.mark.parametrize("options", [[], ["-R"], ["-u", "-b", "50M"], ["-u", "-b", "50M", "-R"]])
def test_iperf3(site: Site, options: list[str]) -> None:
    if not shutil.which("iperf3"):
        pytest.skip("iperf3 is not installed")
    with site.node:
        server = subprocess.Popen(
            ["iperf3", "-s", "-1", "-p", str(IPERF_RETURN_PORT), "--forceflush"],
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
    try:
        assert server.stdout is not None
        wait_until(lambda: "listening" in server.stdout.readline(), "iperf3 listens")
        command = ["iperf3", "-c", HOST[4], "-p", str(IPERF_PORT), "-t", "1", "-J", *options]
        with site.node:
            result = json.loads(site.node.run(*command))
        assert "error" not in result
        assert result["end"]["sum_received" if "sum_received" in result["end"] else "sum"]["bytes"]
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_two_capabilities_are_enough(tmp_path: Path) -> None:
    reason = why_no_namespaces()
    if reason or not shutil.which("setpriv"):
        pytest.skip(reason or "setpriv is not installed")
    script = (
        "from reflector._mirror import Mirror\n"
        "import socket, sys\n"
        "made = Mirror(1, 1024)\n"
        "made.attach(socket.if_nametoindex('lo'), 14)\n"
        "status = open('/proc/self/status').read()\n"
        "print(status.partition('CapEff:\\t')[2][:16])\n"
    )
    space = Namespace("space")
    command = ["setpriv", "--bounding-set", "-all,+bpf,+net_admin"]
    try:
        with space:
            done = subprocess.run(
                [*command, sys.executable, "-c", script],
                cwd=Path(__file__).parent.parent,
                capture_output=True,
                text=True,
                check=False,
            )
    finally:
        space.close()
    assert done.returncode == 0, done.stderr
    assert int(done.stdout, 16) == 1 << 39 | 1 << 12  # CAP_BPF, CAP_NET_ADMIN


def test_without_capabilities_it_says_what_was_refused() -> None:
    if why_no_namespaces() or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    script = "from reflector._mirror import Mirror\nMirror(1, 1024)\n"
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-all,+net_admin", sys.executable, "-c", script],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PermissionError: [Errno 1] bpf: " in done.stderr
