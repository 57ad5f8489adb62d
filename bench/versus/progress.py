"""What a person sees while a run goes on: what runs now, how far it is, and how long is left.

On a terminal a bar of three lines is redrawn in place; elsewhere each cell is one plain line.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from versus import view
from versus.observer import Cell
from versus.record import METRICS

#: Drawing takes a few milliseconds of a CPU whose use is being measured: once a second is enough.
REDRAWS_PER_SECOND = 1

#: The plan's own word weighs as much as this many seconds of a run in which it was right.
PRIOR_SECONDS = 15.0

#: of what a cell measured, the first three of these are told
_TOLD = ("rate", "cpu_us", "cpu_ms_per_gb", "mb_per_s", "user_bytes", "kernel_bytes", "p99_us")

Pair = tuple[str, str]  # the keys of a work and a proxy


class Estimate:
    """How long the rest of a run takes: the plan's expected seconds, corrected by what was seen.

    A pair of work and proxy that was seen is expected to take what it took so far, on average. The
    others are expected to take what the plan says, times how much longer than that the run took.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._waiting = list(cells)
        self._seen: dict[Pair, list[float]] = {}
        self._took_seconds = PRIOR_SECONDS
        self._expected_seconds = PRIOR_SECONDS

    @property
    def factor(self) -> float:
        """How much longer the run takes than the plan says; 1 before anything was seen."""
        return self._took_seconds / self._expected_seconds

    def expected(self, cell: Cell) -> float:
        """Return the seconds that a cell is expected to take, by what is known now."""
        seen = self._seen.get(_pair(cell))
        return sum(seen) / len(seen) if seen else cell.seconds * self.factor

    def took(self, cell: Cell, seconds: float) -> None:
        """Take note of the seconds that a cell took, and what belongs to it."""
        self._drop(cell)
        self._seen.setdefault(_pair(cell), []).append(seconds)
        self._took_seconds += seconds
        self._expected_seconds += cell.seconds

    def skipped(self, cell: Cell) -> None:
        """Take note that a cell gave nothing to learn from: it failed, or was not tried."""
        self._drop(cell)

    def left(self, running: Cell | None = None, seconds: float = 0.0) -> float:
        """Return the seconds left, given the cell that runs now and for how long it has."""
        rest = sum(self.expected(cell) for cell in self._waiting)
        if running in self._waiting and running is not None:
            rest -= min(seconds, self.expected(running))
        return rest

    def _drop(self, cell: Cell) -> None:
        if cell in self._waiting:
            self._waiting.remove(cell)


def _pair(cell: Cell) -> Pair:
    return cell.work.key, cell.proxy.key


class Progress:
    """Shows a run as it goes, on stderr or the stream given. An Observer, and a context manager.

    The bar appears with the plan and goes away after the last cell, or with `close`. `clock` gives
    the time in seconds.
    """

    def __init__(
        self, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = file or sys.stderr
        self._console = Console(file=self._file, highlight=False)
        self._on_terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._clock = clock
        self._live: Live | None = None
        self._estimate = Estimate([])
        self._cells = 0
        self._rounds = 0
        self._done = 0
        self._running: Cell | None = None
        self._last = ""
        self._told: set[tuple[str, str]] = set()
        # A cell takes the time since the one before it ended, with all that was set up for it.
        self._started = self._boundary = self._clock()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away. Does nothing where there is none."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def plan(self, cells: Sequence[Cell]) -> None:
        """Take note of all cells, and show the bar."""
        self._estimate = Estimate(cells)
        self._cells = len(cells)
        self._rounds = len({cell.round for cell in cells})
        self._started = self._boundary = self._clock()
        if not self._on_terminal:
            left = view.duration(self._estimate.left())
            self._line(f"{len(cells)} measurements in {_rounds(self._rounds)}, about {left}")
        elif cells:
            self._live = Live(
                get_renderable=self.render,
                console=self._console,
                refresh_per_second=REDRAWS_PER_SECOND,
                transient=True,
            )
            self._live.start()

    def began(self, cell: Cell) -> None:
        """Show that a cell began."""
        self._running = cell
        if self._live:
            self._live.refresh()

    def ended(self, cell: Cell, values: Mapping[str, float] | None) -> None:
        """Show what a cell measured; None: nothing."""
        self._running = None
        self._done += 1
        now = self._clock()
        if values is not None:
            self._estimate.took(cell, now - self._boundary)
        else:
            self._estimate.skipped(cell)
        self._boundary = now
        result = _told(cell, values) if values else "not measured"
        self._last = f"{cell.work.title}, {cell.proxy.name}: {result}"
        if not self._on_terminal:
            width = len(str(self._cells))
            left = view.duration(self._estimate.left())
            head = f"{self._done:>{width}}/{self._cells} round {cell.round + 1}"
            self._line(f"{head}, {self._last} ({left} left)")
        elif self._done >= self._cells:
            self.close()

    def missing(self, what: str, why: str) -> None:
        """Tell at once what is not measured, and why; the same thing only once."""
        if (what, why) in self._told:
            return
        self._told.add((what, why))
        if self._on_terminal:
            self._console.print(Text.assemble((f"{what}: ", "yellow"), "not measured, ", why))
        else:
            self._line(f"{what}: not measured, {why}")

    def render(self) -> Group:
        """Return the bar as it is now."""
        now = self._clock()
        left = self._estimate.left(self._running, now - self._boundary)
        elapsed = now - self._started
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(ratio=1)
        for _ in range(3):
            row.add_column(justify="right", no_wrap=True)
        row.add_row(
            ProgressBar(total=max(elapsed + left, 1e-9), completed=elapsed),
            f"{self._done} of {self._cells}",
            f"{view.duration(elapsed)} so far",
            Text(f"{view.duration(left)} left", "bold"),
        )
        return Group(self._now(), row, Text(self._last, "dim", no_wrap=True, overflow="ellipsis"))

    def _now(self) -> Text:
        if self._running is None:
            return Text("setting up", no_wrap=True)
        cell = self._running
        return Text.assemble(
            f"round {cell.round + 1} of {self._rounds}: {cell.work.title}, ",
            (cell.proxy.name, "bold"),
            no_wrap=True,
            overflow="ellipsis",
        )

    def _line(self, text: str) -> None:
        print(text, file=self._file, flush=True)


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


def _told(cell: Cell, values: Mapping[str, float]) -> str:
    parts = []
    for metric in (METRICS[key] for key in _TOLD if key in values):
        label, _, unit = view.short_label(metric, cell.work.group).partition(", ")
        parts.append(f"{label} {view.number(values[metric.key], metric.decimals)} {unit}".rstrip())
    return ", ".join(parts[:3])
