"""Connect every client back to its own address: checks that cross the network.

    import reflector

    with reflector.Reflector(["10022:22"]) as running:
        print(running.ports, running.stats().accepted)

The names below load on first use, so that ``reflector --version`` stays quick.
"""

from typing import TYPE_CHECKING

from reflector._version import __version__
from reflector.errors import ReflectorError, StartError, UsageError

if TYPE_CHECKING:
    from reflector.api import Reflector
    from reflector.engine import Stats
    from reflector.mapping import Mapping

__all__ = [
    "Mapping",
    "Reflector",
    "ReflectorError",
    "StartError",
    "Stats",
    "UsageError",
    "__version__",
]

_HOMES = {"Mapping": "mapping", "Reflector": "api", "Stats": "engine"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
