"""How a run tells what it does: the plan, each cell as it comes, and what cannot be had."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from versus.record import ProxyInfo, Work


@dataclass(frozen=True)
class Cell:
    """One work of one proxy in one round, and the seconds that it is expected to take."""

    round: int
    work: Work
    proxy: ProxyInfo
    seconds: float


class Observer(Protocol):
    """Who watches a run."""

    def plan(self, cells: Sequence[Cell]) -> None:
        """Take note of all cells, in the order in which they will come. Called once, first."""

    def began(self, cell: Cell) -> None:
        """Take note that a cell began."""

    def ended(self, cell: Cell, values: Mapping[str, float] | None) -> None:
        """Take note of what a cell measured; None: nothing, it failed or is not tried any more.

        A cell that is not tried any more ends without having begun.
        """

    def missing(self, what: str, why: str) -> None:
        """Take note of what is not measured, by name, and why. May come before the plan."""
