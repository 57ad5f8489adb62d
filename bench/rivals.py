"""The reflector beside nginx and HAProxy, on the same work in one run.

    python bench/rivals.py [--rounds N] [--json]

The proxies take turns, each with as many workers as the others, and started afresh for each
measurement in a network namespace that no other has used. Their configuration files are in rivals/.
Takes a minute a round, and needs psutil. Progress goes to stderr. A rival that is not installed is
skipped by name. Exit code: 0 when the reflector was measured, 1 when it could not be.
"""

import argparse
import json
import statistics
import sys
from functools import partial
from typing import Any

import figures
import place
import psutil  # type: ignore[import-untyped]
from checks import AT_A_TIME, NODES, WARM_UP_CHECKS
from counting import pss_bytes
from held import FILE_LIMIT, OPENING_AT_A_TIME
from place import BenchError, Tools, progress, settle
from proxies import WORKERS, Proxy, find_haproxy, find_nginx, find_reflector, process_tree
from transfer import STREAM_BYTES, STREAMS

CHECKS = 40_000
HELD = 5_000

#: what is measured, and the decimals that it is shown with
MEASURES = {
    "check_us": ("CPU per check, µs", 1),
    "gigabyte_ms": (f"CPU per GB, {STREAMS} streams, ms", 0),
    "megabytes_per_second": (f"rate, {STREAMS} streams, MB/s", 0),
    "idle_bytes": (f"memory per idle connection of {HELD:,}, bytes", 0),
}

#: by measure and proxy, a value for each round
Samples = dict[str, dict[str, list[float]]]


def cpu_us(pid: int) -> float:
    """Return the CPU that a process and its descendants have used so far, in microseconds."""
    times = [process.cpu_times() for process in process_tree(pid)]
    return float(sum(time.user + time.system for time in times)) * 1e6


def memory_bytes(pid: int) -> int:
    """Return the proportional set size of a process and its descendants."""
    return sum(pss_bytes(process.pid) for process in process_tree(pid))


def checks(tools: Tools, proxy: Proxy) -> dict[str, float]:
    """Measure the CPU of a check: connect, read a banner of 40 bytes, close; 64 at a time."""
    load = partial(tools.load, "check", at_a_time=AT_A_TIME, nodes=NODES)
    with tools.service("banner"), proxy.start() as process:
        _all_done(load(count=WARM_UP_CHECKS), WARM_UP_CHECKS)
        settle()
        before = cpu_us(process.pid)
        _all_done(load(count=CHECKS), CHECKS)
        settle()
        return {"check_us": (cpu_us(process.pid) - before) / CHECKS}


def bulk(tools: Tools, proxy: Proxy) -> dict[str, float]:
    """Measure the CPU of bulk, and its rate, over streams from the service to the nodes."""
    gigabytes = STREAMS * STREAM_BYTES / 1e9
    with tools.service("source"), proxy.start() as process:
        before = cpu_us(process.pid)
        report = tools.load(
            "pull", count=STREAMS, at_a_time=STREAMS, nodes=STREAMS, size=STREAM_BYTES
        )
        used_ms = (cpu_us(process.pid) - before) / 1e3
    _all_done(report, STREAMS)
    rate = gigabytes * 1e3 / report["seconds"]
    return {"gigabyte_ms": used_ms / gigabytes, "megabytes_per_second": rate}


def idle(tools: Tools, proxy: Proxy) -> dict[str, float]:
    """Measure the user memory that a connection adds: from a node each, after one echo."""
    with tools.service("echo", files=FILE_LIMIT), proxy.start() as process:
        before = memory_bytes(process.pid)
        with tools.start_load(
            "hold", count=HELD, at_a_time=OPENING_AT_A_TIME, nodes=HELD, files=FILE_LIMIT
        ) as load:
            _all_done(load.read_report(), HELD)
            return {"idle_bytes": (memory_bytes(process.pid) - before) / HELD}


def _all_done(report: dict[str, Any], count: int) -> None:
    if report["done"] != count:
        raise BenchError(f"{count - report['done']:,} of {count:,} connections failed")


def measure(tools: Tools, proxies: list[Proxy], rounds: int, skipped: dict[str, str]) -> Samples:
    """Return what was measured; a rival that fails goes to `skipped`, with the reason."""
    samples: Samples = {key: {proxy.name: [] for proxy in proxies} for key in MEASURES}
    for number in range(rounds):
        first = number % len(proxies)
        for work in (checks, bulk, idle):
            for proxy in proxies[first:] + proxies[:first]:
                if proxy.name in skipped:
                    continue
                progress(f"--- round {number + 1} of {rounds}: {work.__name__}, {proxy.name}")
                place.change_network()
                try:
                    for key, value in work(tools, proxy).items():
                        samples[key][proxy.name].append(value)
                except (BenchError, psutil.Error) as error:
                    if proxy is proxies[0]:
                        raise
                    skipped[proxy.name] = str(error)
                settle()
    kept = [proxy.name for proxy in proxies if proxy.name not in skipped]
    return {key: {name: samples[key][name] for name in kept} for key in MEASURES}


def summarize(samples: Samples) -> dict[str, dict[str, Any]]:
    """Return medians and spreads by measure; the ratios are taken round by round."""
    results: dict[str, dict[str, Any]] = {}
    for key, by_name in samples.items():
        columns = dict(by_name)
        for name in list(by_name)[1:]:
            pairs = zip(by_name["reflector"], by_name[name], strict=True)
            columns[f"reflector/{name}"] = [own / other for own, other in pairs]
        results[key] = {
            name: {"median": statistics.median(v), "least": min(v), "most": max(v), "rounds": v}
            for name, v in columns.items()
        }
    return results


def show(results: dict[str, dict[str, Any]]) -> str:
    """Return the table: medians, and the least and the most in brackets."""
    rows = [["", *results["check_us"]]]
    for key, columns in results.items():
        what, decimals = MEASURES[key]
        rows.append([what])
        for name, value in columns.items():
            form = ",.2f" if "/" in name else f",.{decimals}f"
            median, least, most = (f"{value[of]:{form}}" for of in ("median", "least", "most"))
            rows[-1].append(f"{median} ({least}-{most})")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(r, widths, strict=True)] for r in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description="Measure the reflector beside nginx and HAProxy.")
    parser.add_argument("--rounds", type=int, choices=range(1, 100), default=5, metavar="N")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    arguments = parser.parse_args()
    place.find_reflector()
    place.enter_namespace()
    place.end_on_signals()
    setting = figures.setting() | {"workers": WORKERS, "rounds": arguments.rounds}
    proxies = [find_reflector(str(setting["reflector"]))]
    skipped: dict[str, str] = {}
    with place.tools() as tools:
        for name, find in (("nginx", find_nginx), ("HAProxy", find_haproxy)):
            try:
                proxies.append(find(tools))
            except BenchError as error:
                skipped[name] = str(error)
        setting |= {proxy.name: proxy.version for proxy in proxies}
        try:
            results = summarize(measure(tools, proxies, arguments.rounds, skipped))
        except KeyboardInterrupt:
            return 130
        except BenchError as error:
            sys.exit(f"rivals: the reflector was not measured: {error}")
    if arguments.json:
        print(json.dumps({"setting": setting, "figures": results, "skipped": skipped}, indent=2))
    else:
        print(
            ", ".join(f"{key} {value}" for key, value in setting.items()), show(results), sep="\n\n"
        )
        for name, why in skipped.items():
            print(f"\n{name} was not measured: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
