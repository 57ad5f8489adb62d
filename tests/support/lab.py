"""A test's own small network: nodes with services, reflectors, and an end that checks for leaks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from support.leaks import WorkerTables, thread_ids
from support.namespaces import Namespace
from support.peer import Peer, Service
from support.timing import wait_until

NODE = "127.0.0.2"
REFLECTOR = "127.0.0.3"

LEGS = (
    "legs_connected",
    "legs_refused",
    "legs_timed_out",
    "legs_unreachable",
    "legs_limited",
    "legs_stopped",
)
CLOSED = (
    "closed_finished",
    "closed_reset_by_peer",
    "closed_reset_by_service",
    "closed_idle",
    "closed_half_close",
    "closed_leg_failed",
    "closed_resources",
    "closed_stopped",
)
GAUGES = ("active", "pipes_in_use", "buffers_in_use")

StartEngine = Callable[..., Any]


class Running:
    """A reflector that runs in this process, with what the leak check has to know about it."""

    def __init__(self, start: StartEngine, mappings: Sequence[str], settings: dict[str, Any]):
        before = thread_ids()
        self.reflector = start(mappings, **settings)
        self.tables = WorkerTables(before)

    @property
    def port(self) -> int:
        """Port of the first mapping."""
        return int(self.reflector.ports[0])

    def count(self, name: str) -> int:
        """One counter, now."""
        return int(getattr(self.reflector.stats(), name))

    def counts(self) -> dict[str, int]:
        """All counters, now."""
        return dict(self.reflector.stats().as_dict())

    def wait_count(self, name: str, value: int) -> None:
        """Wait until a counter has reached `value`; it must not go past it."""
        wait_until(lambda: self.count(name) >= value, f"{name} to reach {value}")
        assert self.count(name) == value, f"{name} went past {value}: {self.counts()}"

    def wait_active(self, value: int) -> None:
        """Wait until so many connections run."""
        wait_until(lambda: self.count("active") == value, f"{value} connections to run")

    def wait_idle(self) -> None:
        """Wait until no connection is left and everything that one holds was given back."""
        wait_until(
            lambda: not any(self.count(name) for name in GAUGES),
            f"the gauges to fall to 0: {self.counts()}",
            seconds=20,
        )

    def assert_settled(self) -> None:
        """With all peers gone: gauges at 0, counters in agreement, descriptors given back."""
        self.wait_idle()
        wait_until(
            lambda: not disagreement(self.counts()), f"the counters to agree: {self.counts()}", 2
        )
        kept = 2 * self.count("pipes_idle") + self.count("spare_legs")
        try:
            wait_until(lambda: self.tables.grown() <= kept, "the workers' tables to be as at first")
        except AssertionError as error:
            tables = f"was {self.tables.at_start}, now {self.tables.contents()}, {kept} kept"
            raise AssertionError(f"{error}: {tables}") from None


def disagreement(counts: dict[str, int]) -> str:
    """Why the counters of an idle engine contradict each other; empty when they agree."""
    legs = sum(counts[name] for name in LEGS)
    closed = sum(counts[name] for name in CLOSED)
    reasons = ("source", "denied", "loop", "resources")
    limited = sum(counts[f"limited_{reason}"] for reason in reasons)
    if counts["accepted"] == legs == closed and limited == counts["legs_limited"]:
        return ""
    return f"accepted {counts['accepted']}, legs {legs}, closed {closed}, limited {limited}"


@dataclass
class Path:
    """The usual way: a node with a service, and a reflector that leads back to it."""

    lab: "Lab"
    service: Service
    running: Running
    node: str
    target: str

    def dial(self, source: str | None = None, **options: Any) -> Peer:
        """A connection from the node to the reflector."""
        return self.lab.dial(source or self.node, self.target, self.running.port, **options)

    def connect(self, **options: Any) -> tuple[Peer, Peer]:
        """A connection through the reflector: the client's end and the service's end."""
        client = self.dial(**options)
        return client, self.service.accept()

    def count(self, name: str) -> int:
        """One counter of the reflector, now."""
        return self.running.count(name)


@dataclass
class Lab:
    """Makes and, at the end, takes down everything of one test."""

    start: StartEngine
    peers: list[Peer] = field(default_factory=list)
    services: list[Service] = field(default_factory=list)
    engines: list[Running] = field(default_factory=list)
    namespaces: list[Namespace] = field(default_factory=list)

    def serve(self, address: str = NODE, port: int = 0, **options: Any) -> Service:
        """A service on `address`; its connections are accepted by the test."""
        self.services.append(Service(address, port, **options))
        return self.services[-1]

    def dial(self, source: str, address: str, port: int, **options: Any) -> Peer:
        """A connection from `source` to `address`:`port`."""
        source_port = options.pop("source_port", 0)
        self.peers.append(Peer.dial((source, source_port), (address, port), **options))
        return self.peers[-1]

    def reflector(self, *mappings: str, **settings: Any) -> Running:
        """A reflector in this process (and in the network namespace of the calling thread)."""
        self.engines.append(Running(self.start, mappings, settings))
        return self.engines[-1]

    def path(
        self,
        *,
        node: str = NODE,
        target: str = REFLECTOR,
        receive_buffer: int = 0,
        **settings: Any,
    ) -> Path:
        """A service on `node` and a reflector on `target` that returns to it."""
        service = self.serve(node, receive_buffer=receive_buffer)
        running = self.reflector(f"{bracketed(target)}:0:{service.port}", **settings)
        return Path(self, service, running, node, target)

    def unserved_path(self, *, node: str = NODE, target: str = REFLECTOR, **settings: Any) -> Path:
        """The same, but nothing listens where the reflector returns to."""
        path = self.path(node=node, target=target, **settings)
        path.service.close()
        return path

    def close(self) -> None:
        """End all peers, check every engine for leaks, then stop it."""
        for peer in self.peers:
            peer.close()
        for service in self.services:
            service.close()
        try:
            for running in self.engines:
                running.assert_settled()
        finally:
            for running in self.engines:
                running.reflector.stop()
            for namespace in self.namespaces:  # last, for the FINs above still cross them
                namespace.close()
        for running in self.engines:
            assert not any(running.count(name) for name in GAUGES), running.counts()
            assert not disagreement(running.counts()), running.counts()


def bracketed(address: str) -> str:
    """An address as it stands before a port: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def exchange(client: Peer, service: Peer, data: bytes = b"ping") -> None:
    """Bytes go both ways: the connection lives."""
    client.send(data)
    service.expect(data)
    service.send(data[::-1])
    client.expect(data[::-1])


def finish(client: Peer, service: Peer) -> None:
    """Both sides end with FIN, in order, and see each other's."""
    client.fin()
    service.expect_fin()
    service.fin()
    client.expect_fin()
