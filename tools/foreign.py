"""A CPython of another architecture, run by qemu-user, for the wheels that this CPU cannot run.

The packages come from this machine's own sources by a private apt state and are unpacked into a
scratch folder: neither its package database nor its list of architectures changes.
"""

import os
import shutil
import subprocess
from pathlib import Path

DEBIAN_NAMES = {"aarch64": "arm64", "x86_64": "amd64"}


class NoForeignPython(Exception):
    """There is none to be had here; the message says why."""


class ForeignPython:
    """An unpacked interpreter of another architecture.

    Raises NoForeignPython when the emulator or the packages cannot be had.
    """

    def __init__(self, machine: str, folder: Path) -> None:
        emulator = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
        if not emulator:
            raise NoForeignPython("qemu-user is not installed (Debian: qemu-user-static)")
        self._emulator = emulator
        self._root = folder / machine / "root"
        if not self._find():
            shutil.rmtree(folder / machine, ignore_errors=True)
            self._fetch(DEBIAN_NAMES[machine], folder / machine)
        found = self._find()
        if not found:
            raise NoForeignPython("the packages unpacked hold no interpreter")
        self._python = found

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line that runs the interpreter with these arguments."""
        return [self._emulator, "-L", str(self._root), str(self._python), *map(str, arguments)]

    def _find(self) -> Path | None:
        pythons = sorted((self._root / "usr" / "bin").glob("python3.*[0-9]"))
        return pythons[0] if pythons else None

    def _fetch(self, architecture: str, folder: Path) -> None:
        """Downloads python3 and all that it depends on, and unpacks it below root/."""
        if not shutil.which("apt-get"):
            raise NoForeignPython("there is no apt-get to fetch an interpreter with")
        state, cache = folder / "state", folder / "cache"
        for needed in (state / "lists" / "partial", cache / "archives" / "partial", self._root):
            needed.mkdir(parents=True)
        (state / "status").touch()  # an empty database: every dependency counts as missing
        options = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Sandbox::User": "root",  # apt's own user may not be able to write here
            "Dir::State": state,
            "Dir::State::status": state / "status",
            "Dir::Cache": cache,
        }
        apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
        fetch = ["install", "--yes", "--download-only", "--no-install-recommends", "python3"]
        for command in ([*apt, "update"], [*apt, *fetch]):
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            )
            if done.returncode != 0:
                last = (done.stderr.strip() or "no message").splitlines()[-1]
                raise NoForeignPython(f"no python3 for {architecture} in the sources: {last}")
        for package in sorted((cache / "archives").glob("*.deb")):
            subprocess.run(["dpkg", "-x", package, self._root], check=True)
