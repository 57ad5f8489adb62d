"""The order of a run: rounds in which, work by work, the proxies take turns.

What a machine does besides changes by the minute. So the cells that are compared lie close to each
other in time, and each round begins with another proxy.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psutil
from place import BENCH, BenchError, Tools, find_program

from versus.observer import Cell, Observer
from versus.proxies import FINDERS, NAMES, Proxy
from versus.record import Missing, Record, Sample, Work
from versus.stage import Stage, set_up
from versus.works import SLOW, SLOW_ROUNDS, TOOLS, Session, Task

__all__ = [
    *("Cell", "Observer", "Run", "find_proxies", "leave_out_tools", "plain", "select"),
    "tell_missing",
]

#: seconds for a new network and the start of a proxy; for warming up and settling before and after
_START_SECONDS = 0.4
_TASK_SECONDS = 0.75

#: a proxy that has failed so often in a work is not given it any more
_FAILURES_AT_MOST = 2

#: what goes wrong in one cell, and does not keep the next from being measured
_FAILURES = (
    *(BenchError, OSError, ValueError, KeyError, ArithmeticError),
    *(psutil.Error, subprocess.SubprocessError),
)

#: paths that a message may have: what is of this machine alone, and no word for a reader elsewhere
_CHECKOUT = f"{BENCH.parent}/"
_TEMPORARY = re.compile(rf"{re.escape(tempfile.gettempdir())}/reflector-bench-\w+/?")
_PATH = re.compile(r"(?<![\w.:/-])/(?!(?:proc|sys|dev)/)(?:[^\s/'\"]+/)+(?=[^\s/'\"])")


#: takes what is missing, and why
Miss = Callable[[str, str], None]


def plain(text: str) -> str:
    """Return a message in one line, without the paths of this machine: base names are left."""
    text = _TEMPORARY.sub("", " ".join(text.split()).replace(_CHECKOUT, ""))
    return _PATH.sub("", text)


def tell_missing(record: Record, observer: Observer, what: str, why: str) -> None:
    """Put into the record, once, what is missing and why: all of that comes by here."""
    missing = Missing(what, plain(why))
    if missing not in record.missing:
        record.missing.append(missing)
        observer.missing(missing.what, missing.why)


def find_proxies(tools: Tools, keys: Sequence[str], miss: Miss) -> list[Proxy]:
    """Find the proxies of these keys; tell of those that are not to be had."""
    found = []
    for key in keys:
        try:
            found.append(FINDERS[key](tools))
        except (BenchError, OSError) as error:
            miss(NAMES[key], str(error))
    return found


def select(sessions: Sequence[Session], only: Sequence[str]) -> list[Session]:
    """Keep the tasks whose work, or its group, is named; all of them where no name is given."""

    def wanted(work: Work) -> bool:
        return not only or work.key in only or work.group in only

    return [
        replace(
            session,
            tasks=tuple(
                replace(task, samples=kept)
                for task in session.tasks
                if (kept := tuple(pair for pair in task.samples if wanted(pair[0])))
            ),
        )
        for session in sessions
    ]


def leave_out_tools(sessions: Sequence[Session], miss: Miss) -> list[Session]:
    """Leave out the works whose tools are not installed, and tell of those tools."""
    lacking = set()
    for tool in sorted({tool for one in sessions for task in one.tasks for tool in task.needs}):
        try:
            find_program(tool, TOOLS[tool])
        except BenchError as error:
            miss(tool, str(error))
            lacking.add(tool)
    return [
        replace(one, tasks=tuple(task for task in one.tasks if not lacking & set(task.needs)))
        for one in sessions
    ]


@dataclass(frozen=True)
class _Turn:
    """One proxy's turn in a session of a round: its tasks, with the cell of each."""

    session: Session
    proxy: Proxy
    cells: list[tuple[Task, Cell]]


