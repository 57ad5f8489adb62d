"""What the rest of the program asks of an engine, and the splice engine over the C core."""

import errno
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

from reflector.errors import StartError
from reflector.mapping import Mapping
from reflector.settings import Settings


@dataclass(frozen=True)
class Stats:
    """Counters of one reflector, summed over its workers, at one moment.

    All but the gauges at the end only grow. While no connection runs, ``accepted`` is the sum of
    the ``legs_*`` and also of the ``closed_*``.
    """

    #: connections taken from the listeners
    accepted: int
    #: return legs by outcome: connected, refused by the peer, past the connect timeout, no route
    #: or no host there, and limited: never tried, or no local resource left
    legs_connected: int
    legs_refused: int
    legs_timed_out: int
    legs_unreachable: int
    legs_limited: int
    #: cut short by a stop while they were connecting
    legs_stopped: int
    #: why legs were limited: too many of one source, a network that is denied, a loop, or
    #: descriptors, memory or ports short
    limited_source: int
    limited_denied: int
    limited_loop: int
    limited_resources: int
    #: bytes carried each way; how many of them by splice(2) and by copying; urgent ones
    bytes_to_service: int
    bytes_to_peer: int
    bytes_spliced: int
    bytes_copied: int
    urgent_bytes: int
    #: connections ended, by reason
    closed_finished: int
    closed_reset_by_peer: int
    closed_reset_by_service: int
    closed_idle: int
    closed_half_close: int
    closed_leg_failed: int
    closed_resources: int
    closed_stopped: int
    #: times that accepting paused: at max_connections, and short of descriptors or memory
    pauses_connections: int
    pauses_resources: int
    #: gauges: connections running now, sockets kept for legs to come, pipes lent out and kept,
    #: buffers lent out
    active: int
    spare_legs: int
    pipes_in_use: int
    pipes_idle: int
    buffers_in_use: int

    def as_dict(self) -> dict[str, int]:
        """Return the counters by name."""
        return asdict(self)


class Engine(Protocol):
    """Carries connections for bound mappings. Made bound, not yet accepting."""

    #: name as people know it
    name: str
    #: the mappings with the ports that were bound
    mappings: tuple[Mapping, ...]
    #: threads that carry
    workers: int

    @property
    def max_connections(self) -> int:
        """Connections at once, as they came out on this host; final once started."""

    def start(self) -> None:
        """Begin to accept. Raises StartError."""

    def stop_accepting(self) -> None:
        """Close the listeners; running connections go on."""

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the last connection to end; True once it has.

        Only after `stop_accepting`, for before that there is no last one.
        """

    def stop(self) -> None:
        """Reset every connection and free everything. May be called again."""

    def stats(self) -> Stats:
        """Read the counters; after `stop` too."""


class SpliceEngine:
    """The engine that needs no privilege: C workers with epoll and splice(2).

    Binds and listens at once. Raises StartError, and leaves nothing bound, when the host does
    not allow it.
    """

    name = "splice"

    def __init__(self, mappings: tuple[Mapping, ...], settings: Settings) -> None:
        try:
            from reflector import _core
        except ImportError as error:
            raise StartError(f"the compiled core reflector._core does not load: {error}") from None
        sources = self._sources = settings.return_source
        try:
            self._core = _core.Engine(
                [
                    (m.address, m.port, 0 if m.returns_to_itself else m.return_port)
                    for m in mappings
                ],
                workers=settings.workers or 0,
                max_connections=settings.max_connections or 0,
                max_per_source=settings.max_per_source,
                connect_timeout_ms=_milliseconds(settings.connect_timeout),
                idle_timeout_ms=_milliseconds(settings.idle_timeout),
                half_close_timeout_ms=_milliseconds(settings.half_close_timeout),
                share_ports=settings.share_ports,
                networks=[
                    *_networks(settings.allow, allow=True),
                    *_networks(settings.deny, allow=False),
                ],
                return_source4=next((a for a in sources if ":" not in a), None),
                return_source6=next((a for a in sources if ":" in a), None),
            )
        except OSError as error:
            raise _start_error(error, mappings, sources, shares=settings.share_ports) from error
        self.mappings = tuple(
            mapping.with_port(port)
            for mapping, port in zip(mappings, self._core.ports, strict=True)
        )
        self.workers = self._core.workers

    @property
    def max_connections(self) -> int:
        """Connections at once, as they came out on this host; final once started."""
        return self._core.max_connections

    def start(self) -> None:
        """Begin to accept. Raises StartError."""
        try:
            self._core.start()
        except OSError as error:
            raise _start_error(error, self.mappings, self._sources) from error

    def stop_accepting(self) -> None:
        """Close the listeners; running connections go on."""
        self._core.stop_accepting()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the last connection to end; True once it has."""
        return self._core.wait(timeout)

    def stop(self) -> None:
        """Reset every connection and free everything. May be called again."""
        self._core.stop()

    def stats(self) -> Stats:
        """Read the counters; after `stop` too."""
        return Stats(**self._core.stats())


def _networks(networks: tuple[str, ...], *, allow: bool) -> Iterator[tuple[str, int, bool]]:
    for network in networks:
        address, _, length = network.partition("/")
        yield address, int(length), allow


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _start_error(
    error: OSError,
    mappings: tuple[Mapping, ...],
    sources: tuple[str, ...],
    *,
    shares: bool = False,
) -> StartError:
    """Say in one line what the system refused, for which mapping, why, and the mend."""
    index = getattr(error, "mapping", -1)
    if 0 <= index < len(mappings):
        mapping = mappings[index]
        reason = f"cannot listen on {mapping.listens_on}: {_mend_listening(error, mapping, shares)}"
    elif error.errno == errno.EADDRNOTAVAIL and sources:
        reason = (
            f"return legs cannot leave from {' or '.join(sources)}: not an address of this host "
            f"(ip address lists them)"
        )
    else:
        reason = f"cannot start: {_mend(error)}"
    return StartError(reason, error.errno)


def _mend_listening(error: OSError, mapping: Mapping, shares: bool) -> str:
    if error.errno == errno.EADDRINUSE and shares:
        return (
            f"port {mapping.port} is taken by a program that does not share it; only a reflector "
            f"of this user that was started with --share-ports does "
            f"(ss -ltnp 'sport = :{mapping.port}' shows who)"
        )
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {mapping.port} is taken; choose another or stop what holds it "
            f"(ss -ltnp 'sport = :{mapping.port}' shows who)"
        )
    first_free = _first_unprivileged_port()
    if error.errno in (errno.EACCES, errno.EPERM) and mapping.port < first_free:
        return (
            f"ports below {first_free} need CAP_NET_BIND_SERVICE; run as root, grant it (setcap, "
            f"or AmbientCapabilities= in systemd), or lower sysctl "
            f"net.ipv4.ip_unprivileged_port_start"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "not an address of this host (ip address lists them)"
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return "this host has no such interface (ip link lists them)"
    if error.errno == errno.EAFNOSUPPORT:
        return (
            "this host has no IPv6" if ":" in (mapping.address or "") else "this host has no IPv4"
        )
    return _mend(error)


def _mend(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "no file descriptor is left; raise the limit (ulimit -n, LimitNOFILE= in systemd)"
    return error.strerror or str(error)


def _first_unprivileged_port() -> int:
    """The lowest port that an unprivileged process may listen on."""
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1024
