"""What the mirror is told: which packets are of which mapping, and where they come in."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address, ip_address, ip_network

from reflector.errors import StartError
from reflector.interfaces import Address, Interface
from reflector.mapping import Mapping
from reflector.settings import Settings

_PROTOCOLS = {"tcp": 6, "udp": 17}

# Route: protocol, port, return port, number of the mapping, address of 16 bytes
Route = tuple[int, int, int, int, bytes]

# Network: address of 16 bytes, length of the prefix of 128 bits, whether it is allowed
Network = tuple[bytes, int, bool]


class MirrorUnavailable(StartError):
    """The mirror cannot be had here, which leaves the splice engine. Says why, and the mend."""


def refuse_ambiguous(mappings: Sequence[Mapping]) -> None:
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


def refuse_unknown(names: Iterable[str], interfaces: Iterable[Interface]) -> None:
    """Refuse names of interfaces that are not there at the start. Raises MirrorUnavailable."""
    there = {interface.name for interface in interfaces}
    for name in names:
        if name not in there:
            raise MirrorUnavailable(
                f"--interface {name}: this host has no such interface (ip link lists them)"
            )


def choose_interfaces(
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


def list_routes(mappings: Sequence[Mapping], own: Iterable[Address]) -> list[Route]:
    """List the routes of the mappings on those addresses of this host that they listen on."""
    return [
        (
            _PROTOCOLS[mapping.protocol],
            mapping.port,
            mapping.return_port,
            number,
            pack_address(address),
        )
        for number, mapping in enumerate(mappings)
        for address in set(own)
        if _listens_at(mapping, address)
    ]


def pack_address(address: Address) -> bytes:
    """Return an address as 16 bytes, IPv4 mapped into IPv6."""
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff" * 2 + address.packed


def list_networks(settings: Settings) -> list[Network]:
    """List the networks that the settings allow and deny."""
    found = []
    for texts, allow in ((settings.allow, True), (settings.deny, False)):
        for text in texts:
            network = ip_network(text)
            length = network.prefixlen + (96 if network.version == 4 else 0)
            found.append((pack_address(network.network_address), length, allow))
    return found
