"""The record of a run: what was measured, where, and what the numbers come to.

The one definition of what a run hands to the table, the documents and the plots, and of the JSON
that it is kept in. Ratios are taken round by round, between cells that ran close to each other, and
only then summed up: what slows the whole machine for a minute slows both.
"""

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

#: the project's own key among the proxies
OWN = "reflector"
#: and that of its other engine, which is in the kernel
MIRROR = "mirror"


@dataclass(frozen=True)
class Metric:
    """What a value of a sample means: its unit, how it is shown, and which way is better."""

    key: str
    label: str
    unit: str
    decimals: int
    better: str  # "low" or "high"

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values, of which there is one at least."""
        return min(values) if self.better == "low" else max(values)


METRICS = {
    metric.key: metric
    for metric in (
        Metric("rate", "rate", "/s", 0, "high"),
        Metric("cpu_us", "CPU of the proxy, each", "µs", 1, "low"),
        Metric("machine_us", "CPU of the machine, each", "µs", 1, "low"),
        Metric("p50_us", "latency, p50", "µs", 0, "low"),
        Metric("p99_us", "latency, p99", "µs", 0, "low"),
        Metric("p999_us", "latency, p99.9", "µs", 0, "low"),
        Metric("load_us", "CPU of the load generator, each", "µs", 1, "low"),
        Metric("failed", "failed", "", 0, "low"),
        Metric("cpu_ms_per_gb", "CPU of the proxy per GB", "ms", 0, "low"),
        Metric("machine_ms_per_gb", "CPU of the machine per GB", "ms", 0, "low"),
        Metric("mb_per_s", "throughput", "MB/s", 0, "high"),
        Metric("user_bytes", "user memory per connection", "bytes", 0, "low"),
        Metric("kernel_bytes", "kernel memory per connection", "bytes", 0, "low"),
        Metric("nodes_reached", "nodes reached in the time", "", 0, "high"),
        Metric("steal_percent", "CPU time taken by the host of the machine", "%", 1, "low"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class ProxyInfo:
    """A proxy of the run. Its kind: "proxy" has processes, "kernel" and "none" have not."""

    key: str
    name: str
    version: str
    kind: str


@dataclass(frozen=True)
class Work:
    """A piece of work that every proxy is given; its group says which metrics it has."""

    key: str
    group: str
    title: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """What one cell measured: by metric key, one work of one proxy in one round."""

    work: str
    proxy: str
    round: int
    values: dict[str, float]


@dataclass(frozen=True)
class Missing:
    """What was not measured, by name, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Summary:
    """Some rounds in three numbers."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Summary | None":
        """Sum up the values of some rounds; None where there are none."""
        listed = list(values)
        if not listed:
            return None
        return cls(statistics.median(listed), min(listed), max(listed), len(listed))


@dataclass
class Record:
    """All of a run; `part` is empty where all of it was to be measured, and it came to its end."""

    setting: dict[str, Any] = field(default_factory=dict)
    mode: str = "full"
    part: str = ""
    rounds: int = 0
    seconds: float = 0.0
    proxies: list[ProxyInfo] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the record as JSON, the same for the same record."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Read a record. Raises ValueError, with the reason, where it is none."""
        try:
            data = json.loads(text)
            return cls(
                setting=dict(data["setting"]),
                mode=str(data["mode"]),
                part=str(data.get("part", "")),
                rounds=int(data["rounds"]),
                seconds=float(data["seconds"]),
                proxies=[ProxyInfo(**one) for one in data["proxies"]],
                works=[Work(**one) for one in data["works"]],
                samples=[Sample(**one) for one in data["samples"]],
                missing=[Missing(**one) for one in data["missing"]],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the record of a run: {error!r}") from None

    def groups(self) -> list[str]:
        """Return the groups that have samples, in the order of the works."""
        measured = {sample.work for sample in self.samples}
        return list(dict.fromkeys(work.group for work in self.works if work.key in measured))

    def works_of(self, group: str) -> list[Work]:
        """Return the works of a group, in order."""
        return [work for work in self.works if work.group == group]

    def metrics_of(self, work: str) -> list[Metric]:
        """Return the metrics that samples of a work have, in the order of METRICS."""
        keys = {key for sample in self.samples if sample.work == work for key in sample.values}
        return [metric for key, metric in METRICS.items() if key in keys]

    def by_round(self, work: str, proxy: str, metric: str) -> dict[int, float]:
        """Return the values of a metric, by round."""
        return {
            sample.round: sample.values[metric]
            for sample in self.samples
            if sample.work == work and sample.proxy == proxy and metric in sample.values
        }

    def summary(self, work: str, proxy: str, metric: str) -> Summary | None:
        """Return median and spread over the rounds; None where nothing was measured."""
        return Summary.of(self.by_round(work, proxy, metric).values())

    def rivals(self) -> list[str]:
        """Return the keys of the rival proxies: what runs in user space and is not reflector."""
        return [one.key for one in self.proxies if one.kind == "proxy" and one.key != OWN]

    def ratios(
        self, work: str, metric: str, against: str, *, of: str = OWN, above: str | None = None
    ) -> dict[int, float]:
        """Return one proxy's value divided by another's, by round.

        `against` is the key of a proxy, or "best": the best rival proxy of each round. With `above`
        the value of that proxy is taken from both before. Rounds in which one of them is missing,
        or the divisor is not above 0, are left out.
        """
        if against == "best":
            others = _best_by_round(
                [self.by_round(work, rival, metric) for rival in self.rivals()], METRICS[metric]
            )
        else:
            others = self.by_round(work, against, metric)
        own = self.by_round(work, of, metric)
        base = self.by_round(work, above, metric) if above else dict.fromkeys(others, 0.0)
        return {
            number: (own[number] - base[number]) / (other - base[number])
            for number, other in others.items()
            if number in own and number in base and other > base[number]
        }

    def ratio(
        self, work: str, metric: str, against: str, *, of: str = OWN, above: str | None = None
    ) -> Summary | None:
        """Return median and spread of `ratios`."""
        return Summary.of(self.ratios(work, metric, against, of=of, above=above).values())

    def rises(self, group: str, metric: str, proxy: str = OWN) -> dict[int, float]:
        """Return by round how far a curve rises: its highest point divided by its first.

        The points are the works of the group, in order. Only rounds that have the first and the
        last point count.
        """
        points = [self.by_round(work.key, proxy, metric) for work in self.works_of(group)]
        if not points:
            return {}
        return {
            number: max(point[number] for point in points if number in point) / first
            for number, first in points[0].items()
            if first and number in points[-1]
        }


def _best_by_round(columns: Iterable[dict[int, float]], metric: Metric) -> dict[int, float]:
    best: dict[int, float] = {}
    for column in columns:
        for number, value in column.items():
            best[number] = metric.best((best.get(number, value), value))
    return best
