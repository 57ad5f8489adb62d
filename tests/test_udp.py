"""UDP mappings: sessions, their limits and their ends, and what never happens."""

import errno
import random
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import Foreground, one_line, run_command
from support.datagram import Address, Udp, ask, drain, is_bound
from support.forked import ForkedReflector
from support.lab import NODE, REFLECTOR, Lab, Running, bracketed, exchange
from support.leaks import assert_no_spin
from support.timing import patience, scaled, wait_until

#: seconds; long enough that no session of a slow run ends by itself, where that is not the matter
IDLE = patience(1.0)

#: the most that UDP over IPv4 can carry
LARGEST = 65_507


class Way:
    """A service on a node, and a reflector that returns to it."""

    def __init__(self, lab: Lab, node: str, target: str, options: dict[str, Any]) -> None:
        self.ends: list[Udp] = []
        self.node = node
        self.service = self.end(node)
        listening = options.pop("listening", bracketed(target) + ":")
        options.setdefault("udp_idle_timeout", IDLE)
        self.running: Running = lab.reflector(f"{listening}0:{self.service.port}/udp", **options)
        self.target: Address = (target, self.running.port)
        self.count = self.running.count
        self.wait_count = self.running.wait_count

    def end(self, address: str = "", port: int = 0) -> Udp:
        """A UDP socket on the node, or on another address."""
        self.ends.append(Udp(address or self.node, port))
        return self.ends[-1]

    def ask(self, peer: Udp, data: bytes = b"ping") -> Address:
        """A question and its answer."""
        return ask(peer, self.target, self.service, data)

    def close(self) -> None:
        """Close the sockets."""
        for end in self.ends:
            end.close()


@pytest.fixture
def way(lab: Lab) -> Iterator[Callable[..., Way]]:
    """Makes ways: way(node=, target=, listening=, **settings)."""
    made: list[Way] = []

    def make(*, node: str = NODE, target: str = REFLECTOR, **options: Any) -> Way:
        made.append(Way(lab, node, target, options))
        return made[-1]

    yield make
    for one in made:
        one.close()


MakeWay = Callable[..., Way]

# --- the way of a datagram ---


@pytest.mark.parametrize(
    ("node", "target", "listening"),
    [
        (NODE, REFLECTOR, f"{REFLECTOR}:"),
        (NODE, REFLECTOR, "0.0.0.0:"),
        (NODE, REFLECTOR, ""),
        (NODE, "127.0.0.77", ""),
        ("::1", "::1", "[::1]:"),
        ("::1", "::1", ""),
        ("::1", "::1", "[::]:"),
    ],
)
def test_datagram_goes_back_to_its_sender_and_the_answer_comes_from_what_it_dialled(
    way: MakeWay, node: str, target: str, listening: str
) -> None:
    one = way(node=node, target=target, listening=listening)
    peer = one.end()
    seen = one.ask(peer)
    assert seen[0] == target
    assert seen[1] not in (one.target[1], peer.port)
    assert one.ask(peer, b"again") == seen
    one.wait_count("accepted", 1)
    one.wait_count("legs_connected", 1)
    one.wait_count("datagrams_to_service", 2)
    one.wait_count("datagrams_to_peer", 2)
    one.wait_count("bytes_to_peer", 9)
    one.wait_count("datagrams_dropped", 0)


def test_return_source_changes_where_the_return_leg_leaves_from(way: MakeWay) -> None:
    one = way(return_source="127.0.0.9")
    assert one.ask(one.end())[0] == "127.0.0.9"


@pytest.mark.parametrize("node", [NODE, "::1"])
@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 16_385, LARGEST])
def test_datagram_of_any_size_passes_whole(way: MakeWay, node: str, size: int) -> None:
    one = way(node=node, target="::1" if ":" in node else REFLECTOR)
    one.ask(one.end(), random.Random(size).randbytes(size))
    one.wait_count("bytes_to_service", size)
    one.wait_count("bytes_to_peer", size)


def test_largest_datagram_of_ipv6_is_larger_and_passes(way: MakeWay) -> None:
    one = way(node="::1", target="::1", listening="")
    one.ask(one.end(), random.Random(6).randbytes(65_527))


