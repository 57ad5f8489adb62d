"""`reflector demo`: a service that comes and goes, as three kinds of check see it.

Everything happens on loopback addresses of this machine: "the node" has one, the reflector
another. The node's service stands behind a door, a forwarder at a free port of the node, to this
machine's sshd or to a greeting of its own. The sshd itself is never touched: what goes away and
comes back is the door.
"""

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from typing import Any

import click

from reflector._version import __version__
from reflector.api import Reflector
from reflector.errors import StartError
from reflector.terminal import painted

_NODE = "127.0.0.2"
_REFLECTOR = "127.0.0.3"
_ONLY_LOOPBACK = "127.0.0.1"
_SSHD = ("127.0.0.1", 22)
_SSH_GREETING = b"SSH-"
_OWN_GREETING = b"220 reflector demo service\r\n"

#: seconds; on loopback an answer takes milliseconds
_TIMEOUT_S = 1.0

_COLOURS = {"passing": "green", "failing": "red", "misled": "yellow"}

_CONNECT_TIMEOUT = struct.pack("ll", int(_TIMEOUT_S), 0)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Row:
    """What one check said while the service was in one state."""

    service: str
    check: str
    passed: bool
    #: what this check must say here for the demo to be right
    expected: bool
    #: whether the network can in truth reach the service
    reachable: bool
    milliseconds: float
    detail: str

    @property
    def as_expected(self) -> bool:
        """True when the check said what it must."""
        return self.passed == self.expected

    @property
    def misleads(self) -> bool:
        """True when the check's word and the truth differ."""
        return self.passed != self.reachable


def run(*, as_json: bool) -> int:
    """Show the demo as a table or as JSON; return 0 when all was as expected, else 1.

    Raises StartError when this machine has no working loopback.
    """
    began = time.monotonic()
    node, reflector = _loopback_addresses()
    sshd = _finds_sshd()
    with ExitStack() as stack:
        door = stack.enter_context(closing(_Door(node, _SSHD if sshd else None)))
        running = _start_reflector(reflector, door.port)
        stack.callback(running.stop)
        rows = []
        for row in _checks(door, reflector, running.ports[0]):
            rows.append(row)
            if not row.as_expected:
                break
    report = {
        "as_expected": rows[-1].as_expected,
        "node": node,
        "door": door.port,
        "service": "this machine's sshd (127.0.0.1:22)" if sshd else "a greeting of its own",
        "reflector": reflector,
        "port": running.ports[0],
        "service_saw": door.last_source,
        "seconds": round(time.monotonic() - began, 3),
        "rows": [{**asdict(row), "misleads": row.misleads} for row in rows],
        "stats": running.stats().as_dict(),
    }
    click.echo(json.dumps(report, indent=2) if as_json else _as_text(report, rows))
    return 0 if report["as_expected"] else 1


