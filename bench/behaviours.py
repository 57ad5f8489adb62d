"""What each side of a connection sees, through the reflector, nginx and HAProxy.

    python bench/behaviours.py [--json]

Asks each proxy, configured as in versus/rivals/, to carry a refusal, resets, a half-close and an
urgent byte, and writes down what came out at the other end. Takes half a minute. Exit code: 0 when
the reflector could be asked.
"""

import argparse
import json
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import place
from place import BenchError
from versus.proxies import FINDERS, NAMES, Proxy

NODE = "127.0.0.2"
DIALLED = "127.0.0.3"

#: more than one read, less than any socket's buffer
BULK = 300_000

#: seconds that a side waits for what should come
PATIENCE = 6.0

#: the proxies, by their keys in versus/proxies.py
ASKED = ("reflector", "nginx", "haproxy")

Pair = tuple[socket.socket, socket.socket]


def dial() -> socket.socket:
    """Connect from the node through the proxy."""
    return socket.create_connection(
        (DIALLED, place.REFLECTOR_PORT), timeout=PATIENCE, source_address=(NODE, 0)
    )


def reset(end: socket.socket) -> None:
    """Close with a RST."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def what_comes(end: socket.socket) -> str:
    """Read to the end: how many bytes, and what ended them."""
    count = 0
    try:
        while part := end.recv(65536):
            count += len(part)
        ending = "FIN"
    except TimeoutError:
        ending = f"nothing for {PATIENCE:.0f} s"
    except ConnectionResetError:
        ending = "RST"
    return f"{count:,} bytes, {ending}" if count else ending


def refused() -> str:
    """A check of a service that is down."""
    try:
        with dial() as client:
            return what_comes(client)
    except ConnectionResetError:  # before connect had returned
        return "RST"


@contextmanager
def listening() -> Iterator[socket.socket]:
    """The node's service."""
    with socket.create_server((NODE, place.SERVICE_PORT)) as service:
        service.settimeout(PATIENCE)
        yield service


@contextmanager
def connected(service: socket.socket) -> Iterator[Pair]:
    """A connection through the proxy that has carried a byte each way."""
    client = dial()
    server, _ = service.accept()
    server.settimeout(PATIENCE)
    with client, server:
        for one, other in ((client, server), (server, client)):
            one.sendall(b".")
            other.recv(1)
        yield client, server


def left_from(ends: Pair) -> str:
    """The address that the service sees, when 127.0.0.3 was dialled."""
    return str(ends[1].getpeername()[0])


def service_resets(ends: Pair) -> str:
    """Bytes, then a reset of the service."""
    client, server = ends
    server.sendall(b"x" * BULK)
    place.settle(1.0)  # the proxy's host takes all of it
    reset(server)
    return what_comes(client)


def client_resets(ends: Pair) -> str:
    """Bytes, then a reset of the client."""
    return service_resets((ends[1], ends[0]))


def late_answer(ends: Pair) -> str:
    """An answer of 6 bytes, one second after the client has ended its direction."""
    client, server = ends
    client.shutdown(socket.SHUT_WR)
    if what_comes(server) != "FIN":
        return "no FIN at the service"
    place.settle(1.0)
    try:
        server.sendall(b"answer")
        server.shutdown(socket.SHUT_WR)
    except OSError:
        return "the service cannot send it"
    return what_comes(client)


def urgent_byte(ends: Pair) -> str:
    """Five bytes, the third of them urgent, then FIN; the service reads all in line."""
    client, server = ends
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    client.sendall(b"ab")
    client.send(b"!", socket.MSG_OOB)
    client.sendall(b"cd")
    client.shutdown(socket.SHUT_WR)
    return what_comes(server)


BEHAVIOURS: dict[str, Callable[[Pair], str]] = {
    "the return leg comes from": left_from,
    f"the service sends {BULK:,} bytes and resets; the client sees": service_resets,
    f"the client sends {BULK:,} bytes and resets; the service sees": client_resets,
    "an answer after the client's half-close; the client sees": late_answer,
    "5 bytes, one of them urgent; the service sees": urgent_byte,
}
REFUSED = "the service is down; the client sees"
ROWS = (REFUSED, *BEHAVIOURS)


def ask(proxy: Proxy) -> dict[str, str]:
    """Run a proxy and see what it makes of each behaviour."""
    seen = {}
    with proxy.start():
        seen[REFUSED] = refused()
        for what, behaviour in BEHAVIOURS.items():
            with listening() as service, connected(service) as ends:
                try:
                    seen[what] = behaviour(ends)
                except OSError as error:
                    seen[what] = str(error)
    return seen


def show(seen: dict[str, dict[str, str]]) -> str:
    """Return the table: a row for each behaviour, a column for each proxy."""
    rows = [["", *seen], *([what, *(of[what] for of in seen.values())] for what in ROWS)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(r, widths, strict=True)] for r in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description="What each side of a connection sees.")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    arguments = parser.parse_args()
    place.find_reflector()
    place.enter_namespace()
    place.end_on_signals()
    seen: dict[str, dict[str, str]] = {}
    with place.tools() as tools:
        for key in ASKED:
            try:
                proxy = FINDERS[key](tools)
                place.change_network()
                seen[f"{NAMES[key]} {proxy.info.version}"] = ask(proxy)
            except BenchError as error:
                if not seen:
                    sys.exit(f"behaviours: the reflector could not be asked: {error}")
                place.progress(f"{NAMES[key]} is left out: {error}")
    print(json.dumps(seen, indent=2) if arguments.json else show(seen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
