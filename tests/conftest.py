"""Fixtures of all tests: the engine, the lab, namespaces, and the check that nothing leaks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.lab import Lab
from support.leaks import assert_back_to, holdings
from support.mirror import why_no_mirror
from support.mirror_lab import MirrorLab
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


def start_mirror(mappings: list[str], **settings: Any) -> reflector.Reflector:
    """A started reflector with the mirror engine."""
    return start_splice(mappings, engine="mirror", **settings)


# Every behaviour test runs once for each engine here that it says it is about: by the marker
# `engines`, without which it is the splice engine's.
ENGINES: dict[str, tuple[Callable[..., Any], Callable[[Callable[..., Any]], Lab]]] = {
    "splice": (start_splice, Lab),
    "mirror": (start_mirror, MirrorLab),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of engines once for each."""
    if "engine_name" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("engines")
        metafunc.parametrize("engine_name", marker.args if marker else ["splice"], indirect=True)


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """After each test the process holds the descriptors and threads that it held before."""
    before = holdings()
    yield
    assert_back_to(before)


@pytest.fixture
def engine_name(request: pytest.FixtureRequest) -> str:
    """One of ENGINES; skips where it is not to be had."""
    name = str(getattr(request, "param", "splice"))
    if name == "mirror" and why_no_mirror():
        pytest.skip(why_no_mirror())
    return name


@pytest.fixture
def engine(engine_name: str) -> Callable[..., Any]:
    """Starts a reflector: engine(mappings, **settings)."""
    return ENGINES[engine_name][0]


@pytest.fixture
def lab(engine_name: str, nothing_leaks: None) -> Iterator[Lab]:
    """Nodes, services and reflectors of one test; leaks and counters are checked at its end."""
    start, make = ENGINES[engine_name]
    made = make(start)
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
