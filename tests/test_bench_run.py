"""The side by side as it is run: its record, however it ends, and what keeps a run fair."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.leaks import under_sanitizer

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
if not (BENCH / "versus").is_dir():
    pytest.skip("needs bench/, of the git checkout", allow_module_level=True)
sys.path.append(str(BENCH))
for module in ("rich", "psutil"):
    pytest.importorskip(module, reason=f"needs {module}: the dependency group bench")

from place import BenchError  # noqa: E402
from versus import run as versus_run  # noqa: E402
from versus.observer import Cell  # noqa: E402
from versus.proxies import Proxy, _at_least  # noqa: E402
from versus.record import ProxyInfo, Record, Work  # noqa: E402
from versus.run import Run, plain, tell_missing  # noqa: E402
from versus.works import Session, Task  # noqa: E402

SMOKE = ["--only", "check-1-1", "--rivals", "direct"]


def bench(*arguments: str) -> list[str]:
    return [sys.executable, str(BENCH), *arguments]


def smoke(directory: Path, rounds: int) -> list[str]:
    """A short run, which leaves alone what is kept of real ones."""
    return bench(*SMOKE, "--rounds", str(rounds), "--keep", str(directory))


@pytest.fixture
def can_measure() -> None:
    """Skip where there are no namespaces to measure in, or no compiler."""
    if under_sanitizer():
        pytest.skip("children of the benchmark do not load the sanitizer")
    if not shutil.which("gcc") and not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    plain = ["unshare", "--net", "--mount"]
    for command in (plain, [*plain, "--map-root-user"]):
        if (
            shutil.which("unshare")
            and not subprocess.run([*command, "true"], check=False).returncode
        ):
            return
    pytest.skip("needs root, or user namespaces")


@pytest.mark.usefixtures("can_measure")
def test_a_run_leaves_its_record(tmp_path: Path) -> None:
    done = subprocess.run(
        [*smoke(tmp_path / "kept", rounds=1), "--json", str(tmp_path / "asked.json")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    kept = [*(tmp_path / "kept").iterdir(), tmp_path / "asked.json"]
    assert len(kept) == 3, "the latest, the same by its name, and where it was asked for"
    record, *others = [Record.from_json(path.read_text()) for path in kept]
    assert others == [record] * 2
    assert [sample.proxy for sample in record.samples] == ["reflector", "direct"]
    for sample in record.samples:
        assert sample.values["rate"] > 0
        assert sample.values["failed"] == 0
        assert 0 < sample.values["p50_us"] <= sample.values["p999_us"]
    assert record.part == "--only check-1-1 --rivals direct"
    assert not record.missing


@pytest.mark.usefixtures("can_measure")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_ended_keeps_what_it_has(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    with subprocess.Popen(
        smoke(tmp_path, rounds=50), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            assert run.stderr is not None
            for line in run.stderr:
                if line.lstrip().startswith("2/"):
                    break
            time.sleep(0.2)
            run.send_signal(number)
            told = run.stderr.read()
            assert run.wait(30) == status, told
        finally:
            run.kill()
    record = Record.from_json((tmp_path / "latest.json").read_text())
    assert len(record.samples) >= 2
    assert record.part == "it did not come to its end"
    assert "it was interrupted" in [one.why for one in record.missing]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "nonsense"], "no work 'nonsense'"),
        (["--rivals", "nonsense"], "no rival 'nonsense'"),
        (["--quick", "--write"], "--write wants a full run"),
        (["--json", "/proc/nowhere/record.json"], "No such file or directory"),
    ],
)
def test_wrong_arguments_are_told_in_a_line_before_measuring(
    arguments: list[str], told: str
) -> None:
    done = subprocess.run(
        bench(*arguments), capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_page_is_not_written_from_a_part_of_a_run(tmp_path: Path) -> None:
    data = json.loads((ROOT / "tests" / "data" / "bench_record.json").read_text())
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**data, "mode": "full", "part": "--only mix"}))
    done = subprocess.run(
        bench("--report", str(path), "--write"),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert done.stderr == "bench: docs/BENCHMARKS.md stays as it is: --only mix\n"


# --- fairness -------------------------------------------------------------------------------------


class Watch:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.cells: list[Cell] = []
        self.told: list[tuple[str, str]] = []
        self.ends: list[Mapping[str, float] | None] = []

    def plan(self, cells: Sequence[Cell]) -> None:
        self.cells = list(cells)

    def began(self, cell: Cell) -> None:
        pass

    def ended(self, cell: Cell, values: Mapping[str, float] | None) -> None:
        self.ends.append(values)

    def missing(self, what: str, why: str) -> None:
        self.told.append((what, why))


def run_of(count: int, rounds: int, measure: Any) -> tuple[Watch, Record]:
    """A run of so many proxies, each of which has one work."""
    proxies = [
        Proxy(ProxyInfo(str(i), f"proxy {i}", "1", "proxy"), start=None) for i in range(count)
    ]  # type: ignore[arg-type]
    everybody = frozenset(proxy.info.key for proxy in proxies)
    task = Task(((Work("w", "check", "work"), everybody),), 1.0, measure)
    watch, record = Watch(), Record(rounds=rounds)
    Run(None, proxies, [Session((task,))], watch, record).measure()  # type: ignore[arg-type]
    return watch, record


def test_nobody_always_comes_first_or_after_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def stage(*_: Any) -> Iterator[None]:
        yield None

    monkeypatch.setattr(versus_run, "set_up", stage)
    watch, record = run_of(4, 4, lambda _: {"rate": 1.0})
    order = ["".join(c.proxy.key for c in watch.cells if c.round == n) for n in range(4)]
    assert order == ["0123", "1032", "2301", "3210"]
    assert len(record.samples) == 16


def test_a_stage_that_fails_at_its_end_costs_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def stage(*_: Any) -> Iterator[None]:
        yield None
        raise BenchError("it would not go")

    monkeypatch.setattr(versus_run, "set_up", stage)
    watch, record = run_of(1, 3, lambda _: {"rate": 1.0})
    assert watch.ends == [{"rate": 1.0}] * 3
    assert len(record.samples) == 3
    assert watch.told == [("the end of proxy 0", "it would not go")]


def test_a_cell_that_fails_is_told_and_not_tried_a_third_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextmanager
    def stage(*_: Any) -> Iterator[None]:
        yield None

    tried = []

    def measure(_: Any) -> None:
        tried.append(1)
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr(versus_run, "set_up", stage)
    watch, _ = run_of(1, 3, measure)
    assert (len(tried), watch.ends) == (2, [None] * 3)
    assert watch.told == [("proxy 0 on work", "ZeroDivisionError: float division by zero")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{ROOT}/build/bench/x.py: gone", "build/bench/x.py: gone"),
        (f"open() {tempfile.gettempdir()}/reflector-bench-a_1b/2222-x.conf", "open() 2222-x.conf"),
        ("No such file: '/usr/lib/nginx/modules/a.so'\n in /etc/x", "No such file: 'a.so' in x"),
        ("/usr/sbin/haproxy -f x ended", "haproxy -f x ended"),
        ("/proc/sys/net/ipv4: http://192.0.2.1:10022/a/b, 198.18.0.0/15, checks/s", None),
    ],
)  # fmt: skip
def test_no_path_of_the_machine_is_in_the_record(text: str, told: str | None) -> None:
    record = Record()
    tell_missing(record, Watch(), "what", text)
    assert record.missing[0].why == plain(text) == (told or text)


def test_options_are_left_out_by_version() -> None:
    assert _at_least("1.19.5", 1, 19, 5)
    assert _at_least("1.22.1", 1, 19, 5)
    assert not _at_least("1.18.0", 1, 19, 5)
    assert _at_least("2.6.12", 2, 5)
    assert not _at_least("2.2.9", 2, 5)
    assert _at_least("?", 2, 5)


# --- the histogram of the load generator ----------------------------------------------------------

QUANTILES = """
#include <stdio.h>
#include "histogram.h"
int main(void)
{
    static struct histogram h;

    printf("%.3f ", histogram_quantile_us(&h, 0.5));
    for (uint64_t us = 1; us <= 1000; us++)
        histogram_add(&h, us * 1000);
    histogram_add(&h, ~0ULL);
    for (int q = 0; q <= 1000; q += 250)
        printf("%.3f ", histogram_quantile_us(&h, q / 1000.0));
    return 0;
}
"""


def test_quantiles_of_the_histogram_are_within_its_width(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("needs a C compiler")
    source, program = tmp_path / "quantiles.c", tmp_path / "quantiles"
    source.write_text(QUANTILES)
    subprocess.run([compiler, f"-I{BENCH}", "-o", str(program), str(source)], check=True)
    told = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    empty, *quantiles = map(float, told.split())
    assert empty == 0
    # What is beyond its end counts as the longest that it knows: 2**42 ns.
    assert quantiles == pytest.approx([1, 251, 501, 751, 2**42 / 1000], rel=0.004)
