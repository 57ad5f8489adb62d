"""The MAPPING of the command line: which port is listened on, and where it returns to.

    [ADDRESS:]PORT[:RETURN_PORT][/tcp|/udp]

    10022                 all addresses, port 10022; returns to --return-port, else to 10022
    10022:22              all addresses, port 10022; returns to port 22 of whoever connects
    127.0.0.1:10022:22    the same on one address only
    [::1]:10022:22        an IPv6 address stands in brackets, a link-local one with its interface:
    [fe80::1%eth0]:10022:22
    10053:53/udp          UDP: datagrams go back to port 53 of whoever sends them

Port 0 listens on a free port. Nothing here looks at the host: whether an address is ours and a
port free is found out when the engine binds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address

from reflector.errors import UsageError, quoted

GRAMMAR = "[ADDRESS:]PORT[:RETURN_PORT][/tcp|/udp]"
EXAMPLES = "10022:22, 127.0.0.1:10022:22 or [::1]:10022:22"

_EXPECTED_ADDRESS = "expected a numeric address such as 192.0.2.1 or ::1"
_MAX_PORT = 65535
_MAX_MAPPINGS = 1024
_PROTOCOLS = ("tcp", "udp")


@dataclass(frozen=True)
class Mapping:
    """One listening port and the port that its connections are returned to.

    address: numeric address to listen on, IPv6 without brackets and link-local with its
        ``%interface``; None means all of IPv4 and IPv6.
    port: port to listen on; 0 picks a free one.
    return_port: port of the peer that the connection goes back to; 0 means the same number as
        the listening port, for a free port that is not known yet.
    protocol: "tcp" or "udp".

    Raises UsageError when a port, the address or the protocol is none.
    """

    address: str | None
    port: int
    return_port: int = 0
    protocol: str = "tcp"

    def __post_init__(self) -> None:
        for name in ("port", "return_port"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_PORT:
                label = name.replace("_", " ")
                raise UsageError(
                    f"{label} {quoted(value)}: expected a whole number, 0 to {_MAX_PORT}"
                )
        if self.protocol not in _PROTOCOLS:
            raise UsageError(f"protocol {quoted(self.protocol)}: expected 'tcp' or 'udp'")
        if self.address is not None:
            try:
                object.__setattr__(self, "address", parse_address(self.address))
            except ValueError as error:
                raise UsageError(f"address {quoted(self.address)}: {error}") from None
        if self.return_port == 0:
            object.__setattr__(self, "return_port", self.port)

    @classmethod
    def parse(
        cls, text: str, *, bind: str | None = None, return_port: int | None = None
    ) -> "Mapping":
        """Read a mapping as it is typed, for example ``127.0.0.1:10022:22``.

        bind: numeric address to listen on when `text` names none.
        return_port: port to return to when `text` names none; without it the mapping returns to
            its own number.

        Raises UsageError naming `text` and what it may be.
        """
        try:
            address, port, own_return_port, protocol = _split(text)
        except ValueError as error:
            raise UsageError(f"mapping {quoted(text)}: {error}") from None
        return cls(
            bind if address is None else address,
            port,
            own_return_port if own_return_port is not None else return_port or 0,
            protocol,
        )

    @property
    def listens_on(self) -> str:
        """Address and port as written down: ``[::1]:10022``, ``*:10022``, ``*:10053/udp``."""
        return f"{self._address or '*'}:{self.port}{self._suffix}"

    @property
    def returns_to_itself(self) -> bool:
        """True when the return port is the listening port: a peer on this host would loop."""
        return self.return_port == self.port

    def with_port(self, port: int) -> "Mapping":
        """Return this mapping with the port that was bound, where a free one was asked for."""
        return replace(self, port=port, return_port=self.return_port or port)

    def __str__(self) -> str:
        """Return the mapping in the form that `parse` reads."""
        ports = [self.port, self.return_port] if self.return_port else [self.port]
        parts = [self._address] if self._address else []
        return ":".join([*parts, *map(str, ports)]) + self._suffix

    @property
    def _address(self) -> str:
        if self.address is None:
            return ""
        return f"[{self.address}]" if ":" in self.address else self.address

    @property
    def _suffix(self) -> str:
        return "" if self.protocol == "tcp" else f"/{self.protocol}"


def parse_mappings(
    given: str | Mapping | Iterable[str | Mapping],
    *,
    bind: str | None = None,
    return_port: int | None = None,
) -> tuple[Mapping, ...]:
    """Read all mappings of one reflector and refuse those that cannot be served side by side.

    Parameters as in `Mapping.parse`. Raises UsageError for none at all, for one that cannot be
    read, for two that clash, naming both, and for more than the engine takes.
    """
    if isinstance(given, (str, Mapping)):
        given = (given,)
    mappings: list[Mapping] = []
    for item in given:
        if isinstance(item, Mapping):
            mappings.append(item)
        elif isinstance(item, str):
            mappings.append(Mapping.parse(item, bind=bind, return_port=return_port))
        else:
            raise UsageError(f"mapping {quoted(item)}: expected text such as {EXAMPLES}")
    if not mappings:
        raise UsageError(f"no mapping given: expected {GRAMMAR}, such as {EXAMPLES}")
    if len(mappings) > _MAX_MAPPINGS:
        raise UsageError(f"{len(mappings):,} mappings given: expected at most {_MAX_MAPPINGS:,}")
    _refuse_clashes(mappings)
    return tuple(mappings)


def returns_in_a_loop(mapping: Mapping, mappings: Iterable[Mapping]) -> bool:
    """Tell whether a peer on this very host would be returned from port to port without end."""
    routes = {
        other.port: other.return_port for other in mappings if other.protocol == mapping.protocol
    }
    port, seen = mapping.return_port, set[int]()
    while port in routes and port not in seen:
        seen.add(port)
        port = routes[port]
    return port in routes


def parse_address(text: object) -> str:
    """Return a numeric unicast address in its canonical form, IPv6 with or without brackets.

    Raises ValueError saying what is wrong with it.
    """
    if not isinstance(text, str):
        raise ValueError(_EXPECTED_ADDRESS)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ip_address(bare)
    except ValueError:
        raise ValueError(f"{_EXPECTED_ADDRESS}, not a name") from None
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if address.is_link_local and address.scope_id is None:
            raise ValueError(f"a link-local address needs its interface, such as {address}%eth0")
        if address.scope_id is not None and not address.is_link_local:
            raise ValueError("only a link-local address (fe80::) takes an interface")
    if address.is_multicast or str(address) == "255.255.255.255":
        raise ValueError("expected the address of one host, not a multicast or broadcast address")
    return str(address)


def _split(text: str) -> tuple[str | None, int, int | None, str]:
    """Take a mapping's text apart. Raises ValueError saying what is wrong with it."""
    body, slash, protocol = text.partition("/")
    if slash and protocol not in _PROTOCOLS:
        raise ValueError(f"protocol {quoted(protocol)} is not known, only /tcp and /udp are")
    if body.count(":") > 2 and not body.startswith("["):
        raise ValueError("an IPv6 address stands in brackets, such as [::1]:10022:22")
    address: str | None = None
    if body.startswith("["):
        address, _, rest = body.partition("]:")
        address += "]"
        fields = rest.split(":")
    else:
        fields = body.split(":")
        if len(fields) == 3 or (len(fields) == 2 and not fields[0].isdigit()):
            address = fields.pop(0)
    if address == "" or not 1 <= len(fields) <= 2 or "" in fields:
        raise ValueError(f"expected {GRAMMAR}, such as {EXAMPLES}")
    if address is not None:
        try:
            address = parse_address(address)
        except ValueError as error:
            raise ValueError(f"address {quoted(address)}: {error}") from None
    port = _port("port", fields[0], 0)
    return_port = _port("return port", fields[1], 1) if len(fields) == 2 else None
    return address, port, return_port, protocol or "tcp"


