"""Loops: a reflector that leads to itself or to another is refused or bounded, and cleans up."""

from collections.abc import Callable

import pytest
from support.lab import NODE, REFLECTOR, Lab, exchange
from support.namespaces import Namespace, join
from support.timing import scaled, wait_until

MakeNamespace = Callable[[str], Namespace]


@pytest.mark.parametrize("source", [NODE, REFLECTOR])
def test_own_port_is_refused_for_peers_on_this_host(lab: Lab, source: str) -> None:
    running = lab.reflector(f"{REFLECTOR}:0")
    for _ in range(10):
        lab.dial(source, REFLECTOR, running.port).expect_rst()
    for name in ("accepted", "limited_loop", "closed_leg_failed"):
        running.wait_count(name, 10)


def test_own_port_is_refused_even_where_a_service_listens(lab: Lab) -> None:
    service = lab.serve(NODE)
    running = lab.reflector(f"{REFLECTOR}:{service.port}:{service.port}")
    lab.dial(NODE, REFLECTOR, running.port).expect_rst()
    service.expect_none(0.1)
    running.wait_count("limited_loop", 1)


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.2", "::1"])
def test_own_port_on_all_addresses_is_refused_for_peers_on_this_host(lab: Lab, source: str) -> None:
    running = lab.reflector("0")
    lab.dial(source, source, running.port).expect_rst()
    running.wait_count("limited_loop", 1)


def test_own_port_is_refused_for_the_hosts_other_addresses(
    lab: Lab, namespace: MakeNamespace
) -> None:
    alone = namespace("alone")
    alone.ip("address add 10.7.0.1/32 dev lo")
    alone.ip("route add local 198.18.0.0/15 dev lo")
    with alone:
        running = lab.reflector("0")
        for source in ("10.7.0.1", "198.18.3.3"):
            lab.dial(source, "127.0.0.1", running.port).expect_rst()
    running.wait_count("limited_loop", 2)


def test_mappings_that_lead_to_each_other_stay_bounded(lab: Lab) -> None:
    """Two ports of one reflector, each the other's return port."""
    first = lab.serve("0.0.0.0")
    second = lab.serve("0.0.0.0")
    one, other = first.port, second.port
    first.close()
    second.close()
    running = lab.reflector(f"0.0.0.0:{one}:{other}", f"0.0.0.0:{other}:{one}", max_per_source=20)
    for port in (one, other):
        lab.dial(NODE, REFLECTOR, port).expect_rst()
    running.wait_idle()
    assert running.count("accepted") <= 2 * (2 * 20 + 2)
    assert running.count("legs_limited") >= 1


def test_reflectors_that_lead_to_each_other_stay_bounded(lab: Lab) -> None:
    """Two reflectors of one host: neither knows of the other, the limit per source ends it."""
    port = lab.serve("0.0.0.0").port
    lab.services[-1].close()
    one = lab.reflector(f"0.0.0.0:0:{port}", max_per_source=20)
    other = lab.reflector(f"0.0.0.0:{port}:{one.port}", max_per_source=20)
    lab.dial(NODE, REFLECTOR, one.port).expect_rst()
    one.wait_idle()
    other.wait_idle()
    assert one.count("accepted") <= 2 * 20 + 1
    assert one.count("limited_source") + other.count("limited_source") >= 1


def test_facing_reflectors_on_two_hosts_stay_bounded(lab: Lab, namespace: MakeNamespace) -> None:
    left, right = namespace("left"), namespace("right")
    join(left, "v0", right, "v0")
    left.ip("address add 10.7.0.1/24 dev v0")
    right.ip("address add 10.7.0.2/24 dev v0")
    with left:
        one = lab.reflector("7022", max_per_source=20)
    with right:
        other = lab.reflector("7022", max_per_source=20)
    with left:
        for _ in range(5):
            lab.dial("10.7.0.1", "10.7.0.2", 7022).expect_rst()
            one.wait_idle()
            other.wait_idle()
    assert one.count("limited_source") + other.count("limited_source") >= 5
    assert one.count("accepted") + other.count("accepted") <= 5 * (2 * 20 + 1)
    assert one.count("limited_loop") == other.count("limited_loop") == 0


def test_own_port_serves_other_hosts(lab: Lab, namespace: MakeNamespace) -> None:
    """The usual use of a bare port: the node's own service has the same number."""
    node, host = namespace("node"), namespace("host")
    join(node, "v0", host, "v0")
    node.ip("address add 10.7.0.1/24 dev v0")
    host.ip("address add 10.7.0.2/24 dev v0")
    with node:
        service = lab.serve("10.7.0.1", 7022)
    with host:
        running = lab.reflector("7022")
    with node:
        client = lab.dial("10.7.0.1", "10.7.0.2", 7022)
    exchange(client, service.accept())
    assert running.count("limited_loop") == 0


def test_return_leg_that_connects_to_itself_is_dropped(lab: Lab, namespace: MakeNamespace) -> None:
    """The return port is one of four ephemeral ports, and nobody listens there: sooner or later
    the kernel picks it as the leg's own port, and a connect to oneself succeeds."""
    alone = namespace("alone")
    alone.sysctl("net/ipv4/ip_local_port_range", "40000 40003")
    with alone:
        running = lab.reflector(f"{REFLECTOR}:7022:40001", workers=1)
        rounds = scaled(60, 30)
        for number in range(rounds):
            client = lab.dial(REFLECTOR, REFLECTOR, 7022, source_port=20000 + number)
            client.expect_rst()
            client.close()
    wait_until(lambda: running.count("closed_leg_failed") == rounds, "all legs to fail")
    assert running.count("legs_connected") == 0
    assert running.count("bytes_to_service") == running.count("bytes_to_peer") == 0
