"""The end of a run in the terminal: a table for each group, the targets, and what is missing."""

import sys
from collections.abc import Callable, Iterator
from typing import Literal, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from versus import view
from versus.record import OWN, Metric, ProxyInfo, Record, Summary, Work
from versus.targets import Verdict, judge_all

#: where the output is no terminal
PLAIN_COLUMNS = 100

_RATIO_HEAD = "ratio to best rival"


def show(record: Record, file: TextIO | None = None, width: int | None = None) -> None:
    """Print the tables of a record, to stdout or the stream given.

    `width` is in columns; without it the terminal's own, or 100 where there is none.
    """
    console = Console(file=file or sys.stdout, highlight=False, width=width)
    if width is None and not console.is_terminal:
        console.width = PLAIN_COLUMNS
    seen = view.less_direct(record)
    console.print(Text(view.setting_line(seen), "dim"))
    for group in view.groups(seen):
        console.print()
        console.print(Text(view.group_title(group), "bold underline"))
        _GroupTable(seen, group, console.width).print(console)
    console.print()
    console.print(Text(_legend(seen), "dim"))
    console.print()
    console.print(_targets(seen))
    if seen.missing:
        console.print()
        console.print(Text("Not measured", "bold underline"))
        for one in seen.missing:
            console.print(Text.assemble((one.what, "bold"), f": {one.why}"))


