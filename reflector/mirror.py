"""The mirror engine: the kernel itself sends packets back where they came from.

A BPF program at the ingress of the interfaces turns each packet round (csrc/mirror/), without a
connection of its own, so that a check sees what the service answers: refused is refused. What it
does not see, connections of this very host and interfaces that cannot be mirrored, is served by
the splice engine under the same mappings.
"""

import errno
import logging
import os
import select
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from reflector.engine import SpliceEngine, Stats
from reflector.errors import StartError
from reflector.interfaces import Changes, Interface, list_interfaces
from reflector.routes import (
    MirrorUnavailable,
    choose_interfaces,
    list_networks,
    list_routes,
    pack_address,
    refuse_ambiguous,
    refuse_unknown,
)
from reflector.settings import Settings

log = logging.getLogger("reflector")

#: sources whose rate of new connections is kept at a time; the least recent one makes room
_MAX_SOURCES = 1 << 16

#: Seconds without a packet after which a mirror that drains is over: more than the first
#: retransmission of a segment that was lost takes (RFC 6298: a second).
_QUIET_SECONDS = 3.0

#: In clsact mode: seconds between two signs of life, and after which a filter that has seen none
#: leaves everything alone.
_ALIVE_EVERY = 1.0
_ALIVE_FOR = 4.0

_ALWAYS = (1 << 64) - 1

_BY_CLSACT = "clsact"


