"""docs/BENCHMARKS.md, made from a record: the same bytes for the same record.

The words are in BENCHMARKS.md.in beside this file, the numbers come from the record, and one part
of the page is written by hand: what stands between two markers is kept as it is.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from string import Template

from versus import plots, view
from versus.record import Metric, ProxyInfo, Record, Summary, Work
from versus.table import in_words, limit, measured
from versus.targets import judge_all

PAGE = "BENCHMARKS.md"
FOLDER = "bench"  # beside the page: plots and record
RECORD = "record.json"

KEPT_FROM = "<!-- tuning: kept by hand -->"
KEPT_TO = "<!-- end of tuning -->"

_NO_TUNING = f"""{KEPT_FROM}

## Tuning: what won, tried and left

Nothing is written down yet.

{KEPT_TO}"""

_TEMPLATE = Path(__file__).with_name("BENCHMARKS.md.in")
_RIVALS = "../bench/versus/rivals"

#: by proxy, what its settings are, as Markdown
_SETTINGS = {
    "reflector": "`reflector --return-port 2222 10022`",
    "mirror": "`reflector --engine mirror --return-port 2222 10022`",
    "nginx": f"[nginx.conf]({_RIVALS}/nginx.conf)",
    "haproxy": f"[haproxy.cfg]({_RIVALS}/haproxy.cfg)",
    "haproxy_1m": f"[haproxy-1m.cfg]({_RIVALS}/haproxy-1m.cfg)",
    "socat": f"[socat.sh]({_RIVALS}/socat.sh)",
    "nft": f"[nftables.nft]({_RIVALS}/nftables.nft)",
    "reflector01": f"[reflector-0.1.txt]({_RIVALS}/reflector-0.1.txt)",
    "direct": "no proxy at all",
}

_KINDS = {"proxy": "in user space", "kernel": "in the kernel", "none": "-"}

_SETTING_LABELS = {
    "when": "when",
    "kernel": "Linux",
    "cpu": "CPU",
    "cpus": "CPUs",
    "memory_gb": "memory, GiB",
    "load_average": "load average before",
    "python": "Python",
    "reflector": "reflector",
    "commit": "commit",
    "build": "build",
    "congestion_control": "congestion control of TCP",
    "workers": "workers of each proxy",
    "file_limit": "open files of each process, at most",
}


class NotKept(ValueError):
    """The part that is kept by hand cannot be told from the rest of the page."""


def write(record: Record, directory: Path) -> list[Path]:
    """Write the page, its plots and the record into `directory`, and return their paths.

    Raises NotKept, before anything is written, where an old page lacks the markers around the part
    that is kept by hand.
    """
    page = directory / PAGE
    tuning = kept(page)
    folder = directory / FOLDER
    drawn = plots.draw(record, folder)
    _replace(folder / RECORD, compact_json(record))
    _replace(page, render(record, drawn, tuning))
    return [page, folder / RECORD, *(folder / f"{plot.name}.svg" for plot in drawn)]


def kept(page: Path) -> str:
    """Return the part of a page that is kept by hand, with its markers; a stub without a page.

    Raises NotKept where the markers are not there, once each and in order.
    """
    try:
        # Not read_text, which would turn the ends of lines into those of this system.
        text = page.read_bytes().decode()
    except FileNotFoundError:
        return _NO_TUNING
    start, end = text.find(KEPT_FROM), text.find(KEPT_TO)
    if text.count(KEPT_FROM) != 1 or text.count(KEPT_TO) != 1 or end < start:
        raise NotKept(
            f"{page} must have the lines {KEPT_FROM!r} and {KEPT_TO!r}, once each and in this "
            "order: what is between them is kept. Put them in, or move the page away."
        )
    return text[start : end + len(KEPT_TO)]


def compact_json(record: Record) -> str:
    """Return the record as JSON without blanks, its keys in order."""
    return json.dumps(
        asdict(record), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ) + "\n"  # fmt: skip


def render(record: Record, drawn: Sequence[plots.Plot], tuning: str) -> str:
    """Return the page, with these plots and this hand-written part."""
    seen = view.less_direct(record)
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        summary=_summary(seen),
        targets=_targets(seen),
        rivals=_rivals(seen),
        setting=_setting(seen),
        results="\n\n".join(_group(seen, group, drawn) for group in view.groups(seen)),
        missing=_missing(seen),
        tuning="\0",  # put in last, so that nothing else changes it
    )
    return text.replace("\0", tuning)


def _summary(record: Record) -> str:
    verdicts = judge_all(record)
    met = sum(verdict.met is True for verdict in verdicts)
    unknown = sum(verdict.met is None for verdict in verdicts)
    text = f"Of the {len(verdicts)} targets {met} are met"
    text += f", {len(verdicts) - met - unknown} are not"
    text += f", {unknown} were not measured." if unknown else "."
    if record.mode == "quick":
        text += f" This was a quick run: {_rounds(record)}, in short cells."
    return text


def _targets(record: Record) -> str:
    return _markdown(
        ["target", "limit", "measured", "verdict"],
        "lrrl",
        (
            [
                verdict.target.what,
                limit(verdict),
                measured(verdict),
                "**met**" if verdict.met else in_words(verdict),
            ]
            for verdict in judge_all(record)
        ),
    )


def _rivals(record: Record) -> str:
    rows = (
        [
            f"**{proxy.name}**" if view.is_own(proxy) else proxy.name,
            proxy.version,
            _KINDS.get(proxy.kind, proxy.kind),
            _SETTINGS.get(proxy.key, ""),
        ]
        for proxy in record.proxies
    )
    return _markdown(["proxy", "version", "where", "set up by"], "llll", rows)


def _setting(record: Record) -> str:
    rows = [
        [_SETTING_LABELS.get(key, key), f"{value:.2f}" if key == "load_average" else str(value)]
        for key, value in record.setting.items()
        if not isinstance(value, dict)
    ]
    # In this order whatever the order in the record, which is lost where keys are sorted.
    order = list(_SETTING_LABELS.values())
    rows.sort(key=lambda row: (order.index(row[0]) if row[0] in order else len(order), row[0]))
    tools = record.setting.get("tools")
    if isinstance(tools, dict) and tools:
        rows.append(["tools", ", ".join(f"{name} {tools[name]}" for name in sorted(tools))])
    rows.append(["run", f"{record.mode}, {_rounds(record)}, {view.duration(record.seconds)}"])
    return _markdown(["", ""], "ll", rows)


def _rounds(record: Record) -> str:
    return "1 round" if record.rounds == 1 else f"{record.rounds} rounds"


def _missing(record: Record) -> str:
    lines = [f"- {one.what}: {one.why}" for one in record.missing]
    return "\n".join(lines) if lines else "Nothing: every proxy did all the work."


# --- groups ---------------------------------------------------------------------------------------


def _group(record: Record, group: str, drawn: Sequence[plots.Plot]) -> str:
    parts = [f"### {view.group_title(group)}"]
    parts += [f"![{plot.what}]({FOLDER}/{plot.name}.svg)" for plot in drawn if plot.group == group]
    parts.append(_numbers(record, group, view.main_metrics))
    further = _numbers(record, group, view.further_metrics)
    if further:
        parts.append(f"<details><summary>Further numbers</summary>\n\n{further}\n\n</details>")
    return "\n\n".join(parts)


def _numbers(
    record: Record, group: str, metrics: Callable[[Record, Work], Sequence[Metric]]
) -> str:
    """Return the table of a group: works and metrics down, proxies across; "" without a row."""
    proxies = view.measured_proxies(record, group)
    rows = []
    for work in view.measured_works(record, group):
        # The title stands at the first row of its work alone.
        title = view.work_title(work)
        for metric in metrics(record, work):
            rows.append(
                [
                    title,
                    view.long_label(metric, group),
                    *(_cell(record, work, proxy, metric) for proxy in proxies),
                    _ratio(record, work, metric),
                ]
            )
            title = ""
    heads = ["", "", *(proxy.name for proxy in proxies), "ratio to best rival"]
    return _markdown(heads, "ll" + "r" * (len(heads) - 2), rows) if rows else ""


def _cell(record: Record, work: Work, proxy: ProxyInfo, metric: Metric) -> str:
    summary = record.summary(work.key, proxy.key, metric.key)
    if summary is None:
        return ""
    text = view.number(summary.median, metric.decimals)
    best = view.best_proxy(record, work.key, metric)
    if view.is_compared(metric, work.group) and best == proxy.key:
        text = f"**{text}**"
    return text + _spread(summary, view.spread)


def _ratio(record: Record, work: Work, metric: Metric) -> str:
    if not view.is_compared(metric, work.group):
        return ""
    summary = record.ratio(work.key, metric.key, "best")
    if summary is None:
        return ""
    return view.ratio(summary.median) + _spread(summary, view.ratio_spread)


def _spread(summary: Summary, form: Callable[[float, float], str]) -> str:
    if summary.rounds < 2:
        return ""
    return f"<br><sub>{form(summary.least, summary.most)}</sub>"


# --- Markdown and files ---------------------------------------------------------------------------


def _markdown(heads: Sequence[str], sides: str, rows: Iterable[Sequence[str]]) -> str:
    """Return a table; `sides` has an l or r for each column."""
    rules = [{"l": "---", "r": "--:"}[side] for side in sides]
    lines = [heads, rules, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_bytes(text.encode())
    os.replace(beside, path)
