"""What `reflector --version` costs: an interpreter, the package, nothing else."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

from place import BenchError, Tools, progress
from result import Figure

RUNS = 20
TARGET_MS = 120.0


def startup(tools: Tools) -> list[Figure]:
    """Measure the CPU of a run that only tells the version; the median of many."""
    script = Path(sys.executable).with_name("reflector")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "reflector"]
    command.append("--version")
    progress(f"{RUNS} runs of {' '.join(command)}")
    times_ms = sorted(_cpu_ms(command) for _ in range(RUNS))
    median_ms = statistics.median(times_ms)
    return [
        Figure(
            "startup",
            "CPU of reflector --version",
            "ms",
            value=median_ms,
            target=TARGET_MS,
            details={"runs": RUNS, "min_ms": times_ms[0], "max_ms": times_ms[-1]},
            lines=[f"median of {RUNS} runs, {times_ms[0]:.0f} to {times_ms[-1]:.0f} ms"],
        )
    ]


def _cpu_ms(command: list[str]) -> float:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise BenchError(f"{' '.join(command)} ended with {child.returncode}")
    return (usage.ru_utime + usage.ru_stime) * 1000
