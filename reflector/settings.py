"""Every setting, described once: name, kind, unit, default, limits, help.

The fields of `Settings` are the table. The options of the command line, the checks of the
keyword arguments of `reflector.Reflector` and the defaults of its signature all come from it.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from reflector.errors import UsageError, quoted
from reflector.mapping import parse_address
from reflector.networks import EXPECTED, check_networks, parse_network


class Kind:
    """What values a setting takes, as text and from Python, and how they are written down."""

    metavar = ""
    repeatable = False
    is_flag = False

    @property
    def expects(self) -> str:
        """Say what a value may be; follows the word "expected" in errors."""
        raise NotImplementedError

    def read(self, text: str) -> Any:
        """Turn the text of an option into a value. Raises ValueError when it is none."""
        raise NotImplementedError

    def check(self, value: object) -> Any:
        """Return a value given in Python, normalised. Raises ValueError when it is none."""
        raise NotImplementedError

    def show(self, value: Any) -> str:
        """Write a value as a person would type it."""
        return str(value)


@dataclass(frozen=True)
class _Count(Kind):
    """A whole number of something (`unit`, plural), within limits."""

    unit: str
    minimum: int
    maximum: int
    metavar = "N"

    @property
    def expects(self) -> str:
        return f"a whole number of {self.unit}, {self.minimum} to {self.maximum:,}"

    def read(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise ValueError
        return self.check(int(text))

    def check(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError
        if not self.minimum <= value <= self.maximum:
            raise ValueError
        return value


@dataclass(frozen=True)
class _Port(_Count):
    """A port number that connections can be sent to."""

    unit: str = "port"
    minimum: int = 1
    maximum: int = 65535
    metavar = "PORT"

    @property
    def expects(self) -> str:
        return f"a port number, {self.minimum} to {self.maximum}"


_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(rf"([0-9]{{1,12}}(?:\.[0-9]{{1,12}})?)({'|'.join(_UNITS)})?", re.ASCII)


@dataclass(frozen=True)
class _Duration(Kind):
    """A length of time in seconds, within limits."""

    minimum: float
    maximum: float
    metavar = "TIME"

    @property
    def expects(self) -> str:
        limits = f"{self.show(self.minimum)} to {self.show(self.maximum)}"
        return f"a time of {limits}, such as 500ms, 3s, 10m or 1h (a bare number is seconds)"

    def read(self, text: str) -> float:
        match = _DURATION.fullmatch(text)
        if match is None:
            raise ValueError
        return self.check(float(match[1]) * _UNITS[match[2] or "s"])

    def check(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError
        if not math.isfinite(value):
            raise ValueError
        if not self.minimum <= value <= self.maximum:
            raise ValueError
        return float(value)

    def show(self, value: float) -> str:
        if value == 0:
            return "0s"
        for unit, seconds in reversed(_UNITS.items()):
            count = value / seconds
            if count >= 1 and math.isclose(count, round(count)):
                return f"{round(count)}{unit}"
        return f"{value:g}s"


@dataclass(frozen=True)
class _Address(Kind):
    """A numeric address to listen on."""

    metavar = "ADDRESS"

    @property
    def expects(self) -> str:
        return "a numeric address such as 192.0.2.1 or ::1"

    def read(self, text: str) -> str:
        return self.check(text)

    def check(self, value: object) -> str:
        return parse_address(value)


@dataclass(frozen=True)
class _SourceAddresses(Kind):
    """Addresses that return legs leave from: one host's own, one of each family at most."""

    metavar = "ADDRESS"
    repeatable = True

    @property
    def expects(self) -> str:
        return "a numeric address of this host, at most one of IPv4 and one of IPv6"

    def read(self, text: str) -> str:
        return parse_address(text)

    def check(self, value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            value = (value,)
        if not isinstance(value, Iterable):
            raise ValueError
        addresses = tuple(parse_address(item) for item in value)
        if any(address in ("0.0.0.0", "::") for address in addresses):
            raise ValueError
        if len({":" in address for address in addresses}) != len(addresses):
            raise ValueError
        return addresses

    def show(self, value: Iterable[str]) -> str:
        return ", ".join(value)


@dataclass(frozen=True)
class _Networks(Kind):
    """Networks of peers, without the order or the repetitions that they came in."""

    metavar = "NETWORK"
    repeatable = True

    @property
    def expects(self) -> str:
        return EXPECTED

    def read(self, text: str) -> str:
        return parse_network(text)

    def check(self, value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            return (parse_network(value),)
        if not isinstance(value, Iterable):
            raise ValueError
        networks = dict.fromkeys(self._named(item) for item in value)
        return tuple(networks)

    def show(self, value: Iterable[str]) -> str:
        return ", ".join(value)

    def _named(self, item: object) -> str:
        try:
            return parse_network(item)
        except ValueError as error:
            raise ValueError(f"{quoted(item)}: {str(error) or f'expected {EXPECTED}'}") from None


@dataclass(frozen=True)
class _Flag(Kind):
    """On or off; on the command line an option without a value."""

    is_flag = True

    @property
    def expects(self) -> str:
        return "true or false"

    def read(self, text: str) -> bool:
        if text not in ("true", "false"):
            raise ValueError
        return text == "true"

    def check(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    def show(self, value: bool) -> str:
        return "true" if value else "false"


@dataclass(frozen=True)
class _Choice(Kind):
    """One word of a few."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "metavar", "|".join(self.words))

    @property
    def expects(self) -> str:
        return f"one of {', '.join(self.words)}"

    def read(self, text: str) -> str:
        return self.check(text.lower())

    def check(self, value: object) -> str:
        if value not in self.words:
            raise ValueError
        return str(value)


def _setting(kind: Kind, default: object, help: str, *, otherwise: str = "") -> Any:
    return field(default=default, metadata={"kind": kind, "help": help, "otherwise": otherwise})


#: of connections and seconds: as the core has it
_MOST_CONNECTIONS = (1 << 24) - 1
_LONGEST = 7 * 86400.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The value of every setting, and as class attributes the defaults."""

    bind: str | None = _setting(
        _Address(),
        None,
        "Listen on ADDRESS where a mapping names none.",
        otherwise="all of IPv4 and IPv6",
    )
    return_port: int | None = _setting(
        _Port(),
        None,
        "Return to PORT where a mapping names no return port.",
        otherwise="the listening port's own number",
    )
    return_source: tuple[str, ...] = _setting(
        _SourceAddresses(),
        (),
        "Return legs leave from ADDRESS, an address of this host; give it once for IPv4, once "
        "for IPv6.",
        otherwise="the address that the peer dialled",
    )
    workers: int | None = _setting(
        _Count("threads", 1, 256),
        None,
        "Threads that move the bytes.",
        otherwise="one per usable CPU",
    )
    max_connections: int | None = _setting(
        _Count("connections", 1, _MOST_CONNECTIONS),
        None,
        "Connections at once; more wait in the backlog.",
        otherwise="what the open-file limit carries, said at start",
    )
    max_per_source: int = _setting(
        _Count("connections", 1, _MOST_CONNECTIONS),
        512,
        "Connections at once from one address; more are reset. Bounds loops too.",
    )
    allow: tuple[str, ...] = _setting(
        _Networks(),
        (),
        "Serve the peers in NETWORK, such as 192.0.2.0/24; may be repeated. With any --allow, "
        "peers in no network given are denied.",
        otherwise="all peers",
    )
    deny: tuple[str, ...] = _setting(
        _Networks(),
        (),
        "Reset the peers in NETWORK; may be repeated. Of several networks that a peer is in, the "
        "smallest decides.",
        otherwise="none",
    )
    share_ports: bool = _setting(
        _Flag(),
        False,
        "Let another reflector of the same user that has this option too listen on the same "
        "ports, and so take them over: start the new one, then stop the old one.",
        otherwise="a port that is taken is an error",
    )
    connect_timeout: float = _setting(
        _Duration(0.001, 3600), 3.0, "Reset when the peer has not taken the return leg by then."
    )
    idle_timeout: float = _setting(
        _Duration(0.001, _LONGEST), 600.0, "Reset when no byte has moved for that long."
    )
    half_close_timeout: float = _setting(
        _Duration(0.001, _LONGEST),
        60.0,
        "Reset when one side has ended and no byte has moved for that long.",
    )
    drain_timeout: float = _setting(
        _Duration(0, 86400),
        30.0,
        "On SIGTERM or SIGINT: how long running connections may go on before they are reset.",
    )
    log_level: str = _setting(
        _Choice(("debug", "info", "warning", "error")), "info", "Log this and what is graver."
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
