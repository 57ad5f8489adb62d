"""The lab of the mirror engine, with two hosts: it sees what comes in by an interface.

Services and peers are on one, reflectors on the other; a test that names neither address runs on
both labs alike.
"""

from typing import Any

from support.lab import GAUGES, Lab, Path, Running, StartEngine
from support.namespaces import Namespace, join
from support.peer import Peer, Service
from support.timing import wait_until

NODE, HOST = "10.7.9.2", "10.7.9.3"

#: what the mirror knows of a connection: how it began. Its end is between the two sides.
_KNOWN = ("accepted", "legs_connected", "legs_refused", "legs_unreachable")


class MirrorRunning(Running):
    """A reflector with the mirror engine; of its counters only some count connections."""

    carries = False

    def wait_count(self, name: str, value: int) -> None:
        """Wait until a counter has reached `value`, if it is one that this engine has."""
        if name in _KNOWN:
            super().wait_count(name, value)

    def assert_settled(self) -> None:
        """With all peers gone: no connection in the splice engine, which had none to carry."""
        self.wait_idle()
        counts = self.counts()
        assert counts["accepted"] == counts["mirrored"], counts
        wait_until(lambda: self.tables.grown() <= 0, "the workers' tables to be as at first")


class MirrorLab(Lab):
    """A node and a reflector's host, each in a network namespace."""

    def __init__(self, start: StartEngine) -> None:
        super().__init__(start)
        self.node, self.host = Namespace("node"), Namespace("host")
        self.namespaces += [self.node, self.host]
        join(self.node, "v0", self.host, "v0")
        self.node.ip(f"address add {NODE}/24 dev v0")
        self.host.ip(f"address add {HOST}/24 dev v0")

    def serve(self, address: str = NODE, port: int = 0, **options: Any) -> Service:
        """A service on the node."""
        with self.node:
            return super().serve(address, port, **options)

    def dial(self, source: str, address: str, port: int, **options: Any) -> Peer:
        """A connection from the node."""
        with self.node:
            return super().dial(source, address, port, **options)

    def reflector(self, *mappings: str, **settings: Any) -> Running:
        """A reflector on the host."""
        with self.host:
            self.engines.append(MirrorRunning(self.start, mappings, settings))
        return self.engines[-1]

    def path(self, *, node: str = NODE, target: str = HOST, **settings: Any) -> Path:
        """A service on the node, and a reflector that returns to it."""
        return super().path(node=node, target=target, **settings)

    def unserved_path(self, *, node: str = NODE, target: str = HOST, **settings: Any) -> Path:
        """The same, but nothing listens where the reflector returns to."""
        return super().unserved_path(node=node, target=target, **settings)

    def close(self) -> None:
        """End all peers, then stop every engine; it leaves nothing on the host."""
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
            with self.host:
                left = self.host.run("tc", "qdisc", "show", "dev", "v0")
            for namespace in self.namespaces:
                namespace.close()
        assert "clsact" not in left, left
        for running in self.engines:
            assert not any(running.count(name) for name in GAUGES), running.counts()