def test_datagrams_stay_apart_and_in_order(way: MakeWay) -> None:
    one = way(workers=2)
    peer = one.end()
    chance = random.Random(1)
    sent = [chance.randbytes(chance.choice((0, 1, 40, 1400))) for _ in range(40)]
    for round_number in range(5):
        for data in sent:
            peer.send(data, one.target)
        for data in sent:
            seen = one.service.expect(data)
        for data in reversed(sent):
            one.service.send(data, seen)
        for data in reversed(sent):
            peer.expect(data, one.target)
        one.wait_count("datagrams_to_peer", (round_number + 1) * len(sent))
    one.wait_count("accepted", 1)


@pytest.mark.parametrize("workers", [1, 4])
def test_every_peer_has_a_session_of_its_own_and_keeps_it(way: MakeWay, workers: int) -> None:
    one = way(workers=workers, udp_idle_timeout=patience(3.0))
    peers = [one.end() for _ in range(100)]
    seen = {peer.port: one.ask(peer, b"%d" % peer.port) for peer in peers}
    assert len(set(seen.values())) == len(peers)
    for _ in range(2):
        random.Random(workers).shuffle(peers)
        for peer in peers:
            assert one.ask(peer, b"%d" % peer.port) == seen[peer.port]
    one.wait_count("accepted", len(peers))
    assert one.count("active") == len(peers)


def test_one_peer_that_dials_two_addresses_has_two_sessions(way: MakeWay) -> None:
    one = way(listening="")
    peer = one.end()
    for target in (REFLECTOR, "127.0.0.77", REFLECTOR):
        seen = ask(peer, (target, one.target[1]), one.service)
        assert seen[0] == target
    one.wait_count("accepted", 2)


def test_service_may_answer_late_and_more_than_once(way: MakeWay) -> None:
    one = way()
    peer = one.end()
    peer.send(b"?", one.target)
    seen = one.service.expect(b"?")
    for number in range(70):
        one.service.send(b"%d" % number, seen)
    for number in range(70):
        peer.expect(b"%d" % number, one.target)


def test_one_port_reflects_tcp_and_udp_at_once(lab: Lab) -> None:
    service = lab.serve(NODE)
    answering = Udp(NODE, service.port)
    reserve = lab.serve(REFLECTOR)
    port = reserve.port
    reserve.close()
    both = [f"{REFLECTOR}:{port}:{service.port}{suffix}" for suffix in ("", "/udp")]
    running = lab.reflector(*both, udp_idle_timeout=IDLE)
    peer = Udp(NODE)
    ask(peer, (REFLECTOR, port), answering)
    exchange(lab.dial(NODE, REFLECTOR, port), service.accept())
    ask(peer, (REFLECTOR, port), answering)
    assert running.count("accepted") == running.count("legs_connected") == 2
    peer.close()
    answering.close()


# --- how a session ends ---


def test_idle_session_ends_and_the_next_datagram_opens_another(way: MakeWay) -> None:
    one = way(udp_idle_timeout=0.2)
    peer = one.end()
    for times in (1, 2, 3):
        one.ask(peer)
        one.wait_count("closed_idle", times)
        assert one.count("active") == 0
    one.wait_count("accepted", 3)


@pytest.mark.parametrize("who", ["peer", "service"])
def test_datagrams_of_either_side_keep_the_session(way: MakeWay, who: str) -> None:
    one = way(udp_idle_timeout=IDLE)
    peer = one.end()
    seen = one.ask(peer)
    for _ in range(8):
        threading.Event().wait(IDLE / 4)
        if who == "peer":
            peer.send(b".", one.target)
            one.service.expect(b".", seen)
        else:
            one.service.send(b".", seen)
            peer.expect(b".", one.target)
    assert one.count("accepted") == one.count("active") == 1


def test_service_that_never_answers_is_counted_as_timed_out(way: MakeWay) -> None:
    one = way(udp_idle_timeout=0.2)
    one.end().send(b"log line", one.target)
    one.service.expect(b"log line")
    one.wait_count("legs_timed_out", 1)
    one.wait_count("closed_idle", 1)


