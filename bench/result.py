"""A figure: what was measured, what it should be, and whether it is."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Figure:
    """One measured value beside its target.

    `value` is None when it could not be measured; `note` then says why. `details` go into the JSON
    record, `lines` below the table.
    """

    name: str
    what: str
    unit: str
    value: float | None = None
    target: float | None = None
    at_least: bool = False
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """In words: pass, fell short, not measured, or nothing where there is no target."""
        if self.value is None:
            return "not measured"
        if self.target is None:
            return ""
        holds = self.value >= self.target if self.at_least else self.value <= self.target
        return "pass" if holds else "fell short"

    @property
    def failed(self) -> bool:
        """Whether there is a target that was not shown to be met."""
        return self.verdict not in ("pass", "")

    def as_dict(self) -> dict[str, Any]:
        """Return what goes into the JSON record."""
        record = asdict(self)
        del record["lines"]
        return {**record, "verdict": self.verdict}

    def row(self) -> tuple[str, str, str, str]:
        """Return the cells of the table: figure, measured, target, verdict."""
        measured = "-" if self.value is None else f"{_number(self.value)} {self.unit}"
        target = ""
        if self.target is not None:
            target = f"{'at least' if self.at_least else 'at most'} {_number(self.target)}"
        return self.what, measured, target, self.verdict


def _number(value: float) -> str:
    if value >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 10 else f"{value:.1f}"


def show(figures: list[Figure]) -> str:
    """Return the table, and below it what belongs to its rows."""
    rows = [("figure", "measured", "target", ""), *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    out = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    for figure in figures:
        lines = [*([figure.note] if figure.note else []), *figure.lines]
        if lines:
            out += ["", f"{figure.what}:", *(f"  {line}" for line in lines)]
    return "\n".join(out)
