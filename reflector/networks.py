"""Networks of peers, as --allow and --deny take them: IPv4 and IPv6 in CIDR notation.

192.0.2.0/24    the network (RFC 4632)
2001:db8::/32   an IPv6 one (RFC 4291, section 2.3)
192.0.2.7       one address, the same as 192.0.2.7/32
"""

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network

from reflector.errors import UsageError

EXPECTED = "a network such as 192.0.2.0/24 or 2001:db8::/32, or one address"

#: of both lists together, as the core has it (RF_MAX_NETWORKS)
MAX_NETWORKS = 1 << 20

#: bits of an IPv6 address that come before the IPv4 one in ::ffff:192.0.2.1
_MAPPED_PREFIX = 96


def parse_network(text: object) -> str:
    """Return a network in its canonical form, for example ``192.0.2.0/24``.

    Raises ValueError saying what is wrong with it, and which network was meant where that can be
    told; without a text of its own where it is no network at all.
    """
    if not isinstance(text, str):
        raise ValueError
    address_text, slash, length_text = text.partition("/")
    if "%" in address_text:
        raise ValueError("a network takes no interface: expected it without %")
    try:
        address = ip_address(address_text)
    except ValueError:
        raise ValueError from None
    length: int = address.max_prefixlen
    if slash:
        # Digits alone: ip_network would take a netmask too.
        if not (length_text.isascii() and length_text.isdigit() and len(length_text) <= 3):
            raise ValueError
        length = int(length_text)
        if length > address.max_prefixlen:
            raise ValueError(
                f"a prefix of IPv{address.version} has at most {address.max_prefixlen} bits"
            )
    if isinstance(address, IPv6Address) and address.ipv4_mapped and length >= _MAPPED_PREFIX:
        plain = ip_network((address.ipv4_mapped, length - _MAPPED_PREFIX), strict=False)
        raise ValueError(f"peers of IPv4 are known by their IPv4 address: expected {plain}")
    network = ip_network((address, length), strict=False)
    if network.network_address != address:
        raise ValueError(
            f"bits are set after the prefix: expected {network}, or {address} for one address"
        )
    return str(network)


def check_networks(allow: Iterable[str], deny: Iterable[str]) -> None:
    """Refuse what cannot be told apart: networks, in canonical form, that are in both lists.

    Raises UsageError naming the first of them, and for more networks than the engine takes.
    """
    allowed, denied = set(allow), set(deny)
    both = sorted(allowed & denied)
    if both:
        raise UsageError(
            f"network {both[0]} is both allowed and denied: expected in --allow or --deny "
            f"(allow=, deny=), not in both"
        )
    if len(allowed) + len(denied) > MAX_NETWORKS:
        raise UsageError(
            f"{len(allowed) + len(denied):,} networks in --allow and --deny: expected at most "
            f"{MAX_NETWORKS:,}"
        )