@pytest.mark.parametrize(("node", "target"), [(NODE, REFLECTOR), ("::1", "::1")])
def test_refusal_is_counted_and_ends_the_session(way: MakeWay, node: str, target: str) -> None:
    one = way(node=node, target=target, udp_idle_timeout=60.0)
    peer = one.end()
    port = one.service.port
    one.service.close()
    for times in (1, 2, 3):
        peer.send(b"?", one.target)
        one.wait_count("legs_refused", times)
        one.wait_count("closed_leg_failed", times)
        assert one.count("active") == 0
    peer.expect_none()
    back = one.end(node, port)
    ask(peer, one.target, back)
    back.close()
    peer.send(b"?", one.target)
    one.wait_count("closed_reset_by_service", 1)


def test_refusal_after_an_answer_ends_the_session_too(way: MakeWay) -> None:
    one = way(udp_idle_timeout=60.0)
    peer = one.end()
    one.ask(peer)
    one.service.close()
    peer.send(b"?", one.target)
    one.wait_count("closed_reset_by_service", 1)
    one.wait_count("legs_connected", 1)
    one.wait_count("legs_refused", 0)


def test_answers_before_a_refusal_still_arrive(way: MakeWay) -> None:
    one = way(udp_idle_timeout=60.0)
    peer = one.end()
    for _ in range(scaled(50, 10)):
        service = one.end(NODE, one.service.port) if one.service.sock.fileno() < 0 else one.service
        peer.send(b"?", one.target)
        seen = service.expect(b"?")
        service.send(b"!", seen)
        service.close()
        peer.send(b"?", one.target)
        peer.expect(b"!", one.target)
        one.running.wait_idle()


# --- limits ---


@pytest.mark.parametrize("workers", [1, 3])
def test_exactly_the_limit_of_one_source_is_served(way: MakeWay, workers: int) -> None:
    one = way(max_per_source=7, workers=workers, udp_idle_timeout=patience(2.0))
    peers = [one.end() for _ in range(21)]
    for peer in peers:
        peer.send(b"%d" % peer.port, one.target)
    one.wait_count("limited_source", 14)
    assert drain(one.service) == 7
    for name, value in (("datagrams_dropped", 14), ("closed_leg_failed", 14), ("active", 7)):
        one.wait_count(name, value)
    one.running.wait_idle()
    one.ask(peers[-1])


def test_limit_of_one_source_counts_tcp_and_udp_together(lab: Lab) -> None:
    service = lab.serve(NODE)
    answering = Udp(NODE, service.port)
    both = [f"{REFLECTOR}:0:{service.port}{suffix}" for suffix in ("", "/udp")]
    running = lab.reflector(*both, udp_idle_timeout=IDLE, max_per_source=1)
    tcp, udp = running.reflector.ports
    client = lab.dial(NODE, REFLECTOR, tcp)
    exchange(client, service.accept())
    peer = Udp(NODE)
    peer.send(b"?", (REFLECTOR, udp))
    running.wait_count("limited_source", 1)
    client.close()
    service.accepted[0].close()
    running.wait_idle()
    ask(peer, (REFLECTOR, udp), answering)
    lab.dial(NODE, REFLECTOR, tcp).expect_rst()
    peer.close()
    answering.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_datagrams_that_would_pass_the_limit_of_connections_are_dropped(
    way: MakeWay, workers: int
) -> None:
    one = way(max_connections=5, workers=workers, udp_idle_timeout=patience(2.0))
    peers = [one.end() for _ in range(20)]
    for peer in peers[:5]:
        one.ask(peer)
    for peer in peers[5:]:
        peer.send(b"?", one.target)
    one.wait_count("datagrams_limited", 15)
    one.wait_count("datagrams_dropped", 15)
    assert_no_spin(0.2)
    for peer in peers[:5]:
        one.ask(peer)
    assert one.count("accepted") == one.count("active") == 5
    one.running.wait_idle()
    one.ask(peers[-1])


def test_tcp_waits_in_the_backlog_for_a_session_to_end(lab: Lab) -> None:
    service = lab.serve(NODE)
    answering = Udp(NODE, service.port)
    both = [f"{REFLECTOR}:0:{service.port}{suffix}" for suffix in ("", "/udp")]
    running = lab.reflector(*both, udp_idle_timeout=IDLE, max_connections=1, workers=2)
    tcp, udp = running.reflector.ports
    peer = Udp(NODE)
    ask(peer, (REFLECTOR, udp), answering)
    client = lab.dial(NODE, REFLECTOR, tcp)
    exchange(client, service.accept())  # once the session is idle
    assert running.count("closed_idle") == 1
    peer.close()
    answering.close()


