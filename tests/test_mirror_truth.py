"""What real programs see through the mirror: a node, a router and the reflector's host in a row."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.consul import Consul, why_no_consul
from support.lab import Lab, exchange, finish
from support.mirror import why_no_mirror
from support.namespaces import Namespace
from support.peer import Peer, Service
from support.programs import Command, Program, Sshd, find_program
from support.site import HOST, HOST6, NODE, NODE6, Site

pytestmark = pytest.mark.skipif(bool(why_no_mirror()), reason=why_no_mirror() or "none")

SSH, WEB, DNS = 22, 80, 53
SSH_PORT, WEB_PORT, DNS_PORT = 10022, 10080, 10053
MAPPINGS = (f"{SSH_PORT}:{SSH}", f"{WEB_PORT}:{WEB}", f"{DNS_PORT}:{DNS}/udp")


@pytest.fixture
def site(lab: Lab, namespace: Callable[[str], Namespace]) -> Site:
    return Site.build(namespace)


@pytest.fixture
def mirror(site: Site, tmp_path: Path) -> Iterator[Command]:
    """The command on the host, with the mirror engine."""
    with site.host:
        command = Command(tmp_path / "reflector.log", "--engine", "mirror", *MAPPINGS)
    try:
        yield command
    finally:
        assert command.stop() == 0, command.output()
        with site.host:
            for device in ("v0", "lo"):
                left = site.host.run("tc", "qdisc", "show", "dev", device)
                assert "clsact" not in left, "something is left behind"


def on_node(site: Site, *command: str) -> str:
    """Run a program on the node; its output. It must succeed."""
    with site.node:
        return site.node.run(*command)


def needs(*programs: str) -> pytest.MarkDecorator:
    lacking = [name for name in programs if find_program(name) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"no {' and no '.join(lacking)} here")


# --- programs -------------------------------------------------------------------------------------


@needs("sshd", "ssh", "ssh-keyscan")
@pytest.mark.parametrize(("node", "host"), [(NODE, HOST), (NODE6, HOST6)])
@pytest.mark.usefixtures("mirror")
def test_ssh_logs_in_to_the_node_itself(site: Site, tmp_path: Path, node: str, host: str) -> None:
    with site.node:
        server = Sshd(tmp_path, f"[{node}]" if ":" in node else node, SSH)
    try:
        options = server.options("-p", SSH_PORT)
        told = on_node(site, "ssh", *options, host, "echo $SSH_CONNECTION")
        assert told.split() == [host, told.split()[1], node, str(SSH)]
        told = on_node(site, "ssh-keyscan", "-p", str(SSH_PORT), "-T", "5", host)
        assert f"[{host}]:{SSH_PORT} ssh-ed25519" in told
    finally:
        server.stop()


@needs("curl", "python3")
@pytest.mark.usefixtures("mirror")
def test_curl_fetches_a_large_file_byte_by_byte(site: Site, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000
    (tmp_path / "file").write_bytes(content)
    with site.node:
        server = Program(
            ["python3", "-u", "-m", "http.server", "-b", NODE, "-d", str(tmp_path), str(WEB)],
            tmp_path / "http.log",
        )
    try:
        server.wait_output("Serving")
        fetched = tmp_path / "fetched"
        on_node(site, "curl", "-sS", "-o", str(fetched), f"http://{HOST}:{WEB_PORT}/file")
        assert fetched.read_bytes() == content
        assert f"{HOST} - - " in server.output()
    finally:
        server.end()


@needs("dig", "dnsmasq")
@pytest.mark.usefixtures("mirror")
def test_dig_asks_the_nodes_own_dns_server(site: Site, tmp_path: Path) -> None:
    query = ("dig", f"@{HOST}", "-p", str(DNS_PORT), "+short", "+tries=1", "+time=3", "name.test")
    with site.node:
        server = Program(
            [
                *("dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"),
                *(f"--listen-address={NODE}", "--bind-interfaces", f"--port={DNS}"),
                *("--address=/name.test/192.0.2.99", "--user=root", "--log-facility=-"),
                f"--pid-file={tmp_path}/dnsmasq.pid",
            ],
            tmp_path / "dnsmasq.log",
        )
    try:
        server.wait_output("started")
        assert on_node(site, *query).strip() == "192.0.2.99"
    finally:
        server.end()
    told = on_node(site, "sh", "-c", f"{' '.join(query)} || true")
    assert "connection refused" in told  # at once, and not after three seconds


@needs("iperf3")
@pytest.mark.usefixtures("mirror")
@pytest.mark.parametrize("offload", ["on", "off"])
@pytest.mark.parametrize("direction", [(), ("-R",)])
def test_iperf3_streams_both_ways(
    site: Site, tmp_path: Path, offload: str, direction: tuple[str, ...]
) -> None:
    if offload == "off":
        if find_program("ethtool") is None:
            pytest.skip("no ethtool here")
        for end in (site.node, site.host):
            with end:
                end.run(
                    "ethtool", "-K", "v0", "tx", "off", "tso", "off", "gso", "off", "gro", "off"
                )
    with site.node:
        server = Program(["iperf3", "-s", "--forceflush", "-p", str(WEB)], tmp_path / "iperf3.log")
    try:
        server.wait_output("listening")
        told = on_node(site, "iperf3", "-c", HOST, "-p", str(WEB_PORT), "-n", "50M", *direction)
        assert "receiver" in told
    finally:
        server.end()


@pytest.mark.usefixtures("mirror")
def test_path_mtu_that_a_router_tells_reaches_the_sender(site: Site) -> None:
    """Only the way back from the host to the node is narrow: the node learns of it by ICMP."""
    site.router.ip("link set node mtu 1280")  # the node's own end still takes and sends 1500
    with site.node:
        service = Service(NODE, WEB)
        client = Peer.dial((NODE, 0), (HOST, WEB_PORT))
    accepted = service.accept()
    try:
        data = bytes(range(256)) * 400
        client.send(data)
        accepted.expect(data)
        accepted.send(data)
        client.expect(data)
        cached = on_node(site, "ip", "route", "get", HOST)
        assert "mtu 1280" in cached
    finally:
        for one in (client, accepted, service):
            one.close()


# --- a real agent ---------------------------------------------------------------------------------


class Banner:
    """A service on the node that greets each connection, until it is taken down."""

    def __init__(self, site: Site, port: int, greeting: bytes) -> None:
        with site.node:
            self._service = Service(NODE, port)
        self._greeting = greeting
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer = self._service.accept(wait=600)
                peer.send(self._greeting)
                peer.fin()
                peer.close()
            except (OSError, AssertionError):
                if self._service.sock.fileno() < 0:
                    return

    def take_down(self) -> None:
        self._service.close()
        self._thread.join()


@pytest.mark.skipif(bool(why_no_consul()), reason=why_no_consul() or "none")
@pytest.mark.usefixtures("mirror")
def test_every_kind_of_consul_check_tells_the_truth(site: Site, tmp_path: Path) -> None:
    """Up, down, shut off by a firewall, cut one way, and up again: the plain tcp check too."""
    script = (
        f"exec 3<>/dev/tcp/{HOST}/{SSH_PORT} || exit 2;"
        " read -t 2 -u 3 banner && [[ $banner == SSH-* ]] && echo $banner || exit 2"
    )
    every = {"interval": "1s", "timeout": "2s"}
    names = ("tcp", "http", "script")
    checks = [
        {"id": "tcp", "name": "tcp", "tcp": f"{HOST}:{SSH_PORT}", **every},
        {"id": "http", "name": "http", "http": f"http://{HOST}:{WEB_PORT}/", **every},
        {"id": "script", "name": "script", "args": ["bash", "-c", script], **every},
    ]

    def services() -> list[Banner]:
        answer = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"
        return [Banner(site, SSH, b"SSH-2.0-test\r\n"), Banner(site, WEB, answer)]

    with site.node:
        agent = Consul(tmp_path, checks)
        running: list[Banner] = []
        try:
            for name in names:
                agent.wait_output(name)
                assert agent.status(name) == "critical", f"{name} while the service is down"
            running = services()
            for name in names:
                agent.wait_status(name, "passing")
            for place, hook, rule in (
                (site.node, "input", f"tcp dport {{ {SSH}, {WEB} }} drop"),
                (site.router, "forward", f"ip saddr {HOST} drop"),
            ):
                place.reject(rule, hook)
                for name in names:
                    agent.wait_status(name, "critical")
                place.accept_all()
                for name in names:
                    agent.wait_status(name, "passing")
            while running:
                running.pop().take_down()
            for name in names:
                agent.wait_status(name, "critical")
        finally:
            for service in running:
                service.take_down()
            agent.stop()


@pytest.mark.usefixtures("mirror")
def test_the_hosts_own_connections_to_nodes_are_untouched(site: Site) -> None:
    with site.node:
        service = Service(NODE, SSH)
    with site.host:
        client = Peer.dial((HOST, 0), (NODE, SSH))
    accepted = service.accept()
    try:
        exchange(client, accepted)
        finish(client, accepted)
    finally:
        for one in (client, accepted, service):
            one.close()


@pytest.mark.usefixtures("mirror")
def test_connections_of_the_host_itself_are_served_by_the_splice_engine(site: Site) -> None:
    with site.host:
        service = Service(HOST, SSH)
        client = Peer.dial((HOST, 0), (HOST, SSH_PORT))
    accepted = service.accept()
    try:
        exchange(client, accepted)
        finish(client, accepted)
    finally:
        for one in (client, accepted, service):
            one.close()
