"""Hosts of their own: namespaces, veth cables, a router, a firewall, a pulled plug."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bulk import Pump, exchange_bulk, pattern
from support.lab import Lab, exchange, finish
from support.leaks import under_sanitizer
from support.namespaces import Namespace, join
from support.peer import Peer, Service
from support.programs import Command
from support.site import HOST, NODE, PORT, SERVICE_PORT, Site
from support.timing import MB, scaled, wait_until

MakeNamespace = Callable[[str], Namespace]


@pytest.fixture
def site(namespace: MakeNamespace) -> Site:
    return Site.build(namespace)


def test_check_crosses_the_network(lab: Lab, site: Site) -> None:
    service = site.serve(lab)
    running = site.reflect(lab)
    client, accepted = site.dial(lab), service.accept()
    assert accepted.remote[0] == HOST
    exchange(client, accepted)
    finish(client, accepted)
    running.wait_count("closed_finished", 1)


def test_the_command_in_a_namespace_of_its_own(site: Site, tmp_path: Path) -> None:
    """The same with `python -m reflector` as a process on the host."""
    with site.host:
        command = Command(tmp_path / "reflector.log", f"{PORT}:{SERVICE_PORT}")
    try:
        with site.node:
            service = Service(NODE, SERVICE_PORT)
            client = Peer.dial((NODE, 0), (HOST, PORT))
        accepted = service.accept()
        exchange(client, accepted)
        finish(client, accepted)
        client.close()
        service.close()
        with site.node:
            client = Peer.dial((NODE, 0), (HOST, PORT))
        client.expect_rst()
        client.close()
    finally:
        assert command.stop() == 0, command.output()


@pytest.mark.parametrize("place", ["node", "router"])
def test_firewall_that_drops_the_return_leg(lab: Lab, site: Site, place: str) -> None:
    """What a check on the node itself never sees: the service runs, and nobody reaches it."""
    service = site.serve(lab)
    running = site.reflect(lab, connect_timeout=0.6)
    hook = "input" if place == "node" else "forward"
    getattr(site, place).reject(f"tcp dport {SERVICE_PORT} drop", hook)
    began = time.monotonic()
    site.dial(lab).expect_rst()
    assert time.monotonic() - began >= 0.6
    running.wait_count("legs_timed_out", 1)
    getattr(site, place).accept_all()
    exchange(site.dial(lab), service.accept())


@pytest.mark.parametrize(
    ("verdict", "counter"),
    [
        ("reject with tcp reset", "legs_refused"),
        ("reject with icmp type port-unreachable", "legs_refused"),
        ("reject with icmp type host-unreachable", "legs_unreachable"),
        ("reject with icmp type net-unreachable", "legs_unreachable"),
        ("reject with icmp type admin-prohibited", "legs_unreachable"),
    ],
)
def test_firewall_that_rejects_the_return_leg(
    lab: Lab, site: Site, verdict: str, counter: str
) -> None:
    site.serve(lab)
    running = site.reflect(lab, connect_timeout=60.0)
    site.router.reject(f"tcp dport {SERVICE_PORT} {verdict}", "forward")
    site.dial(lab).expect_rst()
    running.wait_count(counter, 1)
    running.wait_count("closed_leg_failed", 1)


def test_bulk_crosses_the_network_both_ways(lab: Lab, site: Site) -> None:
    service = site.serve(lab)
    running = site.reflect(lab)
    client, accepted = site.dial(lab), service.accept()
    exchange_bulk(client, accepted, scaled(50 * MB))
    running.wait_count("closed_finished", 1)


def test_stream_goes_on_after_the_cable_was_pulled(lab: Lab, site: Site) -> None:
    service = site.serve(lab)
    running = site.reflect(lab)
    client, accepted = site.dial(lab), service.accept()
    size = scaled(100 * MB, 20 * MB)
    first = MB
    data = pattern(size)
    with Pump(accepted.send, data):
        client.expect(data[:first])
        site.pull_cable()
        time.sleep(0.7)
        site.plug_cable()
        client.expect(data[first:])  # TCP sends again what was lost, after its own time
    exchange(client, accepted)
    finish(client, accepted)
    running.wait_count("closed_finished", 1)


def test_small_exchange_goes_on_after_the_cable_was_pulled(lab: Lab, site: Site) -> None:
    service = site.serve(lab)
    site.reflect(lab)
    client, accepted = site.dial(lab), service.accept()
    exchange(client, accepted)
    site.pull_cable()
    client.send(b"into the dark")
    client.expect_silence(0.5)
    site.plug_cable()
    accepted.expect(b"into the dark")
    exchange(client, accepted)


def test_connection_to_a_host_that_is_gone_is_given_up_when_idle(lab: Lab, site: Site) -> None:
    service = site.serve(lab)
    running = site.reflect(lab, idle_timeout=0.6)
    client, accepted = site.dial(lab), service.accept()
    exchange(client, accepted)
    site.pull_cable()
    running.wait_count("closed_idle", 1)
    running.wait_idle()
    site.plug_cable()
    for peer in (client, accepted):  # the resets were lost with the cable; the next byte brings one
        peer.send(b"anybody there?")
        peer.expect_rst()


def test_connection_cut_while_half_closed_is_given_up(lab: Lab, site: Site) -> None:
    service = site.serve(lab)
    running = site.reflect(lab, half_close_timeout=0.6)
    client, accepted = site.dial(lab), service.accept()
    exchange(client, accepted)
    client.fin()
    accepted.expect_fin()
    site.pull_cable()
    running.wait_count("closed_half_close", 1)
    running.wait_idle()


@pytest.mark.skipif(under_sanitizer(), reason="waits long enough as it is")
def test_both_sides_get_keepalive(lab: Lab, site: Site) -> None:
    """A peer that vanished without a word is found out before the idle time-out of an hour."""
    service = site.serve(lab)
    running = site.reflect(lab, idle_timeout=3600)
    client, accepted = site.dial(lab), service.accept()
    exchange(client, accepted)

    def sockets() -> list[str]:
        with site.host:
            listed = site.host.run("ss", "-Htno", "state", "established")
        return [line for line in listed.splitlines() if re.search(r"timer:\(keepalive", line)]

    wait_until(lambda: len(sockets()) == 2, "keepalive on both sockets of the reflector", 20)
    assert running.count("active") == 1


def test_link_local_peers_keep_their_scope(lab: Lab, namespace: MakeNamespace) -> None:
    node, host = namespace("node"), namespace("host")
    join(node, "v0", host, "v0")
    node.ip("address add fe80::7:1/64 dev v0 nodad")
    host.ip("address add fe80::7:2/64 dev v0 nodad")
    with node:
        service = lab.serve("fe80::7:1%v0", SERVICE_PORT)
    with host:
        everywhere = lab.reflector(f"{PORT}:{SERVICE_PORT}")
        there = lab.reflector(f"[fe80::7:2%v0]:{PORT + 1}:{SERVICE_PORT}")
    for running in (everywhere, there):
        with node:
            client = lab.dial("fe80::7:1%v0", "fe80::7:2%v0", running.port)
        accepted = service.accept()
        assert accepted.remote[0].partition("%")[0] == "fe80::7:2"
        exchange(client, accepted)
        finish(client, accepted)
        running.wait_count("closed_finished", 1)
        running.wait_idle()
        # The kernel leaves such a socket bound to the interface: of no use to other peers.
        assert running.count("spare_legs") == 0


def test_link_local_peers_on_two_links_are_told_apart(lab: Lab, namespace: MakeNamespace) -> None:
    """The same address on two links: only the scope says which one it is."""
    left, right, host = namespace("left"), namespace("right"), namespace("host")
    join(left, "v0", host, "left")
    join(right, "v0", host, "right")
    services = {}
    for node, link in ((left, "left"), (right, "right")):
        node.ip("address add fe80::7:1/64 dev v0 nodad")
        host.ip(f"address add fe80::7:2/64 dev {link} nodad")
        with node:
            services[link] = lab.serve("fe80::7:1%v0", SERVICE_PORT)
    with host:
        running = lab.reflector(f"{PORT}:{SERVICE_PORT}")
    for node, link in ((right, "right"), (left, "left")):
        with node:
            client = lab.dial("fe80::7:1%v0", "fe80::7:2%v0", running.port)
        exchange(client, services[link].accept())


def test_ipv6_crosses_the_network(lab: Lab, namespace: MakeNamespace) -> None:
    node, host = namespace("node"), namespace("host")
    join(node, "v0", host, "v0")
    node.ip("address add fd00:7::1/64 dev v0 nodad")
    for last in (2, 3):
        host.ip(f"address add fd00:7::{last}/64 dev v0 nodad")
    with node:
        service = lab.serve("fd00:7::1", SERVICE_PORT)
    with host:
        running = lab.reflector(f"{PORT}:{SERVICE_PORT}")
    for dialled in ("fd00:7::2", "fd00:7::3"):
        with node:
            client = lab.dial("fd00:7::1", dialled, running.port)
        accepted = service.accept()
        assert accepted.remote[0] == dialled
        exchange(client, accepted)
    node.reject(f"tcp dport {SERVICE_PORT} reject with icmpv6 type addr-unreachable")
    with node:
        lab.dial("fd00:7::1", "fd00:7::2", running.port).expect_rst()
    running.wait_count("legs_unreachable", 1)


def test_many_nodes_share_one_reflector(lab: Lab, namespace: MakeNamespace) -> None:
    """A range of node addresses behind one gateway, as in the real thing."""
    nodes, host = namespace("nodes"), namespace("host")
    join(nodes, "v0", host, "v0")
    nodes.ip("address add 10.7.0.1/24 dev v0")
    host.ip("address add 10.7.0.2/24 dev v0")
    nodes.ip("route add local 198.18.0.0/15 dev lo")
    host.ip("route add 198.18.0.0/15 via 10.7.0.1")
    with nodes:
        service = lab.serve("0.0.0.0", SERVICE_PORT)
    with host:
        running = lab.reflector(f"{PORT}:{SERVICE_PORT}", max_per_source=1)
    count = scaled(300, 50)
    for number in range(count):
        node = f"198.18.{number // 200}.{number % 200 + 1}"
        with nodes:
            client = lab.dial(node, "10.7.0.2", PORT)
        accepted = service.accept()
        assert accepted.address == node
        client.send(b"?")
        accepted.expect(b"?")
    running.wait_active(count)
    assert running.count("limited_source") == 0
