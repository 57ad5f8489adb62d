"""Connections that are held: what an idle one costs, and how many one process holds."""

import os
from contextlib import ExitStack

from counting import descriptors_by_table, pss_bytes
from place import BenchError, Process, Tools, progress, reflector
from result import Figure

IDLE_CONNECTIONS = 10_000
IDLE_TARGET_BYTES = 300.0
MANY_WORKERS = 16

HELD_TARGET = 30_000
WORKERS = 4
FILE_LIMIT = 20_000

#: the ends of the connections need descriptors too, so they are spread over processes
CLIENTS = 3
SERVICES = 3
OPENING_AT_A_TIME = 64


def memory(tools: Tools) -> list[Figure]:
    """Measure the user memory that an idle connection adds, for many nodes and for one."""
    workers = max(2, len(os.sched_getaffinity(0)))  # the default; one would not carry them
    figures = [
        _idle_memory(tools, IDLE_CONNECTIONS, workers, "memory", "from as many nodes"),
        _idle_memory(tools, 1, workers, "memory-one-node", "from one node"),
        _idle_memory(tools, IDLE_CONNECTIONS, MANY_WORKERS, "memory-many-workers", "many workers"),
    ]
    # Shows whether what is sized by the limits stays untouched: no promise is made of it.
    figures[-1].target = None
    return figures


def _idle_memory(tools: Tools, nodes: int, workers: int, name: str, where: str) -> Figure:
    """Hold connections that each have echoed once; compare with a reflector that had none."""
    options = ["--workers", str(workers), "--max-per-source", str(IDLE_CONNECTIONS)]
    with (
        tools.service("echo", files=FILE_LIMIT),
        reflector(*options, files=FILE_LIMIT) as process,
    ):
        before = pss_bytes(process.pid)
        progress(f"holding {IDLE_CONNECTIONS:,} idle connections, {where}")
        with tools.start_load(
            "hold",
            count=IDLE_CONNECTIONS,
            at_a_time=OPENING_AT_A_TIME,
            nodes=nodes,
            files=FILE_LIMIT,
        ) as load:
            held = load.read_report()["done"]
            after = pss_bytes(process.pid)
    if held != IDLE_CONNECTIONS:
        raise BenchError(f"only {held:,} of {IDLE_CONNECTIONS:,} connections came up")
    return Figure(
        name,
        f"user memory per idle connection, {where}",
        "bytes",
        value=(after - before) / held,
        target=IDLE_TARGET_BYTES,
        details={
            "pss_before": before,
            "pss_after": after,
            "connections": held,
            "workers": workers,
            "nodes": nodes,
        },
        lines=[
            f"PSS grew from {before / 1024:,.0f} to {after / 1024:,.0f} kB at {held:,} "
            f"connections, {workers} workers"
        ],
    )


def held(tools: Tools) -> list[Figure]:
    """Hold connections under a low limit of open files, then have every one of them echo."""
    options = ["--workers", str(WORKERS)]
    share = HELD_TARGET // CLIENTS
    with ExitStack() as stack:
        for _ in range(SERVICES):
            stack.enter_context(tools.service("echo", files=FILE_LIMIT))
        process = stack.enter_context(reflector(*options, files=FILE_LIMIT))
        before = pss_bytes(process.pid)
        progress(f"opening {HELD_TARGET:,} connections")
        loads = [
            stack.enter_context(
                tools.start_load(
                    "hold",
                    count=share,
                    at_a_time=OPENING_AT_A_TIME,
                    nodes=share,
                    first_node=share * index,
                    files=FILE_LIMIT,
                )
            )
            for index in range(CLIENTS)
        ]
        came_up = _count_done(loads)
        after = pss_bytes(process.pid)
        tables = descriptors_by_table(process.pid)
        progress(f"{came_up:,} are up; every one echoes a payload of its own")
        for load in loads:
            load.next_phase()
        echoed = _count_done(loads)
    return [
        Figure(
            "held",
            f"connections held and echoing, open-file limit {FILE_LIMIT:,}",
            "connections",
            value=echoed,
            target=HELD_TARGET,
            at_least=True,
            details={
                "came_up": came_up,
                "workers": WORKERS,
                "file_limit": FILE_LIMIT,
                "descriptors_by_table": tables,
                "pss_per_connection": (after - before) / came_up if came_up else None,
            },
            lines=[
                f"{came_up:,} opened, {echoed:,} echoed again while all were open, by one process "
                f"with {WORKERS} workers",
                "descriptors seen by its threads: " + ", ".join(f"{n:,}" for n in tables),
                f"user memory {(after - before) / max(came_up, 1):.0f} bytes per connection",
            ],
        )
    ]


def _count_done(loads: list[Process]) -> int:
    return sum(load.read_report()["done"] for load in loads)
