"""Reflectors inside a Python program: tests, notebooks, services of one's own."""

import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from types import TracebackType

from reflector.engine import Engine, SpliceEngine, Stats
from reflector.errors import ReflectorError
from reflector.mapping import Mapping, parse_mappings
from reflector.settings import Settings


class Reflector:
    """A reflector that runs in threads of this process, with no Python in them.

    Every connection to one of its ports is connected back to the address that it came from, at
    the return port. As a context manager it listens from entry to exit:

        import socket
        import reflector

        with reflector.Reflector(["127.0.0.1:0:22"], connect_timeout=1.0) as running:
            (port,) = running.ports
            with socket.create_connection(("127.0.0.1", port)) as connection:
                print(connection.recv(100))  # the banner of this machine's own sshd
            print(running.stats().legs_connected)

    or by hand, letting running connections finish at the end:

        running = reflector.Reflector("10022:22", max_connections=1000)
        running.start()
        ...
        everything_ended_well = running.drain(timeout=10)

    Several may run in one process, and all methods may be called from any thread. It sets no
    signal handlers. One that is forgotten stops when it is collected, or when Python ends.

    mappings: ``[ADDRESS:]PORT[:RETURN_PORT]`` as text, or `Mapping` objects; one or several.
    bind: numeric address to listen on where a mapping names none; None is all of IPv4 and IPv6.
    return_port: where a mapping names none; None is the listening port's own number.
    return_source: numeric address of this host that return legs leave from, or one for IPv4 and
        one for IPv6; None is the address that the peer dialled.
    workers: threads; None is one per usable CPU.
    max_connections: connections at once, more wait in the backlog; None is what the open-file
        limit carries.
    max_per_source: connections at once from one address, more are reset.
    allow: networks of peers to serve, such as ``192.0.2.0/24``; with any, all others are denied.
    deny: networks of peers that are reset; of several that a peer is in, the smallest decides.
    share_ports: let another reflector of the same user that has it too listen on the same ports,
        and so take them over.
    connect_timeout: seconds; the peer is reset when its return leg takes longer.
    idle_timeout: seconds; reset when no byte has moved for that long.
    half_close_timeout: seconds; the same, once one side has ended.

    Raises UsageError for an argument that cannot be used, saying what it may be.
    """

    def __init__(
        self,
        mappings: str | Mapping | Iterable[str | Mapping],
        *,
        bind: str | None = Settings.bind,
        return_port: int | None = Settings.return_port,
        return_source: str | Sequence[str] | None = Settings.return_source,
        workers: int | None = Settings.workers,
        max_connections: int | None = Settings.max_connections,
        max_per_source: int = Settings.max_per_source,
        allow: str | Iterable[str] = Settings.allow,
        deny: str | Iterable[str] = Settings.deny,
        share_ports: bool = Settings.share_ports,
        connect_timeout: float = Settings.connect_timeout,
        idle_timeout: float = Settings.idle_timeout,
        half_close_timeout: float = Settings.half_close_timeout,
    ) -> None:
        self._settings = Settings.from_keywords(
            bind=bind,
            return_port=return_port,
            return_source=return_source,
            workers=workers,
            max_connections=max_connections,
            max_per_source=max_per_source,
            allow=allow,
            deny=deny,
            share_ports=share_ports,
            connect_timeout=connect_timeout,
            idle_timeout=idle_timeout,
            half_close_timeout=half_close_timeout,
        )
        self._mappings = parse_mappings(
            mappings, bind=self._settings.bind, return_port=self._settings.return_port
        )
        self._engine: Engine | None = None
        self._starting = threading.Lock()

    def start(self) -> None:
        """Bind every port and begin to accept.

        Raises StartError, with nothing left bound, when this host does not allow it, and
        ReflectorError when it was started before: make a new Reflector instead.
        """
        with self._starting:
            if self._engine is not None:
                raise ReflectorError("a Reflector starts once; make a new one")
            engine = SpliceEngine(self._mappings, self._settings)
            try:
                engine.start()
            except BaseException:
                engine.stop()
                raise
            self._process = os.getpid()
            weakref.finalize(self, _stop_in_process, engine, self._process)
            self._engine = engine

    def drain(self, timeout: float) -> bool:
        """Stop accepting, give running connections `timeout` seconds to end, reset the rest.

        Returns True when none had to be reset. A `stop` from another thread cuts it short.
        Raises UsageError for a timeout that is none, ReflectorError when it was not started.
        """
        seconds = Settings.from_keywords(drain_timeout=timeout).drain_timeout
        engine = self._started()
        engine.stop_accepting()
        engine.wait(seconds)
        self.stop()
        return engine.stats().closed_stopped == 0

    def stop(self) -> None:
        """End now: close the ports and reset every connection. May be called again."""
        if self._engine is not None:
            _stop_in_process(self._engine, self._process)

    def stats(self) -> Stats:
        """Read the counters, after `stop` too. Raises ReflectorError when it was not started."""
        return self._started().stats()

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """The mappings, once started with the ports that were bound."""
        return self._mappings if self._engine is None else self._engine.mappings

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports listened on, in the order of the mappings.

        Raises ReflectorError when it was not started, for a free port is chosen only then.
        """
        return tuple(mapping.port for mapping in self._started().mappings)

    def __enter__(self) -> "Reflector":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<reflector.Reflector {', '.join(map(str, self.mappings))}>"

    def _started(self) -> Engine:
        if self._engine is None:
            raise ReflectorError("this Reflector was not started: use it in `with` or call start()")
        return self._engine


def _stop_in_process(engine: Engine, process: int) -> None:
    """Stop the engine, but not in a forked child: its threads live only in the parent."""
    if os.getpid() == process:
        engine.stop()
