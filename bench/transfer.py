"""What carrying bytes costs: the reflector's streams and ping-pongs, and the bare system calls.

The constants of csrc/relay.c, buffer.h and pipe.c (when to splice, how large a buffer or a pipe)
rest on the second table.
"""

import json
import statistics
import subprocess
from typing import Any

from counting import workers_cpu
from place import BenchError, Tools, progress, reflector, settle
from result import Figure

STREAMS = 4
STREAM_BYTES = 2_000_000_000
PING_PONGS = 100_000
PING_PONG_STREAMS = 32
PING_PONG_BYTES = 64

BARE_ROUNDS = 3
BARE_STREAM_BYTES = 500_000_000
BARE_STREAM_SIZES = (4096, 16384, 65536, 262144, 1048576)
BARE_MESSAGES = 5_000
BARE_MESSAGE_SIZES = (64, 1024, 4096, 8192, 16384, 32768, 65536)

_BARE_WITHIN = 60


def relay(tools: Tools) -> list[Figure]:
    """Measure streams and ping-pongs through the reflector, then copying and splicing alone."""
    lines, bare = _bare_tables(tools)
    stream, ping_pong = _stream(tools), _ping_pong(tools)
    stream.lines += lines
    stream.details["bare"] = bare
    return [ping_pong, stream]


def _stream(tools: Tools) -> Figure:
    gigabytes = STREAMS * STREAM_BYTES / 1e9
    with tools.service("source"), reflector() as process:
        progress(f"pulling {gigabytes:.0f} GB in {STREAMS} streams")
        before = workers_cpu(process.pid)
        report = tools.load(
            "pull", count=STREAMS, at_a_time=STREAMS, nodes=STREAMS, size=STREAM_BYTES
        )
        used = workers_cpu(process.pid) - before
    if report["failed"]:
        raise BenchError(f"{report['failed']} of {STREAMS} streams broke off")
    rate = gigabytes * 1000 / report["seconds"]
    return Figure(
        "relay-stream",
        f"CPU per GB, {STREAMS} streams",
        "ms",
        value=used.total_us / 1000 / gigabytes,
        details={"megabytes_per_second": rate, "user_share": used.user_share},
        lines=[f"{rate:,.0f} MB/s, {used.user_share:.1%} of the workers' CPU in user space"],
    )


def _ping_pong(tools: Tools) -> Figure:
    with tools.service("echo"), reflector() as process:
        progress(f"{PING_PONGS:,} ping-pongs over {PING_PONG_STREAMS} connections")
        before = workers_cpu(process.pid)
        report = tools.load(
            "pingpong",
            count=PING_PONGS,
            at_a_time=PING_PONG_STREAMS,
            nodes=PING_PONG_STREAMS,
            size=PING_PONG_BYTES,
        )
        used = workers_cpu(process.pid) - before
        settle()
    if report["failed"]:
        raise BenchError(f"{report['failed']:,} of {PING_PONGS:,} ping-pongs failed")
    rate = PING_PONGS / report["seconds"]
    return Figure(
        "relay-pingpong",
        f"CPU per ping-pong of {PING_PONG_BYTES} bytes, {PING_PONG_STREAMS} streams",
        "µs",
        value=used.total_us / PING_PONGS,
        details={"per_second": rate, "p50_us": report["p50_us"], "p99_us": report["p99_us"]},
        lines=[
            f"{rate:,.0f} a second; {report['p50_us']} µs (median), {report['p99_us']} µs (p99)"
        ],
    )


def _bare_tables(tools: Tools) -> tuple[list[str], list[dict[str, Any]]]:
    """Run relay.c for each size, copying and splicing."""
    progress("copying and splicing with bare system calls")
    lines = ["the bare calls, one stream, CPU ms per GB, by size of buffer or pipe:"]
    records: list[dict[str, Any]] = []
    for size in BARE_STREAM_SIZES:
        copied, spliced = pair = _bare_pair(tools, size, "stream", BARE_STREAM_BYTES)
        records += pair
        lines.append(
            f"  {size:>9,} bytes   copied {copied['cpu_ms_per_gb']:6,.0f} at "
            f"{copied['mb_per_second']:6,.0f} MB/s   spliced {spliced['cpu_ms_per_gb']:6,.0f} at "
            f"{spliced['mb_per_second']:6,.0f} MB/s"
        )
    lines.append("the bare calls, µs in them per message, by its size:")
    for size in BARE_MESSAGE_SIZES:
        copied, spliced = pair = _bare_pair(tools, size, "message", BARE_MESSAGES)
        records += pair
        lines.append(
            f"  {size:>9,} bytes   copied {copied['median_us']:6.1f}   "
            f"spliced {spliced['median_us']:6.1f}"
        )
    return lines, records


def _bare_pair(tools: Tools, size: int, shape: str, count: int) -> list[dict[str, Any]]:
    """Return copying and splicing at one size: the medians of rounds that take turns."""
    rounds: dict[str, list[dict[str, float]]] = {"copy": [], "splice": []}
    for _ in range(BARE_ROUNDS):
        for how, results in rounds.items():
            results.append(_bare(tools, how, size, shape, count))
    return [
        {
            "how": how,
            "size": size,
            "shape": shape,
            **{key: statistics.median(one[key] for one in results) for key in results[0]},
        }
        for how, results in rounds.items()
    ]


def _bare(tools: Tools, how: str, size: int, shape: str, count: int) -> dict[str, float]:
    command = [tools.path("relay"), how, str(size), shape, str(count)]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=_BARE_WITHIN, check=True
        )
    except subprocess.SubprocessError as error:
        raise BenchError(str(error)) from None
    result: dict[str, float] = json.loads(done.stdout)
    return result