class _Door:
    """The node's service: takes connections at a free port and forwards them, or greets."""

    def __init__(self, address: str, upstream: tuple[str, int] | None) -> None:
        self.address = address
        self.port = 0
        #: lets only the node itself in, as a wrong firewall rule would
        self.shut_off = False
        #: where the last connection that was let in came from
        self.last_source = ""
        self._upstream = upstream
        self._listener: socket.socket | None = None
        self.open()

    @property
    def greeting(self) -> bytes:
        """What a service that answers begins with."""
        return _SSH_GREETING if self._upstream else _OWN_GREETING

    def open(self) -> None:
        """Listen, on the same port as before."""
        self._listener = socket.create_server((self.address, self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        """Stop listening; the kernel refuses from here on."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, (source, _) = listener.accept()
                threading.Thread(target=self._answer, args=(client, source), daemon=True).start()

    def _answer(self, client: socket.socket, source: str) -> None:
        with client, suppress(OSError):
            if self.shut_off and source != self.address:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                return
            self.last_source = source
            if self._upstream is None:
                client.sendall(_OWN_GREETING)
                return
            with socket.create_connection(self._upstream, _TIMEOUT_S) as service:
                threading.Thread(target=_pump, args=(client, service), daemon=True).start()
                _pump(service, client)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def _checks(door: _Door, reflector: str, port: int) -> Iterator[Row]:
    """Check in every state of the service; the three checks run on the node, as Consul's do."""
    local, reflected = (door.address, door.port), (reflector, port)
    states = ["up", "shut off from the network", "away", "back"]
    if door.address == reflector:
        states.remove("shut off from the network")  # one address for all: the door cannot tell
    for state in states:
        if state == "away":
            door.close()
        elif state == "back":
            door.open()
        door.shut_off = state == "shut off from the network"
        reachable = state in ("up", "back")
        yield _check(
            state,
            "dials the node itself, reads",
            local,
            door,
            expected=state != "away",
            reachable=reachable,
        )
        yield _check(
            state,
            "dials the reflector, reads",
            reflected,
            door,
            expected=reachable,
            reachable=reachable,
        )
        if not reachable:
            yield _check(
                state,
                "dials the reflector, only connects",
                reflected,
                door,
                expected=True,
                reachable=reachable,
                reads=False,
            )


def _check(
    service: str,
    check: str,
    target: tuple[str, int],
    door: _Door,
    *,
    expected: bool,
    reachable: bool,
    reads: bool = True,
) -> Row:
    """Connect from the node's address, and demand the service's greeting if the check `reads`."""
    began = time.monotonic()
    passed, detail = False, ""
    try:
        if reads:
            answer = _read_greeting(target, door.address)
            passed = answer.startswith(door.greeting)
            detail = answer.decode("ascii", "replace").partition("\r\n")[0] or "no greeting"
        else:
            _only_connect(target, door.address)
            passed, detail = True, "connected"
    except TimeoutError:
        detail = f"no answer within {_TIMEOUT_S:g} s"
    except OSError as error:
        detail = (error.strerror or str(error)).lower()
    elapsed_ms = (time.monotonic() - began) * 1000
    return Row(service, check, passed, expected, reachable, round(elapsed_ms, 2), detail)


def _read_greeting(target: tuple[str, int], source: str) -> bytes:
    with socket.create_connection(target, _TIMEOUT_S, source_address=(source, 0)) as connection:
        return connection.recv(256)


def _only_connect(target: tuple[str, int], source: str) -> None:
    # On loopback the reflector's reset can come before connect() has returned, which then tells
    # of it; over a network it cannot. Blocking, and tried again, it shows what a network shows.
    for attempt in range(10):
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _CONNECT_TIMEOUT)
            connection.bind((source, 0))
            try:
                connection.connect(target)
            except ConnectionResetError:
                if attempt == 9:
                    raise
            else:
                return


def _start_reflector(address: str, return_port: int) -> Reflector:
    """Start a reflector at a free port that happens to be another one than the return port."""
    while True:
        reflector = Reflector(f"{address}:0:{return_port}", workers=1, connect_timeout=_TIMEOUT_S)
        reflector.start()
        if not reflector.mappings[0].returns_to_itself:
            return reflector
        reflector.stop()


def _loopback_addresses() -> tuple[str, str]:
    """Return the node's and the reflector's address; one for both where aliases do not work."""
    for node, reflector in ((_NODE, _REFLECTOR), (_ONLY_LOOPBACK, _ONLY_LOOPBACK)):
        try:
            with socket.create_server((reflector, 0)) as listener:
                target = listener.getsockname()
                socket.create_connection(target, _TIMEOUT_S / 2, source_address=(node, 0)).close()
        except OSError as error:
            failure = error
        else:
            return node, reflector
    reason = (failure.strerror or str(failure)).lower()
    raise StartError(
        f"the demo needs the loopback interface, which does not answer: {reason} "
        f"(ip link set lo up)",
        failure.errno,
    )


def _finds_sshd() -> bool:
    with suppress(OSError), socket.create_connection(_SSHD, _TIMEOUT_S) as connection:
        return connection.recv(len(_SSH_GREETING)) == _SSH_GREETING
    return False


def _as_text(report: dict[str, Any], rows: list[Row]) -> str:
    verdict = (
        painted("All as expected", "green", sys.stdout)
        if report["as_expected"]
        else painted("NOT as expected", "red", sys.stdout)
    )
    return "\n".join(
        (
            f"reflector {__version__} demo, on loopback addresses of this machine only",
            f"  the node       {report['node']}: port {report['door']} is a door to "
            f"{report['service']}",
            f"  the reflector  {report['reflector']}: port {report['port']} returns to port "
            f"{report['door']} of whoever connects",
            "",
            *_table(rows),
            "",
            f"The reflected checks reached the service from {report['service_saw']}. What opens "
            "and shuts is the door:",
            "the service behind it was left alone.",
            "A check that only connects passes through any accepting proxy, whatever became of the",
            "service, for the kernel completes the handshake first. So let a check read.",
            "",
            f"{verdict}, in {report['seconds'] * 1000:,.0f} ms.",
        )
    )


def _table(rows: list[Row]) -> Iterator[str]:
    """Lay the rows out in columns, naming each state of the service once."""
    cells = [("the service is", "a check, run on the node,", "says", "", "after", "and met")]
    for number, row in enumerate(rows):
        again = number > 0 and rows[number - 1].service == row.service
        cells.append(
            (
                "" if again else row.service,
                row.check,
                "passing" if row.passed else "failing",
                "misled" if row.misleads else "",
                f"{row.milliseconds:.1f} ms",
                row.detail if row.as_expected else f"{row.detail} (not as expected)",
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        padded = [painted(cell, _COLOURS.get(cell.strip(), ""), sys.stdout) for cell in padded]
        yield "  ".join(padded).rstrip()
