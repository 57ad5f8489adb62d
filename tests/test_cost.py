"""The deterministic cost of a connection, beside the recorded budget (bench/guard.py)."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.leaks import under_sanitizer

ROOT = Path(__file__).resolve().parent.parent

HERE = {"machine": "x86_64", "compiler": "gcc 12", "libc": "glibc 2.36"}
CALLS = {"accept4": 1.111, "connect": 2.0}

#: makes each accepted connection dearer by one call
DEARER = """
#include <sys/socket.h>
#include <unistd.h>
#define accept4(...) (getppid(), accept4(__VA_ARGS__))
"""


@pytest.fixture(scope="module")
def guard() -> Iterator[ModuleType]:
    """The guard, which finds its other half beside itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        yield importlib.import_module("guard")


@pytest.fixture(scope="module")
def cost(guard: ModuleType) -> ModuleType:
    """The measuring half, where it can measure."""
    made = sys.modules["cost"]
    if under_sanitizer():
        pytest.skip("sanitizers have their own cost")
    reason = made.why_not()
    if reason:
        pytest.skip(reason)
    return made


@pytest.fixture(scope="module")
def measured(cost: ModuleType) -> dict[str, Any]:
    """What every scenario costs now."""
    costs: dict[str, Any] = cost.measure(list(cost.SCENARIOS))
    return costs


SCENARIOS = ("check", "burst", "refused", "service-first", "pingpong", "bulk")


def test_every_scenario_is_judged_here(guard: ModuleType) -> None:
    assert tuple(guard.SCENARIOS) == SCENARIOS


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_costs_what_is_recorded(
    guard: ModuleType, measured: dict[str, Any], scenario: str
) -> None:
    costs = {scenario: measured[scenario]}
    budget, where = guard.read_budget(), guard.setting()
    verdicts = {name: guard.judge(name, cost, budget, where) for name, cost in costs.items()}
    if verdicts[scenario].mend:
        pytest.fail(guard.show(costs, verdicts, budget, where), pytrace=False)


def test_the_count_is_the_same_again(cost: ModuleType, measured: dict[str, Any]) -> None:
    assert cost.measure(["check", "refused"]) == {
        name: measured[name] for name in ("check", "refused")
    }


def test_one_more_call_in_the_engine_is_flagged(
    guard: ModuleType, cost: ModuleType, measured: dict[str, Any], tmp_path: Path
) -> None:
    header = tmp_path / "dearer.h"
    header.write_text(DEARER)
    dearer = cost.measure(["check", "pingpong"], ["-include", str(header)])
    budget = guard.record(measured, {}, guard.setting())

    verdict = guard.judge("check", dearer["check"], budget, guard.setting())
    assert verdict.calls == "dearer"
    assert "--explain check" in verdict.mend
    before, after = measured["check"].calls, dearer["check"].calls
    assert after == {**before, "getppid": before["accept4"]}
    # It accepts nothing: its own cost is what it was.
    assert not guard.judge("pingpong", dearer["pingpong"], budget, guard.setting()).mend


def judged(
    guard: ModuleType,
    calls: dict[str, float] | None = None,
    instructions: float = 1000.0,
    **elsewhere: str,
) -> Any:
    """The verdict on a made-up check, beside a made-up budget of 1,000 instructions."""
    recorded = guard.Cost(CALLS, {"run": 400.0, "relay": 600.0})
    budget = guard.record({"check": recorded}, {}, HERE)
    spent = guard.Cost(CALLS if calls is None else calls, {"run": instructions})
    return guard.judge("check", spent, budget, {**HERE, **elsewhere})


def test_what_is_as_recorded_passes(guard: ModuleType) -> None:
    verdict = judged(guard)
    assert (verdict.calls, verdict.instructions, verdict.mend) == ("as recorded",) * 2 + ("",)


@pytest.mark.parametrize(
    ("calls", "verdict"),
    [
        ({**CALLS, "accept4": 1.122}, "dearer"),
        ({**CALLS, "futex": 1.0}, "dearer"),
        ({**CALLS, "connect": 1.0}, "cheaper"),
        ({**CALLS, "connect": 1.0, "close": 1.0}, "other calls"),
    ],
)
def test_calls_are_compared_exactly(
    guard: ModuleType, calls: dict[str, float], verdict: str
) -> None:
    found = judged(guard, calls)
    assert found.calls == verdict
    assert "--record" in found.mend
    # No compiler makes other system calls.
    assert judged(guard, calls, compiler="gcc 15", machine="aarch64").calls == verdict


@pytest.mark.parametrize(
    ("instructions", "verdict", "passes"),
    [
        (1009.0, "as recorded", True),
        (991.0, "as recorded", True),
        (1020.0, "dearer", False),
        (980.0, "cheaper", False),
    ],
)
def test_instructions_have_a_narrow_tolerance(
    guard: ModuleType, instructions: float, verdict: str, passes: bool
) -> None:
    found = judged(guard, instructions=instructions)
    assert (found.instructions, not found.mend) == (verdict, passes)


@pytest.mark.parametrize(
    ("instructions", "verdict", "passes"),
    [
        (1090.0, "other compiler", True),
        (800.0, "other compiler", True),
        (1110.0, "dearer", False),
    ],
)
def test_another_compiler_has_a_wide_tolerance(
    guard: ModuleType, instructions: float, verdict: str, passes: bool
) -> None:
    found = judged(guard, instructions=instructions, compiler="gcc 15")
    assert (found.instructions, not found.mend) == (verdict, passes)


def test_instructions_of_another_architecture_are_not_compared(guard: ModuleType) -> None:
    verdict = judged(guard, instructions=5000.0, machine="aarch64")
    assert (verdict.instructions, verdict.mend) == ("no budget for aarch64", "")


def test_recording_keeps_what_other_machines_recorded(guard: ModuleType) -> None:
    spent = guard.Cost(CALLS, {"run": 1000.0})
    first = guard.record({"check": spent, "bulk": spent}, {}, HERE)
    second = guard.record({"check": spent}, first, {**HERE, "machine": "aarch64"})
    assert second["instructions"]["x86_64"] == first["instructions"]["x86_64"]
    assert list(second["instructions"]["aarch64"]["by_scenario"]) == ["check"]
    assert list(second["calls"]) == ["check", "bulk"]


def test_it_explains_where_the_instructions_go(guard: ModuleType) -> None:
    lines = guard.explain("check", guard.Cost(CALLS, {"run": 600.0, "relay": 400.0})).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["600.0", "60.0%", "run"],
        ["400.0", "40.0%", "relay"],
    ]


def test_the_engine_is_compiled_as_for_a_release(cost: ModuleType) -> None:
    build = (ROOT / "setup.py").read_text()
    assert not [flag for flag in cost.CORE_FLAGS if f'"{flag}"' not in build]
