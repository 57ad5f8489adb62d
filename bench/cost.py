"""What the splice engine spends on one connection: system calls and instructions, exactly.

The engine is linked with lockstep/, which plays its peers and lets it make one turn at a time, so
that every run has the same events in the same order. Nothing is sampled: valgrind counts the
instructions in user space, strace the calls.
"""

import ctypes
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BENCH = Path(__file__).resolve().parent
CORE = BENCH.parent / "csrc"

#: as setup.py compiles the core for a release
CORE_FLAGS = [
    *("-std=c11", "-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2", "-fPIC"),
    *("-fvisibility=hidden", "-fstack-protector-strong", "-pthread", "-Wl,-z,relro,-z,now"),
]
#: linked to the gate and the clock of lockstep/
_FLAGS = [*CORE_FLAGS, "-D_GNU_SOURCE=1", "-Wl,--wrap=epoll_wait,--wrap=clock_gettime"]
#: what stands in for the outside, and is not the engine's
_NOT_OURS = "__wrap_"

#: some architectures have one call only, and the C library makes the other of it
_SAME_CALL = {"epoll_pwait": "epoll_wait"}

_WITHIN_SECONDS = 60

#: the same on every architecture that valgrind knows
_SYS_CLOSE_RANGE = 436


class CostError(Exception):
    """A cost that could not be measured, and why, in one line."""


@dataclass(frozen=True)
class Scenario:
    """What lockstep plays: how often it is counted, and how many units each time is."""

    what: str
    count: int
    units: int = 1


SCENARIOS = {
    "check": Scenario("a check: connect, banner of 40 bytes, the client closes first", 90),
    "burst": Scenario("a check, of 16 that go side by side", 9, units=16),
    "refused": Scenario("a check whose return leg is refused", 90),
    "service-first": Scenario("a connection in which the service closes first", 90),
    "pingpong": Scenario("64 bytes to the service and back", 90),
    "bulk": Scenario("1 MB to the client, in arrivals of 40 kB", 2),
}


@dataclass(frozen=True)
class Cost:
    """What one unit of a scenario costs the engine."""

    calls: dict[str, float]
    #: by function, those of the C library too
    functions: dict[str, float]

    @property
    def calls_total(self) -> float:
        """All system calls."""
        return round(sum(self.calls.values()), 3)

    @property
    def instructions(self) -> float:
        """All instructions in user space."""
        return round(sum(self.functions.values()), 1)


def why_not() -> str:
    """Return why the cost cannot be measured here, in one line, or an empty string."""
    lacking = [tool for tool in ("valgrind", "strace") if not shutil.which(tool)]
    if not _compiler():
        lacking.append("gcc")
    if lacking:
        return f"needs {' and '.join(lacking)} (apt-get install {' '.join(lacking)})"
    if not _succeeds(["strace", "-o", os.devnull, "true"]):
        return "strace may not trace here"
    if not _succeeds([*_compiler(), "-E", "-x", "c", "-"], "#include <valgrind/callgrind.h>"):
        return "needs valgrind's headers (apt-get install valgrind)"
    # Of descriptors that nobody has. Where it is refused, as in old containers, the engine makes
    # other calls in its place.
    beyond = ctypes.c_uint(~0)
    if ctypes.CDLL(None).syscall(_SYS_CLOSE_RANGE, beyond, beyond, ctypes.c_uint(0)) != 0:
        return "close_range(2) is refused here (it takes Linux 5.9, and a container that lets it)"
    return ""


def _succeeds(command: list[str], given: str = "") -> bool:
    done = subprocess.run(command, input=given, text=True, capture_output=True, check=False)
    return done.returncode == 0


def setting() -> dict[str, str]:
    """Return what the number of instructions depends on besides the sources."""
    return {
        "machine": platform.machine(),
        "compiler": _run([*_compiler(), "--version"], "").stdout.partition("\n")[0],
        "libc": " ".join(platform.libc_ver()),
    }


