"""Runs the test suite over an extension built with sanitizers: `./dev sanitize` calls this.

For each mode the project is copied to build/sanitize/MODE, built there, and tested there. The
interpreter is not instrumented, so the sanitizer's runtime is preloaded: into Python alone, by a
wrapper that stands for it in the tests (shells die of TSan's runtime, others only get slow). The
reports go to files: a process of a test may die unseen. A fault always counts; a leak or a race
when csrc/ is in its stack, since what CPython leaves to the system at exit is not ours to judge.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
COPIED = ["csrc", "reflector", "tests", "tools", "bench"]
COPIED += ["setup.py", "pyproject.toml", "LICENSE", "README.md"]
# The package tests build release wheels; style and documents need no sanitizer.
LEFT_OUT = ["tests/test_package.py", "tests/test_readme.py", "tests/test_tidy.py"]
# No worker thread runs in these, and they start hundreds of processes.
LEFT_OUT_OF_THREAD = ["tests/test_cli.py", "tests/test_mapping.py", "tests/test_settings.py"]

SANITIZERS = {"address": "address,undefined", "thread": "thread"}
RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}
# How many times slower than a plain run the tests must bear with.
SLOWDOWN = {"address": "3", "thread": "5"}

# ThreadSanitizer starts a thread of its own with the first one of the process; tests that count
# threads must find it there already.
PYTEST = """
import threading, pytest
first = threading.Thread(target=int)
first.start()
first.join()
raise SystemExit(pytest.console_main())
"""

WRAPPER = """\
#!/bin/sh
# Made by tools/sanitize.py: Python with the sanitizer's runtime preloaded.
{exports}
LD_PRELOAD='{runtime}' exec '{python}' "$@"
"""

SITECUSTOMIZE = """\
# Made by tools/sanitize.py: programs started from here find the wrapper, and no preloaded runtime.
import os, sys
os.environ.pop("LD_PRELOAD", None)
sys.executable = {wrapper!r}
"""

FAULT = re.compile(
    r"ERROR: AddressSanitizer|runtime error:|FATAL: ThreadSanitizer"
    r"|Tracer caught signal|has encountered a fatal error"
)
JUDGED_BY_STACK = re.compile(r"WARNING: ThreadSanitizer|(Direct|Indirect) leak of")


def copy_project(tree: Path) -> None:
    """Refreshes the copy of the project, keeping its build directory."""
    tree.mkdir(parents=True, exist_ok=True)
    for old in tree.iterdir():
        if old.name != "build":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in COPIED:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=ignored)
        elif source.exists():
            shutil.copy2(source, tree / name)


def runtime_options(mode: str, reports: Path) -> dict[str, str]:
    """The environment variables that steer the sanitizer's runtime."""
    common = f"log_path={reports}/report"
    if mode == "thread":
        # CPython's own races must not change how a process ends; findings() sorts them out.
        return {"TSAN_OPTIONS": f"{common}:exitcode=0:die_after_fork=0:history_size=4"}
    return {
        "ASAN_OPTIONS": f"{common}:detect_leaks=1:detect_stack_use_after_return=1"
        ":strict_string_checks=1:handle_sigill=1:allocator_may_return_null=1",
        # Nearly every process of CPython ends with leaks of its own; the same for those.
        "LSAN_OPTIONS": "exitcode=0",
    }


def write_wrapper(tree: Path, mode: str, reports: Path) -> Path:
    """Writes the wrapper that stands for Python in the tests; returns its path."""
    folder = tree / "bin"
    site = folder / "site"
    site.mkdir(parents=True)
    runtime = subprocess.run(
        ["gcc", f"-print-file-name={RUNTIMES[mode]}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    exported = runtime_options(mode, reports) | {
        "PYTHONPATH": f"{site}:{tree}",
        "REFLECTOR_UNDER_SANITIZER": mode,
        "REFLECTOR_TEST_SLOWDOWN": SLOWDOWN[mode],
    }
    exports = "\n".join(f"export {name}='{value}'" for name, value in exported.items())
    wrapper = folder / "python"
    wrapper.write_text(
        WRAPPER.format(exports=exports, runtime=runtime, python=sys.executable), encoding="utf-8"
    )
    wrapper.chmod(0o755)
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE.format(wrapper=str(wrapper)))
    return wrapper


def without_randomisation() -> list[str]:
    """The command prefix that ThreadSanitizer needs, where the system lets us have it.

    The runtime of GCC 12 and 13 knows fixed address ranges only and dies where the kernel spreads
    mappings over more than 28 bits (vm.mmap_rnd_bits).
    """
    prefix = ["setarch", "-R"]
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else []


def findings(reports: Path) -> list[str]:
    """The parts of all reports that count against the project, once each."""
    counted: dict[str, str] = {}
    for report in sorted(reports.glob("report*")):
        text = report.read_text(errors="replace")
        if FAULT.search(text):
            counted[report.name] = text
            continue
        for part in re.split(r"={18,}\n|\n(?=(?:Direct|Indirect) leak of)", text):
            if JUDGED_BY_STACK.search(part) and "csrc/" in part:
                # Addresses and process ids differ between otherwise equal findings.
                counted[re.sub(r"0x[0-9a-f]+|\d+", "", part)] = part
    return list(counted.values())


def run_mode(mode: str, pytest_arguments: list[str]) -> bool:
    """Builds and runs the suite in one mode; True when tests and reports are both clean."""
    tree = PROJECT / "build" / "sanitize" / mode
    reports = tree / "reports"
    print(f"sanitize: building with -fsanitize={SANITIZERS[mode]}", flush=True)
    copy_project(tree)
    reports.mkdir()
    reports.chmod(0o777)  # a test may run a process as another user
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        env=os.environ | {"REFLECTOR_SANITIZE": SANITIZERS[mode]},
        check=True,
    )
    command = without_randomisation() if mode == "thread" else []
    command += [str(write_wrapper(tree, mode, reports)), "-c", PYTEST]
    left_out = LEFT_OUT + (LEFT_OUT_OF_THREAD if mode == "thread" else [])
    command += ["-rs", "-p", "no:cacheprovider", *(f"--ignore={path}" for path in left_out)]
    suite = subprocess.run([*command, *pytest_arguments], cwd=tree, check=False)
    found = findings(reports)
    for number, finding in enumerate(found, 1):
        print(f"\nsanitize: finding {number} of {len(found)} ({mode})\n{finding.strip()}")
    verdict = "passed" if suite.returncode == 0 else f"failed ({suite.returncode})"
    print(f"sanitize: {mode}: tests {verdict}, {len(found)} findings of the sanitizer", flush=True)
    return suite.returncode == 0 and not found


def main() -> None:
    """Runs the modes asked for, all by default; exit status 1 when any is not clean."""
    parser = argparse.ArgumentParser(description="Run the test suite under sanitizers.")
    parser.add_argument("mode", nargs="?", choices=list(SANITIZERS), help="one mode only")
    parser.add_argument("pytest_arguments", nargs="*", help="after --: passed on to pytest")
    asked = parser.parse_intermixed_args()
    modes = [asked.mode] if asked.mode else list(SANITIZERS)
    clean = [run_mode(mode, asked.pytest_arguments) for mode in modes]
    sys.exit(0 if all(clean) else 1)


if __name__ == "__main__":
    main()