class Run:
    """A run: plans all cells, measures one after the other, and puts them into a record."""

    def __init__(
        self,
        tools: Tools,
        proxies: Sequence[Proxy],
        sessions: Sequence[Session],
        observer: Observer,
        record: Record,
    ) -> None:
        self._tools = tools
        self._proxies = list(proxies)
        self._sessions = sessions
        self._observer = observer
        self._record = record
        self._failures: Counter[tuple[str, str]] = Counter()
        record.proxies = [proxy.info for proxy in proxies]
        record.works = self._works()

    def measure(self) -> None:
        """Measure all; the record grows with each cell. Raises nothing for a cell that fails."""
        turns = [turn for number in range(self._record.rounds) for turn in self._turns(number)]
        self._tell_of_slow()
        self._observer.plan([cell for turn in turns for _, cell in turn.cells])
        for turn in turns:
            self._take(turn)

    def _works(self) -> list[Work]:
        """Return all works, those of a group together and in order."""
        works = [
            replace(work, parameters=work.parameters | _for_reflector(session.options))
            for session in self._sessions
            for task in session.tasks
            for work, _ in task.samples
        ]
        groups = list(dict.fromkeys(work.group for work in works))
        return sorted(works, key=lambda work: groups.index(work.group))

    def _turns(self, number: int) -> list[_Turn]:
        # Every other round goes backwards: a turn is not always taken after the same proxy's, in
        # what that has left of heat, caches and memory.
        count, step = len(self._proxies), -1 if number % 2 else 1
        order = [self._proxies[(number + step * at) % count] for at in range(count)]
        turns = [
            _Turn(session, proxy, self._cells(session, proxy, number))
            for session in self._sessions
            for proxy in order
        ]
        return [turn for turn in turns if turn.cells]

    def _cells(self, session: Session, proxy: Proxy, number: int) -> list[tuple[Task, Cell]]:
        cells: list[tuple[Task, Cell]] = []
        for task in session.tasks:
            works = task.works_for(proxy.info.key)
            if proxy.info.key in SLOW and number >= SLOW_ROUNDS:
                continue
            if works and task.holds > proxy.carries:
                why = f"it carries {proxy.carries:,} ({proxy.carries_why})"
                self._miss(f"{proxy.info.name} on {works[0].title}", why)
            elif works:
                seconds = task.seconds + _TASK_SECONDS + (0.0 if cells else _START_SECONDS)
                cells.append((task, Cell(number, works[0], proxy.info, seconds)))
        return cells

    def _tell_of_slow(self) -> None:
        """Tell what the slow rivals are given, and why no more."""
        for proxy in self._proxies:
            if proxy.info.key in SLOW:
                tasks = [task for session in self._sessions for task in session.tasks]
                theirs = [work.key for task in tasks for work in task.works_for(proxy.info.key)]
                if len(theirs) < len(tasks):
                    but = f"all but {', '.join(theirs)}" if theirs else "these works"
                    self._miss(f"{proxy.info.name} on {but}", SLOW[proxy.info.key])
                if "held" in theirs:
                    what = f"{proxy.info.name} with thousands of held connections"
                    why = f"{proxy.carries_why}: its user memory is that of {proxy.carries:,}"
                    self._miss(what, why)

    def _miss(self, what: str, why: str) -> None:
        tell_missing(self._record, self._observer, what, why)

    def _take(self, turn: _Turn) -> None:
        """Do all tasks of a turn; after one that fails the proxy starts anew for what is left."""
        left = []
        for task, cell in turn.cells:
            if self._failures[cell.proxy.key, cell.work.key] >= _FAILURES_AT_MOST:
                self._observer.ended(cell, None)
            else:
                left.append((task, cell))
        while left:
            try:
                with set_up(self._tools, turn.proxy, turn.session.options) as stage:
                    while left:
                        self._do(stage, *left[0])
                        left.pop(0)
            except _FAILURES as error:
                if not left:  # all is measured, and counted: only the end went wrong
                    self._miss(f"the end of {turn.proxy.info.name}", _in_words(error))
                    return
                _, cell = left.pop(0)
                self._failures[cell.proxy.key, cell.work.key] += 1
                self._miss(f"{cell.proxy.name} on {cell.work.title}", _in_words(error))
                self._observer.ended(cell, None)

    def _do(self, stage: Stage, task: Task, cell: Cell) -> None:
        self._observer.began(cell)
        values = task.measure(stage)
        for work in task.works_for(cell.proxy.key):
            self._record.samples.append(Sample(work.key, cell.proxy.key, cell.round, values))
        self._observer.ended(cell, values)


def _for_reflector(options: tuple[str, ...]) -> dict[str, str]:
    return {"reflector_options": " ".join(options)} if options else {}


def _in_words(error: BaseException) -> str:
    return str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