def test_descriptors_that_run_out_cost_datagrams_and_nothing_else(
    engine: Callable[..., Any],
) -> None:
    service = Udp(NODE)
    peers = [Udp(NODE) for _ in range(200)]

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

    forked = ForkedReflector(
        engine,
        [f"{REFLECTOR}:0:{service.port}/udp"],
        before=few,
        workers=1,
        max_connections=5000,
        udp_idle_timeout=IDLE,
    )
    try:
        target = (REFLECTOR, forked.ports[0])
        for peer in peers:
            peer.send(b"?", target)
        wait_until(lambda: forked.count("accepted") == len(peers), "all datagrams to be seen")
        counts = forked.counts()
        assert counts["limited_resources"] >= 100, counts
        assert counts["limited_resources"] + counts["datagrams_to_service"] == len(peers), counts
        drain(service)
        wait_until(lambda: forked.count("active") == 0, "the sessions to end")
        ask(peers[-1], target, service)
        before = forked.cpu_seconds()
        threading.Event().wait(0.3)
        assert forked.cpu_seconds() - before < 0.2
    finally:
        forked.stop()
        for end in (service, *peers):
            end.close()


# --- what never happens ---


def test_stranger_who_sends_to_a_sessions_socket_reaches_nobody(way: MakeWay) -> None:
    one = way()
    peer = one.end()
    seen = one.ask(peer)
    for address in (NODE, "127.0.0.66"):
        one.end(address).send(b"forged", seen)
    peer.expect_none()
    one.service.expect_none(0.05)
    one.wait_count("datagrams_to_peer", 1)


def test_peer_gets_no_datagram_that_its_service_did_not_send(way: MakeWay) -> None:
    one = way(workers=2)
    peers = [one.end() for _ in range(20)]
    for number, peer in enumerate(peers):
        for _ in range(10):
            peer.send(b"%d" % number, one.target)
    answered: list[bytes] = []
    for _ in range(200):
        data, seen = one.service.receive()
        if len(answered) < 50:
            one.service.send(data, seen)
            answered.append(data)
    got = []
    for number, peer in enumerate(peers):
        for _ in range(answered.count(b"%d" % number)):
            peer.expect(b"%d" % number, one.target)
            got.append(number)
        peer.expect_none(0.01)
    assert len(got) == one.count("datagrams_to_peer") == 50


def test_own_port_is_refused_for_peers_on_this_host(lab: Lab) -> None:
    for mapping in (f"{REFLECTOR}:0/udp", "0/udp"):
        running = lab.reflector(mapping, udp_idle_timeout=0.2)
        for source in (NODE, REFLECTOR):
            peer = Udp(source)
            peer.send(b"?", (REFLECTOR, running.port))
            peer.close()
        running.wait_count("limited_loop", 2)
        running.wait_count("datagrams_dropped", 2)
        running.wait_count("datagrams_to_service", 0)


def test_service_that_would_talk_to_itself_is_refused(way: MakeWay) -> None:
    """One forged datagram would keep an echo service busy for ever, and the reflector with it."""
    one = way()
    one.service.send(b"echo", one.target)
    one.wait_count("limited_loop", 1)
    one.service.expect_none(0.1)
    one.wait_count("datagrams_dropped", 1)
    one.ask(one.end())


def test_same_number_of_the_other_protocol_is_no_loop(lab: Lab, way: MakeWay) -> None:
    one = way()
    lab.reflector(f"{REFLECTOR}:{one.service.port}:{one.target[1]}")
    one.ask(one.end())
    one.wait_count("limited_loop", 0)


