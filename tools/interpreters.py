"""Prints every CPython on this machine that reflector supports, one path per line.

Looks at python3.N on PATH and, where pyenv is installed, at the versions that it keeps. Runs on its
own or is imported by the wheel script and the package tests.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

OLDEST = (3, 10)

PROBE = """
import platform, sys
if platform.python_implementation() == "CPython":
    print(*sys.version_info[:3], getattr(sys, "abiflags", "") or "-", sys.executable)
"""


def candidates() -> list[Path]:
    """Paths that may be interpreters, in no particular order and with repetitions."""
    found = []
    for folder in os.get_exec_path():
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        found += [Path(folder, name) for name in names if re.fullmatch(r"python3(\.\d+)?", name)]
    if pyenv := shutil.which("pyenv"):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=False)
        if root.returncode == 0:
            found += Path(root.stdout.strip(), "versions").glob("*/bin/python3")
    return found


def interpreters() -> dict[tuple[int, int, int], Path]:
    """The interpreters that run here, by version; of two alike the first on PATH."""
    found: dict[tuple[int, int, int], Path] = {}
    for path in candidates():
        try:
            probe = subprocess.run(
                [path, "-c", PROBE], capture_output=True, text=True, check=False, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        words = probe.stdout.split(maxsplit=4)
        # Free-threaded builds ("t") do not load abi3 extensions.
        if probe.returncode != 0 or len(words) != 5 or "t" in words[3]:
            continue
        version = (int(words[0]), int(words[1]), int(words[2]))
        if version[:2] >= OLDEST:
            found.setdefault(version, Path(words[4].strip()))
    return dict(sorted(found.items()))


if __name__ == "__main__":
    for interpreter in interpreters().values():
        print(interpreter)
