"""Short of descriptors, pipes, ports or memory: new connections wait or are reset, running ones
never suffer, nothing spins, everything is counted."""

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.bulk import Pump, read_digest, send_pattern
from support.forked import ForkedReflector
from support.lab import NODE, REFLECTOR, Lab, disagreement, exchange, finish
from support.leaks import under_sanitizer
from support.namespaces import Namespace
from support.peer import Peer, Service
from support.timing import MB, patience, scaled, wait_until

PLENTY = {"max_connections": 5000, "max_per_source": 5000}
UNPRIVILEGED_ID = 54321

Fork = Callable[..., ForkedReflector]


@pytest.fixture
def fork(engine: Callable[..., Any]) -> Iterator[Fork]:
    """Starts reflectors in processes of their own; they must end well."""
    started: list[ForkedReflector] = []

    def start(mapping: str, **options: Any) -> ForkedReflector:
        started.append(ForkedReflector(engine, [mapping], **options))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def limit_descriptors(count: int) -> None:
    """Lower this process's limit of open descriptors."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))


def dial(lab: Lab, running: ForkedReflector) -> Peer:
    """A connection from the node to the forked reflector."""
    return lab.dial(NODE, REFLECTOR, running.ports[0])


def reach(lab: Lab, running: ForkedReflector, service: Service) -> None:
    """A new connection gets through, once the dead ones before it have been cleared away."""
    deadline = time.monotonic() + patience(20)
    while time.monotonic() < deadline:
        client = dial(lab, running)
        try:
            client.send(b"are you there")
            client.fin()
        except OSError:
            continue
        while not client.is_reset() and time.monotonic() < deadline:
            try:
                accepted = service.accept(wait=0.1)
            except AssertionError:
                continue
            seen = accepted.read_to_end()
            accepted.close()
            if seen.data == b"are you there":
                client.expect_fin()
                return
    raise AssertionError("no connection got through any more")


def assert_child_rests(running: ForkedReflector, seconds: float = 0.6) -> None:
    """The reflector's process does not spin."""
    before = running.cpu_seconds()
    time.sleep(seconds)
    assert running.cpu_seconds() - before < seconds / 2


def wait_child_idle(running: ForkedReflector) -> dict[str, int]:
    """Wait until the forked reflector has no connection; its counters, which agree."""
    wait_until(lambda: running.count("active") == 0, "the child to have no connection", 20)
    counts = running.counts()
    assert not disagreement(counts), disagreement(counts)
    assert counts["pipes_in_use"] == counts["buffers_in_use"] == 0
    return counts


@pytest.mark.parametrize("workers", [1, 2])
def test_out_of_descriptors_running_connections_go_on_and_others_come_later(
    lab: Lab, fork: Fork, workers: int
) -> None:
    service = lab.serve()
    running = fork(
        f"{REFLECTOR}:0:{service.port}",
        after=lambda: limit_descriptors(64),
        workers=workers,
        **PLENTY,
    )
    pairs = [(dial(lab, running), service.accept()) for _ in range(10)]
    flood = [dial(lab, running) for _ in range(150)]
    wait_until(
        lambda: running.count("pauses_resources") + running.count("limited_resources") > 0,
        "the descriptors to run out",
    )
    for pair in pairs:
        exchange(*pair)
    assert_child_rests(running)
    for pair in pairs:
        exchange(*pair)
    for client in flood:
        client.rst()
    reach(lab, running, service)
    for pair in pairs:
        finish(*pair)
        pair[0].close()
        pair[1].close()
    service.close()
    wait_child_idle(running)


def test_out_of_descriptors_every_waiting_client_is_served_or_reset(lab: Lab, fork: Fork) -> None:
    service = lab.serve()
    running = fork(
        f"{REFLECTOR}:0:{service.port}", after=lambda: limit_descriptors(48), workers=1, **PLENTY
    )
    count = 100
    clients = [dial(lab, running) for _ in range(count)]
    for client in clients:
        with contextlib.suppress(OSError):  # it was reset already
            client.fin()  # so a connection ends, and gives back what it holds, once served
    served = 0
    with Pump(lambda: [client.read_to_end() for client in clients]) as reader:
        while reader.is_alive():
            try:
                accepted = service.accept(wait=0.2)
            except AssertionError:
                continue
            with contextlib.suppress(OSError):
                accepted.send(b"welcome")
            accepted.close()
            served += 1
        ends = reader.finish()
    assert isinstance(ends, list)
    assert sum(seen.data == b"welcome" for seen in ends) == served > 0
    for client in clients:
        client.close()
    counts = wait_child_idle(running)
    assert counts["legs_connected"] == served
    assert counts["limited_resources"] == counts["legs_limited"] == counts["accepted"] - served


