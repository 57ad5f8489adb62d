"""Guard the cost of a check: system calls and instructions, compared with a recorded budget.

    python bench/guard.py                     all scenarios, beside the budget
    python bench/guard.py check refused       these two
    python bench/guard.py --explain check     where the instructions of a check go
    python bench/guard.py --record            what is spent now becomes the budget

The budget, budget.json, is kept equal to what is spent. So a change that makes a scenario dearer
fails, and so does one that makes it cheaper until the gain is recorded: in the room that an
unrecorded gain leaves, the next slow-down would not be seen. Takes some ten seconds.
Exit code: 0 when all is as recorded, 1 when not or when it could not be measured.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cost import BENCH, SCENARIOS, Cost, CostError, measure, setting, why_not

BUDGET = BENCH / "budget.json"

#: The count itself is the same in every run. The room is for changes that are not about cost: ten
#: instructions more or less must not call for a new budget.
TOLERANCE = 0.01
#: Another compiler makes other instructions of the same sources. Seen, beside gcc 12 of Debian: gcc
#: 11 up to 2 % off, clang 14 up to 7 %, the hardening that Ubuntu's gcc adds 2 to 3 % more.
TOLERANCE_ELSEWHERE = 0.10

#: calls are counted by three digits after the point
_CALLS_EPSILON = 0.0015

_RECORD = "python bench/guard.py --record"


@dataclass(frozen=True)
class Verdict:
    """How what was measured stands to what was recorded; `mend` is empty where all is well."""

    scenario: str
    calls: str
    instructions: str
    mend: str = ""


def judge(name: str, cost: Cost, budget: Mapping[str, Any], where: Mapping[str, str]) -> Verdict:
    """Compare the cost of a scenario, measured in that setting, with the budget."""
    recorded = budget.get("calls", {}).get(name)
    if recorded is None:
        return Verdict(name, "no budget", "no budget", f"no budget is recorded yet: {_RECORD}")
    calls = _judge_calls(cost, recorded)
    instructions = _judge_instructions(name, cost, budget, where)
    mend = ""
    if "dearer" in (calls, instructions):
        mend = (
            "dearer than its budget. Look where it goes: python bench/guard.py --explain "
            f"{name}. If it is worth it, record it with the change, and say why: {_RECORD}"
        )
    elif "cheaper" in (calls, instructions):
        mend = f"cheaper than its budget: record the gain with the change: {_RECORD}"
    elif calls == "other calls":
        mend = f"as many calls as before, but others: record them with the change: {_RECORD}"
    return Verdict(name, calls, instructions, mend)


def _judge_calls(cost: Cost, recorded: Mapping[str, float]) -> str:
    """Calls are exact, on every machine: one more in a hundred connections is dearer."""
    more = cost.calls_total - sum(recorded.values())
    if abs(more) > _CALLS_EPSILON:
        return "dearer" if more > 0 else "cheaper"
    return "other calls" if changes(cost, recorded) else "as recorded"


def changes(cost: Cost, recorded: Mapping[str, float]) -> list[str]:
    """Tell each call whose number is not the recorded one, as "name before → now"."""
    return [
        f"{call} {_short(recorded.get(call, 0))} → {_short(cost.calls.get(call, 0))}"
        for call in sorted({*cost.calls, *recorded})
        if abs(cost.calls.get(call, 0) - recorded.get(call, 0)) > _CALLS_EPSILON
    ]


def _judge_instructions(
    name: str, cost: Cost, budget: Mapping[str, Any], where: Mapping[str, str]
) -> str:
    here = budget.get("instructions", {}).get(where["machine"], {})
    recorded = here.get("by_scenario", {}).get(name)
    if recorded is None:
        return f"no budget for {where['machine']}"
    ratio = cost.instructions / recorded
    if here["setting"] != dict(where):
        # A better compiler is no gain of ours: it is not asked to be recorded.
        return "dearer" if ratio > 1 + TOLERANCE_ELSEWHERE else "other compiler"
    if ratio > 1 + TOLERANCE:
        return "dearer"
    return "cheaper" if ratio < 1 - TOLERANCE else "as recorded"


def record(
    costs: Mapping[str, Cost], budget: Mapping[str, Any], where: Mapping[str, str]
) -> dict[str, Any]:
    """Return the budget with these costs in it; what was recorded on other machines stays."""
    machine = where["machine"]
    old = budget.get("instructions", {}).get(machine, {})
    kept = old.get("by_scenario", {}) if old.get("setting") == dict(where) else {}
    instructions = {name: cost.instructions for name, cost in costs.items()}
    calls = {name: dict(sorted(cost.calls.items())) for name, cost in costs.items()}
    return {
        "calls": _ordered({**budget.get("calls", {}), **calls}),
        "instructions": {
            **budget.get("instructions", {}),
            machine: {"setting": dict(where), "by_scenario": _ordered({**kept, **instructions})},
        },
    }


def _ordered(by_scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out scenarios that are no more."""
    return {name: by_scenario[name] for name in SCENARIOS if name in by_scenario}


