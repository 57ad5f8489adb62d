"""The mirror under many flows, and under a flood: what grows, and who suffers."""

import re
from contextlib import ExitStack
from pathlib import Path

import place
from held import FILE_LIMIT
from place import BenchError, Process, Tools, progress, reflector
from result import Figure

FLOWS_TARGET = 200_000
FLOWS_OF_ONE = 15_000  # connections of one load, for the descriptors
SERVICES = 14

FLOOD = 1_000_000
RATE_PER_SOURCE = 1_000
BULK_STREAMS = 4
GROWTH_TARGET_BYTES = 1_000_000.0


def mirrored(tools: Tools) -> list[Figure]:
    """Measure the mirror's own figures. Raises BenchError where there is no mirror."""
    if not place.has_network():
        raise BenchError("the mirror needs network namespaces (run as root)")
    return [*_flows(tools), *_flood(tools)]


def _memory(process: Process) -> int:
    """Return the reflector's own memory, and the kernel's for its BPF maps and program.

    Not the pages of files, whose share changes with the other processes that map them.
    """
    own = _read(Path(f"/proc/{process.pid}/smaps_rollup"), r"^Anonymous:\s+(\d+) kB") * 1024
    files = Path(f"/proc/{process.pid}/fdinfo").iterdir()
    return own + sum(_read(file, r"^memlock:\s+(\d+)") for file in files)


def _read(path: Path, pattern: str) -> int:
    found = re.search(pattern, path.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _flows(tools: Tools) -> list[Figure]:
    """Open connections through the mirror, and have each echo while all are open."""
    with ExitStack() as stack:
        for _ in range(SERVICES):
            stack.enter_context(tools.service("echo", files=FILE_LIMIT))
        process = stack.enter_context(reflector("--engine", "mirror", files=FILE_LIMIT))
        before = _memory(process)
        loads: list[Process] = []
        came_up, opened = 0, 0
        progress(f"opening {FLOWS_TARGET:,} connections")
        while opened < FLOWS_TARGET and came_up == opened:
            count = min(FLOWS_OF_ONE, FLOWS_TARGET - opened)
            loads.append(
                stack.enter_context(
                    tools.start_load(
                        "hold",
                        count=count,
                        at_a_time=64,
                        nodes=count,
                        first_node=opened % 100_000,
                        files=FILE_LIMIT,
                    )
                )
            )
            opened += count
            came_up += loads[-1].read_report()["done"]
        grown = _memory(process) - before
        progress(f"{came_up:,} are up; every one echoes a payload of its own")
        echoed = 0
        for load in loads:
            load.next_phase()
            echoed += load.read_report()["done"]
    told = f"{came_up:,} opened, {echoed:,} echoed again while all were open"
    return [
        Figure(
            *("flows", "flows open through the mirror, and echoing", "flows"),
            value=echoed,
            target=FLOWS_TARGET,
            at_least=True,
            details={"came_up": came_up},
            lines=[told],
        ),
        Figure(
            *("flows-memory", "memory that they add: reflector, BPF maps", "bytes"),
            value=grown,
            target=GROWTH_TARGET_BYTES,
        ),
    ]


def _flood(tools: Tools) -> list[Figure]:
    """Send SYNs from forged sources beside bulk streams and honest checks."""
    options = ["--engine", "mirror", "--rate-per-source", str(RATE_PER_SOURCE)]
    with ExitStack() as stack:
        stack.enter_context(tools.service("mixed", files=FILE_LIMIT))
        process = stack.enter_context(reflector(*options, files=FILE_LIMIT))
        streams = {"at_a_time": BULK_STREAMS, "nodes": BULK_STREAMS, "first_node": 100_000}
        bulk = stack.enter_context(tools.start_load("pull", seconds=8, warm_up=1, **streams))
        checks = stack.enter_context(
            tools.start_load("check", seconds=6, warm_up=1, rate=500, at_a_time=256, nodes=1_000)
        )
        quiet = checks.read_report()
        bulk.read_report()
        before = _memory(process)
        bulk.next_phase()
        checks.next_phase()
        progress(f"{FLOOD:,} SYNs from forged sources")
        command = [
            *(tools.path("flood"), place.reflector_address(), str(place.REFLECTOR_PORT)),
            str(FLOOD),
        ]
        with place.running(command, on_node=True) as flood:
            sent = flood.popen.wait(60) == 0
        grown = _memory(process) - before
        checked, pulled = checks.read_report(), bulk.read_report()
    if not sent:
        raise BenchError("the flood could not be sent")
    failed = checked["failed"] + checked["late"]
    return [
        Figure(
            *("flood-memory", f"memory that {FLOOD:,} forged SYNs add", "bytes"),
            value=grown,
            target=GROWTH_TARGET_BYTES,
        ),
        Figure(
            *("flood-checks", "honest checks that failed meanwhile", "checks"),
            value=failed,
            target=0,
            details={"done": checked["done"], "p99_us": checked["p99_us"]},
            lines=[
                f"{checked['done']:,} were answered, p99 {checked['p99_us'] / 1000:.1f} ms "
                f"(quiet: {quiet['p99_us'] / 1000:.1f} ms)"
            ],
        ),
        Figure(
            *("flood-bulk", "bulk streams that broke meanwhile", "streams"),
            value=pulled["failed"],
            target=0,
            lines=[f"{pulled['bytes'] / pulled['seconds'] / 1e6:,.0f} MB/s meanwhile"],
        ),
    ]
