"""A scripted TCP peer: one line each to send, FIN, RST, go urgent, trickle, stall and observe.

Client and service use the same class, so that a test can do to one side what it does to the
other. Every wait has a limit, so no test hangs: a peer that sees nothing in time raises
AssertionError and says what it was waiting for.
"""

import contextlib
import enum
import errno
import fcntl
import select
import socket
import struct
import termios
import time
from dataclasses import dataclass

from support.timing import patience

WAIT_S = 10.0
_RESET_ERRORS = (errno.ECONNRESET, errno.EPIPE)
_SIOCATMARK = 0x8905


class Ending(enum.Enum):
    """How the far side ended its direction of the stream."""

    FIN = "FIN"
    RST = "RST"


@dataclass(frozen=True)
class Seen:
    """What a peer saw: the bytes, then how they ended."""

    data: bytes
    ending: Ending


class Peer:
    """One end of a TCP connection."""

    def __init__(self, sock: socket.socket, *, reset_while_connecting: bool = False) -> None:
        self.sock = sock
        self._reset_while_connecting = reset_while_connecting
        sock.settimeout(patience(WAIT_S))

    @classmethod
    def dial(
        cls,
        source: tuple[str, int],
        target: tuple[str, int],
        *,
        receive_buffer: int = 0,
        wait: float = WAIT_S,
    ) -> "Peer":
        """Connect from `source` (port 0: any) to `target`; OSError as connect(2) has it.

        A reset that comes so fast that connect(2) itself reports it is kept for expect_rst().
        """
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.settimeout(patience(wait))
            sock.bind(_resolved(source, family))
            sock.connect(_resolved(target, family))
        except ConnectionResetError:
            return cls(sock, reset_while_connecting=True)
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    @property
    def address(self) -> str:
        """This end's own address."""
        return str(self.sock.getsockname()[0])

    @property
    def remote(self) -> tuple[str, int]:
        """Address and port of the other end."""
        name = self.sock.getpeername()
        return str(name[0]), int(name[1])

    # --- acting ---

    def send(self, data: bytes) -> None:
        """Send every byte of `data`."""
        self.sock.sendall(data)

    def send_until_full(self, data: bytes, quiet_s: float = 0.3) -> int:
        """Send of `data` what goes until nothing more is taken for `quiet_s`; how many went."""
        view, sent = memoryview(data), 0
        self.sock.settimeout(quiet_s)
        try:
            while sent < len(data):
                sent += self.sock.send(view[sent : sent + 65536])
        except TimeoutError:
            pass
        finally:
            self.sock.settimeout(patience(WAIT_S))
        return sent

    def trickle(self, data: bytes, pause_s: float = 0.0) -> None:
        """Send `data` byte by byte, each in a segment of its own."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in data:
            self.sock.sendall(bytes((byte,)))
            if pause_s:
                time.sleep(pause_s)

    def urgent(self, data: bytes = b"!") -> None:
        """Send `data` with its last byte marked urgent."""
        self.sock.send(data, socket.MSG_OOB)

    def fin(self) -> None:
        """End this direction; the other goes on."""
        self.sock.shutdown(socket.SHUT_WR)

    def rst(self) -> None:
        """Reset the connection at once; what was not sent yet is dropped."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close as a program does that is done: FIN, or RST where bytes were left unread."""
        self.sock.close()

    # --- observing ---

    def unacknowledged(self) -> int:
        """Bytes sent that the other end's kernel has not taken yet."""
        return int(struct.unpack("i", fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4)))[0])

    def wait_acknowledged(self) -> None:
        """Wait until the other end's kernel has every byte sent so far."""
        deadline = time.monotonic() + patience(WAIT_S)
        while self.unacknowledged():
            assert time.monotonic() < deadline, "the bytes sent were never acknowledged"
            time.sleep(0.001)

    def receive(self, size: int, complaint: str = "nothing came") -> bytes | Ending:
        """The next bytes, at most `size`, or how the stream ended."""
        if self._reset_while_connecting:
            return Ending.RST
        try:
            data = self.sock.recv(size)
        except TimeoutError:
            raise AssertionError(complaint) from None
        except OSError as error:
            if error.errno in _RESET_ERRORS:
                return Ending.RST
            raise
        return data or Ending.FIN

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes; AssertionError when the stream ends or stalls before."""
        parts, got = [], 0
        while got < size:
            part = self.receive(min(size - got, 1 << 20), f"only {got} of {size} bytes came")
            if isinstance(part, Ending):
                raise AssertionError(f"{part.value} after {got} of {size} bytes")
            parts.append(part)
            got += len(part)
        return b"".join(parts)

    def read_to_end(self, *, chunk: int = 1 << 20, pause_s: float = 0.0) -> Seen:
        """All bytes up to FIN or RST; `chunk` and `pause_s` make a slow reader."""
        parts: list[bytes] = []
        while True:
            count = sum(map(len, parts))
            part = self.receive(chunk, f"neither FIN nor RST after {count} bytes")
            if isinstance(part, Ending):
                return Seen(b"".join(parts), part)
            parts.append(part)
            if pause_s:
                time.sleep(pause_s)

    def expect(self, data: bytes) -> None:
        """The next bytes are exactly `data`."""
        assert self.read(len(data)) == data

    def expect_fin(self, before: bytes = b"") -> None:
        """The rest of the stream is `before`, then FIN."""
        self._expect_end(before, Ending.FIN)

    def expect_rst(self, before: bytes = b"") -> None:
        """The rest of the stream is `before`, then RST."""
        self._expect_end(before, Ending.RST)

    def expect_rst_after_fin(self) -> None:
        """The stream ended with FIN before, and now the connection is reset."""
        poll = select.poll()
        poll.register(self.sock, 0)
        events = poll.poll(patience(WAIT_S) * 1000)
        assert events and events[0][1] & select.POLLERR, "no RST followed the FIN"
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert error in _RESET_ERRORS, errno.errorcode.get(error, error)

    def expect_silence(self, seconds: float) -> None:
        """Nothing is seen for `seconds`: no byte, no FIN, no RST."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | select.POLLPRI | select.POLLRDHUP)
        events = poll.poll(seconds * 1000)
        assert not events, f"silence was expected, poll says {events[0][1]:#x}"

    def is_reset(self) -> bool:
        """Whether a reset is waiting to be read (bytes may come before it)."""
        poll = select.poll()
        poll.register(self.sock, 0)
        return self._reset_while_connecting or any(e & select.POLLERR for _, e in poll.poll(0))

    # --- urgent data ---

    def urgent_inline(self) -> None:
        """From now on an urgent byte is read at its place in the stream."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

    def wait_urgent(self) -> None:
        """Wait until an urgent byte is announced."""
        poll = select.poll()
        poll.register(self.sock, select.POLLPRI)
        events = poll.poll(patience(WAIT_S) * 1000)
        assert events and events[0][1] & select.POLLPRI, "no urgent byte was announced"

    def read_urgent(self) -> bytes:
        """The urgent byte, taken out of the stream."""
        self.wait_urgent()
        deadline = time.monotonic() + patience(WAIT_S)
        self.sock.setblocking(False)  # with a time-out Python would wait for an ordinary byte first
        try:
            while True:
                try:
                    return self.sock.recv(1, socket.MSG_OOB)
                except BlockingIOError:  # announced, but the byte itself is not here yet
                    assert time.monotonic() < deadline, "an urgent byte was announced, none came"
                    time.sleep(0.001)
        finally:
            self.sock.settimeout(patience(WAIT_S))

    def read_to_mark(self) -> bytes:
        """All bytes before the urgent one (a read never crosses the mark)."""
        parts: list[bytes] = []
        while not self._at_mark():
            part = self.receive(1 << 16, "no byte before the urgent mark")
            assert not isinstance(part, Ending), f"{part} before the urgent mark"
            parts.append(part)
        return b"".join(parts)

    def _at_mark(self) -> bool:
        return bool(struct.unpack("i", fcntl.ioctl(self.sock, _SIOCATMARK, bytes(4)))[0])

    def _expect_end(self, before: bytes, ending: Ending) -> None:
        seen = self.read_to_end()
        saw = f"saw {len(seen.data)} bytes ({seen.data[:40]!r}...) and {seen.ending.value}"
        assert seen.ending is ending, f"{saw} instead of {ending.value}"
        assert seen.data == before, f"{saw}, not the {len(before)} bytes ({before[:40]!r}...)"


class Service:
    """A listening socket, whose connections the test answers by hand."""

    def __init__(
        self, address: str, port: int = 0, *, backlog: int = 4096, receive_buffer: int = 0
    ) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if receive_buffer:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.sock.bind(_resolved((address, port), family))
            self.sock.listen(backlog)
        except BaseException:
            self.sock.close()
            raise
        self.port: int = self.sock.getsockname()[1]
        self.accepted: list[Peer] = []

    def accept(self, wait: float = WAIT_S) -> Peer:
        """The next connection; AssertionError when none comes."""
        self.sock.settimeout(patience(wait))
        try:
            sock, _ = self.sock.accept()
        except TimeoutError:
            raise AssertionError("no connection came to the service") from None
        self.accepted.append(Peer(sock))
        return self.accepted[-1]

    def expect_none(self, seconds: float) -> None:
        """No connection comes for `seconds`."""
        self.sock.settimeout(seconds)
        try:
            sock, remote = self.sock.accept()
        except TimeoutError:
            return
        sock.close()
        raise AssertionError(f"a connection from {remote} came to the service")

    def close(self) -> None:
        """Stop listening and close every connection accepted; wakes a thread in accept()."""
        with contextlib.suppress(OSError):  # closed before
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        for peer in self.accepted:
            peer.close()


def _resolved(address: tuple[str, int], family: int) -> tuple[str | int, ...]:
    """The socket address of (numeric host, port); an IPv6 scope is looked up in this namespace."""
    host, port = address
    found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    return found[0][4]
