"""The plots of docs/BENCHMARKS.md, as SVG: the same bytes for the same record.

They have no background, and one grey for text and axes that is as far from white as from the dark
pages of a code host (4.3:1): readable on both. A proxy has the same colour in all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from versus import view
from versus.record import ProxyInfo, Record, Summary, Work

GREY = "#777d87"

#: colours that stand out from each other, and from white and near-black alike
_COLOURS = {
    "reflector": "#e5532d",
    "mirror": "#e0952f",
    "nginx": "#2f9e5f",
    "haproxy": "#3f7fd0",
    "socat": "#b78a1e",
    "nft": "#9a6bd0",
    "reflector01": "#c77f8f",
    "direct": "#8a9099",
}
_MARKERS = {
    "reflector": "o",
    "nginx": "s",
    "haproxy": "^",
    "socat": "v",
    "nft": "D",
    "direct": "x",
    "mirror": "P",
}
_OTHER_COLOUR = "#4ba3a3"

#: so slow at some work that they would squeeze the others' bars: cut off where they leave the scale
_SLOW = frozenset({"socat", "reflector01"})

_STYLE: Any = {  # matplotlib's stubs want a dict of literal keys
    "svg.fonttype": "none",
    "svg.hashsalt": "reflector",
    # The first comes with matplotlib, so that the layout is the same everywhere; a reader who has
    # it not sees the next, which is as wide, or narrower ones.
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.titlecolor": GREY,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
}

_WIDTH = 9.0  # inches
_BAR = 0.27  # inches

Values = Callable[[Work, ProxyInfo], Summary | None]


@dataclass(frozen=True)
class Plot:
    """A plot: its file's name without the ending, the group it belongs to, and what it shows."""

    name: str
    group: str
    what: str
    make: Callable[[Record], Figure | None]


def draw(record: Record, directory: Path) -> list[Plot]:
    """Draw all plots that the record has values for into a directory, and return them.

    A plot that it has none for is removed, so that none is left of another run.
    """
    directory.mkdir(parents=True, exist_ok=True)
    seen = view.less_direct(record)
    drawn = []
    with matplotlib.rc_context(_STYLE):
        for plot in PLOTS:
            path = directory / f"{plot.name}.svg"
            figure = plot.make(seen)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            figure.savefig(
                path, transparent=True, metadata={"Date": None, "Creator": None, "Title": plot.what}
            )
            _trim(path)
            drawn.append(plot)
    return drawn


def _trim(path: Path) -> None:
    """Take away the blanks at the ends of lines, which the project's files do not have."""
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


# --- what is plotted ------------------------------------------------------------------------------


def _check_rate(record: Record) -> Figure | None:
    by_place = {
        (work.parameters.get("at_a_time", 0), work.parameters.get("nodes", 0)): work
        for work in view.measured_works(record, "check")
    }
    ats = sorted({at for at, _ in by_place})
    # A number of nodes that one work alone has would be a column of its own, empty but for that.
    counts = {n: sum(nodes == n for _, nodes in by_place) for _, n in by_place}
    columns = sorted(n for n, count in counts.items() if count > 1) or sorted(counts)
    grid = [[by_place.get((at, nodes)) for nodes in columns] for at in ats]
    grid = [row for row in grid if any(row)]

    def title(work: Work) -> str:
        at, nodes = work.parameters.get("at_a_time", 0), work.parameters.get("nodes", 0)
        return f"{at:,} at a time, {nodes:,} node{'s' * (nodes != 1)}"

    def panel(work: Work | None) -> _Panel | None:
        return _Panel(title(work), work, _metric(record, "rate")) if work else None

    panels = [[panel(work) for work in row] for row in grid]
    return _bars(record, "Checks per second (longer is better)", panels)


def _check_cpu(record: Record) -> Figure | None:
    work = _headline(record)
    title = f"CPU per check, µs (shorter is better): {work.title}" if work else ""
    return _bars(record, title, [_cpu_panels(record, work, "cpu_us", "machine_us")])


def _bulk(record: Record) -> Figure | None:
    def gigabytes(metric: str) -> Values:
        def value(work: Work, proxy: ProxyInfo) -> Summary | None:
            costs = record.by_round(work.key, proxy.key, metric).values()
            return Summary.of(1000 / cost for cost in costs if cost)

        return value

    grid: list[list[_Panel | None]] = [
        [
            _Panel(view.work_title(work), work, gigabytes("cpu_ms_per_gb"), 2),
            _Panel("by the whole machine's CPU", work, gigabytes("machine_ms_per_gb"), 2),
        ]
        for work in view.measured_works(record, "bulk")
    ]
    return _bars(record, "GB per second of the proxy's CPU (longer is better)", grid)