def _port(label: str, text: str, minimum: int) -> int:
    digits = text.lstrip("0") or "0"
    if text.isascii() and text.isdigit() and len(digits) <= len(str(_MAX_PORT)):
        value = int(digits)
        if minimum <= value <= _MAX_PORT:
            return value
    free = " (0 picks a free one)" if minimum == 0 else ""
    raise ValueError(f"{label} {quoted(text)}: expected a number, {minimum} to {_MAX_PORT}{free}")


def _refuse_clashes(mappings: Sequence[Mapping]) -> None:
    earlier: dict[tuple[str, int], list[Mapping]] = {}
    for mapping in mappings:
        if mapping.port == 0:
            continue
        beside = earlier.setdefault((mapping.protocol, mapping.port), [])
        for other in beside:
            if _overlap(mapping.address, other.address):
                raise UsageError(
                    f"mappings {other} and {mapping} clash: each would take connections to "
                    f"{other.listens_on} from the other; leave one out or choose another port"
                )
        beside.append(mapping)


def _overlap(one: str | None, other: str | None) -> bool:
    """Tell whether two listening addresses take connections from each other."""
    if one is None or other is None or one == other:
        return True
    if "::" in (one, other):
        return True  # takes IPv4 too
    return "0.0.0.0" in (one, other) and ":" not in one + other