def compare(record: Record, old: Record, file: TextIO | None = None) -> None:
    """Print reflector's own numbers of a record beside those of another, older one.

    The two ran at different times: their medians are compared, not their rounds.
    """
    console = Console(file=file or sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_COLUMNS
    console.print(Text("reflector, beside an older record", "bold underline"))
    console.print(Text(f"old: {view.setting_line(old)}\nnew: {view.setting_line(record)}", "dim"))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("")
    for head in ("old", "new", "new / old"):
        table.add_column(head, justify="right", no_wrap=True)
    before, now = view.less_direct(old), view.less_direct(record)
    for group in view.groups(now):
        for work in view.measured_works(now, group):
            rows = list(_compared(before, now, work))
            if rows:
                table.add_row(Text(view.work_title(work), "bold cyan"))
            for row in rows:
                table.add_row(*row)
    console.print(table if table.row_count else "nothing that both have measured")


def _compared(before: Record, now: Record, work: Work) -> Iterator[tuple[str, str, str, Text]]:
    for metric in view.main_metrics(now, work):
        old = before.summary(work.key, OWN, metric.key)
        new = now.summary(work.key, OWN, metric.key)
        if old is None or new is None:
            continue
        share = Text("-", "dim")
        if old.median:
            style = "green" if metric.best((new.median, old.median)) == new.median else "yellow"
            share = Text(view.ratio(new.median / old.median), style)
        arrow = " ↑" if metric.better == "high" else ""
        label = f"  {view.short_label(metric, work.group)}{arrow}"
        first, second = (view.number(one.median, metric.decimals) for one in (old, new))
        yield label, first, second, share


class _GroupTable:
    """The table of one group: under each work's title its metrics, a column for each proxy.

    Each work is a table of its own for rich, so that titles may be as wide as the screen; widths
    are therefore reckoned here, once for all of them.
    """

    def __init__(self, record: Record, group: str, width: int) -> None:
        self._record = record
        self._group = group
        self._proxies = view.measured_proxies(record, group)
        self._wide = True
        self._widths = self._reckon()
        if sum(self._widths) + len(self._widths) - 1 > width:
            # Narrow: the medians alone, and those in short.
            self._wide = False
            self._widths = self._reckon()

    def print(self, console: Console) -> None:
        """Print the table."""
        for number, work in enumerate(view.measured_works(self._record, self._group)):
            if number == 0:
                console.print(self._grid(header=True))
            console.print(Text(view.work_title(work), "bold cyan"))
            grid = self._grid()
            for row in self._rows(work):
                grid.add_row(*row)
            console.print(grid)

    def _rows(self, work: Work) -> Iterator[list[Text]]:
        for metric in view.main_metrics(self._record, work):
            arrow = " ↑" if metric.better == "high" else ""
            label = Text(view.short_label(metric, self._group) + arrow)
            yield [
                label,
                *(self._cell(work, proxy, metric) for proxy in self._proxies),
                self._ratio(work, metric),
            ]

    def _cell(self, work: Work, proxy: ProxyInfo, metric: Metric) -> Text:
        summary = self._record.summary(work.key, proxy.key, metric.key)
        if summary is None:
            return Text("-", "dim")
        text = Text(
            view.number(summary.median, metric.decimals)
            if self._wide
            else view.compact(summary.median)
        )
        compared = view.is_compared(metric, self._group)
        if compared and view.best_proxy(self._record, work.key, metric) == proxy.key:
            text = Text(f"*{text.plain}", "bold green")
        return self._with_spread(text, summary, view.spread)

    def _ratio(self, work: Work, metric: Metric) -> Text:
        if not view.is_compared(metric, self._group):
            return Text("")
        summary = self._record.ratio(work.key, metric.key, "best")
        if summary is None:
            return Text("-", "dim")
        ahead = summary.median <= 1 if metric.better == "low" else summary.median >= 1
        text = Text(view.ratio(summary.median), "bold green" if ahead else "bold yellow")
        return self._with_spread(text, summary, view.ratio_spread)

    def _with_spread(
        self, text: Text, summary: Summary, form: Callable[[float, float], str]
    ) -> Text:
        if self._wide and summary.rounds > 1:
            return Text.assemble(text, (f"\n{form(summary.least, summary.most)}", "dim"))
        return text

    def _reckon(self) -> list[int]:
        heads = ["", *(proxy.name for proxy in self._proxies), _RATIO_HEAD]
        widths = [max((len(word) for word in head.split()), default=0) for head in heads]
        if self._wide:
            widths[-1] = len("ratio to ")  # in three lines, not in four
        for work in view.measured_works(self._record, self._group):
            for row in self._rows(work):
                for column, cell in enumerate(row):
                    longest = max(len(line) for line in cell.plain.split("\n"))
                    widths[column] = max(widths[column], longest)
        return widths

    def _grid(self, header: bool = False) -> Table:
        vertical: Literal["bottom", "top"] = "bottom" if header else "top"
        table = Table(
            box=None, show_header=header, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold"
        )
        table.add_column("", width=self._widths[0])
        heads = [
            *(Text(proxy.name, "bold" if view.is_own(proxy) else "") for proxy in self._proxies),
            Text(_RATIO_HEAD),
        ]
        for head, width in zip(heads, self._widths[1:], strict=True):
            table.add_column(head, width=width, justify="right", vertical=vertical)
        return table


def _legend(record: Record) -> str:
    spread = "the least and the most below it" if record.rounds > 1 else "of one round: no spread"
    return (
        f"Each number is the median over the rounds, {spread}. ↑: more is better, elsewhere less. "
        "*: the best proxy in user space. CPU is that of the proxy's processes; machine is all CPU "
        "of the machine, both ends and the load included. Ratios are reflector's number divided by "
        "that of the best rival in user space, taken round by round."
    )


def _targets(record: Record) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("Target: a ratio")
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for verdict in judge_all(record):
        style = {True: "green", False: "yellow", None: "dim"}[verdict.met]
        table.add_row(
            verdict.target.what, limit(verdict), measured(verdict), Text(in_words(verdict), style)
        )
    return table


def limit(verdict: Verdict) -> str:
    """Return the limit of a target, with its sense as a sign."""
    sign = "≤" if verdict.target.sense == "at most" else "≥"
    return f"{sign} {verdict.target.limit:.2f}"


def measured(verdict: Verdict) -> str:
    """Return what was measured for a target, with the spread where there is one."""
    summary = verdict.measured
    if summary is None:
        return "-"
    text = view.ratio(summary.median)
    if summary.rounds > 1:
        text += f" ({view.ratio_spread(summary.least, summary.most)})"
    return text


def in_words(verdict: Verdict) -> str:
    """Return whether a target is met, and by how much not."""
    if verdict.short_by is None:
        return "not measured" if verdict.met is None else "met"
    return f"fell short by {view.percent(verdict.short_by)}"
