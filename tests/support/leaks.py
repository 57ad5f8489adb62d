"""What a process holds: descriptors, threads, memory, CPU time; and that it comes back."""

import gc
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from support.timing import wait_until

_SELF_TASKS = Path("/proc/self/task")


def thread_ids() -> set[int]:
    """Ids of all threads of this process, C threads too."""
    return {int(name) for name in os.listdir(_SELF_TASKS)}


def descriptors(process: int | str = "self", thread_id: int | None = None) -> dict[int, str]:
    """Open descriptors and what they are, of a process, or of one thread's own table."""
    folder = Path("/proc", str(process), *(["task", str(thread_id)] if thread_id else []), "fd")
    found = {}
    try:
        for name in os.listdir(folder):
            try:
                found[int(name)] = os.readlink(folder / name)
            except FileNotFoundError:  # the descriptor that lists the folder, closed by now
                continue
    except (FileNotFoundError, ProcessLookupError):  # the thread has ended
        return {}
    return found


@dataclass(frozen=True)
class Holdings:
    """Descriptors and threads of the process at one moment."""

    descriptors: dict[int, str]
    threads: int


def holdings() -> Holdings:
    """What the process holds now."""
    return Holdings(descriptors(), len(thread_ids()))


def assert_back_to(before: Holdings) -> None:
    """Wait until the process holds no more than `before`; AssertionError that names the rest."""
    gc.collect()
    deadline = time.monotonic() + 5
    while True:
        now = holdings()
        allowed = (
            before.threads + under_sanitizer()
        )  # which comes and goes with a thread of its own
        if len(now.descriptors) == len(before.descriptors) and now.threads <= allowed:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    extra = {fd: what for fd, what in now.descriptors.items() if fd not in before.descriptors}
    raise AssertionError(
        f"left over: descriptors {extra}, was {len(before.descriptors)} now"
        f" {len(now.descriptors)}; threads was {before.threads} now {now.threads}"
    )


def cpu_seconds() -> float:
    """CPU time that this process has used, over all its threads."""
    return time.process_time()


def assert_no_spin(seconds: float = 0.5) -> None:
    """AssertionError when the process burns more than half a CPU while the test only sleeps."""
    before = cpu_seconds()
    time.sleep(seconds)
    used = cpu_seconds() - before
    assert used < seconds / 2, f"{used:.2f} s of CPU in {seconds} s with nothing to do"


def memory_bytes(pid: int | str = "self") -> int:
    """Anonymous memory of a process: its heaps and stacks, in bytes.

    Not pages of files, whose share also changes when other processes that map them come and go.
    """
    gc.collect()
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Anonymous:\s+(\d+) kB", text, re.MULTILINE)
    assert found, text
    return int(found[1]) * 1024


def under_sanitizer() -> bool:
    """Whether a sanitizer's own memory use makes figures of memory meaningless."""
    return "REFLECTOR_UNDER_SANITIZER" in os.environ


class WorkerTables:
    """The descriptor tables that an engine's worker threads have of their own.

    Workers that share the process's table, as under ThreadSanitizer, are left out: what they hold
    is seen when the engine has stopped.
    """

    def __init__(self, threads_before: set[int]) -> None:
        self._threads = thread_ids() - threads_before
        self._wait_settled()
        shared = descriptors()
        self._threads = {t for t, table in self.contents().items() if table != shared}
        self.at_start = self.contents()

    def contents(self) -> dict[int, dict[int, str]]:
        """Every thread's table, now: for a message that shows what is left over."""
        return {thread: descriptors(thread_id=thread) for thread in self._threads}

    def grown(self) -> int:
        """How many descriptors the tables hold beyond those at the start."""
        return _total(self.contents()) - _total(self.at_start)

    def _wait_settled(self) -> None:
        sizes: list[int] = []

        def three_alike() -> bool:
            sizes.append(_total(self.contents()))
            time.sleep(0.01)
            return len(sizes) >= 3 and len(set(sizes[-3:])) == 1

        wait_until(three_alike, "the workers' descriptor tables to settle after the start")


def _total(tables: dict[int, dict[int, str]]) -> int:
    return sum(map(len, tables.values()))
