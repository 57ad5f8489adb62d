"""What the table, the documents and the plots have in common: names, order, forms of numbers.

Everything here is made from a record, and the same for the same record.
"""

from dataclasses import replace

from versus.record import METRICS, MIRROR, OWN, Metric, Missing, ProxyInfo, Record, Sample, Work

DIRECT = "direct"

#: groups in the order of the reports, with their titles
GROUPS = {
    "check": "Checks: connect, read a banner, close",
    "nodes": "The cost of a check as nodes grow",
    "holding": "The cost of a check beside held connections",
    "mix": "Checks beside bulk streams",
    "pingpong": "Ping-pong of 64 bytes",
    "latency": "Ping-pong, one stream",
    "bulk": "Bulk",
    "http": "HTTP requests with keep-alive",
    "held": "Held connections",
}

#: what the values of a group are counted by
_EACH = {"pingpong": "exchange", "latency": "exchange", "http": "request"}

#: by metric, the label where a column is narrow
_SHORT = {
    "rate": "{each}s/s",
    "cpu_us": "CPU, µs",
    "machine_us": "machine, µs",
    "p50_us": "p50, µs",
    "p99_us": "p99, µs",
    "p999_us": "p99.9, µs",
    "load_us": "generator, µs",
    "cpu_ms_per_gb": "CPU, ms/GB",
    "machine_ms_per_gb": "machine ms/GB",
    "mb_per_s": "MB/s",
    "user_bytes": "user, bytes",
    "kernel_bytes": "kernel, bytes",
    "steal_percent": "steal, %",
    "nodes_reached": "nodes",
}

#: conditions of a measurement, rather than results: nobody is best at them
_CONDITIONS = frozenset({"failed", "load_us", "nodes_reached", "steal_percent"})

#: what a schedule gives, and what the bulk streams beside the checks use up, each at its own speed
_NOT_COMPARED = frozenset({("mix", "rate"), ("mix", "cpu_us"), ("mix", "machine_us")})

#: left to the full tables, except in groups that are about them
_DETAILS = frozenset({"p50_us", "p999_us"})
_LATENCY_GROUPS = frozenset({"latency", "pingpong", "mix"})


def each(group: str) -> str:
    """Return what is counted in a group, in the singular: check, exchange or request."""
    return _EACH.get(group, "check")


def short_label(metric: Metric, group: str) -> str:
    """Return the name of a metric, with its unit, for a narrow column."""
    return _SHORT.get(metric.key, metric.label).format(each=each(group))


def long_label(metric: Metric, group: str) -> str:
    """Return the name of a metric, with its unit, in full."""
    if metric.key == "rate":
        return f"{each(group)}s per second"
    if metric.key == "kernel_bytes":
        return "kernel memory per connection, less that of direct, bytes"
    label = metric.label.replace(", each", f" per {each(group)}")
    if metric.key in ("cpu_us", "machine_us") and group == "mix":
        label += ", bulk included"
    return f"{label}, {metric.unit}" if metric.unit else label


def groups(record: Record) -> list[str]:
    """Return the groups that have samples, in the order of the reports."""
    there = record.groups()
    return [key for key in GROUPS if key in there] + [key for key in there if key not in GROUPS]


def group_title(group: str) -> str:
    """Return the title of a group."""
    return GROUPS.get(group, group)


def work_title(work: Work) -> str:
    """Return the title of a work, as the beginning of a line."""
    return work.title[:1].upper() + work.title[1:]


def measured_works(record: Record, group: str) -> list[Work]:
    """Return the works of a group that have samples."""
    measured = {sample.work for sample in record.samples}
    return [work for work in record.works_of(group) if work.key in measured]


def measured_proxies(record: Record, group: str) -> list[ProxyInfo]:
    """Return the proxies that have samples in a group, in the order of the record."""
    works = {work.key for work in record.works_of(group)}
    measured = {sample.proxy for sample in record.samples if sample.work in works and sample.values}
    return [proxy for proxy in record.proxies if proxy.key in measured]


def main_metrics(record: Record, work: Work) -> list[Metric]:
    """Return the metrics of a work that everybody wants to see; failures only where there are any.

    Where the result of a group is latency, all of its percentiles are among them.
    """
    wanted = []
    for metric in _telling_metrics(record, work):
        if metric.key in ("cpu_us", "machine_us"):
            is_main = is_compared(metric, work.group)
        elif metric.key in _DETAILS:
            is_main = work.group in _LATENCY_GROUPS
        else:
            is_main = metric.key == "failed" or metric.key not in _CONDITIONS
        if is_main:
            wanted.append(metric)
    return wanted


