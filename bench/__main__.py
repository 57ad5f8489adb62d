"""The side by side: `python bench`, the command that `./dev bench` runs."""

import argparse
import datetime
import re
import sys
import time
from pathlib import Path
from typing import NoReturn

import place
from place import BenchError

try:
    from versus import proxies, works
    from versus.progress import Progress
    from versus.record import OWN, Missing, Record
    from versus.run import Run, find_proxies, leave_out_tools, select, tell_missing
    from versus.setting import setting
    from versus.table import compare, show
except ImportError as error:
    sys.exit(f"bench: needs {error.name} (pip install {error.name}, or run ./dev bench)")

_ROOT = place.BENCH.parent
_DOCS = _ROOT / "docs"

_EXAMPLES = """\
examples:
  python bench                           all of it: five rounds, half an hour
  python bench --quick                   a first look, in two minutes
  python bench --only check --rounds 1   the checks alone, once
  python bench --only mix bulk-down --rivals nginx haproxy
  python bench --list                    what there is to measure, and beside what
  python bench --json run.json --write   keep the record, and write docs/BENCHMARKS.md from it
  python bench --report run.json         the tables of a run that was kept, without measuring
  python bench --compare old.json        all of it, and reflector beside itself in an older record

Needs root or user namespaces: all traffic stays in network namespaces that end with the run. A
rival or a tool that is not installed is left out by name. Every run is kept, also one that was cut
short: as build/bench/latest.json, and beside it by its time and commit. Exit code: 0 when reflector
was measured, 1 when not, 2 for wrong arguments, 130 after Ctrl-C, which shows what was measured by
then.
"""


class _Parser(argparse.ArgumentParser):
    """A parser that tells what is wrong in one line, not below a page of usage."""

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"bench: {message}\n")


def _parse() -> argparse.Namespace:
    parser = _Parser(
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
    add(
        "--keep",
        type=Path,
        metavar="DIRECTORY",
        default=_ROOT / "build" / "bench",
        help="where every run is kept (default: build/bench)",
    )
    add("--report", type=Path, metavar="FILE", help="show the record in FILE, and measure nothing")
    add("--compare", type=Path, metavar="FILE", help="show reflector beside its numbers in FILE")
    add(
        "--write",
        action="store_true",
        help="write docs/BENCHMARKS.md and its plots, from a full run that came to its end",
    )
    add("--verbose", action="store_true", help="tell what the proxies say, on stderr")
    arguments = parser.parse_args()
    arguments.part = " ".join(
        f"--{name} {' '.join(given)}"
        for name, given in (("only", arguments.only), ("rivals", arguments.rivals))
        if given
    )
    if arguments.write and not arguments.report and (arguments.quick or arguments.part):
        parser.error("--write wants a full run, without --quick, --only and --rivals")
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
    record.part = "it did not come to its end"  # which it does further below
    record.rounds = arguments.rounds
    began = time.monotonic()
    progress = Progress()

    def miss(what: str, why: str) -> None:
        tell_missing(record, progress, what, why)

    try:
        record.setting = setting()
        with place.tools() as tools, progress:
            found = find_proxies(tools, arguments.proxies, miss)
            sessions = leave_out_tools(arguments.sessions, miss)
            Run(tools, found, sessions, progress, record).measure()
        record.part = arguments.part
        return True
    except KeyboardInterrupt:
        return False
    finally:
        record.seconds = round(time.monotonic() - began, 1)
        if record.part != arguments.part:
            record.missing.append(Missing("the rest of the run", "it was interrupted"))


def _try_target(target: str | None) -> None:
    """Make sure that the record can be written to where it is wanted, or end with exit code 2."""
    if target in (None, "-"):
        return
    try:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with Path(target).open("a"):
            pass
    except OSError as error:
        _say(f"--json {target}: {error.strerror}")
        sys.exit(2)


def _keep(record: Record, directory: Path, target: str | None) -> None:
    """Write the record to where every run is kept, and then to where it was asked for."""
    text = record.to_json()
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    when, commit = record.setting.get("when", now), record.setting.get("commit", "unknown")
    name = re.sub(r"[^\w.-]+", "-", f"{when[:19]}-{commit}".replace(":", ""))
    asked = [Path(target)] if target not in (None, "-") else []
    for path in (directory / "latest.json", directory / f"{name}.json", *asked):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            _say(f"{path.name} is not written: {error.strerror}")
    if target == "-":
        sys.stdout.write(text)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _read(path: Path) -> Record:
    """Read a record that is named on the command line, or end with exit code 1 and the reason."""
    try:
        return Record.from_json(path.read_text())
    except OSError as error:
        sys.exit(f"bench: {path}: {error.strerror}")
    except ValueError as error:
        sys.exit(f"bench: {path}: {error}")


def _tell(record: Record, old: Record | None, arguments: argparse.Namespace) -> bool:
    """Show the tables, unless stdout has the JSON, and write the documents if asked to.

    Returns whether all of that is done.
    """
    if arguments.json != "-":
        show(record)
        if old:
            print()
            compare(record, old)
    if not arguments.write:
        return True
    from versus.document import NotKept, write

    why_not = "a quick run" if record.mode == "quick" else record.part
    if why_not or not record.samples:
        _say(f"docs/BENCHMARKS.md stays as it is: {why_not or 'nothing was measured'}")
        return False
    try:
        write(record, _DOCS)
    except (NotKept, OSError) as error:
        _say(str(error))
        return False
    _say("wrote docs/BENCHMARKS.md")
    return True


def _try_page() -> None:
    """Make sure, before half an hour of measuring, that the page can be written anew."""
    from versus.document import PAGE, NotKept, kept

    try:
        kept(_DOCS / PAGE)
    except (NotKept, OSError) as error:
        sys.exit(f"bench: {error}")


def _prepare(arguments: argparse.Namespace) -> None:
    """Enter the place of the measurements, which starts this command again."""
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


def main() -> int:
    """Run the command and return its exit code."""
    arguments = _parse()
    if arguments.list:
        _list(arguments)
        return 0
    old = _read(arguments.compare) if arguments.compare else None
    if arguments.report:
        return 0 if _tell(_read(arguments.report), old, arguments) else 1
    _try_target(arguments.json)
    if arguments.write:
        _try_page()
    _prepare(arguments)
    record = Record()
    try:
        complete = _measure(arguments, record)
    finally:
        _keep(record, arguments.keep, arguments.json)
    written = _tell(record, old, arguments)
    if not complete:
        return 130
    return 0 if written and any(sample.proxy == OWN for sample in record.samples) else 1


if __name__ == "__main__":
    sys.exit(main())
