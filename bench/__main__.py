"""The side by side: `python bench`, the command that `./dev bench` runs."""

import argparse
import sys
import time
from pathlib import Path

import place
from place import BenchError

try:
    from versus import proxies, works
    from versus.progress import Progress
    from versus.record import OWN, Missing, Record
    from versus.run import Run, find_proxies, leave_out_tools, select
    from versus.setting import setting
    from versus.table import show
except ImportError as error:
    sys.exit(f"bench: needs {error.name} (pip install {error.name}, or run ./dev bench)")

_ROOT = place.BENCH.parent
#: every run is kept here, also one that was cut short
_LATEST = _ROOT / "build" / "bench" / "latest.json"

_EXAMPLES = """\
examples:
  python bench                           all of it: five rounds, half an hour
  python bench --quick                   a first look, in two minutes
  python bench --only check --rounds 1   the checks alone, once
  python bench --only mix bulk-down --rivals nginx haproxy
  python bench --list                    what there is to measure, and beside what
  python bench --json run.json --write   keep the record, and write docs/BENCHMARKS.md from it
  python bench --report run.json         the tables of a run that was kept, without measuring

Needs root or user namespaces: all traffic stays in network namespaces that end with the run. A
rival or a tool that is not installed is left out by name. Every run is kept in
build/bench/latest.json. Exit code: 0 when reflector was measured, 1 when not, 2 for wrong
arguments, 130 after Ctrl-C, which shows and keeps what was measured by then.
"""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measure reflector beside what people would pick instead, on the same work.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one round of the most telling works: two minutes")
    add("--rounds", type=int, choices=range(1, 100), metavar="N", help="default: 5, or 1 if quick")
    add("--only", nargs="+", default=[], metavar="WORK", help="works, or groups of them")
    add("--rivals", nargs="+", metavar="RIVAL", help="beside these alone (default: all)")
    add(
        "--congestion",
        metavar="NAME",
        help="congestion control of TCP, among those that the host allows (default: cubic or reno)",
    )
    add("--list", action="store_true", help="list works and rivals, and measure nothing")
    add("--json", metavar="FILE", help="write the record to FILE; - is stdout")
    add("--report", type=Path, metavar="FILE", help="show the record in FILE, and measure nothing")
    add("--write", action="store_true", help="write docs/BENCHMARKS.md and its plots")
    add("--verbose", action="store_true", help="tell what the proxies say, on stderr")
    arguments = parser.parse_args()
    sessions = works.quick() if arguments.quick else works.full()
    known = [work for one in sessions for task in one.tasks for work, _ in task.samples]
    names = list(dict.fromkeys([work.group for work in known] + [work.key for work in known]))
    for name in arguments.only:
        if name not in names:
            parser.error(f"no work {name!r}; there are: {', '.join(names)}")
    for name in arguments.rivals or ():
        if name not in proxies.FINDERS:
            parser.error(f"no rival {name!r}; there are: {', '.join(proxies.FINDERS)}")
    arguments.sessions = select(sessions, arguments.only)
    keys = works.QUICK_PROXIES if arguments.quick else tuple(proxies.FINDERS)
    wanted = {OWN, *arguments.rivals} if arguments.rivals else set(keys)
    arguments.proxies = [key for key in proxies.FINDERS if key in wanted]
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 5)
    return arguments


def _list(arguments: argparse.Namespace) -> None:
    print("works, by group:")
    known = [work for one in arguments.sessions for task in one.tasks for work, _ in task.samples]
    for group in dict.fromkeys(work.group for work in known):
        print(f"  {group}")
        for work in known:
            if work.group == group:
                print(f"    {work.key:18}{work.title}")
    print("rivals:")
    for key, name in proxies.NAMES.items():
        print(f"    {key:18}{name}")


def _measure(arguments: argparse.Namespace, record: Record) -> bool:
    """Measure into the record; return whether it came to its end."""
    record.mode = "quick" if arguments.quick else "full"
    record.rounds = arguments.rounds
    record.setting = setting()
    began = time.monotonic()
    progress = Progress()

    def miss(what: str, why: str) -> None:
        record.missing.append(Missing(what, why))
        progress.missing(what, why)

    with place.tools() as tools, progress:
        try:
            found = find_proxies(tools, arguments.proxies, miss)
            sessions = leave_out_tools(arguments.sessions, miss)
            Run(tools, found, sessions, progress, record).measure()
            return True
        except KeyboardInterrupt:
            record.missing.append(Missing("the rest of the run", "it was interrupted"))
            return False
        finally:
            record.seconds = round(time.monotonic() - began, 1)


def _keep(record: Record, target: str | None) -> None:
    """Write the record to where every run is kept, and to where it was asked for."""
    text = record.to_json()
    if target == "-":
        sys.stdout.write(text)
    for path in {_LATEST, *([Path(target)] if target not in (None, "-") else [])}:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _tell(record: Record, arguments: argparse.Namespace) -> None:
    """Show the tables, unless stdout has the JSON, and write the documents if asked to."""
    if arguments.json != "-":
        show(record)
    if arguments.write:
        from versus.document import NotKept, write

        try:
            write(record, _ROOT / "docs")
        except NotKept as error:
            sys.exit(f"bench: {error}")
        place.progress("wrote docs/BENCHMARKS.md")


def main() -> int:
    """Run the command and return its exit code."""
    arguments = _parse()
    if arguments.list:
        _list(arguments)
        return 0
    if arguments.report:
        try:
            record = Record.from_json(arguments.report.read_text())
        except (OSError, ValueError) as error:
            sys.exit(f"bench: {arguments.report}: {error}")
        _tell(record, arguments)
        return 0
    if arguments.congestion:
        place.use_congestion_control(arguments.congestion)
    try:
        place.find_reflector()
        if "reflector01" in arguments.proxies and not place.entered():
            proxies.fetch_ancestor()
        place.enter_namespace(required=True)
    except BenchError as error:
        sys.exit(f"bench: {error}")
    place.end_on_signals()
    if not arguments.verbose:
        place.tell_by(lambda _text: None)
    record = Record()
    complete = _measure(arguments, record)
    _keep(record, arguments.json)
    _tell(record, arguments)
    if not complete:
        return 130
    return 0 if any(sample.proxy == OWN for sample in record.samples) else 1


if __name__ == "__main__":
    sys.exit(main())
