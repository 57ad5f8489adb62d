"""`reflector demo`: it shows the truth, in seconds, wherever it runs."""

import json
import os
import pty
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cli_support import COMMAND, environment, one_line, run_command
from support.namespaces import Namespace
from support.programs import Sshd
from support.timing import patience

STATES = ["up", "shut off from the network", "away", "back"]


def says(report: dict[str, object], service: str, check: str) -> bool:
    rows = report["rows"]
    assert isinstance(rows, list)
    (row,) = [r for r in rows if r["service"] == service and check in r["check"]]
    return bool(row["passed"])


def test_demo_shows_a_service_come_and_go_and_ends_with_0() -> None:
    done = run_command("demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "All as expected" in done.stdout
    assert "\x1b" not in done.stdout
    places = [done.stdout.index(f"\n{state}  ") for state in STATES]
    assert places == sorted(places)


def test_reflected_check_that_reads_tells_the_truth_in_every_state() -> None:
    done = run_command("demo", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["as_expected"]
    assert report["seconds"] < patience(3)
    for row in report["rows"]:
        if row["check"] == "dials the reflector, reads":
            assert row["passed"] == row["reachable"]
            assert not row["misleads"]
    assert says(report, "shut off from the network", "node itself")
    assert says(report, "away", "only connects")
    assert not says(report, "away", "node itself")
    assert report["service_saw"] == report["reflector"]
    assert report["stats"]["active"] == 0


def test_demo_takes_the_sshd_of_the_machine(
    namespace: Callable[[str], Namespace], tmp_path: Path
) -> None:
    with namespace("demo"):
        sshd = Sshd(tmp_path, "127.0.0.1", 22)
        try:
            done = run_command("demo", "--json")
        finally:
            sshd.stop()
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["service"] == "this machine's sshd (127.0.0.1:22)"
    assert report["rows"][1]["detail"].startswith("SSH-2.0-")


def test_demo_without_loopback_says_so_in_one_line(
    namespace: Callable[[str], Namespace],
) -> None:
    alone = namespace("alone")
    alone.ip("link set lo down")
    with alone:
        done = run_command("demo")
    assert done.returncode == 1
    assert "ip link set lo up" in one_line(done.stderr)
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["--yaml"], ["10022:22"]])
def test_demo_with_wrong_arguments_ends_with_2(arguments: list[str]) -> None:
    done = run_command("demo", *arguments)
    assert done.returncode == 2
    assert arguments[0] in one_line(done.stderr)


@pytest.mark.parametrize(("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_demo_is_coloured_on_a_terminal_unless_told_not_to(
    more: dict[str, str], coloured: bool
) -> None:
    terminal, end = pty.openpty()
    with open(terminal, "rb", closefd=True) as screen:
        try:
            subprocess.run([*COMMAND, "demo"], stdout=end, env=environment(**more), check=True)
        finally:
            os.close(end)
        shown = b""
        with suppress(OSError):  # how a terminal tells that its other end is closed
            while data := screen.read1():
                shown += data
    assert (b"\x1b[32mAll as expected\x1b[0m" in shown) == coloured
    assert b"All as expected" in shown
