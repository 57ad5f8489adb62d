"""The micro level, by pytest-benchmark: `pytest bench/`, in some ten seconds.

Times are of the whole way through the reflector and a small service of C, seen by a client of
Python: good for comparing one version with another (--benchmark-autosave, --benchmark-compare), not
as figures by themselves.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import place
import pytest

pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark (pip install it)")

place.find_reflector()
reflector = pytest.importorskip("reflector")

BANNER_BYTES = 40
#: few enough that the ports of one address carry their TIME_WAIT
CHECKS = 3_000
STARTS = 50


@pytest.fixture(scope="module")
def tools() -> Iterator[place.Tools]:
    """The C programs; skips where they cannot be compiled."""
    with place.tools() as made:
        try:
            made.path("service")
        except place.BenchError as error:
            pytest.skip(str(error))
        yield made


@contextmanager
def reflected(tools: place.Tools, mode: str) -> Iterator[Any]:
    """Run a service and, on loopback, a reflector that returns to it."""
    with (
        tools.service(mode, port=0) as service_port,
        reflector.Reflector([f"127.0.0.1:0:{service_port}"], workers=1) as running,
    ):
        yield running


def connected(running: Any) -> socket.socket:
    """Return a connection to a reflector."""
    return socket.create_connection(("127.0.0.1", running.ports[0]), timeout=5)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Read that many bytes, or fewer at the end of the stream."""
    return connection.recv(size, socket.MSG_WAITALL)


@pytest.mark.parametrize("size", [64, 16_384])
def test_relay_round_trip(benchmark: Callable[..., Any], tools: place.Tools, size: int) -> None:
    """A payload goes to the service and comes back, over one open connection."""
    payload = bytes(size)

    def round_trip(connection: socket.socket) -> bytes:
        connection.sendall(payload)
        return read_exactly(connection, size)

    with reflected(tools, "echo") as running, connected(running) as connection:
        assert len(benchmark(round_trip, connection)) == size


def test_check(benchmark: Any, tools: place.Tools) -> None:
    """The accept path: connect, read the banner, close."""

    def check(running: Any) -> bytes:
        with connected(running) as connection:
            return read_exactly(connection, BANNER_BYTES)

    with reflected(tools, "banner") as running:
        banner = benchmark.pedantic(
            check, args=(running,), rounds=CHECKS, iterations=1, warmup_rounds=100
        )
        assert len(banner) == BANNER_BYTES


def test_start_and_stop(benchmark: Any) -> None:
    """An engine binds, starts its workers and ends them."""

    def start_and_stop() -> None:
        with reflector.Reflector(["127.0.0.1:0:9"], workers=2):
            pass

    benchmark.pedantic(start_and_stop, rounds=STARTS, iterations=1, warmup_rounds=3)


def test_stats_read(benchmark: Callable[..., Any]) -> None:
    """All counters are read once, summed over four workers."""
    with reflector.Reflector(["127.0.0.1:0:9"], workers=4) as running:
        assert benchmark(running.stats).accepted == 0
