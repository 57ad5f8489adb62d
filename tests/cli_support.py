"""The reflector command as a person runs it: a process, its exit code, and its two outputs."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.timing import patience, wait_until

import reflector

COMMAND = [sys.executable, "-m", "reflector"]
READY = re.compile(r"^reflector \S+ ready: .*$", re.MULTILINE)


def environment(**more: str) -> dict[str, str]:
    """The caller's environment, with the package under test to be found in it."""
    home = str(Path(reflector.__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": home, **more}


def run_command(
    *arguments: str, prefix: Sequence[str] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*prefix, *COMMAND, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=patience(20),
        check=False,
        **options,
    )


def one_line(text: str) -> str:
    """The only line of `text`; AssertionError when there are more, or fewer."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


class Foreground:
    """A `reflector ...` that runs; its stderr goes to a file, so that no pipe ever fills."""

    def __init__(self, log: Path, *arguments: str, **more: str) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                env=environment(**more),
            )

    def wait_for(self, wanted: str) -> None:
        """Wait until stderr has `wanted` in it."""

        def seen() -> bool:
            assert wanted in self.output() or self.process.poll() is None, self.output()
            return wanted in self.output()

        wait_until(seen, f"{wanted!r} on stderr")

    def wait_ready(self) -> str:
        """Wait for the ready line; return it."""
        self.wait_for(" ready: ")
        found = READY.search(self.output())
        assert found, self.output()
        return found[0]

    @property
    def ports(self) -> list[int]:
        """The ports of the ready line."""
        return [int(port) for port in re.findall(r":(\d+)(?:/udp)? -> peer:", self.wait_ready())]

    def output(self) -> str:
        """All of stderr so far."""
        return self._log.read_text()

    def lines(self, wanted: str) -> list[str]:
        """Those lines of stderr that have `wanted` in them."""
        return [line for line in self.output().splitlines() if wanted in line]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 10) -> int:
        """Wait for the end; return the exit code."""
        return self.process.wait(timeout=patience(seconds))

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def is_listening(port: int) -> bool:
    """Whether a socket of this host listens on 127.0.0.1:`port`, without disturbing it."""
    with socket.socket() as probe:
        # With this option only a listener is in the way, not connections that are left.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            assert error.errno == errno.EADDRINUSE, error
            return True
    return False


@contextmanager
def carried(port: int, service: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection through the reflector at `port`: the peer's end and the service's end."""
    with socket.create_connection(("127.0.0.1", port), patience(5)) as peer:
        service.settimeout(patience(5))
        accepted, _ = service.accept()
        with accepted:
            accepted.settimeout(patience(5))
            yield peer, accepted
