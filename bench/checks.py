"""The check load: connect through the reflector, read a banner of 40 bytes, close; 64 at a time."""

from typing import Any

from counting import Calls, Cpu, Samples, count_calls, sample_workers, workers_cpu
from place import BenchError, Tools, progress, reflector, settle
from result import Figure

AT_A_TIME = 64
NODES = 20_000

#: enough to fill caches and grow what grows
WARM_UP_CHECKS = 5_000
COUNTED_CHECKS = 20_000
#: some seconds of CPU each
TIMED_CHECKS = 100_000
SAMPLED_CHECKS = 50_000

#: not a call of the check's own: one serves many
_WAITS = ("epoll_wait", "epoll_pwait", "epoll_pwait2")

SYSCALLS_TARGET = 12.0
USER_SHARE_TARGET = 5.0


def _run_checks(tools: Tools, count: int) -> dict[str, Any]:
    report = tools.load("check", count=count, at_a_time=AT_A_TIME, nodes=NODES)
    settle()
    if report["failed"]:
        raise BenchError(f"{report['failed']:,} of {count:,} checks failed")
    return report


def syscalls(tools: Tools) -> list[Figure]:
    """Count the system calls of the reflector per check, epoll_wait aside."""
    with tools.service("banner"), reflector() as process:
        _run_checks(tools, WARM_UP_CHECKS)
        progress(f"counting system calls over {COUNTED_CHECKS:,} checks")
        calls = count_calls(process.pid, lambda: _run_checks(tools, COUNTED_CHECKS))
    return [_syscalls_figure(calls)]


def _syscalls_figure(calls: Calls) -> Figure:
    per_check = {name: count / COUNTED_CHECKS for name, count in calls.by_name.items()}
    waits = sum(per_check.get(name, 0.0) for name in _WAITS)
    by_count = sorted(per_check.items(), key=lambda item: (-item[1], item[0]))
    accepts = calls.by_name.get("accept4", 0)
    in_vain = calls.accepts_failed / accepts if accepts else 0.0
    return Figure(
        "syscalls",
        "system calls per check",
        "calls",
        value=sum(per_check.values()) - waits,
        target=SYSCALLS_TARGET,
        details={
            "per_check": dict(by_count),
            "accept4_in_vain_share": in_vain,
            "counted_by": calls.how,
            "checks": COUNTED_CHECKS,
        },
        lines=[
            ", ".join(f"{name} {count:.2f}" for name, count in by_count if count >= 0.005),
            f"epoll_wait is not in the total; {in_vain:.1%} of the accept4 found nothing",
            f"counted by {calls.how} over {COUNTED_CHECKS:,} checks",
        ],
    )


def cpu(tools: Tools) -> list[Figure]:
    """Measure the CPU of the worker threads during checks, and how it divides."""
    with tools.service("banner"), reflector() as process:
        _run_checks(tools, WARM_UP_CHECKS)
        progress(f"measuring CPU over {TIMED_CHECKS:,} checks")
        before = workers_cpu(process.pid)
        report = _run_checks(tools, TIMED_CHECKS)
        used = workers_cpu(process.pid) - before
        samples = sample_workers(process.pid, lambda: _run_checks(tools, SAMPLED_CHECKS))
    return [_cpu_figure(report, used, samples)]


def _cpu_figure(report: dict[str, Any], used: Cpu, samples: Samples | None) -> Figure:
    share = samples.user_share if samples else used.user_share
    each_us = used.total_us / TIMED_CHECKS
    rate = TIMED_CHECKS / report["seconds"]
    by_samples = "no perf here: by the clock tick alone, which is coarse"
    if samples:
        by_samples = (
            f"{share:.2%} ± {samples.error:.2%} by {samples.user + samples.kernel:,} samples of "
            f"perf; {used.user_share:.2%} by the clock tick"
        )
    return Figure(
        "cpu",
        "share of user space in the workers' CPU",
        "%",
        value=share * 100,
        target=USER_SHARE_TARGET,
        details={
            "user_share_by_tick": used.user_share,
            "user_share_by_perf": samples.user_share if samples else None,
            "user_share_error": samples.error if samples else None,
            "user_us_per_check": each_us * share,
            "system_us_per_check": each_us * (1 - share),
            "checks_per_second": rate,
            "p50_us": report["p50_us"],
            "p99_us": report["p99_us"],
            "checks": TIMED_CHECKS,
        },
        lines=[
            by_samples,
            f"{each_us * share:.1f} user + {each_us * (1 - share):.1f} system = {each_us:.1f} µs "
            f"of CPU per check",
            f"{rate:,.0f} checks/s with load and service on the same CPUs; a check took "
            f"{report['p50_us'] / 1000:.1f} ms (median), {report['p99_us'] / 1000:.1f} ms (p99)",
        ],
    )