def _memory(record: Record) -> Figure | None:
    works = view.measured_works(record, "held")
    grid: list[list[_Panel | None]] = [
        [
            _Panel(f"{work.title}: user memory", work, _metric(record, "user_bytes")),
            _Panel("kernel memory, less that of direct", work, _metric(record, "kernel_bytes")),
        ]
        for work in works
    ]
    return _bars(record, "Memory per held connection, bytes (shorter is better)", grid)


def _latency(record: Record) -> Figure | None:
    works = [work for work in (_headline(record), *view.measured_works(record, "mix")) if work]
    steps = {"p50_us": "p50", "p99_us": "p99", "p999_us": "p99.9"}
    works = [work for work in works if any(m.key in steps for m in record.metrics_of(work.key))]
    if not works:
        return None
    figure = _figure("Latency of a check (lower is better)", 3.9)
    for axes, work in zip(_row(figure, len(works), sharey=True), works, strict=True):
        axes.set_title(view.work_title(work))
        for proxy in record.proxies:
            points = [
                (index, _milli(summary))
                for index, key in enumerate(steps)
                if (summary := record.summary(work.key, proxy.key, key))
            ]
            _line(axes, proxy, points)
        axes.set_xticks(range(len(steps)), list(steps.values()))
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ms"))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(axis="y")
    _key(figure, record, works)
    return figure


def _nodes(record: Record) -> Figure | None:
    title = "CPU per check as nodes grow, µs (lower is better)"
    return _curves(record, "nodes", title, "node addresses")


def _holding(record: Record) -> Figure | None:
    title = "CPU per check as held connections grow, µs (lower is better)"
    return _curves(record, "holding", title, "connections held meanwhile")


PLOTS = (
    Plot("check-rate", "check", "Checks per second of each proxy", _check_rate),
    Plot("check-cpu", "check", "CPU per check, of the proxy and of the machine", _check_cpu),
    Plot("latency", "check", "Latency of a check: p50, p99 and p99.9", _latency),
    Plot("nodes", "nodes", "CPU per check from 10 to 100,000 nodes", _nodes),
    Plot("holding", "holding", "CPU per check beside 100 to 30,000 held connections", _holding),
    Plot("bulk", "bulk", "GB per second of CPU, of the proxy and of the machine", _bulk),
    Plot("memory", "held", "Memory per held connection, user and kernel", _memory),
)


def _headline(record: Record) -> Work | None:
    """Return the work that stands for all checks: the one with a target, or the nearest to it."""
    works = view.measured_works(record, "check")
    at_64 = [work for work in works if work.parameters.get("at_a_time") == 64]
    named = [work for work in works if work.key == "check-64-20000"]
    return next(iter([*named, *at_64, *works]), None)


def _metric(record: Record, metric: str) -> Values:
    return lambda work, proxy: record.summary(work.key, proxy.key, metric)


def _milli(of: Summary) -> Summary:
    return Summary(of.median / 1e3, of.least / 1e3, of.most / 1e3, of.rounds)


# --- bars -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Panel:
    """The bars of one work: a value for each proxy."""

    title: str
    work: Work
    values: Values
    decimals: int = 0


def _cpu_panels(record: Record, work: Work | None, own: str, machine: str) -> list[_Panel | None]:
    if work is None:
        return []
    return [
        _Panel("of the proxy", work, _metric(record, own), 1),
        _Panel("of the whole machine", work, _metric(record, machine), 1),
    ]


def _bars(record: Record, title: str, grid: Sequence[Sequence[_Panel | None]]) -> Figure | None:
    """Draw a grid of panels; in each row the same proxies. None where nothing was measured."""
    rows = []
    for panels in grid:
        proxies = [
            proxy for proxy in record.proxies if any(p and p.values(p.work, proxy) for p in panels)
        ]
        if proxies:
            rows.append((panels, proxies))
    if not rows:
        return None
    heights = [len(proxies) * _BAR + 0.55 for _, proxies in rows]
    figure = _figure(title, sum(heights) + 0.5)
    grid_axes = figure.subplots(
        len(rows), len(rows[0][0]), squeeze=False, sharey="row", height_ratios=heights
    )
    for axes_row, (panels, proxies) in zip(grid_axes, rows, strict=True):
        for axes, panel in zip(axes_row, panels, strict=True):
            axes.tick_params(left=False, bottom=False, labelbottom=False)
            axes.spines["bottom"].set_visible(False)
            axes.spines["left"].set_visible(panel is not None)
            if panel:
                _fill(axes, panel, proxies)
        # The axes of a row share these.
        axes_row[0].set_ylim(len(proxies) - 0.4, -0.6)
        axes_row[0].set_yticks(range(len(proxies)), [proxy.name for proxy in proxies])
        for label, proxy in zip(axes_row[0].get_yticklabels(), proxies, strict=True):
            label.set_fontweight("bold" if view.is_own(proxy) else "normal")
    return figure


