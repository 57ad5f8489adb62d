"""Fixtures of all tests: the engine, the lab, namespaces, and the check that nothing leaks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.lab import Lab
from support.leaks import assert_back_to, holdings
from support.namespaces import Namespace, why_no_namespaces

import reflector


def start_splice(mappings: list[str], **settings: Any) -> reflector.Reflector:
    """A started reflector with the splice engine.

    Once in some thousand times the free port that the kernel picks has the number of the return
    port, and the reflector rightly refuses the peers of this host: then it starts anew.
    """
    while True:
        running = reflector.Reflector(list(mappings), **settings)
        running.start()
        asked = map(reflector.Mapping.parse, mappings)
        pairs = zip(asked, running.mappings, strict=True)
        if not any(a.port == 0 != a.return_port == got.port for a, got in pairs):
            return running
        running.stop()


# Every behaviour test runs once for each engine here: a new engine is one more line.
ENGINES: dict[str, Callable[..., Any]] = {"splice": start_splice}


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """After each test the process holds the descriptors and threads that it held before."""
    before = holdings()
    yield
    assert_back_to(before)


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Starts a reflector: engine(mappings, **settings)."""
    return ENGINES[request.param]


@pytest.fixture
def lab(engine: Callable[..., Any], nothing_leaks: None) -> Iterator[Lab]:
    """Nodes, services and reflectors of one test; leaks and counters are checked at its end."""
    made = Lab(engine)
    yield made
    made.close()


@pytest.fixture
def namespace(lab: Lab) -> Callable[[str], Namespace]:
    """Makes network namespaces that end with the lab; skips where there are none."""
    reason = why_no_namespaces()
    if reason:
        pytest.skip(reason)

    def make(name: str) -> Namespace:
        lab.namespaces.append(Namespace(name))
        return lab.namespaces[-1]

    return make
