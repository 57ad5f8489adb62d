"""What a process costs, read from outside: system calls, CPU of its threads, memory."""

import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from place import BenchError, progress, running

_ACK_WITHIN = 20.0
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_ENTER_ANY = "raw_syscalls:sys_enter"
_ENTER = "syscalls:sys_enter_"
#: counted one by one; what else there is shows in the total
_NAMED = (
    *("accept4", "bind", "close", "close_range", "connect", "epoll_ctl", "epoll_pwait"),
    *("epoll_wait", "fcntl", "futex", "getpeername", "getsockname", "getsockopt", "ioctl"),
    *("io_uring_enter", "madvise", "mmap", "munmap", "pipe2", "read", "recvfrom", "recvmsg"),
    *("rt_sigtimedwait", "sendmsg", "sendto", "setsockopt", "shutdown", "socket", "splice"),
    *("write",),
)
_ACCEPT_FAILED = "syscalls:sys_exit_accept4"
_PERF_EVENTS = [
    *("-e", ",".join([_ENTER_ANY, *(_ENTER + name for name in _NAMED)])),
    *("-e", _ACCEPT_FAILED, "--filter", "ret < 0"),
]
#: a prime, so that it does not beat with the clock tick
_SAMPLES_PER_SECOND = 4999
_KERNEL_ADDRESSES = 1 << 63


@dataclass
class Calls:
    """System calls by name, and how they were counted."""

    how: str
    by_name: dict[str, int] = field(default_factory=dict)
    #: accept4 that found nothing
    accepts_failed: int = 0


def count_calls(pid: int, load: Callable[[], object]) -> Calls:
    """Count the system calls of a process with all its threads while `load` runs.

    With perf, which only counts, where it may; else with strace, which slows the process down a
    lot and so changes how many events come in one batch.
    """
    why_not = _why_no_perf()
    if not why_not:
        return _count_with_perf(pid, load)
    if shutil.which("strace"):
        return _count_with_strace(pid, load, why_not)
    raise BenchError(f"needs strace (apt-get install strace) or perf, as root: {why_not}")