def test_reflectors_that_lead_to_each_other_stay_bounded(lab: Lab) -> None:
    """Two of one host: neither knows of the other; one datagram is passed on at most 40 times."""
    reserve = Udp("0.0.0.0")
    port = reserve.port
    reserve.close()
    one = lab.reflector(f"0.0.0.0:0:{port}/udp", max_per_source=20, udp_idle_timeout=IDLE)
    other = lab.reflector(
        f"0.0.0.0:{port}:{one.port}/udp", max_per_source=20, udp_idle_timeout=IDLE
    )
    peer = Udp(NODE)
    peer.send(b"round and round", (REFLECTOR, one.port))
    wait_until(
        lambda: one.count("limited_source") + other.count("limited_source") >= 1, "the end of it"
    )
    assert_no_spin(0.2)
    passed = one.count("datagrams_to_service") + other.count("datagrams_to_service")
    assert passed <= 2 * 20 + 1
    assert one.count("datagrams_to_peer") == other.count("datagrams_to_peer") == 0
    peer.close()


def test_denied_peers_datagrams_are_dropped_and_counted(way: MakeWay) -> None:
    here = way(deny=[f"{NODE}/32"])
    here.end().sock.sendto(b"ping", here.target)
    here.wait_count("limited_denied", 1)
    assert here.count("datagrams_to_service") == 0
    assert here.count("legs_limited") == 1


def test_source_port_0_is_dropped(way: MakeWay) -> None:
    """Nobody can be answered there (RFC 768: no reply is expected)."""
    one = way()
    try:
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    except PermissionError:
        pytest.skip("raw sockets need root")
    with raw:
        raw.bind((NODE, 0))
        raw.sendto(struct.pack("!HHHH", 0, one.target[1], 9, 0) + b"?", (REFLECTOR, 0))
    one.wait_count("datagrams_dropped", 1)
    one.wait_count("accepted", 0)


def test_flood_is_dropped_where_it_does_not_fit_and_counted(way: MakeWay) -> None:
    one = way(workers=1)
    peer = one.end()
    one.service.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sent = scaled(5000, 500)
    for _ in range(sent):
        peer.send(b"x" * 1000, one.target)
    wait_until(lambda: one.count("datagrams_to_service") > 0, "datagrams to pass")
    drain(one.service)
    one.ask(peer)
    assert one.count("datagrams_to_service") + one.count("datagrams_dropped") <= sent + 1
    assert one.count("accepted") == 1


@pytest.mark.parametrize("seed", range(3))
def test_anything_from_anybody_leaves_nothing_behind(way: MakeWay, seed: int) -> None:
    """Random peers, sizes, answers and silences; the lab then checks counters and descriptors."""
    one = way(workers=2, max_connections=30, max_per_source=25, udp_idle_timeout=0.05)
    chance = random.Random(seed)
    peers = [one.end(chance.choice((NODE, REFLECTOR, "127.0.0.88"))) for _ in range(60)]
    for _ in range(scaled(3000, 300)):
        size = int(chance.paretovariate(0.4)) % (LARGEST + 1)
        chance.choice(peers).send(chance.randbytes(size), one.target)
        if chance.random() < 0.3:
            one.service.sock.setblocking(False)
            try:
                data, seen = one.service.sock.recvfrom(70_000)
                for _ in range(chance.choice((0, 1, 3))):
                    one.service.send(data, seen[:2])
            except (BlockingIOError, ConnectionRefusedError):
                continue
    assert one.count("accepted") > 0


# --- start and stop ---


def test_drain_lets_sessions_go_on_and_takes_no_new_ones(way: MakeWay) -> None:
    one = way(workers=4, udp_idle_timeout=patience(1.5))
    peers = [one.end() for _ in range(12)]
    seen = {peer.port: one.ask(peer) for peer in peers}
    engine = one.running.reflector._engine
    engine.stop_accepting()
    newcomer = one.end()
    newcomer.send(b"?", one.target)
    one.wait_count("datagrams_dropped", 1)
    for _ in range(3):
        for peer in peers:
            assert one.ask(peer) == seen[peer.port]
    assert not engine.wait(0)
    assert engine.wait(patience(10))
    assert not is_bound(*one.target)
    assert one.count("closed_idle") == one.count("accepted") == len(peers)


def test_workers_without_sessions_stay_until_the_others_have_none(way: MakeWay) -> None:
    """Each socket that closes deals the peers of the port anew, to workers that know them not."""
    one = way(workers=16, udp_idle_timeout=patience(1.5))
    peers = [one.end() for _ in range(5)]
    for peer in peers:
        one.ask(peer)
    one.running.reflector._engine.stop_accepting()
    for _ in range(3):
        for peer in peers:
            one.ask(peer)
    one.wait_count("datagrams_dropped", 0)
    assert one.running.reflector._engine.wait(patience(10))