def test_out_of_descriptors_a_bulk_stream_is_copied(lab: Lab, fork: Fork) -> None:
    """No pipe can be had: the stream that would be spliced goes on all the same."""
    service = lab.serve()
    running = fork(
        f"{REFLECTOR}:0:{service.port}", after=lambda: limit_descriptors(40), workers=1, **PLENTY
    )
    client, accepted = dial(lab, running), service.accept()
    flood = [dial(lab, running) for _ in range(60)]
    wait_until(
        lambda: running.count("pauses_resources") + running.count("limited_resources") > 0,
        "the descriptors to run out",
    )
    size = scaled(50 * MB)
    with Pump(read_digest, accepted) as reader:
        sent = send_pattern(client, size)
        client.fin()
        assert reader.finish() == (size, sent)
    accepted.fin()
    client.expect_fin()
    for one in flood:
        one.rst()
    service.close()
    wait_child_idle(running)


def become_unprivileged_and_hold_pipes() -> list[tuple[int, int]]:
    """As an ordinary user, go past pipe-user-pages-soft: from here on a pipe has two pages."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(UNPRIVILEGED_ID)
        os.setuid(UNPRIVILEGED_ID)
    with open("/proc/sys/fs/pipe-user-pages-soft") as file:
        pages = int(file.read())
    return [os.pipe() for _ in range(pages // 16 + 1)]


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 4096, reason="needs 4096 open files"
)
def test_past_the_users_pipe_pages_bulk_goes_on(lab: Lab, fork: Fork) -> None:
    held: list[object] = []
    service = lab.serve()
    running = fork(
        f"{REFLECTOR}:0:{service.port}",
        before=lambda: held.append(become_unprivileged_and_hold_pipes()),
        **PLENTY,
    )
    for _ in range(3):
        client, accepted = dial(lab, running), service.accept()
        size = scaled(30 * MB)
        for sender, receiver in ((client, accepted), (accepted, client)):
            with Pump(read_digest, receiver) as reader:
                sent = send_pattern(sender, size)
                sender.fin()
                assert reader.finish() == (size, sent)
    counts = wait_child_idle(running)
    assert counts["bytes_spliced"] + counts["bytes_copied"] == 6 * size
    assert counts["closed_finished"] == 3


def test_out_of_ports_new_connections_are_reset_and_running_ones_go_on(
    lab: Lab, namespace: Callable[[str], Namespace]
) -> None:
    alone = namespace("alone")
    alone.sysctl("net/ipv4/ip_local_port_range", "40000 40003")
    with alone:
        service = lab.serve(NODE, 7022)
        running = lab.reflector(f"{REFLECTOR}:7023:7022")
        free_port = iter(range(20000, 30000))

        def dial_from_here() -> Peer:
            return lab.dial(NODE, REFLECTOR, 7023, source_port=next(free_port))

        pairs = [(dial_from_here(), service.accept()) for _ in range(4)]
        for _ in range(20):
            dial_from_here().expect_rst()
        for pair in pairs:
            exchange(*pair)
        running.wait_count("limited_resources", 20)
        assert running.count("legs_limited") == 20
        pairs[0][0].rst()  # a reset leaves no TIME_WAIT behind: the port is free again
        pairs[0][1].expect_rst()
        running.wait_active(3)
        exchange(dial_from_here(), service.accept())


@pytest.mark.skipif(under_sanitizer(), reason="a sanitizer needs the address space itself")
def test_out_of_memory_running_connections_go_on(lab: Lab, fork: Fork) -> None:
    def no_more_memory() -> None:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 1 * MB, used + 1 * MB))

    service = lab.serve(backlog=8192)
    running = fork(f"{REFLECTOR}:0:{service.port}", after=no_more_memory, workers=1, **PLENTY)
    pairs = [(dial(lab, running), service.accept()) for _ in range(5)]
    flood = [dial(lab, running) for _ in range(2000)]
    time.sleep(0.5)
    for pair in pairs:
        exchange(*pair)
    assert_child_rests(running)
    for client in flood:
        client.rst()
    reach(lab, running, service)
    for pair in pairs:
        exchange(*pair)
        finish(*pair)
    service.close()
    wait_child_idle(running)
