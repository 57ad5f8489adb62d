"""The figures that the documentation claims, measured on this machine beside their targets.

    python bench/figures.py [all|syscalls|memory|held|cpu|startup|relay|mirror]... [--json]

Takes four minutes for all. Progress goes to stderr. Exit code: 0 when every target is met, 1 when
one is not or could not be measured.
"""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import place
from checks import cpu, syscalls
from held import held, memory
from mirrored import mirrored
from result import Figure, show
from startup import startup
from transfer import relay

MEASURES: dict[str, Callable[[place.Tools], list[Figure]]] = {
    "syscalls": syscalls,
    "memory": memory,
    "held": held,
    "cpu": cpu,
    "startup": startup,
    "relay": relay,
    "mirror": mirrored,
}


def setting() -> dict[str, str | float]:
    """Return where and on what the figures are measured."""
    return {
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "congestion_control": place.congestion_control(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "reflector": _reflector_version(),
        "commit": _commit(),
        "build": _build(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _reflector_version() -> str:
    try:
        return version("reflector")
    except PackageNotFoundError:
        import reflector

        return str(reflector.__version__)


def _commit() -> str:
    command = ["git", "-C", str(place.BENCH), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _build() -> str:
    """Tell a release build of the core from those that are slow on purpose."""
    spec = importlib.util.find_spec("reflector._core")
    if spec is None or not spec.origin:
        return "none"
    binary = Path(spec.origin).read_bytes()
    if b"__asan_init" in binary or b"__tsan_init" in binary:
        return "sanitizers"
    return "debug" if b"__assert_fail" in binary else "release"


def measure(names: list[str]) -> list[Figure]:
    """Take the named measurements, one after the other."""
    figures: list[Figure] = []
    with place.tools() as tools:
        for name in names:
            place.progress(f"--- {name}")
            try:
                figures += MEASURES[name](tools)
            except (place.BenchError, OSError) as error:
                figures.append(Figure(name, name, "", note=f"not measured: {error}"))
    return figures


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description="Measure what the documentation claims, each figure beside its target.",
        epilog="Exit code: 0 when every target is met, 1 when one is not or could not be measured.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="FIGURE", help=f"all (default), or of: {', '.join(MEASURES)}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    arguments = parser.parse_args()
    names = arguments.names or ["all"]
    for name in names:
        if name != "all" and name not in MEASURES:
            parser.error(f"no figure {name!r}; there are: all, {', '.join(MEASURES)}")
    if "all" in names:
        names = list(MEASURES)

    place.find_reflector()
    place.enter_namespace()
    place.end_on_signals()
    where = setting()
    if where["build"] != "release":
        place.progress(f"build: {where['build']}; the figures are meant for a release build")
    try:
        figures = measure(names)
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        record = {"setting": where, "figures": [figure.as_dict() for figure in figures]}
        print(json.dumps(record, indent=2))
    else:
        print(", ".join(f"{key} {value}" for key, value in where.items()))
        print()
        print(show(figures))
    return 1 if any(figure.failed for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