def further_metrics(record: Record, work: Work) -> list[Metric]:
    """Return the other metrics of a work."""
    main = main_metrics(record, work)
    return [metric for metric in _telling_metrics(record, work) if metric not in main]


def _telling_metrics(record: Record, work: Work) -> list[Metric]:
    failures = any(
        sample.values.get("failed") for sample in record.samples if sample.work == work.key
    )
    metrics = record.metrics_of(work.key)
    return [metric for metric in metrics if metric.key != "failed" or failures]


def is_compared(metric: Metric, group: str) -> bool:
    """Return whether being better at a metric of a group means anything.

    It does not for conditions of the measurement, nor for what the mix itself brings about.
    """
    return metric.key not in _CONDITIONS and (group, metric.key) not in _NOT_COMPARED


def best_proxy(record: Record, work: str, metric: Metric) -> str | None:
    """Return the key of the proxy in user space with the best median, reflector among them.

    None where fewer than two were measured.
    """
    keys = [proxy.key for proxy in record.proxies if proxy.kind == "proxy"]
    medians = {
        key: summary.median for key in keys if (summary := record.summary(work, key, metric.key))
    }
    if len(medians) < 2:
        return None
    best = metric.best(medians.values())
    return next(key for key, median in medians.items() if median == best)


def number(value: float, decimals: int = 0) -> str:
    """Return a number with separators; one below 10 shows a decimal more than asked for."""
    if decimals == 0 and 0 < abs(value) < 10 and value != int(value):
        decimals = 1
    return f"{value:,.{decimals}f}"


def spread(least: float, most: float) -> str:
    """Return least and most in ten characters: three digits, thousands as k, millions as M."""
    first, last = compact(least), compact(most)
    if first[-1] == last[-1] and first[-1] in "kM":
        first = first[:-1]
    return f"{first}-{last}"


def ratio_spread(least: float, most: float) -> str:
    """Return least and most of a ratio."""
    return f"{ratio(least)}-{ratio(most)}"


def compact(value: float) -> str:
    """Return a number in five characters: three digits, thousands as k, millions as M."""
    for limit, divisor, letter in ((999_500, 1e6, "M"), (999.5, 1e3, "k")):
        if abs(value) >= limit:
            return f"{_three_digits(value / divisor)}{letter}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    if abs(value) >= 99.95 or value == 0:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def ratio(value: float) -> str:
    """Return a ratio; small ones with a decimal more."""
    return f"{value:.3f}" if abs(value) < 0.0995 else f"{value:,.2f}"


def percent(share: float) -> str:
    """Return a share as percent, with a decimal below 10 %, and never as nothing at all."""
    value = share * 100
    if 0 < value < 0.1:
        return "less than 0.1 %"
    return f"{value:,.1f} %" if value < 9.95 else f"{value:,.0f} %"


def setting_line(record: Record) -> str:
    """Return in one line what was measured on what: version, kernel, CPU, rounds, time."""
    of = record.setting
    rounds = "1 round" if record.rounds == 1 else f"{record.rounds} rounds"
    parts = [
        f"reflector {of.get('reflector', '?')} ({of.get('commit', '?')})",
        f"Linux {of.get('kernel', '?')}",
        f"{of.get('cpus', '?')} CPUs ({of.get('cpu', '?')})",
        f"{record.mode} run of {rounds} in {duration(record.seconds)}",
    ]
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a time in minutes and seconds, or hours."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def less_direct(record: Record) -> Record:
    """Return the record with the kernel memory of a connection less that of direct, per round.

    A sample holds the growth of the whole machine's kernel memory, in which both ends have their
    sockets too; direct has nothing else. Where direct was not measured in a round, the value of
    that round is left out; where it never was, the record says so among what is missing.
    """
    key = "kernel_bytes"
    direct = {
        (sample.work, sample.round): sample.values[key]
        for sample in record.samples
        if sample.proxy == DIRECT and key in sample.values
    }
    samples = []
    for sample in record.samples:
        values = {name: value for name, value in sample.values.items() if name != key}
        base = direct.get((sample.work, sample.round))
        if key in sample.values and sample.proxy != DIRECT and base is not None:
            values[key] = sample.values[key] - base
        samples.append(Sample(sample.work, sample.proxy, sample.round, values))
    lacking = not direct and any(key in sample.values for sample in record.samples)
    note = Missing(METRICS[key].label, "direct, which is taken off, was not measured")
    return replace(record, samples=samples, missing=record.missing + [note] * lacking)


def is_own(proxy: ProxyInfo) -> bool:
    """Return whether this is the project's own reflector, of this checkout."""
    return proxy.key in (OWN, MIRROR)
