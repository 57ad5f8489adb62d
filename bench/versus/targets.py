"""The figures that the project sets itself beside its rivals, and whether a record shows them."""

from dataclasses import dataclass

from versus.record import METRICS, MIRROR, OWN, Record, Summary

#: what `against` may be besides the key of a proxy
BEST = "best"  # the best rival proxy of each round
START = "start"  # the first point of reflector's own curve


@dataclass(frozen=True)
class Target:
    """A ratio that is to hold.

    `work` is the key of a work; of a group where `against` is START: then the ratio is that of the
    curve's most expensive point to its first.
    """

    key: str
    what: str
    work: str
    metric: str
    against: str
    limit: float
    sense: str  # "at most" or "at least"
    of: str = OWN
    above: str | None = None  # a proxy whose value is taken from both


TARGETS = (
    Target(
        "check-cpu",
        "CPU of a check, 64 at a time from 20,000 nodes, to the best rival's",
        *("check-64-20000", "cpu_us", BEST, 0.75, "at most"),
    ),
    Target(
        "pingpong-cpu",
        "CPU of a 64-byte ping-pong, 32 streams, to the best rival's",
        *("pingpong-32", "cpu_us", BEST, 0.80, "at most"),
    ),
    Target(
        "bulk-down-cpu",
        "CPU per GB down, 4 streams, to HAProxy's",
        *("bulk-down", "cpu_ms_per_gb", "haproxy", 0.28, "at most"),
    ),
    Target(
        "bulk-up-cpu",
        "CPU per GB up, 4 streams, to HAProxy's",
        *("bulk-up", "cpu_ms_per_gb", "haproxy", 0.28, "at most"),
    ),
    Target(
        "bulk-down-rate",
        "throughput down, 4 streams, to HAProxy's",
        *("bulk-down", "mb_per_s", "haproxy", 2.0, "at least"),
    ),
    Target(
        "bulk-up-rate",
        "throughput up, 4 streams, to HAProxy's",
        *("bulk-up", "mb_per_s", "haproxy", 2.0, "at least"),
    ),
    Target(
        "held-memory",
        "user memory of a held connection, to HAProxy's",
        *("held", "user_bytes", "haproxy", 0.04, "at most"),
    ),
    Target(
        "mix-p99",
        "p99 of a check beside 4 bulk streams, to the best rival's",
        *("mix", "p99_us", BEST, 1.0, "at most"),
    ),
    Target(
        "mirror-above-nginx",
        "the mirror's CPU of the machine for a check above direct's, to what nginx adds",
        *("check-64-20000", "machine_us", "nginx", 0.25, "at most", MIRROR, "direct"),
    ),
    Target(
        "mirror-above-nft",
        "the same, to what nftables adds",
        *("check-64-20000", "machine_us", "nft", 0.5, "at most", MIRROR, "direct"),
    ),
    Target(
        "mirror-rate",
        "the mirror's checks per second, to direct",
        *("check-64-20000", "rate", "direct", 0.75, "at least", MIRROR),
    ),
    Target(
        "mirror-latency",
        "the mirror's p50 of a 64-byte round trip, to direct",
        *("latency-1", "p50_us", "direct", 1.15, "at most", MIRROR),
    ),
    Target(
        "nodes-rise",
        "CPU of a check from up to 100,000 nodes, to that from 10",
        *("nodes", "cpu_us", START, 1.15, "at most"),
    ),
    Target(
        "holding-rise",
        "CPU of a check beside up to 30,000 held connections, to that beside 100",
        *("holding", "cpu_us", START, 1.15, "at most"),
    ),
)


@dataclass(frozen=True)
class Verdict:
    """A target beside what was measured: the summary over the rounds, None where it was not."""

    target: Target
    measured: Summary | None

    @property
    def met(self) -> bool | None:
        """Whether the median meets the limit; None where nothing was measured."""
        if self.measured is None:
            return None
        if self.target.sense == "at most":
            return self.measured.median <= self.target.limit
        return self.measured.median >= self.target.limit

    @property
    def short_by(self) -> float | None:
        """How far the median is from the limit, as a share of the limit; None where it is met."""
        if self.measured is None or self.met:
            return None
        return abs(self.measured.median / self.target.limit - 1)


def judge(record: Record, target: Target) -> Verdict:
    """Hold a record against one target."""
    assert target.metric in METRICS
    if target.against == START:
        rises = record.rises(target.work, target.metric, OWN)
        return Verdict(target, Summary.of(rises.values()))
    ratio = record.ratio(
        target.work, target.metric, target.against, of=target.of, above=target.above
    )
    return Verdict(target, ratio)


def judge_all(record: Record) -> list[Verdict]:
    """Hold a record against every target."""
    return [judge(record, target) for target in TARGETS]
