"""The mirror engine: the kernel itself sends packets back where they came from.

A BPF program at the ingress of the interfaces turns each packet round (csrc/mirror/), without a
connection of its own, so that a check sees what the service answers: refused is refused. What it
does not see, connections of this very host and interfaces that cannot be mirrored, is served by
the splice engine under the same mappings.
"""

import errno
import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from reflector.engine import SpliceEngine, Stats
from reflector.errors import StartError
from reflector.interfaces import Address, Changes, Interface, list_interfaces
from reflector.mapping import Mapping
from reflector.settings import Settings

log = logging.getLogger("reflector")

#: sources whose rate of new connections is kept at a time; the least recent one makes room
_MAX_SOURCES = 1 << 16

_PROTOCOLS = {"tcp": 6, "udp": 17}

#: seconds without a packet after which a mirror that drains is over
_QUIET_SECONDS = 1.0

#: In clsact mode: seconds between two signs of life, and after which a filter that has seen none
#: leaves everything alone.
_ALIVE_EVERY = 1.0
_ALIVE_FOR = 4.0

_ALWAYS = (1 << 64) - 1

_BY_CLSACT = "clsact"

# Route: protocol, port, return port, number of the mapping, address of 16 bytes
Route = tuple[int, int, int, int, bytes]


class MirrorUnavailable(StartError):
    """The mirror cannot be had here, which leaves the splice engine. Says why, and the mend."""


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
        _refuse_ambiguous(splice.mappings)
        self._mirror = _load(len(splice.mappings))
        self._attached: dict[int, tuple[str, str]] = {}  # by index: name, by what
        self._accepting = True
        self._packets, self._quiet_since = 0, 0.0
        self._lock = threading.RLock()  # of the BPF program, which one thread uses at a time
        self._final: list[dict[str, int]] | None = None
        self._stop_reading, self._stop_writing = -1, -1
        self._watch: threading.Thread | None = None
        try:
            self._set_limits()
            self._mirror.set_networks(_networks(settings))
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
            _refuse_unknown(self._settings.interface, interfaces)
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

        The mirror knows no connections: its own are over when no packet has passed for a second.
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
                self._final = self._read()
                self._mirror.close()
                self._changes.close()

    def stats(self) -> Stats:
        """Read the counters of both engines, summed where they mean the same."""
        return _with_mirrored(self._splice.stats(), self.stats_by_mapping())

    def stats_by_mapping(self) -> list[dict[str, int]]:
        """Read the counters of the mirror alone, by name, in the order of the mappings."""
        with self._lock:
            return self._read() if self._final is None else self._final

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
        wanted = {i.index: i for i in _chosen(interfaces, self._settings.interface, self.mappings)}
        own = [address for interface in interfaces for address in interface.addresses]
        broadcasts = [address for one in interfaces for address in one.broadcasts]
        with self._lock:
            self._mirror.set_never([_packed(address) for address in {*own, *broadcasts}])
            self._mirror.set_routes(_routes(self.mappings, own))
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
    import select

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
        reason = f"the mirror needs Linux 5.14 or later with BPF ({error})"
    else:
        reason = f"the mirror does not start: {error}"
    return MirrorUnavailable(reason, error.errno)


def _refuse_ambiguous(mappings: Sequence[Mapping]) -> None:
    """Refuse mappings whose answers the mirror could not tell apart. Raises MirrorUnavailable."""
    for number, mapping in enumerate(mappings):
        for other in mappings[:number]:
            alike = (mapping.return_port, mapping.protocol) == (other.return_port, other.protocol)
            if alike and _share_address(mapping.address, other.address):
                raise MirrorUnavailable(
                    f"mappings {other} and {mapping} return to the same port, and the mirror could "
                    f"not tell their answers apart: give each an address of its own, or leave one "
                    f"out"
                )


def _share_address(one: str | None, other: str | None) -> bool:
    families = {one and ":" in one, other and ":" in other}
    if one is None or other is None or "::" in (one, other) or one == other:
        return True
    return "0.0.0.0" in (one, other) and families == {False}


def _listens_at(mapping: Mapping, address: Address) -> bool:
    """Tell whether a mapping listens on an address of this host."""
    if address.is_loopback:
        return False
    if mapping.address in (None, "::"):
        return True
    if mapping.address == "0.0.0.0":
        return address.version == 4
    return _without_scope(ip_address(mapping.address or "")) == address


def _without_scope(address: Address) -> Address:
    return IPv6Address(int(address)) if isinstance(address, IPv6Address) else address


def _refuse_unknown(names: Iterable[str], interfaces: Iterable[Interface]) -> None:
    """Refuse names of interfaces that are not there at the start. Raises MirrorUnavailable."""
    there = {interface.name for interface in interfaces}
    for name in names:
        if name not in there:
            raise MirrorUnavailable(
                f"--interface {name}: this host has no such interface (ip link lists them)"
            )


def _chosen(
    interfaces: Iterable[Interface], names: Sequence[str], mappings: Sequence[Mapping]
) -> list[Interface]:
    """Choose the interfaces to mirror: those named, else all that peers can come in by.

    Members of a bond or bridge are left to their master. Raises MirrorUnavailable for a name that
    cannot be mirrored; one that has gone away later is taken up again when it is back.
    """
    chosen = []
    for interface in interfaces:
        if names:
            if interface.name not in names:
                continue
            if interface.link_header_length is None:
                raise MirrorUnavailable(
                    f"--interface {interface.name}: packets of this kind of interface cannot be "
                    f"turned round; the splice engine serves it"
                )
            chosen.append(interface)
        elif (
            interface.link_header_length is not None
            and interface.master is None
            and any(_listens_at(m, a) for m in mappings for a in interface.addresses)
        ):
            chosen.append(interface)
    return chosen


def _routes(mappings: Sequence[Mapping], own: Iterable[Address]) -> list[Route]:
    return [
        (
            _PROTOCOLS[mapping.protocol],
            mapping.port,
            mapping.return_port,
            number,
            _packed(address),
        )
        for number, mapping in enumerate(mappings)
        for address in set(own)
        if _listens_at(mapping, address)
    ]


def _packed(address: Address) -> bytes:
    """Return an address as 16 bytes, IPv4 mapped into IPv6."""
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff" * 2 + address.packed


def _networks(settings: Settings) -> list[tuple[bytes, int, bool]]:
    found = []
    for texts, allow in ((settings.allow, True), (settings.deny, False)):
        for text in texts:
            network = ip_network(text)
            length = network.prefixlen + (96 if network.version == 4 else 0)
            found.append((_packed(network.network_address), length, allow))
    return found


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
