"""The package as a user gets it: from the sdist to a wheel that works on every CPython here."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import BinaryIO

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
VERSION = "1.0.0"

# What serves the repository alone.
NOT_IN_SDIST = (".ci/", ".github/", ".gitignore")


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Run a program; its output. AssertionError with all that it said when it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def project_files() -> set[str]:
    """Every file of the project, without what git ignores."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return {name for name in listed.splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, built from a copy of the project that holds nothing left by earlier builds."""
    source = tmp_path_factory.mktemp("source")
    for name in project_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    output = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", output, source)
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist alone."""
    folder, output = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("wheel")
    shutil.unpack_archive(sdist, folder)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", output]
    run(*command, folder / f"reflector-{VERSION}", REFLECTOR_WERROR="1")
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel_files(wheel: Path) -> set[str]:
    """Names of all files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(params=["_core", "_mirror"])
def extension(
    request: pytest.FixtureRequest, wheel: Path, wheel_files: set[str]
) -> Iterator[ELFFile]:
    """A shared object in the wheel."""
    name = f"reflector/{request.param}.abi3.so"
    if request.param == "_mirror" and name not in wheel_files:
        pytest.skip(f"the mirror was not built: {lacking_for_mirror()}")
    with zipfile.ZipFile(wheel) as archive:
        file: BinaryIO
        with archive.open(name) as file:
            yield ELFFile(file)


