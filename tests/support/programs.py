"""Real programs that tests run: sshd, servers, and the reflector's own command."""

import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from support.timing import patience, wait_until

ROOT = Path(__file__).resolve().parents[2]


def clean_environment() -> dict[str, str]:
    """The environment for programs that are not ours: without a sanitizer preloaded."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "LD_PRELOAD" and not name.endswith("SAN_OPTIONS")
    }


def find_program(name: str) -> str | None:
    """Full path of a program; the system folders count even where PATH leaves them out."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def run(*command: str, seconds: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program that is not ours to its end."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=patience(seconds),
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
    return done


class Program:
    """A program in the background; its output goes to a file, so that no pipe ever fills."""

    def __init__(self, command: Sequence[str], log: Path, *, ours: bool = False) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": str(ROOT)} if ours else clean_environment(),
            )

    def output(self) -> str:
        """All that it has written so far."""
        return self._log.read_text(errors="replace")

    def wait_output(self, wanted: str, seconds: float = 15) -> re.Match[str]:
        """Wait until the output matches the expression `wanted`."""
        found: list[re.Match[str]] = []

        def seen() -> bool:
            assert self.process.poll() is None, f"ended early: {self.output()}"
            match = re.search(wanted, self.output())
            if match:
                found.append(match)
            return bool(match)

        wait_until(seen, f"{wanted!r} in the output", seconds)
        return found[0]

    def end(self) -> int:
        """Ask it to end, and end it when it does not; its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=patience(10))
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


class Sshd:
    """A real sshd with its own host key and configuration; the current user logs in by key."""

    def __init__(self, folder: Path, address: str, port: int) -> None:
        self.folder, self.address, self.port = folder, address, port
        for name in ("host_key", "user_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        config = folder / "sshd_config"
        config.write_text(
            f"ListenAddress {address}:{port}\n"
            f"HostKey {folder}/host_key\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\n"
            "AuthenticationMethods publickey\n"
            "PermitRootLogin prohibit-password\n"
            "StrictModes no\n"  # the folder of the test belongs to whoever runs it
            "UsePAM no\n"
            "PidFile none\n"
            "Subsystem sftp internal-sftp\n"
        )
        if os.geteuid() == 0:  # sshd's own folder for the separated process, /run is often empty
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        sshd = find_program("sshd")
        assert sshd
        self._program = Program([sshd, "-D", "-e", "-f", str(config)], folder / "sshd.log")
        self._program.wait_output("Server listening")

    def options(self, port_option: str, port: int, source: str = "") -> list[str]:
        """Arguments for ssh ("-p") and scp ("-P") that use the test's own keys alone."""
        chosen = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
        }
        if source:
            chosen["BindAddress"] = source
        options = [item for name, value in chosen.items() for item in ("-o", f"{name}={value}")]
        key = str(self.folder / "user_key")
        return ["-F", "/dev/null", "-i", key, *options, port_option, str(port)]

    def log(self) -> str:
        """What the server wrote."""
        return self._program.output()

    def stop(self) -> None:
        """End the server."""
        self._program.end()


class Command:
    """`python -m reflector ...` in a process of its own, ready when the constructor returns."""

    def __init__(self, log: Path, *arguments: str, ready: str = r"(?i)ready|listening") -> None:
        self._program = Program([sys.executable, "-m", "reflector", *arguments], log, ours=True)
        try:
            self._program.wait_output(ready)
        except BaseException:
            self._program.end()
            raise

    @property
    def pid(self) -> int:
        """Process id."""
        return self._program.process.pid

    def output(self) -> str:
        """All that it has written so far."""
        return self._program.output()

    def stop(self) -> int:
        """SIGTERM, then wait; its exit status."""
        return self._program.end()


def cpu_seconds_of(pid: int) -> float:
    """CPU time that another process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_readable(descriptor: int, seconds: float) -> bool:
    """Whether something can be read within `seconds`."""
    deadline = time.monotonic() + patience(seconds)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
