"""The network interfaces and addresses of this host, and word when they change: rtnetlink(7)."""

import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

# linux/if_arp.h
_ETHER = 1
_WITHOUT_LINK_HEADER = (519, 0xFFFE)  # RAWIP, NONE: tun, WireGuard
_ETHER_HEADER_LENGTH = 14

#: what carries the packets of its members itself
_KINDS_OF_MASTERS = ("bond", "bridge", "team")

_GROUPS = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR

Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Interface:
    """A network interface.

    link_header_length: bytes before the IP header of a packet that came in by it; None where that
        is not known, and for the loopback device.
    master: name of the bond, bridge or team that it is a member of.
    """

    index: int
    name: str
    link_header_length: int | None
    addresses: tuple[Address, ...] = ()
    broadcasts: tuple[Address, ...] = ()
    master: str | None = None


def list_interfaces() -> tuple[Interface, ...]:
    """Return the interfaces of the calling thread's network namespace.

    Raises OSError where the kernel does not tell.
    """
    with route_socket() as route:
        links = list(route.get_links())
        addresses = list(route.get_addr())
    masters: dict[int | None, str] = {
        link["index"]: link.get_attr("IFLA_IFNAME")
        for link in links
        if link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") in _KINDS_OF_MASTERS
    }
    return tuple(
        Interface(
            index=link["index"],
            name=link.get_attr("IFLA_IFNAME"),
            link_header_length=_link_header_length(link["ifi_type"]),
            addresses=tuple(_addresses(addresses, link["index"], "IFA_LOCAL", "IFA_ADDRESS")),
            broadcasts=tuple(_addresses(addresses, link["index"], "IFA_BROADCAST")),
            master=masters.get(link.get_attr("IFLA_MASTER")),
        )
        for link in links
    )


class Changes:
    """Notices when interfaces or addresses change, in the network namespace it was made in."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, _GROUPS))

    def wait(self, stop: int, timeout: float) -> bool:
        """Wait up to `timeout` seconds for a change; True if there was one.

        stop: a descriptor whose readability ends the wait.
        """
        readable, _, _ = select.select([self._socket.fileno(), stop], [], [], timeout)
        if self._socket.fileno() not in readable:
            return False
        while True:
            try:
                self._socket.recv(65536)
            except BlockingIOError:
                return True
            except OSError:  # ENOBUFS: more happened than the socket holds
                return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@contextmanager
def route_socket() -> Iterator[Any]:
    """Open a pyroute2.IPRoute for the block; errors of the kernel come out as OSError."""
    from pyroute2 import IPRoute  # takes a while to load, and the splice engine needs none of it
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        raise OSError(error.code, f"rtnetlink: {error}") from error


def _link_header_length(hardware_type: int) -> int | None:
    if hardware_type == _ETHER:
        return _ETHER_HEADER_LENGTH
    return 0 if hardware_type in _WITHOUT_LINK_HEADER else None


def _addresses(messages: Sequence[Any], index: int, *attributes: str) -> Iterator[Address]:
    """Yield, of each address message of an interface, the first of these attributes it has."""
    for message in messages:
        if message["index"] != index:
            continue
        found = next((a for name in attributes if (a := message.get_attr(name))), None)
        if found:
            yield ip_address(found)
