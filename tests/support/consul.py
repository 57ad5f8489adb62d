"""A real Consul agent: found on the machine, or fetched with apt from Debian's archive, unpacked
into a folder of our own. Nothing is installed."""

import functools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from support.programs import ROOT, Program, clean_environment, find_program
from support.timing import patience, wait_until

# The last Debian release that carries Consul.
_SUITE = "bullseye"
_FOLDER = ROOT / ".test_cache" / "consul"
_FETCH = "REFLECTOR_TEST_FETCH"


@functools.cache
def find_consul() -> str | None:
    """Path of a consul binary; fetched once where REFLECTOR_TEST_FETCH=1 allows it."""
    found = find_program("consul")
    if found:
        return found
    unpacked = _FOLDER / "usr" / "bin" / "consul"
    if not unpacked.exists() and os.environ.get(_FETCH) == "1":
        _fetch(_FOLDER)
    return str(unpacked) if unpacked.exists() else None


def why_no_consul() -> str:
    """Empty when there is a consul, else the reason and the mend."""
    try:
        return "" if find_consul() else f"no consul here; {_FETCH}=1 fetches one with apt"
    except (OSError, subprocess.SubprocessError) as error:
        return f"consul could not be fetched: {error}"


def _fetch(folder: Path) -> None:
    """Fetch the package with apt, in a state folder of its own, and unpack it."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    source = folder / "sources.list"
    source.write_text(_source_line())
    options = [
        f"Dir::Etc::SourceList={source}",
        "Dir::Etc::SourceParts=-",
        f"Dir::State={folder / 'state'}",
        f"Dir::Cache={folder / 'cache'}",
        "APT::Sandbox::User=root",
        "Acquire::Languages=none",
    ]
    apt = ["apt-get", "-qq", *(item for option in options for item in ("-o", option))]
    for command in ([*apt, "update"], [*apt, "download", "consul"]):
        _run(command, folder)
    (package,) = folder.glob("consul_*.deb")
    _run(["dpkg", "-x", str(package), str(folder)], folder)
    for name in ("state", "cache"):
        shutil.rmtree(folder / name)


def _source_line() -> str:
    """The machine's own Debian archive, at the suite that carries Consul."""
    form = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in listed.stdout.splitlines():
        uri, release, component, origin = line.split("|")
        if origin == "Debian" and component == "main" and "-" not in release:
            return f"deb {uri} {_SUITE} main\n"
    raise OSError("no Debian archive among this machine's apt sources")


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,  # apt says on stderr what went wrong
        env=clean_environment(),
        timeout=300,
    )


class Consul:
    """An agent in development mode with the given checks; uses the caller's network namespace."""

    def __init__(self, folder: Path, checks: list[dict[str, Any]]) -> None:
        config = folder / "consul.json"
        config.write_text(json.dumps({"enable_local_script_checks": True, "checks": checks}))
        binary = find_consul()
        assert binary
        self._program = Program(
            [
                *(binary, "agent", "-dev", "-bind=127.0.0.1", "-log-level=warn"),
                f"-config-file={config}",
            ],
            folder / "consul.log",
        )
        wait_until(self._answers, "Consul to answer", 30)

    def status(self, name: str) -> str:
        """Whether a check is "passing" or "critical" now."""
        return str(self._checks()[name]["Status"])

    def wait_status(self, name: str, wanted: str) -> None:
        """Wait until a check has a status."""
        wait_until(
            lambda: self.status(name) == wanted, f"{name} to be {wanted}: {self._checks()}", 30
        )

    def wait_output(self, name: str) -> None:
        """Wait until a check has run at least once, and two intervals more."""
        wait_until(lambda: bool(self._checks()[name]["Output"]), f"{name} to have run", 30)
        time.sleep(patience(2.5))

    def stop(self) -> None:
        """End the agent."""
        self._program.end()

    def _answers(self) -> bool:
        try:
            return bool(self._checks())
        except OSError:
            return False

    def _checks(self) -> dict[str, Any]:
        address = "http://127.0.0.1:8500/v1/agent/checks"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(address, timeout=patience(5)) as answer:
            checks: dict[str, Any] = json.load(answer)
            return checks
