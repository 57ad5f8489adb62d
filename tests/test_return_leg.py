"""The return leg: where it goes, where it comes from, and what the client sees when it fails."""

import time
from collections.abc import Callable

import pytest
from support.lab import NODE, REFLECTOR, Lab, exchange, finish
from support.namespaces import Namespace
from support.timing import patience

MakeNamespace = Callable[[str], Namespace]


def test_refused_return_leg_resets_the_client_at_once(lab: Lab) -> None:
    path = lab.unserved_path(connect_timeout=60.0)
    path.dial().expect_rst()  # in the patience of one read, far below the time-out
    path.running.wait_count("legs_refused", 1)
    path.running.wait_count("closed_leg_failed", 1)


def test_refused_return_leg_resets_a_client_that_had_sent_bytes(lab: Lab) -> None:
    path = lab.unserved_path()
    for _ in range(50):
        client = path.dial()
        try:
            client.send(b"GET / HTTP/1.0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            continue  # the reset was faster
        client.expect_rst()
    path.running.wait_count("legs_refused", 50)


def test_refused_return_leg_resets_a_client_that_had_sent_a_fin(lab: Lab) -> None:
    path = lab.unserved_path()
    for _ in range(50):
        client = path.dial()
        try:
            client.fin()
        except OSError:
            continue  # the reset was faster
        client.expect_rst()
    path.running.wait_count("legs_refused", 50)


def test_service_that_comes_back_is_reached_again(lab: Lab) -> None:
    path = lab.unserved_path()
    path.dial().expect_rst()
    service = lab.serve(NODE, path.service.port)
    client = path.dial()
    exchange(client, service.accept())
    service.close()
    path.dial().expect_rst()


@pytest.mark.parametrize(
    ("rule", "counter"),
    [
        ("tcp dport 7022 reject with tcp reset", "legs_refused"),
        ("tcp dport 7022 reject with icmp type port-unreachable", "legs_refused"),
        ("tcp dport 7022 reject with icmp type host-unreachable", "legs_unreachable"),
        ("tcp dport 7022 reject with icmp type admin-prohibited", "legs_unreachable"),
    ],
)
def test_rejected_return_leg_resets_the_client_at_once(
    lab: Lab, namespace: MakeNamespace, rule: str, counter: str
) -> None:
    alone = namespace("alone")
    alone.reject(rule)
    with alone:
        running = lab.reflector(f"{REFLECTOR}:0:7022", connect_timeout=60.0)
        lab.dial(NODE, REFLECTOR, running.port).expect_rst()
    running.wait_count(counter, 1)
    running.wait_count("closed_leg_failed", 1)


@pytest.mark.parametrize("kind", ["unreachable", "prohibit"])
def test_return_leg_without_a_route_resets_the_client_at_once(
    lab: Lab, namespace: MakeNamespace, kind: str
) -> None:
    alone = namespace("alone")
    alone.ip("rule add pref 100 lookup local")
    alone.ip("rule del pref 0")
    alone.ip(f"rule add pref 50 ipproto tcp dport 7022 {kind}")
    with alone:
        running = lab.reflector(f"{REFLECTOR}:0:7022", connect_timeout=60.0)
        lab.dial(NODE, REFLECTOR, running.port).expect_rst()
    running.wait_count("legs_unreachable", 1)
    running.wait_count("closed_leg_failed", 1)


def test_return_leg_without_an_answer_resets_the_client_after_the_timeout(
    lab: Lab, namespace: MakeNamespace
) -> None:
    alone = namespace("alone")
    alone.reject("tcp dport 7022 drop")
    with alone:
        running = lab.reflector(f"{REFLECTOR}:0:7022", connect_timeout=0.7)
        began = time.monotonic()
        client = lab.dial(NODE, REFLECTOR, running.port)
        client.expect_rst()
    assert time.monotonic() - began >= 0.7
    running.wait_count("legs_timed_out", 1)
    running.wait_count("closed_leg_failed", 1)


def test_many_return_legs_time_out_in_their_turn(lab: Lab, namespace: MakeNamespace) -> None:
    alone = namespace("alone")
    alone.reject("tcp dport 7022 drop")
    with alone:
        running = lab.reflector(f"{REFLECTOR}:0:7022", connect_timeout=0.5)
        began, clients = [], []
        for _ in range(40):
            began.append(time.monotonic())
            clients.append(lab.dial(NODE, REFLECTOR, running.port))
            time.sleep(0.005)
        for start, client in zip(began, clients, strict=True):
            client.expect_rst()
            assert time.monotonic() - start >= 0.5
    running.wait_count("legs_timed_out", 40)


def test_client_that_leaves_before_the_leg_connects_is_cleaned_up(
    lab: Lab, namespace: MakeNamespace
) -> None:
    alone = namespace("alone")
    alone.reject("tcp dport 7022 drop")
    with alone:
        running = lab.reflector(f"{REFLECTOR}:0:7022", connect_timeout=0.4)
        for leave in ("rst", "close", "fin"):
            getattr(lab.dial(NODE, REFLECTOR, running.port), leave)()
    running.wait_count("closed_leg_failed", 3)


def test_bytes_sent_before_the_leg_connects_arrive(lab: Lab, namespace: MakeNamespace) -> None:
    alone = namespace("alone")
    alone.reject("tcp dport 7022 drop")
    with alone:
        service = lab.serve(NODE, 7022)
        running = lab.reflector(f"{REFLECTOR}:0:7022", connect_timeout=patience(10.0))
        client = lab.dial(NODE, REFLECTOR, running.port)
        client.send(b"early bird")
        client.fin()
        alone.accept_all()  # the kernel's next SYN, after a second, gets through
        accepted = service.accept()
        accepted.expect_fin(before=b"early bird")
        accepted.fin()
        client.expect_fin()
    running.wait_count("closed_finished", 1)


def test_dialled_address_is_the_source_of_the_return_leg(lab: Lab) -> None:
    service = lab.serve(NODE)
    running = lab.reflector(f"0.0.0.0:0:{service.port}")
    for dialled in ("127.0.0.3", "127.0.0.77"):
        lab.dial(NODE, dialled, running.port)
        accepted = service.accept()
        assert accepted.remote[0] == dialled
        assert accepted.address == NODE


def test_return_goes_to_the_address_that_the_client_came_from(lab: Lab) -> None:
    one, other = lab.serve("127.0.0.2"), None
    other = lab.serve("127.0.0.9", one.port)
    running = lab.reflector(f"{REFLECTOR}:0:{one.port}")
    lab.dial("127.0.0.9", REFLECTOR, running.port)
    assert other.accept().address == "127.0.0.9"
    lab.dial("127.0.0.2", REFLECTOR, running.port)
    assert one.accept().address == "127.0.0.2"


def test_return_source_changes_where_the_leg_comes_from(lab: Lab) -> None:
    path = lab.path(return_source="127.0.0.55")
    client, accepted = path.connect()
    assert accepted.remote[0] == "127.0.0.55"
    exchange(client, accepted)


def test_return_source_of_one_family_leaves_the_other_alone(
    lab: Lab, namespace: MakeNamespace
) -> None:
    alone = namespace("alone")
    for address in ("fd00:7::2", "fd00:7::3"):
        alone.ip(f"address add {address}/64 dev lo nodad")
    with alone:
        one = lab.serve(NODE, 7022)
        other = lab.serve("fd00:7::2", 7022)
        running = lab.reflector("0:7022", return_source=["127.0.0.55"])
        lab.dial(NODE, REFLECTOR, running.port)
        assert one.accept().remote[0] == "127.0.0.55"
        lab.dial("fd00:7::2", "fd00:7::3", running.port)
        assert other.accept().remote[0] == "fd00:7::3"


def test_several_mappings_return_to_their_own_ports(lab: Lab) -> None:
    one, other = lab.serve(), lab.serve()
    running = lab.reflector(f"{REFLECTOR}:0:{one.port}", f"{REFLECTOR}:0:{other.port}")
    first, second = running.reflector.ports
    client = lab.dial(NODE, REFLECTOR, second)
    exchange(client, other.accept())
    client = lab.dial(NODE, REFLECTOR, first)
    exchange(client, one.accept())


def test_ipv6_client_is_returned_to(lab: Lab) -> None:
    path = lab.path(node="::1", target="::1")
    client, accepted = path.connect()
    assert accepted.remote[0] == "::1"
    exchange(client, accepted)
    finish(client, accepted)


def test_ipv6_refused_return_leg_resets_the_client(lab: Lab) -> None:
    lab.unserved_path(node="::1", target="::1").dial().expect_rst()


def test_wildcard_listener_serves_both_families(lab: Lab) -> None:
    service4 = lab.serve(NODE)
    service6 = lab.serve("::1", service4.port)
    running = lab.reflector(f"0:{service4.port}")
    client = lab.dial(NODE, REFLECTOR, running.port)
    accepted = service4.accept()
    assert accepted.remote[0] == REFLECTOR  # a v4-mapped peer is an IPv4 peer
    exchange(client, accepted)
    client = lab.dial("::1", "::1", running.port)
    exchange(client, service6.accept())


def test_ipv4_alone_works_where_the_host_has_no_ipv6(lab: Lab, namespace: MakeNamespace) -> None:
    alone = namespace("alone")
    alone.sysctl("net/ipv6/conf/all/disable_ipv6", "1")
    with alone:
        service = lab.serve(NODE, 7022)
        running = lab.reflector("0:7022")
        client = lab.dial(NODE, REFLECTOR, running.port)
        exchange(client, service.accept())


def test_any_local_address_of_a_routed_range_can_be_dialled(
    lab: Lab, namespace: MakeNamespace
) -> None:
    alone = namespace("alone")
    alone.ip("route add local 198.18.0.0/15 dev lo")
    with alone:
        running = lab.reflector("0:7022")
        for node, dialled in (("198.18.1.1", "198.19.7.7"), ("198.19.2.2", "198.18.8.8")):
            service = lab.serve(node, 7022)
            client = lab.dial(node, dialled, running.port)
            accepted = service.accept()
            assert accepted.remote[0] == dialled
            exchange(client, accepted)
