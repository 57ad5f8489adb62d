"""Large streams: a pattern that shows every slip, and threads that pump and check it."""

import hashlib
import random
import threading
import time
from collections.abc import Callable
from types import TracebackType

from support.peer import Ending, Peer

# A prime length: no buffer size divides it, so bytes lost, doubled or swapped never go unseen.
_PERIOD = 1_048_573
_BLOCK = random.Random(7).randbytes(_PERIOD)


def pattern(size: int, start: int = 0) -> bytes:
    """`size` bytes of the test pattern, from offset `start`."""
    shift = start % _PERIOD
    rounds = (shift + size) // _PERIOD + 1
    return (_BLOCK * rounds)[shift : shift + size]


def send_pattern(peer: Peer, size: int, chunk: int = 1 << 18) -> str:
    """Send `size` bytes of the pattern; returns the SHA-1 of what was sent."""
    digest, sent = hashlib.sha1(), 0
    while sent < size:
        part = pattern(min(chunk, size - sent), sent)
        peer.send(part)
        digest.update(part)
        sent += len(part)
    return digest.hexdigest()


def read_digest(peer: Peer, *, chunk: int = 1 << 18, pause_s: float = 0.0) -> tuple[int, str]:
    """Read up to FIN: (bytes, their SHA-1); AssertionError on RST or when nothing comes."""
    digest, got = hashlib.sha1(), 0
    while True:
        part = peer.receive(chunk, f"the stream stalled after {got} bytes")
        if part is Ending.FIN:
            return got, digest.hexdigest()
        assert not isinstance(part, Ending), f"{part} after {got} bytes"
        digest.update(part)
        got += len(part)
        if pause_s:
            time.sleep(pause_s)


def echo(peer: Peer, chunk: int = 1 << 18) -> None:
    """Send everything back, then FIN when the other side's FIN comes."""
    while True:
        part = peer.receive(chunk, "the stream to echo stalled")
        if isinstance(part, Ending):
            break
        peer.send(part)
    if part is Ending.FIN:
        peer.fin()


class Pump(threading.Thread):
    """A thread that runs one function; as a context it is joined and its error raised."""

    def __init__(self, function: Callable[..., object], *arguments: object, **options: object):
        super().__init__(daemon=True)
        self._work = lambda: function(*arguments, **options)
        self.result: object = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """The thread's own part."""
        try:
            self.result = self._work()
        except BaseException as error:  # shown by finish(), in the thread of the test
            self.error = error

    def finish(self) -> object:
        """Wait for the end; the function's result, or its exception raised."""
        self.join(timeout=120)
        if self.error is not None:
            raise self.error
        assert not self.is_alive(), "a pump did not end"
        return self.result

    def __enter__(self) -> "Pump":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()


def exchange_bulk(client: Peer, service: Peer, size: int) -> None:
    """Both sides send `size` bytes and FIN at once, and both get all of the other's."""

    def send(peer: Peer) -> str:
        digest = send_pattern(peer, size)
        peer.fin()
        return digest

    with (
        Pump(send, client) as to_service,
        Pump(send, service) as to_client,
        Pump(read_digest, client) as at_client,
        Pump(read_digest, service) as at_service,
    ):
        assert at_service.finish() == (size, to_service.finish())
        assert at_client.finish() == (size, to_client.finish())
