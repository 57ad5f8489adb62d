"""What the side by side makes of a record: verdicts, tables, the page and plots, and the bar.

The record in data/ is made up: its numbers are chosen so that what should come out can be reckoned
by hand.
"""

import io
import os
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
if not (BENCH / "versus").is_dir():
    pytest.skip("needs bench/, of the git checkout", allow_module_level=True)
sys.path.append(str(BENCH))
pytest.importorskip("rich", reason="needs rich: the dependency group bench")
pytest.importorskip("matplotlib", reason="needs matplotlib: the dependency group bench")

from versus import document, plots, table, view  # noqa: E402
from versus.observer import Cell  # noqa: E402
from versus.progress import PRIOR_SECONDS, Estimate, Progress  # noqa: E402
from versus.record import METRICS, Missing, ProxyInfo, Record, Sample, Work  # noqa: E402
from versus.targets import judge_all  # noqa: E402

DATA = Path(__file__).parent / "data" / "bench_record.json"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


@pytest.fixture
def record() -> Record:
    return Record.from_json(DATA.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def fonts_are_open(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The fonts that matplotlib keeps open from its first drawing on are no leak of a test."""
    plots.draw(Record.from_json(DATA.read_text(encoding="utf-8")), tmp_path_factory.mktemp("fonts"))


def shown(record: Record, width: int | None = None) -> str:
    out = io.StringIO()
    table.show(record, file=out, width=width)
    return out.getvalue()


def without(record: Record, **left_out: str) -> Record:
    """The record without the samples that have such a `work` or `proxy`."""
    kept = [
        sample
        for sample in record.samples
        if not any(getattr(sample, name) == value for name, value in left_out.items())
    ]
    return replace(record, samples=kept)


# --- numbers --------------------------------------------------------------------------------------


def test_ratios_are_taken_round_by_round_to_the_best_of_the_round(record: Record) -> None:
    # reflector 60, 90, 80; the best of nginx and HAProxy 100, 90, 100
    ratio = record.ratio("check-64-20000", "cpu_us", "best")
    assert ratio is not None
    assert (ratio.median, ratio.least, ratio.most) == (0.8, 0.6, 1.0)
    # more is better: 1000 of HAProxy, not 800 of nginx
    ratio = record.ratio("bulk-down", "mb_per_s", "best")
    assert ratio is not None
    assert (ratio.median, ratio.least, ratio.most) == (2.0, 1.9, 2.1)


def test_verdicts(record: Record) -> None:
    verdicts = {verdict.target.key: verdict for verdict in judge_all(record)}
    words = {key: table.in_words(verdict) for key, verdict in verdicts.items()}
    assert words == {
        "check-cpu": "fell short by 6.7 %",  # 0.8 / 0.75
        "pingpong-cpu": "not measured",
        "bulk-down-cpu": "met",  # 0.28: the limit itself
        "bulk-up-cpu": "not measured",
        "bulk-down-rate": "met",  # 2.0: the limit itself
        "bulk-up-rate": "not measured",
        "held-memory": "met",  # 200 / 5000
        "mix-p99": "not measured",
        **dict.fromkeys(
            ("mirror-above-nginx", "mirror-above-nft", "mirror-rate", "mirror-latency"),
            "not measured",
        ),
        "nodes-rise": "fell short by 4.3 %",  # 100, 88, 96 to 80: 1.2 / 1.15
        "holding-rise": "not measured",
    }
    assert table.measured(verdicts["check-cpu"]) == "0.80 (0.60-1.00)"
    assert table.measured(verdicts["held-memory"]) == "0.040 (0.040-0.040)"


def test_a_ratio_above_direct_is_of_what_each_adds(record: Record) -> None:
    work, metric = "check-64-20000", "machine_us"
    values = {"mirror": (120.0, 130.0, 90.0), "nginx": (200.0, 220.0, 180.0)}
    values["direct"] = (100.0, 100.0, 180.0)
    samples = [
        Sample(work, key, number, {metric: value})
        for key, row in values.items()
        for number, value in enumerate(row)
    ]
    seen = replace(record, samples=samples)
    ratios = seen.ratios(work, metric, "nginx", of="mirror", above="direct")
    assert ratios == {0: 0.2, 1: 0.25}, "the third has nothing to divide by"


def test_kernel_memory_is_less_that_of_direct(record: Record) -> None:
    seen = view.less_direct(record)
    # 17,000 - 9,000, 17,500 - 9,100, 17,100 - 8,900
    summary = seen.summary("held", "reflector", "kernel_bytes")
    assert summary is not None
    assert (summary.median, summary.least, summary.most) == (8200, 8000, 8400)
    assert seen.summary("held", "direct", "kernel_bytes") is None
    assert seen.missing == record.missing


def test_kernel_memory_without_direct_is_told_as_missing(record: Record) -> None:
    seen = view.less_direct(without(record, proxy="direct"))
    assert seen.summary("held", "reflector", "kernel_bytes") is None
    assert any("direct" in one.why for one in seen.missing)


def test_the_best_is_marked_among_proxies_in_user_space(record: Record) -> None:
    rate = METRICS["rate"]
    assert view.best_proxy(record, "check-64-20000", rate) == "reflector"  # nft and direct do more
    assert view.best_proxy(without(record, proxy="reflector"), "check-64-20000", rate) == "nginx"
    assert view.best_proxy(record, "nodes-10", rate) is None  # nobody to be better than


@pytest.mark.parametrize(
    ("least", "most", "text"),
    [
        (0.0, 9.96, "0-9.96"),
        (99.94, 99.96, "99.9-100"),
        (980, 1020, "980-1.02k"),
        (999.4, 999.6, "999-1.00k"),
        (21_940, 23_060, "21.9-23.1k"),
        (999_400, 1_200_000, "999k-1.20M"),
    ],
)
def test_spreads_are_short(least: float, most: float, text: str) -> None:
    assert view.spread(least, most) == text


def test_numbers() -> None:
    assert view.number(12345.6) == "12,346"
    assert view.number(3.14) == "3.1"
    assert view.number(0) == "0"
    assert view.duration(59.6) == "1:00"
    assert view.duration(3725) == "1:02:05"
    assert view.duration(-3) == "0:00"
    assert view.percent(0.0004) == "less than 0.1 %"
    assert view.percent(0.0999) == "10 %"


# --- the table ------------------------------------------------------------------------------------


def test_table_tells_medians_spreads_ratios_and_failures(record: Record) -> None:
    text = shown(record)
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("CPU, µs"))
    assert lines[at].split() == ["CPU,", "µs", "*80.0", "100.0", "100.0", "-", "-", "0.80"]
    assert lines[at + 1].split() == ["60.0-90.0", "100-120", "90.0-120", "0.60-1.00"]
    assert any(line.startswith("failed") for line in lines)  # nginx has two in a round
    assert "sockperf: not installed" in text


def test_a_record_is_compared_with_an_older_one(record: Record) -> None:
    halved = [
        replace(sample, values={key: value / 2 for key, value in sample.values.items()})
        for sample in record.samples
    ]
    out = io.StringIO()
    table.compare(record, replace(record, samples=halved), out)
    lines = out.getvalue().splitlines()
    cpu = next(line for line in lines if line.startswith("  CPU, µs"))
    assert cpu.split() == ["CPU,", "µs", "40.0", "80.0", "2.00"]
    rates = [line.split()[-1] for line in lines if "MB/s ↑" in line]
    assert rates
    assert set(rates) == {"2.00"}
    out = io.StringIO()
    table.compare(record, without(record, proxy="reflector"), out)
    assert "nothing that both have measured" in out.getvalue()


@pytest.mark.parametrize("width", [100, 80, 40])
def test_table_is_plain_and_fits(record: Record, width: int) -> None:
    text = shown(record, width)
    assert not CONTROL.search(text)
    assert max(map(len, text.splitlines())) <= width


def test_table_is_100_columns_wide_where_there_is_no_terminal(record: Record) -> None:
    assert shown(record) == shown(record, 100)


# --- the page and the plots -----------------------------------------------------------------------


def files_below(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def test_the_same_record_gives_the_same_bytes(record: Record, tmp_path: Path) -> None:
    written = document.write(record, tmp_path)
    first = files_below(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in written} == set(first)
    again = Record.from_json((tmp_path / "bench" / "record.json").read_text(encoding="utf-8"))
    document.write(again, tmp_path)
    assert files_below(tmp_path) == first


def test_what_is_kept_by_hand_survives_byte_for_byte(record: Record, tmp_path: Path) -> None:
    page = tmp_path / "BENCHMARKS.md"
    document.write(record, tmp_path)
    before, _, rest = page.read_bytes().partition(document.KEPT_FROM.encode())
    _, _, after = rest.partition(document.KEPT_TO.encode())
    # What a template, a universal newline or an editor would change.
    hand = "\r\n## Tuning  \n\n\n$1 ${rate} $$ {x} \\1 %s\t| a | µs |\0 no end".encode()
    kept = document.KEPT_FROM.encode() + hand + document.KEPT_TO.encode()
    page.write_bytes(before + kept + after)
    document.write(replace(record, mode="quick"), tmp_path)
    text = page.read_bytes()
    assert text.count(kept) == 1
    assert b"quick run" in text
    assert text.endswith(after)


@pytest.mark.parametrize(
    "text",
    [
        "all by hand",
        document.KEPT_FROM,
        f"{document.KEPT_TO} {document.KEPT_FROM}",
        f"{document.KEPT_FROM} {document.KEPT_FROM} {document.KEPT_TO}",
    ],
)
def test_a_page_without_its_markers_is_left_alone(
    record: Record, tmp_path: Path, text: str
) -> None:
    page = tmp_path / "BENCHMARKS.md"
    page.write_text(text)
    with pytest.raises(document.NotKept, match="tuning"):
        document.write(record, tmp_path)
    assert files_below(tmp_path) == {"BENCHMARKS.md": text.encode()}


def test_page_tells_verdicts_and_embeds_what_was_drawn(record: Record, tmp_path: Path) -> None:
    document.write(record, tmp_path)
    text = (tmp_path / "BENCHMARKS.md").read_text(encoding="utf-8")
    assert "Of the 14 targets 3 are met, 2 are not, 9 were not measured." in text
    assert "| 0.80 (0.60-1.00) | fell short by 6.7 % |" in text
    assert "| **80.0**<br><sub>60.0-90.0</sub> | 100.0<br><sub>100-120</sub> |" in text
    images = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert len(images) == len(set(images))
    assert set(images) == {f"bench/{path.name}" for path in (tmp_path / "bench").glob("*.svg")}
    assert not re.search(r"[ \t]$", text, re.MULTILINE)


def test_plots_are_small_and_their_text_is_text(record: Record, tmp_path: Path) -> None:
    drawn = plots.draw(record, tmp_path)
    assert {plot.name for plot in drawn} == {
        *("check-rate", "check-cpu", "latency", "bulk", "memory", "nodes")
    }
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 60_000
    text = (tmp_path / "bulk.svg").read_text(encoding="utf-8")
    assert ">3.57</text>" in text  # 1000 / 280
    assert "better" in text
    assert "no process of its own" in text  # nft
    assert ">8,200</text>" in (tmp_path / "memory.svg").read_text(encoding="utf-8")


def test_a_plot_of_another_run_is_not_left_behind(record: Record, tmp_path: Path) -> None:
    plots.draw(record, tmp_path)
    plots.draw(without(record, work="held"), tmp_path)
    assert not (tmp_path / "memory.svg").exists()


@pytest.mark.parametrize(
    "lessen",
    [
        lambda record: without(record, proxy="nginx"),
        lambda record: without(record, proxy="reflector"),
        lambda record: without(record, work="check-64-20000"),
        lambda record: without(record, work="nodes-10"),
        lambda record: replace(record, samples=[s for s in record.samples if s.round == 0]),
        lambda record: replace(record, samples=record.samples[:1]),
        lambda record: replace(record, samples=[]),
        lambda _: Record(),
    ],
    ids=["rival", "reflector", "work", "point", "rounds", "but-one", "samples", "all"],
)
def test_a_record_with_gaps_is_told_all_the_same(
    record: Record, tmp_path: Path, lessen: Callable[[Record], Record]
) -> None:
    poor = lessen(record)
    poor.missing = [*poor.missing, Missing("HAProxy", "not installed")]
    text = shown(poor)
    assert "not measured" in text
    assert "HAProxy: not installed" in text
    document.write(poor, tmp_path)
    assert "- HAProxy: not installed" in (tmp_path / "BENCHMARKS.md").read_text(encoding="utf-8")


def test_links_of_the_page_lead_somewhere(record: Record) -> None:
    rivals = [ProxyInfo(key, key, "1", "proxy") for key in ("socat", "reflector01", "haproxy_1m")]
    text = document.render(replace(record, proxies=[*record.proxies, *rivals]), [], "")
    links = set(re.findall(r"\]\((\.\./[^)#]+)\)", text))
    assert links
    docs = BENCH.parent / "docs"
    assert not [link for link in links if not (docs / link).resolve().exists()]


# --- the bar --------------------------------------------------------------------------------------


class Clock:
    """A clock that is set by hand, in seconds."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def cells(rounds: int = 2, seconds: float = 10.0) -> list[Cell]:
    work = Work("check-64-20000", "check", "checks, 64 at a time", {})
    proxies = [
        ProxyInfo("reflector", "reflector", "1.0", "proxy"),
        ProxyInfo("nginx", "nginx stream", "1.22", "proxy"),
    ]
    return [Cell(r, work, proxy, seconds) for r in range(rounds) for proxy in proxies]


def test_time_left_is_the_plans_at_first() -> None:
    assert Estimate(cells()).left() == 40.0


def test_time_left_is_corrected_by_what_was_seen() -> None:
    first, second, third, fourth = planned = cells()
    estimate = Estimate(planned)
    estimate.took(first, 20.0)
    # All in all it took 20 s where 10 s were expected, beside the weight of the plan's own word.
    factor = (PRIOR_SECONDS + 20) / (PRIOR_SECONDS + 10)
    assert estimate.factor == factor
    # The same pair takes 20 s again, the other what is expected by the factor, twice.
    assert estimate.left() == pytest.approx(20 + 2 * 10 * factor)
    estimate.skipped(second)
    assert estimate.left() == pytest.approx(20 + 10 * factor)
    estimate.took(third, 10.0)
    estimate.took(fourth, 1.0)
    assert estimate.left() == 0


def test_time_left_counts_down_within_a_cell_but_not_below_it() -> None:
    planned = cells()
    estimate = Estimate(planned)
    assert estimate.left(planned[0], 4.0) == 36.0
    assert estimate.left(planned[0], 99.0) == 30.0


def run(watch: Progress, clock: Clock) -> None:
    """A run of four cells: two measure, one fails, and one is not tried."""
    planned = cells()
    watch.missing("socat", "not installed")
    watch.missing("socat", "not installed")
    watch.plan(planned)
    values: dict[str, Any] = {"rate": 8000.4, "cpu_us": 81.26, "machine_us": 190.0, "failed": 0.0}
    for cell, measured in zip(planned[:3], (values, None, values), strict=True):
        watch.began(cell)
        clock.now += 10
        watch.ended(cell, measured)
    watch.ended(planned[3], None)


def test_without_a_terminal_each_cell_is_a_plain_line() -> None:
    out, clock = io.StringIO(), Clock()
    with Progress(out, clock) as watch:
        run(watch, clock)
    assert out.getvalue().splitlines() == [
        "socat: not measured, not installed",
        "4 measurements in 2 rounds, about 0:40",
        "1/4 round 1, checks, 64 at a time, reflector: checks/s 8,000, CPU 81.3 µs (0:30 left)",
        "2/4 round 1, checks, 64 at a time, nginx stream: not measured (0:20 left)",
        "3/4 round 2, checks, 64 at a time, reflector: checks/s 8,000, CPU 81.3 µs (0:10 left)",
        "4/4 round 2, checks, 64 at a time, nginx stream: not measured (0:00 left)",
    ]


def test_on_a_terminal_a_bar_is_drawn_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    leader, follower = os.openpty()
    clock, before = Clock(), set(threading.enumerate())
    try:
        with os.fdopen(follower, "w") as terminal, Progress(terminal, clock) as watch:
            run(watch, clock)
            # rich's own thread may still be on its way out
            for thread in set(threading.enumerate()) - before:
                thread.join(10)
                assert not thread.is_alive(), "nothing draws after the last cell"
            terminal.flush()
            drawn = os.read(leader, 100_000).decode()
    finally:
        os.close(leader)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    assert "round 1 of 2: checks, 64 at a time, nginx stream" in text
    assert "1 of 4" in text
    assert "0:10 so far" in text
    assert "0:30 left" in text
    assert text.count("socat: not measured, not installed") == 1
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", drawn), "colours in spite of NO_COLOR"