def lacking_for_mirror() -> str:
    """What the mirror's program lacks here to be compiled; empty when nothing is lacking."""
    command = [sys.executable, str(TOOLS / "mirror_program.py"), os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def metadata(wheel: Path) -> Message:
    """The wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"reflector-{VERSION}.dist-info/METADATA").decode()
    return Parser().parsestr(text)


def test_sdist_holds_every_file_of_the_project(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        files = {entry.name.partition("/")[2] for entry in archive if entry.isfile()}
    made = {name for name in files if name.startswith("reflector.egg-info/")}
    wanted = {name for name in project_files() if not name.startswith(NOT_IN_SDIST)}
    assert files - made - {"PKG-INFO", "setup.cfg"} == wanted


def test_wheel_is_tagged_for_every_cpython_since_3_10(wheel: Path) -> None:
    assert wheel.name.startswith(f"reflector-{VERSION}-cp310-abi3-linux_")


def test_wheel_holds_the_python_side_and_its_extensions(wheel_files: set[str]) -> None:
    python = {f"reflector/{path.name}" for path in (ROOT / "reflector").glob("*.py*")}
    sources = {name for name in python if name.endswith((".pyx", ".pxd"))}
    built = {"reflector/_core.abi3.so"}
    if not lacking_for_mirror():
        built.add("reflector/_mirror.abi3.so")
    packaged = {name for name in wheel_files if ".dist-info/" not in name}
    assert packaged == (python - sources) | built | {"reflector/py.typed"}


def build_in_place(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build the extensions of a copy of the sources, into that folder."""
    for name in (
        "csrc",
        "reflector",
        "tools",
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "NOTICE",
    ):
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy2(source, target)
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def test_build_without_clang_leaves_the_mirror_out(tmp_path: Path) -> None:
    done = build_in_place(tmp_path, CLANG="no-such-clang")
    assert done.returncode == 0, done.stdout
    assert {path.name for path in tmp_path.glob("reflector/*.so")} == {"_core.abi3.so"}
    assert "without its mirror" in done.stdout
    assert "lacking: no-such-clang" in done.stdout


def test_build_without_clang_fails_where_the_mirror_is_asked_for(tmp_path: Path) -> None:
    done = build_in_place(tmp_path, CLANG="no-such-clang", REFLECTOR_MIRROR="1")
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert "lacking: no-such-clang" in line


def test_build_takes_a_program_that_was_compiled_elsewhere(tmp_path: Path) -> None:
    if lacking_for_mirror():
        pytest.skip(lacking_for_mirror())
    header = tmp_path / "program.h"
    run(sys.executable, TOOLS / "mirror_program.py", header)
    environment = {"CLANG": "no-such-clang", "REFLECTOR_MIRROR": "1"}
    folder = tmp_path / "copy"
    folder.mkdir()
    done = build_in_place(folder, REFLECTOR_MIRROR_PROGRAM=str(header), **environment)
    assert done.returncode == 0, done.stdout
    assert (folder / "reflector" / "_mirror.abi3.so").exists()


def test_wheel_holds_the_licences(wheel_files: set[str]) -> None:
    licences = f"reflector-{VERSION}.dist-info/licenses"
    assert {f"{licences}/LICENSE", f"{licences}/NOTICE"} <= wheel_files


def test_metadata_says_what_it_needs(wheel: Path) -> None:
    fields = metadata(wheel)
    assert fields["Version"] == VERSION
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.10"
    assert fields.get_all("Requires-Dist") == ["click>=8.1", "pyroute2>=0.9"]
    assert fields.get_payload(), "the README is not the description"


def test_extension_keeps_to_the_limited_api(wheel: Path) -> None:
    run(sys.executable, "-m", "abi3audit", "--strict", "--assume-minimum-abi3", "3.10", wheel)


def test_extension_exports_nothing_but_its_entry(extension: ELFFile) -> None:
    symbols = extension.get_section_by_name(".dynsym")
    assert isinstance(symbols, SymbolTableSection)
    exported = {
        symbol.name
        for symbol in symbols.iter_symbols()
        if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL"
    }
    (entry,) = exported - {"_init", "_fini"}
    assert entry in ("PyInit__core", "PyInit__mirror")


def test_extension_is_hardened(extension: ELFFile) -> None:
    segments = {segment["p_type"]: segment for segment in extension.iter_segments()}
    assert "PT_GNU_RELRO" in segments
    assert not segments["PT_GNU_STACK"]["p_flags"] & 1, "the stack is executable"
    dynamic = extension.get_section_by_name(".dynamic")
    assert isinstance(dynamic, DynamicSection)
    assert any(
        (tag.entry.d_tag == "DT_FLAGS" and tag.entry.d_val & 8)  # DF_BIND_NOW
        or tag.entry.d_tag == "DT_BIND_NOW"
        for tag in dynamic.iter_tags()
    )


def test_extension_needs_no_library_but_libc_and_libbpf(
    extension: ELFFile, request: pytest.FixtureRequest
) -> None:
    dynamic = extension.get_section_by_name(".dynamic")
    assert isinstance(dynamic, DynamicSection)
    needed = {tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"}
    # Before glibc 2.34 threads were a library of their own; thread-local variables take the loader.
    of_libc = {"libc.so.6", "libpthread.so.0"} | {name for name in needed if name.startswith("ld-")}
    # A wheel that is to be given away has libbpf within it: see tools/wheels.py.
    is_mirror = request.node.callspec.params["extension"] == "_mirror"
    assert needed - of_libc == ({"libbpf.so.1"} if is_mirror else set())


def test_wheel_works_on_every_cpython_of_this_machine(wheel: Path, tmp_path: Path) -> None:
    interpreters = run(sys.executable, TOOLS / "interpreters.py").splitlines()
    assert interpreters

    def try_on(numbered: tuple[int, str]) -> None:
        number, interpreter = numbered
        folder = tmp_path / str(number)
        # An environment without pip of its own is made in a tenth of the time.
        run(interpreter, "-m", "venv", "--without-pip", folder)
        python = folder / "bin" / "python"
        run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", wheel)
        version = run(folder / "bin" / "reflector", "--version", cwd=tmp_path)
        assert VERSION in version, interpreter
        run(python, TOOLS / "smoke.py", cwd=tmp_path)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(try_on, enumerate(interpreters)))


def test_build_refuses_a_platform_without_epoll() -> None:
    script = (
        "import runpy, sys, Cython.Build, setuptools.command.build_ext\n"
        "sys.platform = 'darwin'\n"
        "runpy.run_path('setup.py')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "needs Linux" in line
    assert "darwin" in line


def test_build_refuses_an_unknown_sanitizer() -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=os.environ | {"REFLECTOR_SANITIZE": "memory"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "REFLECTOR_SANITIZE=memory" in line


def test_ci_builds_one_wheel_for_each_platform() -> None:
    pytest.importorskip("cibuildwheel", reason="cibuildwheel cannot be installed here")
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"]
    printed = run(*command, "--platform", "linux", "--archs", "x86_64,aarch64", cwd=ROOT)
    assert set(printed.split()) == {
        "cp310-manylinux_x86_64",
        "cp310-manylinux_aarch64",
        "cp310-musllinux_x86_64",
        "cp310-musllinux_aarch64",
    }
