"""What values a setting may have: how they are read, checked and written down."""

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from reflector.errors import quoted
from reflector.mapping import parse_address
from reflector.networks import EXPECTED, parse_network


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
class Count(Kind):
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
class Port(Count):
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
class Duration(Kind):
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
class Address(Kind):
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
class SourceAddresses(Kind):
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
class Interfaces(Kind):
    """Names of network interfaces."""

    metavar = "NAME"
    repeatable = True

    @property
    def expects(self) -> str:
        return "the name of a network interface, such as eth0 (ip link lists them)"

    def read(self, text: str) -> str:
        return self._name(text)

    def check(self, value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            value = (value,)
        if not isinstance(value, Iterable):
            raise ValueError
        return tuple(dict.fromkeys(self._name(item) for item in value))

    def show(self, value: Iterable[str]) -> str:
        return ", ".join(value)

    def _name(self, text: object) -> str:
        # As the kernel has it (dev_valid_name): 15 bytes, no slash, colon or white space.
        if not isinstance(text, str) or not re.fullmatch(r"[^\s/:\0]{1,15}", text):
            raise ValueError
        if text in (".", "..") or len(os.fsencode(text)) > 15:
            raise ValueError
        return text


@dataclass(frozen=True)
class Networks(Kind):
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
class Flag(Kind):
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
class Choice(Kind):
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
