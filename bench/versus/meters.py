"""What a proxy costs: its process tree, and the whole machine for those that have none.

The CPU of a process tree is what the kernel's scheduler counted for its threads, in nanoseconds;
that of children which have ended is by the clock tick, and where there is no such count all is. It
is not the proxy's own code alone: over veth, whoever sends does the peer's receive work of TCP as
well, in its softirq, and so a proxy pays for what nodes and services receive from it, and they for
what it receives. That is the same for every proxy. The CPU of the machine has all of it; it is by
the clock tick, and includes whatever else runs there.
"""

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from place import BenchError, Process

from versus.proxies import process_tree

_PAGE_BYTES = resource.getpagesize()

#: how little the kernel's memory changes in a quarter of a second once it stands still, and for how
#: many of those it is waited for
_STILL_BYTES = 100_000
_SETTLED_WITHIN = 12


@dataclass(frozen=True)
class Usage:
    """CPU time in microseconds, between two readings or up to one.

    `proxy_us` is None where the proxy has no processes. `steal_us` is what the machine's own host
    took away.
    """

    proxy_us: float | None
    machine_us: float
    steal_us: float
    elapsed_us: float

    def __sub__(self, other: "Usage") -> "Usage":
        proxy_us = None
        if self.proxy_us is not None and other.proxy_us is not None:
            proxy_us = self.proxy_us - other.proxy_us
        return Usage(
            proxy_us,
            self.machine_us - other.machine_us,
            self.steal_us - other.steal_us,
            self.elapsed_us - other.elapsed_us,
        )

    def each(self, count: float) -> dict[str, float]:
        """Return the values of a sample: what each of so many exchanges cost."""
        return self._values("cpu_us", "machine_us", count)

    def per_gigabyte(self, count: float) -> dict[str, float]:
        """Return the values of a sample: what so many bytes cost."""
        return self._values("cpu_ms_per_gb", "machine_ms_per_gb", count / 1e6)

    def _values(self, proxy_key: str, machine_key: str, count: float) -> dict[str, float]:
        values = {} if self.proxy_us is None else {proxy_key: self.proxy_us / count}
        values[machine_key] = self.machine_us / count
        values["steal_percent"] = 100 * self.steal_us / self.elapsed_us / (psutil.cpu_count() or 1)
        return values


def read_usage(process: Process | None) -> Usage:
    """Read the clocks, of this process with its descendants and of the machine."""
    # The tree first: to find it costs CPU, which is not to lie between the two clocks.
    tree = [] if process is None else _tree(process)
    machine = psutil.cpu_times()
    busy = machine.user + machine.nice + machine.system + machine.irq + machine.softirq
    return Usage(
        None if process is None else _tree_seconds(tree) * 1e6,
        busy * 1e6,
        machine.steal * 1e6,
        time.monotonic() * 1e6,
    )


def _tree(process: Process) -> list[psutil.Process]:
    if process.popen.poll() is not None:
        raise BenchError("it ended by itself")
    return process_tree(process.pid)


def _tree_seconds(tree: Sequence[psutil.Process]) -> float:
    total = 0.0
    # The root last: a child that ends meanwhile is then counted by its parent.
    for one in reversed(tree):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += _threads_seconds(one.pid) or times.user + times.system
        total += times.children_user + times.children_system
    return total


def _threads_seconds(pid: int) -> float:
    """Return what the threads of a process ran, by proc(5); 0 where the kernel does not tell."""
    ran_ns = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            ran_ns += int(thread.read_text().split()[0])
        except OSError:  # the thread has ended
            continue
    return ran_ns / 1e9


def user_bytes(process: Process) -> int:
    """Return the proportional set size of a process with its descendants."""
    return sum(int(one.memory_full_info().pss) for one in process_tree(process.pid))


def settled_kernel_bytes() -> int:
    """Return `kernel_bytes` once it stands still, or after some seconds: it frees late."""
    before = kernel_bytes()
    for _ in range(_SETTLED_WITHIN):
        time.sleep(0.25)
        now = kernel_bytes()
        if abs(now - before) < _STILL_BYTES:
            return now
        before = now
    return before


def kernel_bytes() -> int:
    """Return what the kernel holds in slabs and in the buffers of TCP, on the whole machine."""
    pages = 0
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            pages = int(line.split("mem")[1].split()[0])
    return int(psutil.virtual_memory().slab) + pages * _PAGE_BYTES
