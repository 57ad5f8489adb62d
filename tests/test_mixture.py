"""Many connections of every kind at once: each sees its own bytes and its own end."""

import random
import threading
from collections import Counter

import pytest
from support.bulk import Pump, pattern
from support.lab import NODE, REFLECTOR, Lab, Path
from support.peer import Ending, Peer
from support.timing import scaled

KINDS = (
    "client fin first",
    "service fin first",
    "fins cross",
    "client rst",
    "service rst",
    "urgent",
    "bulk",
)


def tagged(number: int, size: int) -> bytes:
    """Bytes that belong to one connection alone."""
    return b"<%08d>" % number + pattern(size, number * 97)


class Crowd:
    """Clients and service in threads; a connection's first bytes say what is to happen on it."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.seed = seed
        self.done: Counter[str] = Counter()
        self._lock = threading.Lock()

    def serve(self, count: int) -> None:
        """The service's part of `count` connections, each in a thread."""
        pumps = []
        for _ in range(count):
            pumps.append(Pump(self._serve_one, self.path.service.accept()))
            self.path.service.accepted.clear()
        for pump in pumps:
            pump.finish()

    def run_clients(self, start: int, count: int) -> None:
        """The clients' part of `count` connections, one after the other."""
        for number in range(start, start + count):
            kind = random.Random(self.seed * 1000 + number).randrange(len(KINDS))
            size = random.Random(number).choice((0, 1, 500, 5000, 40_000))
            if KINDS[kind] == "bulk":
                size = scaled(1_000_000)
            client = Peer.dial((NODE, 0), (REFLECTOR, self.path.running.port))
            client.urgent_inline()
            client.send(b"%08d %d %08d;" % (number, kind, size))
            client.expect(tagged(number, 0))
            self._play(KINDS[kind], client, tagged(number, size), leads=True)
            client.close()
            with self._lock:
                self.done[KINDS[kind]] += 1

    def _serve_one(self, peer: Peer) -> None:
        peer.urgent_inline()
        number, kind, size = (int(word) for word in peer.read(20).rstrip(b";").split())
        peer.send(tagged(number, 0))
        self._play(KINDS[kind], peer, tagged(number, size), leads=False)
        peer.close()

    def _play(self, kind: str, peer: Peer, data: bytes, *, leads: bool) -> None:
        """One side of a connection's plot; `leads` is the client."""
        if kind in ("client rst", "service rst"):
            if leads == (kind == "client rst"):
                peer.send(data)
                peer.wait_acknowledged()
                peer.rst()
            else:
                peer.expect_rst(before=data)
            return
        if kind == "fins cross":
            with Pump(peer.expect_fin, before=data):
                peer.send(data)
                peer.fin()
            return
        if leads == (kind != "service fin first"):
            peer.send(data)
            if kind == "urgent":
                peer.urgent(b"!")
            peer.fin()
            peer.expect_fin(before=data)
        else:
            seen = peer.read_to_end()
            assert seen.ending is Ending.FIN
            assert seen.data == data + (b"!" if kind == "urgent" else b"")
            peer.send(data)
            peer.fin()


@pytest.mark.parametrize("workers", [1, 3])
def test_every_connection_sees_its_own_bytes_and_its_own_end(lab: Lab, workers: int) -> None:
    path = lab.path(workers=workers, max_per_source=5000)
    threads, each = 8, scaled(60, 10)
    crowd = Crowd(path, seed=workers)
    with Pump(crowd.serve, threads * each) as service:
        clients = [Pump(crowd.run_clients, n * each, each) for n in range(threads)]
        for client in clients:
            client.finish()
        service.finish()
    path.running.wait_idle()
    assert crowd.done.total() == path.count("legs_connected") == threads * each
    assert path.count("closed_reset_by_peer") == crowd.done["client rst"]
    assert path.count("closed_reset_by_service") == crowd.done["service rst"]
