"""The rules of the house that a program can check: sizes, includes, layout of the sources."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAX_FILE_LINES = 1000
MAX_FUNCTION_LINES = 80
MAX_COLUMNS = 100

OURS = (".c", ".h", ".py", ".pyi", ".pyx", ".pxd", ".toml", ".yml", ".md", ".in", "dev", "run")
CORE = sorted([*(ROOT / "csrc").glob("*.[ch]"), *(ROOT / "csrc/mirror").glob("*.[ch]")])


def our_files() -> list[Path]:
    """The files that people write here, without what git ignores."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = (ROOT / name for name in listed.splitlines() if name.endswith(OURS))
    return [path for path in paths if path.exists()]


def functions(source: Path) -> Iterator[tuple[str, int]]:
    """The functions of a C file: (first line, number of lines)."""
    head, began = "", 0
    for number, line in enumerate(source.read_text().splitlines(), 1):
        if re.match(r"[A-Za-z_].*\(", line) and not line.endswith(";"):
            head, began = line, number
        elif line == "}" and began:
            yield head, number - began + 1
            began = 0


def test_no_file_is_longer_than_one_can_read() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in our_files()}
    assert not {path: length for path, length in lengths.items() if length > MAX_FILE_LINES}


def test_text_is_clean() -> None:
    faults = []
    for path in our_files():
        text = path.read_text()
        if text and not text.endswith("\n"):
            faults.append(f"{path}: no newline at the end")
        for number, line in enumerate(text.splitlines(), 1):
            if line != line.rstrip() or "\t" in line:
                faults.append(f"{path}:{number}: a tab, or blanks at the end")
    assert not faults


def test_core_functions_fit_a_screen() -> None:
    found = [(path.name, *function) for path in CORE for function in functions(path)]
    assert len(found) > len(CORE), "the functions were not recognised"
    assert not [entry for entry in found if entry[2] > MAX_FUNCTION_LINES]


def test_core_lines_fit_the_width() -> None:
    lines = [(path.name, line) for path in CORE for line in path.read_text().splitlines()]
    assert not [entry for entry in lines if len(entry[1]) > MAX_COLUMNS]


def test_core_knows_nothing_of_python() -> None:
    assert not [path.name for path in CORE if re.search(r"Python\.h|\bPy_?[A-Z]", path.read_text())]


def test_core_modules_open_with_their_purpose() -> None:
    # The header says what a module is for; one without a header says so in the source.
    opening = [path for path in CORE if path.suffix == ".h" or not path.with_suffix(".h").exists()]
    assert not [path.name for path in opening if not path.read_text().startswith("/*")]


def test_core_names_are_prefixed() -> None:
    prototype = re.compile(r"^(?!static|typedef|#)[a-z][\w\s*]*?\b(\w+)\([^;{]*\);", re.MULTILINE)
    names = {
        name for path in CORE if path.suffix == ".h" for name in prototype.findall(path.read_text())
    }
    assert names
    assert not {name for name in names if not name.startswith("rf_")}
