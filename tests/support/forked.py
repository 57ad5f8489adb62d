"""A reflector in a forked process, steered from the test: for limits that must not touch pytest."""

import json
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

from support.programs import cpu_seconds_of
from support.timing import patience


class ForkedReflector:
    """A reflector in a child process with rules of its own (limits, user, full pipes).

    `before` runs in the child before the reflector starts, `after` right after it.
    """

    def __init__(
        self,
        start: Callable[..., Any],
        mappings: list[str],
        *,
        before: Callable[[], object] = lambda: None,
        after: Callable[[], object] = lambda: None,
        **settings: Any,
    ) -> None:
        self._line, theirs = socket.socketpair()
        self._line.settimeout(patience(15))
        self.pid = os.fork()
        if self.pid == 0:
            self._line.close()
            _serve(theirs, start, mappings, before, after, settings)
        theirs.close()
        try:
            self.ports = tuple(self._ask("ports"))
        except BaseException:
            self.stop()
            raise

    def counts(self) -> dict[str, int]:
        """All counters, now."""
        return dict(self._ask("stats"))

    def count(self, name: str) -> int:
        """One counter, now."""
        return self.counts()[name]

    def cpu_seconds(self) -> float:
        """CPU time that the process has used so far."""
        return cpu_seconds_of(self.pid)

    def stop(self) -> None:
        """End the process; AssertionError unless it ends well."""
        self._line.close()  # the child ends when the line is gone
        _, status = os.waitpid(self.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, f"the child ended with {status}"

    def _ask(self, what: str) -> Any:
        self._line.sendall(what.encode() + b"\n")
        answer = json.loads(_line(self._line) or '{"error": "the child is gone"}')
        assert "error" not in answer, answer["error"]
        return answer["answer"]


def _line(sock: socket.socket) -> bytes:
    got = b""
    while not got.endswith(b"\n"):
        part = sock.recv(65536)
        if not part:
            return b""
        got += part
    return got


def _serve(
    line: socket.socket,
    start: Callable[..., Any],
    mappings: list[str],
    before: Callable[[], object],
    after: Callable[[], object],
    settings: dict[str, Any],
) -> None:
    """The child's whole life; never returns."""
    status = 1
    try:
        keep = line.fileno()
        os.closerange(3, keep)  # the peers of the test belong to the parent alone
        os.closerange(keep + 1, 1 << 16)
        before()
        running = start(mappings, **settings)
        after()
        while request := _line(line):
            wanted = request.decode().strip()
            found = running.stats().as_dict() if wanted == "stats" else list(running.ports)
            _answer(line, {"answer": found})
        running.stop()
        status = 0
    except BaseException:
        _answer(line, {"error": traceback.format_exc()})
    finally:
        os._exit(status)


def _answer(line: socket.socket, answer: dict[str, object]) -> None:
    try:
        line.sendall(json.dumps(answer).encode() + b"\n")
    except OSError:  # the parent has gone: nobody is left to tell
        pass