def test_drain_without_sessions_is_over_at_once(way: MakeWay) -> None:
    one = way(workers=3)
    assert one.running.reflector.drain(patience(5))
    assert not is_bound(*one.target)


def test_ports_are_free_once_the_last_session_has_ended_though_tcp_goes_on(lab: Lab) -> None:
    service = lab.serve(NODE)
    answering = Udp(NODE, service.port)
    both = [f"{REFLECTOR}:0:{service.port}{suffix}" for suffix in ("", "/udp")]
    running = lab.reflector(*both, udp_idle_timeout=IDLE, workers=3)
    tcp, udp = running.reflector.ports
    client = lab.dial(NODE, REFLECTOR, tcp)
    accepted = service.accept()
    peer = Udp(NODE)
    ask(peer, (REFLECTOR, udp), answering)
    running.reflector._engine.stop_accepting()
    ask(peer, (REFLECTOR, udp), answering)
    wait_until(lambda: not is_bound(REFLECTOR, udp), "the UDP port to be free")
    exchange(client, accepted)
    peer.close()
    answering.close()


def test_stop_ends_sessions_at_once(way: MakeWay) -> None:
    one = way(workers=2, udp_idle_timeout=60.0)
    for _ in range(10):
        one.ask(one.end())
    one.end().send(b"?", one.target)
    one.wait_count("accepted", 11)
    one.running.reflector.stop()
    assert not is_bound(*one.target)
    assert one.count("closed_stopped") == 11
    assert one.count("legs_stopped") == 1
    assert one.count("active") == 0


@pytest.mark.parametrize("shared", [False, True])
def test_port_that_is_taken_is_one_line_and_exit_1(shared: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, shared)
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        done = run_command(f"127.0.0.1:{port}:53/udp")
    assert (done.returncode, done.stdout) == (1, "")
    line = one_line(done.stderr)
    assert f"cannot listen on 127.0.0.1:{port}/udp: UDP port {port} is taken" in line
    assert f"ss -lunp 'sport = :{port}'" in line


def test_port_of_another_reflector_is_not_shared_with_it(tmp_path: Path) -> None:
    first = Foreground(tmp_path / "log", "--workers", "3", "127.0.0.1:0:53/udp")
    try:
        port = first.ports[0]
        assert f"127.0.0.1:{port}/udp -> peer:53" in first.wait_ready()
        done = run_command(f"127.0.0.1:{port}:53/udp")
    finally:
        first.close()
    assert done.returncode == 1
    assert "is taken" in one_line(done.stderr)


def test_port_that_tcp_has_is_free_for_udp(lab: Lab) -> None:
    listening = lab.serve(REFLECTOR)
    running = lab.reflector(f"{REFLECTOR}:{listening.port}:53/udp")
    assert running.port == listening.port


def test_dropped_datagrams_are_told_once_a_second(tmp_path: Path) -> None:
    service, with_room = Udp(NODE), Udp(NODE)
    running = Foreground(
        tmp_path / "log", "--max-connections", "1", f"127.0.0.3:0:{service.port}/udp"
    )
    try:
        target = ("127.0.0.3", running.ports[0])
        ask(with_room, target, service)
        for _ in range(3):
            other = Udp(NODE)
            other.send(b"?", target)
            other.close()
        running.wait_for("datagrams dropped, ")
        assert "of new peers at 1 connection (--max-connections)" in running.output()
    finally:
        running.close()
        service.close()
        with_room.close()


def test_refusal_is_not_told_to_the_peer(way: MakeWay) -> None:
    """The peer's own socket is told nothing, for a user-space reflector cannot send ICMP."""
    one = way()
    peer = one.end()
    one.service.close()
    peer.sock.connect(one.target)
    peer.sock.send(b"?")
    one.wait_count("legs_refused", 1)
    peer.sock.setblocking(False)
    with pytest.raises(BlockingIOError) as caught:
        peer.sock.recv(10)
    assert caught.value.errno == errno.EAGAIN
