"""Compile the mirror's BPF program and write it as a C header: `mirror_program.py HEADER`.

The header holds the object file as it is, an array of bytes, which csrc/mirror/load.c hands to
libbpf. It has BTF, which says what the maps are like and gives the verifier's words their lines,
and no other debug information. It is the same for every little-endian machine.

Needs clang (CLANG names another one) and the headers of libbpf (REFLECTOR_LIBBPF: below this
prefix); exits with 1 and one line that names what is lacking.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "csrc/mirror/mirror.bpf.c"

LACKING = "the mirror needs clang and libbpf to be built; lacking: "

FLAGS = ["-O2", "-g", "-target", "bpfel", "-mcpu=v2", "-ffreestanding", "-std=gnu11"]
FLAGS += ["-Wall", "-Wextra"]

BYTES_A_LINE = 20


def find_lacking(clang: str) -> str:
    """Name the first thing that is lacking to build the program; empty when all is there."""
    if not shutil.which(clang):
        return clang
    probe = subprocess.run(
        [clang, *FLAGS, *include_flags(), "-fsyntax-only", "-x", "c", "-"],
        input="#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode == 0:
        return ""
    if "bpf_helpers.h" in probe.stderr:
        return "the headers of libbpf (Debian: libbpf-dev)"
    return "a clang that compiles for bpf and finds the kernel's headers"


def include_flags() -> list[str]:
    """Where libbpf's headers are, and asm/types.h, which clang misses when the target is bpf."""
    prefix = os.environ.get("REFLECTOR_LIBBPF")
    multiarch = sysconfig.get_config_var("MULTIARCH")
    flags = ["-isystem", f"{prefix}/include"] if prefix else []
    return flags + (["-idirafter", f"/usr/include/{multiarch}"] if multiarch else [])


def compile_program(clang: str, output: Path) -> None:
    """Compile the program into an object file. Raises SystemExit with the compiler's words."""
    # BTF names the sources: as they are in the project, wherever that is.
    names = f"-ffile-prefix-map={ROOT}=."
    command = [clang, *FLAGS, "-Werror", names, *include_flags(), "-c", SOURCE, "-o", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr.strip()}")
    strip_program(clang, output)


def strip_program(clang: str, output: Path) -> None:
    """Take DWARF out, a third of the file, where LLVM's strip is there; BTF stays."""
    named = subprocess.run(
        [clang, "-print-prog-name=llvm-strip"], capture_output=True, text=True, check=False
    ).stdout.strip()
    strip = shutil.which(named or "llvm-strip")
    if strip:
        subprocess.run([strip, "-g", str(output)], check=True)


def write_header(path: Path, program: bytes) -> None:
    """Write the C header that csrc/mirror/load.c includes."""
    rows = [program[at : at + BYTES_A_LINE] for at in range(0, len(program), BYTES_A_LINE)]
    lines = [
        "/* Made from csrc/mirror/ by tools/mirror_program.py: an object file for BPF. */",
        "static const unsigned char program_object[] __attribute__((aligned(8))) = {",
        *("    " + " ".join(f"{byte:#04x}," for byte in row) for row in rows),
        "};",
    ]
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Compile and write."""
    clang = os.environ.get("CLANG", "clang")
    if len(sys.argv) != 2:
        raise SystemExit("usage: mirror_program.py HEADER")
    lacking = find_lacking(clang)
    if lacking:
        raise SystemExit(LACKING + lacking)
    with tempfile.TemporaryDirectory() as scratch:
        compiled = Path(scratch, "mirror.o")
        compile_program(clang, compiled)
        write_header(Path(sys.argv[1]), compiled.read_bytes())


if __name__ == "__main__":
    main()
