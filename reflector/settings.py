"""Every setting, described once: name, kind, unit, default, limits, help.

The fields of `Settings` are the table. The options of the command line, the checks of the
keyword arguments of `reflector.Reflector` and the defaults of its signature all come from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from reflector.errors import UsageError, quoted
from reflector.kinds import (
    Address,
    Choice,
    Count,
    Duration,
    Flag,
    Interfaces,
    Kind,
    Networks,
    Port,
    SourceAddresses,
)
from reflector.networks import check_networks


def _setting(kind: Kind, default: object, help: str, *, otherwise: str = "") -> Any:
    return field(default=default, metadata={"kind": kind, "help": help, "otherwise": otherwise})


#: of connections and seconds: as the core has it
_MOST_CONNECTIONS = (1 << 24) - 1
_LONGEST = 7 * 86400.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The value of every setting, and as class attributes the defaults."""

    bind: str | None = _setting(
        Address(),
        None,
        "Listen on ADDRESS where a mapping names none.",
        otherwise="all of IPv4 and IPv6",
    )
    return_port: int | None = _setting(
        Port(),
        None,
        "Return to PORT where a mapping names no return port.",
        otherwise="the listening port's own number",
    )
    return_source: tuple[str, ...] = _setting(
        SourceAddresses(),
        (),
        "Return legs leave from ADDRESS, an address of this host; give it once for IPv4, once "
        "for IPv6.",
        otherwise="the address that the peer dialled",
    )
    engine: str = _setting(
        Choice(("splice", "mirror", "auto")),
        "splice",
        "splice carries connections, and needs no privilege; mirror has the kernel turn packets "
        "round, so that a check sees what the service answers, and needs CAP_BPF and "
        "CAP_NET_ADMIN; auto is mirror where that can be had.",
    )
    interface: tuple[str, ...] = _setting(
        Interfaces(),
        (),
        "Mirror on interface NAME; may be given several times.",
        otherwise="those with an address that a mapping listens on",
    )
    rate: int | None = _setting(
        Count("connections a second", 1, 1_000_000_000),
        None,
        "New connections a second that the mirror lets pass in all; more are reset.",
        otherwise="no limit",
    )
    rate_per_source: int | None = _setting(
        Count("connections a second", 1, 1_000_000_000),
        None,
        "The same for each source: an IPv4 address, or 64 bits of an IPv6 one.",
        otherwise="no limit",
    )
    workers: int | None = _setting(
        Count("threads", 1, 256),
        None,
        "Threads that move the bytes.",
        otherwise="one per usable CPU",
    )
    max_connections: int | None = _setting(
        Count("connections", 1, _MOST_CONNECTIONS),
        None,
        "Connections at once; more wait in the backlog. UDP sessions count; datagrams that would "
        "open more are dropped.",
        otherwise="what the open-file limit carries, said at start",
    )
    max_per_source: int = _setting(
        Count("connections", 1, _MOST_CONNECTIONS),
        512,
        "Connections and UDP sessions at once from one address; more are reset or dropped. Bounds "
        "loops too.",
    )
    allow: tuple[str, ...] = _setting(
        Networks(),
        (),
        "Serve the peers in NETWORK, such as 192.0.2.0/24; may be repeated. With any --allow, "
        "peers in no network given are denied.",
        otherwise="all peers",
    )
    deny: tuple[str, ...] = _setting(
        Networks(),
        (),
        "Reset the peers in NETWORK; may be repeated. Of several networks that a peer is in, the "
        "smallest decides.",
        otherwise="none",
    )
    share_ports: bool = _setting(
        Flag(),
        False,
        "Let another reflector of the same user that has this option too listen on the same "
        "ports, and so take them over: start the new one, then stop the old one.",
        otherwise="a port that is taken is an error",
    )
    connect_timeout: float = _setting(
        Duration(0.001, 3600), 3.0, "Reset when the peer has not taken the return leg by then."
    )
    idle_timeout: float = _setting(
        Duration(0.001, _LONGEST), 600.0, "Reset when no byte has moved for that long."
    )
    half_close_timeout: float = _setting(
        Duration(0.001, _LONGEST),
        60.0,
        "Reset when one side has ended and no byte has moved for that long.",
    )
    udp_idle_timeout: float = _setting(
        Duration(0.001, _LONGEST),
        30.0,
        "End a UDP peer's session when no datagram has passed either way for that long.",
    )
    drain_timeout: float = _setting(
        Duration(0, 86400),
        30.0,
        "On SIGTERM or SIGINT: how long running connections may go on before they are reset.",
    )
    log_level: str = _setting(
        Choice(("debug", "info", "warning", "error")), "info", "Log this and what is graver."
    )

    def __post_init__(self) -> None:
        check_networks(self.allow, self.deny)

    @classmethod
    def from_keywords(cls, **values: object) -> "Settings":
        """Check keyword arguments; None stands for the default.

        Raises UsageError naming the argument and what it may be.
        """
        checked = {}
        for name, value in values.items():
            kind = SETTINGS[name].kind
            if value is not None:
                try:
                    checked[name] = kind.check(value)
                except ValueError as error:
                    raise _wrong(f"{name}={quoted(value)}", error, kind) from None
        return cls(**checked)

    @classmethod
    def from_options(cls, texts: Mapping[str, str | tuple[str, ...] | bool | None]) -> "Settings":
        """Read the texts of command-line options; None, () and False stand for the default.

        Raises UsageError naming the option and what it may be.
        """
        checked = {}
        for name, given in texts.items():
            setting = SETTINGS[name]
            if given in (None, (), False):
                continue
            shown = quoted(given)
            try:
                if isinstance(given, tuple):
                    # One by one first, to name the one at fault.
                    for text in given:
                        shown = quoted(text)
                        setting.kind.read(text)
                    shown = " ".join(map(quoted, given))
                    checked[name] = setting.kind.check(given)
                elif isinstance(given, bool):
                    checked[name] = setting.kind.check(given)
                else:
                    checked[name] = setting.kind.read(str(given))
            except ValueError as error:
                raise _wrong(f"{setting.option} {shown}", error, setting.kind) from None
        return cls(**checked)


@dataclass(frozen=True)
class Setting:
    """One row of the table: a field of `Settings` as the command line and the help need it."""

    name: str
    kind: Kind
    default: Any
    help: str
    otherwise: str

    @property
    def option(self) -> str:
        """The option's name, for example ``--max-per-source``."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def default_text(self) -> str:
        """The default as a person would write it, or what happens without a value."""
        return self.otherwise or self.kind.show(self.default)


SETTINGS: dict[str, Setting] = {
    row.name: Setting(row.name, default=row.default, **row.metadata) for row in fields(Settings)
}


def _wrong(given: str, error: ValueError, kind: Kind) -> UsageError:
    reason = str(error) or f"expected {kind.expects}"
    return UsageError(f"{given}: {reason}")
