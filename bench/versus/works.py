"""The works: what every proxy is given to do, and how it is done.

A session is a list of tasks that share one start of a proxy, in a network that no other has used. A
task gives the sample of a work, and of works in other groups that are the same thing.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import place
from held import FILE_LIMIT
from place import BenchError, find_program

from versus.meters import settled_kernel_bytes, user_bytes
from versus.record import MIRROR, OWN, Work
from versus.stage import Report, Stage, all_failed, last_json

Values = dict[str, float]

_WRK_SCRIPT = Path(__file__).with_name("wrk.lua")

#: those that do all of it; a curve is of those whose own CPU can rise
_FAST = frozenset({OWN, "nginx", "haproxy", MIRROR, "nft", "direct"})
_CURVES = frozenset({OWN, "nginx", "haproxy"})
_ALL = _FAST | {"socat", "reflector01"}

#: proxies that are given some works alone, in some rounds, and why
SLOW_ROUNDS = 3
SLOW = {
    "socat": "it forks for each connection: minutes for what takes others seconds",
    "reflector01": "one thread around select(), 1,024 descriptors, a backlog of 10, no half-close",
}

#: tools that works need, and the package of each
TOOLS = {"sockperf": "sockperf", "iperf3": "iperf3", "wrk": "wrk", "nginx": "nginx-light"}


@dataclass(frozen=True)
class Task:
    """What is done on a stage, and the seconds that it takes.

    Its values are a sample of each of these works, for the proxies that take part in it.
    """

    samples: tuple[tuple[Work, frozenset[str]], ...]
    seconds: float
    measure: Callable[[Stage], Values]
    needs: tuple[str, ...] = ()
    holds: int = 0  # connections beside what is measured; who does not carry them takes no part

    def works_for(self, proxy: str) -> list[Work]:
        """Return the works that a proxy takes part in."""
        return [work for work, proxies in self.samples if proxy in proxies]


@dataclass(frozen=True)
class Session:
    """Tasks on one start; the options are for reflector's command line."""

    tasks: tuple[Task, ...]
    options: tuple[str, ...] = field(default=())


def _of_exchanges(report: Report) -> Values:
    values = {key: float(report[key]) for key in ("p50_us", "p99_us", "p999_us")}
    values["failed"] = float(all_failed(report))
    values["rate"] = float(report["rate"])
    return values


def _checks(stage: Stage, at_a_time: int, nodes: int, seconds: float) -> Values:
    with stage.service("banner"):
        return _load_checks(stage, at_a_time, nodes, seconds)


def _load_checks(stage: Stage, at_a_time: int, nodes: int, seconds: float) -> Values:
    warm_up = min(0.5, seconds / 4)
    report, used = stage.measure(
        "check", seconds=seconds, warm_up=warm_up, at_a_time=at_a_time, nodes=nodes
    )
    done = report["done"]
    load_us = (report["user_us"] + report["system_us"]) / done
    values = {**_of_exchanges(report), **used.each(done), "load_us": load_us}
    if nodes > done:  # one after the other, and each once
        values["nodes_reached"] = float(done)
    return values


def _checks_beside(stage: Stage, held: int, nodes: int, seconds: float) -> Values:
    stage.hold(held)
    place.settle(0.5)
    values = _load_checks(stage, 64, nodes, seconds)
    stage.must_still_hold()
    return values


def _ping_pong(stage: Stage, streams: int, seconds: float) -> Values:
    with stage.service("echo"):
        report, used = stage.measure(
            "pingpong", seconds=seconds, warm_up=0.3, at_a_time=streams, nodes=streams, size=64
        )
    values = {**_of_exchanges(report), **used.each(report["done"])}
    del values["failed"]
    return values


def _latency(stage: Stage, seconds: float) -> Values:
    program = find_program("sockperf", TOOLS["sockperf"])
    server = [program, "server", "--tcp", "-i", "0.0.0.0", "-p", str(stage.service_port)]
    client = [program, "ping-pong", "--tcp", "--full-rtt", "-m", "64", "-t", f"{seconds:.0f}"]
    client += ["-i", place.reflector_address(), "-p", str(place.REFLECTOR_PORT)]
    with stage.program(server):
        told, _ = stage.ask_tool(client)
    found: Values = {}
    for line in told.splitlines():
        words = line.replace("sockperf:", "").replace("--->", "").split()
        if len(words) == 4 and words[0] == "percentile":
            found[words[1]] = float(words[3])
    wanted = {"p50_us": "50.000", "p99_us": "99.000", "p999_us": "99.900"}
    if not found:
        raise BenchError(f"sockperf told no percentiles: {told.strip()[-200:]}")
    return {key: found[name] for key, name in wanted.items()}


