"""A scripted UDP end: send, expect, and expect silence, one line each; waits always end."""

import select
import socket
import time

from support.timing import patience

WAIT_S = 5.0

Address = tuple[str, int]


class Udp:
    """A bound UDP socket: a peer that asks, or a service that answers."""

    def __init__(self, address: str, port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            found = socket.getaddrinfo(
                address, port, family, socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
            )
            self.sock.bind(found[0][4])
        except BaseException:
            self.sock.close()
            raise
        self.port: int = self.sock.getsockname()[1]

    @property
    def own(self) -> Address:
        """This end's own address and port."""
        return self.sock.getsockname()[:2]

    def send(self, data: bytes, to: Address) -> None:
        """Send one datagram."""
        self.sock.sendto(data, to)

    def receive(self, wait: float = WAIT_S) -> tuple[bytes, Address]:
        """The next datagram and who sent it; AssertionError when none comes."""
        if not select.select([self.sock], [], [], patience(wait))[0]:
            raise AssertionError(f"no datagram came to {self.own}")
        data, sender = self.sock.recvfrom(70_000)
        return data, sender[:2]

    def expect(self, data: bytes, sender: Address | None = None) -> Address:
        """The next datagram is `data` (from `sender`); returns who sent it."""
        got, came_from = self.receive()
        assert got == data, f"{got[:80]!r} came, not {data[:80]!r}"
        assert sender is None or came_from == sender, f"from {came_from}, not {sender}"
        return came_from

    def expect_none(self, seconds: float = 0.2) -> None:
        """AssertionError when a datagram comes within `seconds`."""
        if select.select([self.sock], [], [], seconds)[0]:
            raise AssertionError(f"a datagram came to {self.own}: {self.sock.recvfrom(70_000)}")

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


def ask(peer: Udp, target: Address, service: Udp, data: bytes = b"ping") -> Address:
    """A question and its answer through the reflector; returns whom the service saw."""
    peer.send(data, target)
    seen = service.expect(data)
    service.send(data[::-1], seen)
    peer.expect(data[::-1], target)
    return seen


def is_bound(address: str, port: int) -> bool:
    """Whether a UDP socket of this host holds the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return True
    return False


def drain(udp: Udp, quiet_s: float = 0.3) -> int:
    """Receive until nothing has come for `quiet_s`; how many datagrams there were."""
    count, last = 0, time.monotonic()
    while time.monotonic() - last < patience(quiet_s):
        if select.select([udp.sock], [], [], 0.05)[0]:
            udp.sock.recvfrom(70_000)
            count, last = count + 1, time.monotonic()
    return count