def measure(names: Sequence[str], flags: Sequence[str] = ()) -> dict[str, Cost]:
    """Measure these scenarios, two programs at a time. Raises CostError.

    `flags` go to the compiler as well: tests make the engine dearer with them.
    """
    with _built(flags) as directory, ThreadPoolExecutor(2) as pool:
        instructions = {name: pool.submit(_count_instructions, directory, name) for name in names}
        calls = {name: pool.submit(_count_calls, directory, name) for name in names}
        return {name: Cost(calls[name].result(), instructions[name].result()) for name in names}


def _compiler() -> list[str]:
    named = os.environ.get("CC", "").split()
    found = shutil.which("gcc") or shutil.which("cc")
    return named or ([found] if found else [])


@contextmanager
def _built(flags: Sequence[str]) -> Iterator[Path]:
    """Compile engine and peers into a directory of their own, for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="reflector-cost-") as name:
        directory = Path(name)
        sources = [*sorted(CORE.glob("*.c")), *sorted((BENCH / "lockstep").glob("*.c"))]
        command = [*_compiler(), *_FLAGS, *flags, f"-I{CORE}", "-o", str(directory / "lockstep")]
        _run([*command, *map(str, sources)], "the engine does not compile")
        yield directory


def _run(command: list[str], problem: str) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, without what the environment adds to programs. Raises CostError."""
    unwanted = ("LD_PRELOAD", "GLIBC_TUNABLES", "VALGRIND_OPTS", "MALLOC_")
    environment = {key: v for key, v in os.environ.items() if not key.startswith(unwanted)}
    environment["LC_ALL"] = "C"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=_WITHIN_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise CostError(f"{problem}: not done after {_WITHIN_SECONDS} s") from error
    if done.returncode != 0:
        raise CostError(f"{problem}: {done.stderr.strip() or f'status {done.returncode}'}")
    return done


def _play(directory: Path, name: str, *counter: str) -> None:
    program = str(directory / "lockstep")
    _run([*counter, program, name, str(SCENARIOS[name].count)], f"{name}, by {counter[0]}")


def _per_unit(name: str, totals: Counter[str]) -> dict[str, float]:
    """Divide by the units played; the most first."""
    units = SCENARIOS[name].count * SCENARIOS[name].units
    ordered = sorted(totals.items(), key=lambda item: (-item[1], item[0]))
    return {what: round(total / units, 3) for what, total in ordered}


def _count_instructions(directory: Path, name: str) -> dict[str, float]:
    output = directory / f"{name}.callgrind"
    plain = ["--compress-strings=no", "--compress-pos=no"]
    options = ["-q", "--tool=callgrind", "--collect-atstart=no", f"--callgrind-out-file={output}"]
    _play(directory, name, "valgrind", *options, *plain)
    totals = read_callgrind(output.read_text())
    if not totals:
        raise CostError(f"{name}: valgrind counted nothing; are its headers installed?")
    return _per_unit(name, totals)


def read_callgrind(text: str) -> Counter[str]:
    """Add up each function's own instructions, without those of the functions that it calls."""
    totals: Counter[str] = Counter()
    function = ""
    callees = False  # the next line is what the call before it cost, all included
    for line in text.splitlines():
        if line.startswith("fn="):
            function = line[3:]
        elif line.startswith("calls="):
            callees = True
        elif line[:1].isdigit():
            if not callees and not function.startswith(_NOT_OURS):
                totals[function] += int(line.split()[1])
            callees = False
    return +totals


def _count_calls(directory: Path, name: str) -> dict[str, float]:
    output = directory / f"{name}.strace"
    _play(directory, name, "strace", "-f", "-qq", "-o", str(output))
    totals = read_strace(output.read_text())
    if not totals:
        raise CostError(f"{name}: strace counted nothing")
    return _per_unit(name, totals)


def read_strace(text: str) -> Counter[str]:
    """Count the calls of each thread between its marks "counted" and "gate"."""
    totals: Counter[str] = Counter()
    counted: set[str] = set()
    for line in text.splitlines():
        found = re.match(r"(\d+) +(\w+)\((.*)", line)
        if not found:  # the end of a call that was interrupted by another thread's, or a signal
            continue
        thread, call, arguments = found.groups()
        if arguments.startswith('-1, "counted"'):
            counted.add(thread)
        elif arguments.startswith('-1, "gate"'):
            counted.discard(thread)
        elif thread in counted:
            totals[_SAME_CALL.get(call, call)] += 1
    return totals