def _bulk(stage: Stage, direction: str, seconds: float) -> Values:
    program = find_program("iperf3", TOOLS["iperf3"])
    server = [program, "-s", "-4", "-p", str(stage.service_port)]
    client = [program, "-c", place.reflector_address(), "-p", str(place.REFLECTOR_PORT)]
    client += ["-B", place.node(0), "-P", "4", "-t", f"{seconds:.0f}", "-Z", "-J"]
    client += {"down": ["-R"], "up": [], "both": ["--bidir"]}[direction]
    with stage.program(server):
        told, used = stage.ask_tool(client)
    end = json.loads(told[told.index("{") :])["end"]
    sums = [end[key] for key in ("sum_received", "sum_received_bidir_reverse") if key in end]
    count = sum(one["bytes"] for one in sums)
    rate = sum(one["bytes"] / one["seconds"] for one in sums)
    if not count:
        raise BenchError("iperf3 carried nothing")
    return {**used.per_gigabyte(count), "mb_per_s": rate / 1e6}


def _http(stage: Stage, connections: int, seconds: float) -> Values:
    program = find_program("wrk", TOOLS["wrk"])
    client = [program, "-t", "2", "-c", str(connections), "-d", f"{seconds:.0f}s"]
    client += ["-s", str(_WRK_SCRIPT)]
    client += [f"http://{place.reflector_address()}:{place.REFLECTOR_PORT}/"]
    with stage.web_service():
        told, used = stage.ask_tool(client)
    report = last_json(told)
    stage.must_have_done(report)
    report["rate"] = report["done"] / report["seconds"]
    return {**_of_exchanges(report), **used.each(report["done"])}


def _held(stage: Stage, connections: int) -> Values:
    wanted, connections = connections, min(connections, stage.proxy.carries)
    with stage.service("echo"):
        process = stage.process
        user_before = user_bytes(process) if process else 0
        # What the network before this one held goes back first.
        kernel_before = settled_kernel_bytes()
        options = {"count": connections, "nodes": connections, "at_a_time": 64, "files": FILE_LIMIT}
        with stage.tools.start_load("hold", **options, within=30) as load:
            report = load.read_report()
            stage.must_have_done(report)
            came_up = report["done"]
            kernel_grew = settled_kernel_bytes() - kernel_before
            values = {}
            if connections == wanted:  # what fewer hold is lost in what the machine does besides
                values["kernel_bytes"] = kernel_grew / came_up
            if process:
                values["user_bytes"] = (user_bytes(process) - user_before) / came_up
    return values


def _mix(stage: Stage, streams: int, rate: int, seconds: float) -> Values:
    pull = {"at_a_time": streams, "nodes": streams, "first_node": 100_000}
    with (
        stage.service("mixed"),
        stage.loaded("pull", seconds=seconds, warm_up=0.5, **pull) as bulk,
        stage.loaded(
            "check", seconds=seconds, warm_up=0.3, rate=rate, at_a_time=1_024, nodes=1_000
        ) as checks,
    ):
        before = stage.usage()
        bulk.next_phase()
        checks.next_phase()
        pulled, checked = bulk.read_report(), checks.read_report()
        place.settle(0.2)
        used = stage.usage() - before
    stage.must_have_done(pulled)
    stage.must_have_checked(checked)
    load_us = (checked["user_us"] + checked["system_us"]) / checked["done"]
    return {
        **_of_exchanges(checked),
        **used.each(checked["done"]),
        "load_us": load_us,
        "mb_per_s": pulled["bytes"] / pulled["seconds"] / 1e6,
    }


def _check_task(at_a_time: int, nodes: int, seconds: float, all_take_part: bool = False) -> Task:
    who = "one at a time" if at_a_time == 1 else f"{at_a_time:,} at a time"
    where = "1 node" if nodes == 1 else f"{nodes:,} nodes"
    work = Work(
        f"check-{at_a_time}-{nodes}",
        "check",
        f"checks, {who} from {where}",
        {"at_a_time": at_a_time, "nodes": nodes, "seconds": seconds},
    )
    samples = [(work, _ALL if all_take_part else _FAST)]
    if at_a_time == 64 and nodes in (1_000, 100_000):
        samples.append((_nodes_work(nodes, seconds), _CURVES))
    measure = partial(_checks, at_a_time=at_a_time, nodes=nodes, seconds=seconds)
    return Task(tuple(samples), seconds, measure)


def _nodes_work(nodes: int, seconds: float) -> Work:
    title = f"checks, 64 at a time from {nodes:,} nodes"
    parameters = {"at_a_time": 64, "nodes": nodes, "seconds": seconds}
    return Work(f"nodes-{nodes}", "nodes", title, parameters)


def _nodes_task(nodes: int, seconds: float) -> Task:
    measure = partial(_checks, at_a_time=64, nodes=nodes, seconds=seconds)
    return Task(((_nodes_work(nodes, seconds), _CURVES),), seconds, measure)