def _fill(axes: Axes, panel: _Panel, proxies: Sequence[ProxyInfo]) -> None:
    values = {proxy.key: panel.values(panel.work, proxy) for proxy in proxies}
    tops = {key: summary.most for key, summary in values.items() if summary}
    fair = [top for key, top in tops.items() if key not in _SLOW] or list(tops.values()) or [1.0]
    end = max(max(fair), 1e-9) * 1.05
    axes.set_title(panel.title, loc="left")
    axes.set_xlim(0, end * 1.25)
    for y, proxy in enumerate(proxies):
        _bar(axes, y, proxy, values[proxy.key], panel.decimals, end)


def _bar(
    axes: Axes, y: int, proxy: ProxyInfo, summary: Summary | None, decimals: int, end: float
) -> None:
    if summary is None:
        why = "not measured" if proxy.kind == "proxy" else "no process of its own"
        axes.text(end * 0.01, y, why, va="center", fontsize=8, style="italic")
        return
    # What the kernel does is no rival in user space: paler.
    solid = 1.0 if proxy.kind == "proxy" else 0.5
    axes.barh(y, min(summary.median, end), 0.72, color=_colour(proxy), alpha=solid, linewidth=0)
    if summary.rounds > 1 and summary.most <= end:
        axes.plot([summary.least, summary.most], [y, y], color=GREY, linewidth=1.2)
    text = view.number(summary.median, decimals) + (" (cut off)" if summary.median > end else "")
    weight = "bold" if view.is_own(proxy) else "normal"
    # Memory of the kernel less that of direct may come out below nothing.
    at = min(max(summary.most, 0), end) + end * 0.035
    axes.text(at, y, text, va="center", fontsize=9, weight=weight)


# --- lines ----------------------------------------------------------------------------------------


def _curves(record: Record, group: str, title: str, along: str) -> Figure | None:
    """Draw the CPU per check along a group's works, whose keys end in the number that grows."""
    works = [work for work in view.measured_works(record, group) if _grown(work)]
    if not works:
        return None
    figure = _figure(title, 3.9)
    kinds = {"cpu_us": "of the proxy", "machine_us": "of the whole machine"}
    for axes, (metric, what) in zip(_row(figure, len(kinds)), kinds.items(), strict=True):
        axes.set_title(what, loc="left")
        for proxy in record.proxies:
            points = [
                (_grown(work), summary)
                for work in works
                if (summary := record.summary(work.key, proxy.key, metric))
            ]
            _line(axes, proxy, points)
        axes.set_xscale("log")
        numbers = [_grown(work) for work in works]
        axes.xaxis.set_major_locator(FixedLocator(numbers))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel(along)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
        axes.grid(axis="y")
    _key(figure, record, works)
    return figure


def _grown(work: Work) -> int:
    last = work.key.rpartition("-")[2]
    return int(last) if last.isdigit() else 0


def _line(axes: Axes, proxy: ProxyInfo, points: Sequence[tuple[float, Summary]]) -> None:
    if not points:
        return
    medians = [summary.median for _, summary in points]
    below = [summary.median - summary.least for _, summary in points]
    above = [summary.most - summary.median for _, summary in points]
    axes.errorbar(
        [x for x, _ in points], medians, (below, above), **_look(proxy), elinewidth=1, capsize=2.5
    )


def _look(proxy: ProxyInfo) -> dict[str, Any]:
    """Return how a line looks: the project's own is the thickest, the kernel's are dashed."""
    own = view.is_own(proxy)
    return {
        "color": _colour(proxy),
        "marker": _MARKERS.get(proxy.key, "P"),
        "markersize": 6 if own else 4.5,
        "linewidth": 2.6 if own else 1.4,
        "linestyle": "-" if proxy.kind == "proxy" else "--",
        "zorder": 3 if own else 2,
    }


def _colour(proxy: ProxyInfo) -> str:
    return _COLOURS.get(proxy.key, _OTHER_COLOUR)


def _key(figure: Figure, record: Record, works: Sequence[Work]) -> None:
    """Put one key below all panels, of the proxies that were measured on these works."""
    keys = {work.key for work in works}
    measured = {sample.proxy for sample in record.samples if sample.work in keys and sample.values}
    shown = [proxy for proxy in record.proxies if proxy.key in measured]
    handles = [Line2D([], [], label=proxy.name, **_look(proxy)) for proxy in shown]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=max(1, len(shown)), frameon=False
    )


def _figure(title: str, height: float) -> Figure:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _row(figure: Figure, count: int, sharey: bool = False) -> list[Axes]:
    return list(figure.subplots(1, count, squeeze=False, sharey=sharey)[0])