def _why_no_perf() -> str:
    if not shutil.which("perf"):
        return "there is no perf"
    command = ["perf", "stat", *_PERF_EVENTS, "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else "perf may not count here"


def _count_with_perf(pid: int, load: Callable[[], object]) -> Calls:
    """Count tracepoints; perf begins and ends on command, so nothing else is counted."""
    control_read, control_write = os.pipe()
    ack_read, ack_write = os.pipe()
    with tempfile.NamedTemporaryFile("r", prefix="reflector-perf-") as output:
        command = ["perf", "stat", "-p", str(pid), "-x", ",", "-o", output.name]
        command += ["--delay", "-1", "--control", f"fd:{control_read},{ack_write}"]
        command += _PERF_EVENTS
        try:
            with running(
                command, pass_fds=(control_read, ack_write), stderr=subprocess.DEVNULL
            ) as perf:
                _order(control_write, ack_read, b"enable\n")
                load()
                _order(control_write, ack_read, b"disable\n")
                perf.popen.send_signal(signal.SIGINT)
                perf.popen.wait(_ACK_WITHIN)
        finally:
            for fd in (control_read, control_write, ack_read, ack_write):
                os.close(fd)
        return _read_perf(output.read())


def _order(control: int, ack: int, order: bytes) -> None:
    """Have perf obey before anything else happens."""
    os.write(control, order)
    if not select.select([ack], [], [], _ACK_WITHIN)[0]:
        raise BenchError("perf does not answer")
    os.read(ack, 64)


def _read_perf(table: str) -> Calls:
    counts: dict[str, int] = {}
    for line in table.splitlines():
        count, _, event, *_ = [*line.split(","), "", ""]
        if count.isdigit() and count != "0":
            counts[event] = int(count)
    calls = Calls("perf stat", accepts_failed=counts.pop(_ACCEPT_FAILED, 0))
    total = counts.pop(_ENTER_ANY, 0)
    calls.by_name = {event.removeprefix(_ENTER): count for event, count in counts.items()}
    if not calls.by_name:
        raise BenchError("perf counted nothing")
    if total > sum(calls.by_name.values()):
        calls.by_name["others"] = total - sum(calls.by_name.values())
    return calls


def _count_with_strace(pid: int, load: Callable[[], object], why: str) -> Calls:
    with tempfile.NamedTemporaryFile("r", prefix="reflector-strace-") as output:
        command = ["strace", "-f", "-c", "-U", "calls,errors,name", "-p", str(pid)]
        with running([*command, "-o", output.name], stderr=subprocess.PIPE) as strace:
            # Says so once it has all the threads.
            strace.expect("attached", strace.popen.stderr)
            load()
            strace.popen.send_signal(signal.SIGINT)
            strace.popen.communicate(timeout=_ACK_WITHIN)
        return _read_strace(output.read(), why)


def _read_strace(table: str, why: str) -> Calls:
    calls = Calls(f"strace, since {why}")
    for line in table.splitlines():
        words = line.split()
        if not words or not words[0].isdigit() or words[-1] == "total":
            continue
        calls.by_name[words[-1]] = int(words[0])
        if words[-1] == "accept4" and len(words) == 3:
            calls.accepts_failed = int(words[1])
    if not calls.by_name:
        raise BenchError("strace counted nothing")
    return calls


@dataclass(frozen=True)
class Cpu:
    """CPU time of some threads, in microseconds.

    The total is exact; how it divides is sampled by the kernel's clock tick.
    """

    user_us: float
    system_us: float

    def __sub__(self, other: "Cpu") -> "Cpu":
        return Cpu(self.user_us - other.user_us, self.system_us - other.system_us)

    @property
    def total_us(self) -> float:
        """User and system together."""
        return self.user_us + self.system_us

    @property
    def user_share(self) -> float:
        """Share of user space, 0 to 1."""
        return self.user_us / self.total_us if self.total_us else 0.0


def _workers(pid: int) -> list[Path]:
    """Return the worker threads of a reflector, by their names, as directories of /proc."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    found = [task for task in tasks if (task / "comm").read_text().startswith("reflector/")]
    if not found:
        raise BenchError(f"process {pid} has no threads named reflector/N")
    return found


def workers_cpu(pid: int) -> Cpu:
    """Return the CPU that the worker threads of a reflector have used so far."""
    user = system = 0
    for task in _workers(pid):
        fields = (task / "stat").read_text().rpartition(") ")[2].split()
        user += int(fields[11])
        system += int(fields[12])
    return Cpu(user * 1e6 / _CLOCK_TICKS, system * 1e6 / _CLOCK_TICKS)


@dataclass(frozen=True)
class Samples:
    """Where the worker threads were, looked at thousands of times a second of their CPU."""

    user: int
    kernel: int

    @property
    def user_share(self) -> float:
        """Share of user space, 0 to 1."""
        return self.user / (self.user + self.kernel)

    @property
    def error(self) -> float:
        """Standard error of that share."""
        share = self.user_share
        return float((share * (1 - share) / (self.user + self.kernel)) ** 0.5)


def sample_workers(pid: int, load: Callable[[], object]) -> Samples | None:
    """Sample the worker threads with perf while `load` runs; None where perf may not.

    Far finer than the clock tick behind `workers_cpu`.
    """
    if _why_no_perf():
        return None
    threads = ",".join(task.name for task in _workers(pid))
    with tempfile.NamedTemporaryFile(prefix="reflector-perf-") as data:
        command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(_SAMPLES_PER_SECOND)]
        progress("sampling the worker threads")
        with running([*command, "-t", threads, "-o", data.name]) as recorder:
            load()
            recorder.popen.send_signal(signal.SIGINT)
            recorder.popen.wait(_ACK_WITHIN)
        told = subprocess.run(
            ["perf", "script", "-i", data.name, "-F", "ip"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
    addresses = [int(line, 16) for line in told.stdout.split()]
    kernel = sum(address >= _KERNEL_ADDRESSES for address in addresses)
    return Samples(len(addresses) - kernel, kernel) if addresses else None


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process: its user memory, shared pages by share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise BenchError("this kernel tells no Pss in smaps_rollup")


def descriptors_by_table(pid: int) -> list[int]:
    """Return how many descriptors each thread of a process sees, most first."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sorted((len(os.listdir(task / "fd")) for task in tasks), reverse=True)