def read_budget() -> dict[str, Any]:
    """Return the recorded budget, empty where there is none."""
    if not BUDGET.exists():
        return {}
    budget: dict[str, Any] = json.loads(BUDGET.read_text())
    return budget


def _short(value: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".")


def show(
    costs: Mapping[str, Cost],
    verdicts: Mapping[str, Verdict],
    budget: Mapping[str, Any],
    where: Mapping[str, str],
) -> str:
    """Return the table, the calls by name below it, and what is to be done."""
    recorded_calls = budget.get("calls", {})
    recorded = budget.get("instructions", {}).get(where["machine"], {}).get("by_scenario", {})
    rows = [("per", "calls", "budget", "", "instructions", "budget", "")]
    for name, cost in costs.items():
        calls = recorded_calls.get(name)
        rows.append(
            (
                name,
                _short(cost.calls_total),
                "-" if calls is None else _short(round(sum(calls.values()), 3)),
                verdicts[name].calls,
                f"{cost.instructions:,.0f}",
                f"{recorded[name]:,.0f}" if name in recorded else "-",
                verdicts[name].instructions,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    out = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    for name, cost in costs.items():
        by_name = ", ".join(f"{call} {_short(count)}" for call, count in cost.calls.items())
        out += ["", f"{name}: {SCENARIOS[name].what}", f"  {by_name}"]
        changed = changes(cost, recorded_calls.get(name, cost.calls))
        if changed:
            out.append(f"  changed: {', '.join(changed)}")
    mends = [f"{name}: {verdict.mend}" for name, verdict in verdicts.items() if verdict.mend]
    return "\n".join([*out, *([""] if mends else []), *mends])


def explain(name: str, cost: Cost, lines: int = 40) -> str:
    """Return where the instructions of a scenario go, function by function."""
    out = [f"{name}: {SCENARIOS[name].what}", f"{cost.instructions:9,.1f}  instructions, of which"]
    for function, count in list(cost.functions.items())[:lines]:
        out.append(f"{count:9,.1f}  {count / cost.instructions:6.1%}  {function}")
    return "\n".join(out)


def as_json(
    costs: Mapping[str, Cost], verdicts: Mapping[str, Verdict], where: Mapping[str, str]
) -> str:
    """Return all that was measured and judged, for machines."""
    scenarios = {
        name: {
            "calls": cost.calls,
            "calls_total": cost.calls_total,
            "instructions": cost.instructions,
            "functions": cost.functions,
            "calls_verdict": verdicts[name].calls,
            "instructions_verdict": verdicts[name].instructions,
            "mend": verdicts[name].mend,
        }
        for name, cost in costs.items()
    }
    return json.dumps({"setting": dict(where), "scenarios": scenarios}, indent=2)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare what the engine spends on a connection with the recorded budget.",
        epilog="Exit code: 0 when all is as recorded, 1 when not or when it could not be measured.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="SCENARIO", help=f"of: {', '.join(SCENARIOS)}; default: all"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--record", action="store_true", help="write the budget anew")
    modes.add_argument(
        "--explain", action="store_true", help="list the functions by their instructions"
    )
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name!r}; there are: {', '.join(SCENARIOS)}")
    options.names = [name for name in SCENARIOS if name in options.names or not options.names]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse(arguments)
    try:
        problem = why_not()
        if problem:
            raise CostError(problem)
        where = setting()
        costs = measure(options.names)
    except CostError as error:
        print(f"guard: {error}", file=sys.stderr)
        return 1
    if options.explain:
        print("\n\n".join(explain(name, cost) for name, cost in costs.items()))
        return 0
    budget = read_budget()
    if options.record:
        budget = record(costs, budget, where)
        BUDGET.write_text(json.dumps(budget, indent=2) + "\n")
    verdicts = {name: judge(name, cost, budget, where) for name, cost in costs.items()}
    print(as_json(costs, verdicts, where) if options.json else show(costs, verdicts, budget, where))
    return 1 if any(verdict.mend for verdict in verdicts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
