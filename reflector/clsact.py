"""BPF filters at the ingress of an interface, for kernels before Linux 6.6: tc-bpf(8).

A filter has no owner: it stays until it is removed. What keeps one that was left behind from doing
anything is the deadline in the program itself (`reflector._mirror.Mirror.keep_alive`).
"""

import socket
from typing import Any

from reflector.interfaces import route_socket

_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3


def add_filter(index: int, program_fd: int, name: str) -> bool:
    """Attach a BPF program to the ingress of an interface, by a filter of that name (tc-bpf(8)).

    Returns whether the clsact queueing discipline was not there before. Raises OSError.
    """
    with route_socket() as route:
        is_new = not _has_clsact(route, index)
        if is_new:
            route.tc("add", "clsact", index)
        route.tc(
            "add-filter",
            "bpf",
            index,
            fd=program_fd,
            name=name,
            parent=_INGRESS,
            direct_action=True,
        )
    return is_new


def remove_filters(index: int, name: str, and_clsact: bool) -> None:
    """Remove the filters of that name, and the queueing discipline if it is wanted and unused.

    Does nothing where the interface is gone. Raises OSError.
    """
    with route_socket() as route:
        for message in _filters(route, index, _INGRESS):
            if _filter_name(message) == name:
                route.tc(
                    "del-filter",
                    "bpf",
                    index,
                    handle=message["handle"],
                    parent=_INGRESS,
                    prio=message["info"] >> 16,
                    protocol=_swap16(message["info"] & 0xFFFF),
                )
        used = _filters(route, index, _INGRESS) or _filters(route, index, _EGRESS)
        if and_clsact and not used and _has_clsact(route, index):
            route.tc("del", "clsact", index)


def filter_names(index: int) -> list[str]:
    """Return the names of the BPF filters at the ingress of an interface. Raises OSError."""
    with route_socket() as route:
        return [_filter_name(message) for message in _filters(route, index, _INGRESS)]


def _has_clsact(route: Any, index: int) -> bool:
    return any(
        message.get_attr("TCA_KIND") == "clsact" for message in route.get_qdiscs(index=index)
    )


def _filters(route: Any, index: int, parent: int) -> list[Any]:
    if not _has_clsact(route, index):
        return []
    return [
        message
        for message in route.get_filters(index=index, parent=parent)
        if message.get_attr("TCA_OPTIONS") is not None
    ]


def _filter_name(message: Any) -> str:
    return str(message.get_nested("TCA_OPTIONS", "TCA_BPF_NAME") or "")


def _swap16(number: int) -> int:
    return socket.ntohs(number)
