"""A proxy that runs, with what is put before and behind it for a piece of work."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import place
from held import FILE_LIMIT
from place import BenchError, Process, Tools

from versus.meters import Usage, read_usage
from versus.proxies import Proxy, nginx_command, run_apart, wait_until_listening

Report = dict[str, Any]

#: more failures than this share, and there is no value; of checks, the proxy says how many
_FAILED_AT_MOST = 0.01

#: seconds in which what has ended leaves the kernel and the proxy
_SETTLE = 0.15

#: held connections are spread over processes, for the descriptors
_HELD_BY_ONE = 15_000
_SERVICES_OF_HELD = 3
_OPENING_AT_A_TIME = 64
_OPENED_WITHIN = 20
#: those that hold leave from behind those that check
_FIRST_HOLDING_NODE = 10_000

_TOOL_WITHIN = 30


class Stage:
    """One start of a proxy, in a network of its own; works take place on it one by one."""

    def __init__(self, tools: Tools, proxy: Proxy, process: Process | None, ends: ExitStack):
        self.tools = tools
        self.proxy = proxy
        self.process = process
        self._ends = ends  # of what lasts as long as the stage
        self._held = 0
        self._holders: list[Process] = []
        self._held_services = False

    @property
    def service_port(self) -> int:
        """Return where services listen: on the node, or where the proxy would be."""
        return place.SERVICE_PORT if self.proxy.in_between else place.REFLECTOR_PORT

    def service(self, mode: str) -> AbstractContextManager[int]:
        """Run a service of service.c."""
        return self.tools.service(
            mode, self.service_port, files=FILE_LIMIT, on_node=self.proxy.in_between
        )

    @contextmanager
    def program(self, command: list[str]) -> Iterator[Process]:
        """Run another program as the service; the block begins when it listens on IPv4."""
        log = self.tools.directory / "program.log"
        on_node = self.proxy.in_between
        with (
            log.open("w") as output,
            place.running(command, FILE_LIMIT, on_node, stdout=output, stderr=output) as process,
        ):
            wait_until_listening(process, log, self.service_port)
            yield process

    def web_service(self) -> AbstractContextManager[Process]:
        """Run nginx as the nodes' web service."""
        command, _ = nginx_command(self.tools, "http.conf", self.service_port, stream=False)
        log = self.tools.directory / "http.log"
        on_node = self.proxy.in_between
        return run_apart("the web service", command, log, self.service_port, on_node)

    def usage(self) -> Usage:
        """Read the clocks."""
        return read_usage(self.process)

    @contextmanager
    def loaded(self, mode: str, **options: Any) -> Iterator[Process]:
        """Run a load that has warmed up, and waits for its second phase."""
        with self.tools.start_load(mode, files=FILE_LIMIT, **options) as load:
            load.read_report()
            place.settle(_SETTLE)
            yield load

    def measure(self, mode: str, **options: Any) -> tuple[Report, Usage]:
        """Run a load with a warm-up; return its report, and the CPU of all while it ran."""
        with self.loaded(mode, **options) as load:
            before = self.usage()
            load.next_phase()
            report = load.read_report()
            place.settle(_SETTLE)
            used = self.usage() - before
        if mode == "check":
            self.must_have_checked(report)
        else:
            self.must_have_done(report)
        return report, used

    def must_have_done(self, report: Report, failed_at_most: float = _FAILED_AT_MOST) -> None:
        """Raise BenchError unless there were exchanges, and all went well but for that share."""
        done, failed = report["done"], all_failed(report)
        if not done:
            raise BenchError(f"no exchange was done, {failed:,} failed")
        if failed > failed_at_most * (done + failed):
            raise BenchError(f"{failed:,} of {done + failed:,} exchanges failed")

    def must_have_checked(self, report: Report) -> None:
        """Raise BenchError unless there were checks, and no more failed than this proxy may."""
        self.must_have_done(report, self.proxy.checks_failed_at_most)

    def ask_tool(self, command: list[str]) -> tuple[str, Usage]:
        """Run a tool as a node, to its end; return what it told, and the CPU meanwhile."""
        before = self.usage()
        with place.running(
            command, FILE_LIMIT, True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as tool:
            try:
                told, _ = tool.popen.communicate(timeout=_TOOL_WITHIN)
            except subprocess.TimeoutExpired:
                raise BenchError(f"{command[0]} does not end") from None
        place.settle(_SETTLE)
        used = self.usage() - before
        if tool.popen.returncode != 0:
            raise BenchError(f"{command[0]}: {told.strip()[-200:] or 'failed'}")
        return told, used

    def hold(self, count: int) -> None:
        """See that so many connections are held beside what comes next, for the whole stage.

        Their services answer everybody with a banner. Raises BenchError where not all come up.
        """
        if not self._held_services:
            for _ in range(_SERVICES_OF_HELD):
                self._ends.enter_context(self.service("banner"))
            self._held_services = True
        while self._held < count:
            more = min(count - self._held, _HELD_BY_ONE)
            load = self._ends.enter_context(
                self.tools.start_load(
                    "keep",
                    count=more,
                    at_a_time=_OPENING_AT_A_TIME,
                    nodes=more,
                    first_node=_FIRST_HOLDING_NODE + self._held,
                    files=FILE_LIMIT,
                    within=_OPENED_WITHIN,
                )
            )
            came_up = load.read_report()["done"]
            if came_up != more:
                raise BenchError(f"only {came_up:,} of {more:,} connections came up")
            self._holders.append(load)
            self._held += more

    def must_still_hold(self) -> None:
        """Raise BenchError unless all that `hold` has brought up is still there."""
        still = 0
        for load in self._holders:
            if load.popen.poll() is not None:
                raise BenchError("a process that held connections ended by itself")
            load.next_phase()
            still += load.read_report()["done"]
        if still != self._held:
            raise BenchError(f"only {still:,} of {self._held:,} connections were held to the end")


@contextmanager
def set_up(tools: Tools, proxy: Proxy, options: tuple[str, ...]) -> Iterator[Stage]:
    """Start a proxy in a new network; the options are for reflector. Raises BenchError."""
    place.change_network()
    with proxy.start(options) as process, ExitStack() as ends:
        yield Stage(tools, proxy, process, ends)


def all_failed(report: Report) -> int:
    """Return how many exchanges failed, with those that were due and never began."""
    return int(report["failed"]) + int(report.get("late", 0))


def last_json(told: str) -> dict[str, Any]:
    """Return the object that a tool printed last. Raises BenchError."""
    start = told.rfind("\n{", 0, told.rfind("}")) + 1
    try:
        found = json.loads(told[start:])
    except ValueError:
        raise BenchError(f"no JSON in what the tool told: {told[-200:]}") from None
    return dict(found)