def _holding_task(held: int, seconds: float) -> Task:
    work = Work(
        f"holding-{held}",
        "holding",
        f"checks, 64 at a time from 1,000 nodes, beside {held:,} held connections",
        {"at_a_time": 64, "nodes": 1_000, "held": held, "seconds": seconds},
    )
    measure = partial(_checks_beside, held=held, nodes=1_000, seconds=seconds)
    return Task(((work, _CURVES),), seconds + 0.5 + held / 8_000, measure, holds=held)


def _bulk_task(direction: str, seconds: float) -> Task:
    how = {"down": "down", "up": "up", "both": "down and up"}[direction]
    title = f"bulk {how}, 4 streams" + (" each way" if direction == "both" else "")
    work = Work(f"bulk-{direction}", "bulk", title, {"streams": 4, "seconds": seconds})
    measure = partial(_bulk, direction=direction, seconds=seconds)
    proxies = (_ALL if direction == "down" else _FAST) | {"haproxy_1m"}
    return Task(((work, proxies),), seconds + 0.5, measure, ("iperf3",))


def _ping_pong_task(seconds: float) -> Task:
    parameters = {"streams": 32, "bytes": 64, "seconds": seconds}
    work = Work("pingpong-32", "pingpong", "ping-pongs of 64 bytes, 32 streams", parameters)
    measure = partial(_ping_pong, streams=32, seconds=seconds)
    return Task(((work, _ALL),), seconds, measure)


def _latency_task(seconds: float) -> Task:
    parameters = {"streams": 1, "bytes": 64, "seconds": seconds}
    title = "round trip of 64 bytes, one stream"
    work = Work("latency-1", "latency", title, parameters)
    measure = partial(_latency, seconds=seconds)
    return Task(((work, _FAST),), seconds + 0.8, measure, ("sockperf",))


def _http_task(seconds: float) -> Task:
    parameters = {"connections": 64, "seconds": seconds}
    title = "HTTP requests, 64 connections kept alive"
    work = Work("http-64", "http", title, parameters)
    measure = partial(_http, connections=64, seconds=seconds)
    return Task(((work, _FAST),), seconds + 0.5, measure, ("wrk", "nginx"))


def _held_task(connections: int) -> Task:
    parameters = {"connections": connections}
    title = f"{connections:,} held connections"
    work = Work("held", "held", title, parameters)
    return Task(((work, _ALL),), 2.5, partial(_held, connections=connections))


def _mix_task(seconds: float) -> Task:
    parameters = {"streams": 4, "rate": 1_000, "seconds": seconds}
    title = "1,000 checks a second, beside 4 bulk streams"
    work = Work("mix", "mix", title, parameters)
    measure = partial(_mix, streams=4, rate=1_000, seconds=seconds)
    return Task(((work, _FAST),), seconds + 0.8, measure)


#: past the limit that reflector comes with: one node has 1,024 connections at a time
_ONE_NODE = ("--max-per-source", "2048")
#: within 20,000 open files a worker; the same for every point of the curve
_MANY_HELD = ("--workers", "4")


def full() -> list[Session]:
    """Return the sessions of a full run: half an hour for five rounds."""
    return [
        Session((_check_task(64, 20_000, 3.0),)),
        Session(tuple(_check_task(1, nodes, 1.0) for nodes in (1, 1_000, 100_000))),
        Session(
            (
                _check_task(64, 1, 1.2),
                _nodes_task(10, 1.2),
                _nodes_task(100, 1.2),
                _check_task(64, 1_000, 1.2, all_take_part=True),
                _nodes_task(10_000, 1.2),
                _check_task(64, 100_000, 9.0),
            )
        ),
        Session(tuple(_check_task(1_024, n, 1.0) for n in (1, 1_000, 100_000)), _ONE_NODE),
        Session((_ping_pong_task(2.0),)),
        Session((_latency_task(1.0),)),
        Session(tuple(_bulk_task(direction, 2.0) for direction in ("down", "up", "both"))),
        Session((_http_task(2.0),)),
        Session((_held_task(5_000),)),
        Session((_mix_task(2.5),)),
        Session(tuple(_holding_task(n, 1.2) for n in (100, 1_000, 10_000, 30_000)), _MANY_HELD),
    ]


def quick() -> list[Session]:
    """Return the sessions of a quick run: a round in less than two minutes."""
    return [
        Session((_check_task(64, 20_000, 2.0),)),
        Session((_ping_pong_task(1.5),)),
        Session((_bulk_task("down", 2.0),)),
        Session((_held_task(5_000),)),
        Session((_mix_task(2.0),)),
    ]


#: the proxies of a quick run
QUICK_PROXIES = (OWN, "nginx", "haproxy", MIRROR, "nft", "direct")