class MirrorEngine:
    """The mirror, over a splice engine that is bound already, and is started and stopped with it.

    Raises MirrorUnavailable, as `start` does, where the host, the privileges or the mappings do not
    allow it; the splice engine is then as it was.
    """

    name = "mirror"

    def __init__(self, splice: SpliceEngine, settings: Settings) -> None:
        self._splice = splice
        self._settings = settings
        self.mappings = splice.mappings
        self.workers = splice.workers
        refuse_ambiguous(splice.mappings)
        self._mirror = _load(len(splice.mappings))
        self._attached: dict[int, tuple[str, str]] = {}  # by index: name, by what
        self._accepting = True
        self._packets, self._quiet_since = 0, 0.0
        self._lock = threading.RLock()  # of the BPF program, which one thread uses at a time
        self._final: list[dict[str, int]] | None = None
        self._final_handshakes: list[int] = []
        self._stop_reading, self._stop_writing = -1, -1
        self._watch: threading.Thread | None = None
        try:
            self._set_limits()
            self._mirror.set_networks(list_networks(settings))
            self._changes = Changes()
        except OSError as error:
            self._mirror.close()
            raise _unavailable(error) from error

    @property
    def max_connections(self) -> int:
        """Connections at once of the splice engine; the mirror has none, so knows no limit."""
        return self._splice.max_connections

    @property
    def where(self) -> str:
        """Say which interfaces are mirrored, and by what."""
        return ", ".join(f"{name} ({how})" for name, how in sorted(self._attached.values()))

    def start(self) -> None:
        """Attach to the interfaces and begin to accept. Raises StartError."""
        try:
            interfaces = list_interfaces()
            refuse_unknown(self._settings.interface, interfaces)
            self._adapt(interfaces)
            if not self._attached:
                raise MirrorUnavailable(
                    "no interface with an address that a mapping listens on can be mirrored "
                    "(ip address lists them; --interface names one)"
                )
            self._splice.start()
        except OSError as error:
            self._release()
            raise _unavailable(error) from error
        except BaseException:
            self._release()
            raise
        self._stop_reading, self._stop_writing = os.pipe2(os.O_CLOEXEC)
        self._watch = threading.Thread(target=self._keep_up, name="reflector/mirror", daemon=True)
        self._watch.start()

    def stop_accepting(self) -> None:
        """Refuse new connections; running ones go on."""
        self._accepting = False
        self._quiet_since = time.monotonic()
        with self._lock:
            self._set_limits()
        self._splice.stop_accepting()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the last connection to end; True once it has.

        The mirror knows no connections: its own are over once no packet has passed for a while.
        """
        deadline = time.monotonic() + timeout
        while True:
            is_quiet = self._is_quiet()
            left = max(0.0, deadline - time.monotonic())
            if self._splice.wait(left if is_quiet else min(left, 0.05)) and is_quiet:
                return True
            if left == 0:
                return False
            if not is_quiet:
                time.sleep(min(left, 0.05))

    def stop(self) -> None:
        """Detach from the interfaces, reset what the splice engine carries, and free everything.

        May be called again. Connections through the mirror have nothing here that could be reset:
        the kernel answers their next packet with a reset.
        """
        self._release()
        self._splice.stop()

    def _release(self) -> None:
        """Give up all but the splice engine."""
        if self._watch is not None:
            os.write(self._stop_writing, b"x")
            self._watch.join()
            self._watch = None
            os.close(self._stop_reading)
            os.close(self._stop_writing)
        with self._lock:
            if self._final is None:
                for index in list(self._attached):
                    self._detach(index)
                self._final, self._final_handshakes = self._read(), self._mirror.histogram()
                log.debug("handshakes with the services: %s", _describe(self._final_handshakes))
                self._mirror.close()
                self._changes.close()

    def stats(self) -> Stats:
        """Read the counters of both engines, summed where they mean the same."""
        return _with_mirrored(self._splice.stats(), self.stats_by_mapping())

    def stats_by_mapping(self) -> list[dict[str, int]]:
        """Read the counters of the mirror alone, by name, in the order of the mappings."""
        with self._lock:
            return self._read() if self._final is None else self._final

    def handshakes(self) -> list[int]:
        """Count handshakes with the services by how long they took, from the SYN to its answer.

        Number n of the list is of those from 2**n up to 2**(n + 1) microseconds, number 0 also of
        shorter ones. One connection in 64 is timed, by address and port.
        """
        with self._lock:
            return self._mirror.histogram() if self._final is None else self._final_handshakes

    def _read(self) -> list[dict[str, int]]:
        return [self._mirror.stats(number) for number in range(len(self.mappings))]

    def _set_limits(self) -> None:
        self._mirror.set_limits(
            rate=self._settings.rate or 0,
            rate_per_source=self._settings.rate_per_source or 0,
            default_allow=not self._settings.allow,
            accepting=self._accepting,
        )

    def _is_quiet(self) -> bool:
        packets = sum(
            counts["packets_to_service"] + counts["packets_to_peer"]
            for counts in self.stats_by_mapping()
        )
        now = time.monotonic()
        if packets != self._packets:
            self._packets, self._quiet_since = packets, now
        return packets == 0 or now - self._quiet_since >= _QUIET_SECONDS

    # --- interfaces -------------------------------------------------------------------------------

    def _keep_up(self) -> None:
        """Follow the host's interfaces and addresses until the engine stops."""
        while True:
            changed = self._changes.wait(self._stop_reading, self._next_sign())
            if _readable(self._stop_reading):
                return
            try:
                with self._lock:
                    self._sign()
                if changed:
                    self._adapt(list_interfaces())
            except (OSError, StartError) as error:
                log.warning("the mirror does not follow a change of interfaces: %s", error)

    def _next_sign(self) -> float:
        return _ALIVE_EVERY if self._uses_clsact() else 3600.0

    def _uses_clsact(self) -> bool:
        return any(how == _BY_CLSACT for _, how in self._attached.values())

    def _sign(self) -> None:
        """Tell the program until when it may act."""
        self._mirror.keep_alive(_soon() if self._uses_clsact() else _ALWAYS)

    def _adapt(self, interfaces: Sequence[Interface]) -> None:
        """Bring routes and attachments in line with these interfaces.

        Raises OSError and MirrorUnavailable.
        """
        chosen = choose_interfaces(interfaces, self._settings.interface, self.mappings)
        wanted = {interface.index: interface for interface in chosen}
        own = [address for interface in interfaces for address in interface.addresses]
        broadcasts = [address for one in interfaces for address in one.broadcasts]
        with self._lock:
            self._mirror.set_never([pack_address(address) for address in {*own, *broadcasts}])
            self._mirror.set_routes(list_routes(self.mappings, own))
            for index in [index for index in self._attached if index not in wanted]:
                self._detach(index)
            for index, interface in wanted.items():
                if index not in self._attached:
                    self._attach(interface)
            self._sign()

    def _attach(self, interface: Interface) -> None:
        # No filter that a kill leaves behind may act for ever, not even one that is just made.
        self._mirror.keep_alive(_soon())
        try:
            how = self._mirror.attach(interface.index, interface.link_header_length or 0)
            self._attached[interface.index] = (interface.name, how)
        finally:
            self._sign()

    def _detach(self, index: int) -> None:
        del self._attached[index]
        try:
            self._mirror.detach(index)
        except OSError as error:
            log.warning("the mirror is not detached as it should be: %s", error)


