"""Where and on what a run is made, for its record."""

import re
import subprocess
from typing import Any

import figures
import psutil
from held import FILE_LIMIT
from place import BenchError, find_program

from versus.proxies import WORKERS

#: how each tool tells its version, and where in that it stands
_VERSIONS = {
    "wrk": ("-v", r"(?:debian/|wrk )(\d[\w.]*)"),
    "iperf3": ("-v", r"iperf (\d\S*)"),
    "sockperf": ("--version", r"version (\d[\w.]*)"),
    "nginx": ("-v", r"nginx/(\S+)"),
}


def setting() -> dict[str, Any]:
    """Return the setting of a run."""
    return {
        **figures.setting(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "workers": WORKERS,
        "file_limit": FILE_LIMIT,
        "tools": _tools(),
    }


def _tools() -> dict[str, str]:
    versions = {}
    for name, (option, pattern) in _VERSIONS.items():
        try:
            command = [find_program(name, name), option]
        except BenchError:
            continue
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(pattern, told.stdout + told.stderr)
        versions[name] = found[1] if found else "?"
    return versions