def _soon() -> int:
    """Return when a filter that sees no sign of life until then stops to act."""
    return int((time.monotonic() + _ALIVE_FOR) * 1e9)


def _readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def _load(mappings: int) -> Any:
    """Load the BPF program. Raises MirrorUnavailable."""
    try:
        from reflector import _mirror
    except ImportError as error:
        raise MirrorUnavailable(
            f"the mirror is not part of this build ({error}): install a wheel, or build with "
            f"clang and libbpf at hand (Debian: clang, libbpf-dev)"
        ) from None
    try:
        return _mirror.Mirror(mappings, _MAX_SOURCES)
    except OSError as error:
        raise _unavailable(error) from error


def _unavailable(error: OSError) -> MirrorUnavailable:
    if error.errno in (errno.EPERM, errno.EACCES):
        reason = (
            "the mirror needs CAP_BPF and CAP_NET_ADMIN; run as root, or grant them (setcap, or "
            "AmbientCapabilities= in systemd)"
        )
    elif error.errno in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):
        reason = f"the mirror needs Linux 5.8 or later with BPF ({error})"
    else:
        reason = f"the mirror does not start: {error}"
    return MirrorUnavailable(reason, error.errno)


def _describe(handshakes: Sequence[int]) -> str:
    """Say within what times half and nearly all of the handshakes were done."""
    total = sum(handshakes)
    if total == 0:
        return "none was timed"
    parts = []
    for percent in (50, 99):
        counted = accumulate(handshakes)
        number = next(n for n, count in enumerate(counted) if count * 100 >= total * percent)
        parts.append(f"{percent} % within {2 ** (number + 1):,} us")
    return f"{', '.join(parts)}, {total:,} timed"


def _with_mirrored(stats: Stats, mirrored: Iterable[dict[str, int]]) -> Stats:
    """Add the mirror's counters to those of the splice engine."""
    total: dict[str, int] = {}
    for counts in mirrored:
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    limited = total["limited_denied"] + total["limited_rate"] + total["limited_source"]
    return replace(
        stats,
        accepted=stats.accepted + total["accepted"],
        legs_connected=stats.legs_connected + total["connected"],
        legs_refused=stats.legs_refused + total["refused"],
        legs_unreachable=stats.legs_unreachable + total["unreachable"],
        legs_limited=stats.legs_limited + limited,
        limited_denied=stats.limited_denied + total["limited_denied"],
        limited_rate=total["limited_rate"] + total["limited_source"],
        bytes_to_service=stats.bytes_to_service + total["bytes_to_service"],
        bytes_to_peer=stats.bytes_to_peer + total["bytes_to_peer"],
        mirrored=total["accepted"],
        packets_to_service=total["packets_to_service"],
        packets_to_peer=total["packets_to_peer"],
        packets_dropped=total["dropped_ttl"] + total["dropped_fragment"] + total["forbidden"],
        icmp_turned=total["icmp_turned"],
    )
