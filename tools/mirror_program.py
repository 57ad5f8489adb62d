"""Compile the mirror's BPF program and write it as a C header: `mirror_program.py HEADER`.

The header holds the instructions and says which of them name which map; csrc/mirror/load.c puts the
maps' descriptors there and hands the whole to bpf(2). So neither libbpf nor libelf is needed where
it runs. (The loader that `bpftool gen skeleton -L` makes would do that too, but its own program
calls helpers that need CAP_PERFMON.) The instructions are the same for every little-endian machine.

Needs clang (CLANG names another one), the headers of libbpf, and pyelftools; exits with 1 and one
line that names what is lacking.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "csrc" / "mirror" / "mirror.bpf.c"
SECTION = "tc"
CALLED = ".text"  # what the program calls and does not inline

# linux/bpf.h and the ABI of BPF (RFC 9669, section 4.4; LLVM's ELFRelocs/BPF.def).
R_BPF_64_64 = 1
R_BPF_64_32 = 10
INSTRUCTION = struct.Struct("<BBhi")

LACKING = "the mirror needs clang, the headers of libbpf and pyelftools to be built; lacking: "

FLAGS = ["-O2", "-target", "bpfel", "-mcpu=v2", "-ffreestanding", "-std=gnu11", "-Wall", "-Wextra"]


def find_lacking(clang: str) -> str:
    """Name the first thing that is lacking to build the program; empty when all is there."""
    if not shutil.which(clang):
        return clang
    try:
        import elftools  # noqa: F401
    except ImportError:
        return "pyelftools"
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
    """Where Debian keeps asm/types.h, which clang does not look for when the target is bpf."""
    multiarch = sysconfig.get_config_var("MULTIARCH")
    return ["-idirafter", f"/usr/include/{multiarch}"] if multiarch else []


def compile_program(clang: str, output: Path) -> None:
    """Compile the program into an object file. Raises SystemExit with the compiler's words."""
    command = [clang, *FLAGS, "-Werror", *include_flags(), "-c", str(SOURCE), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr.strip()}")


def read_program(path: Path) -> tuple[list[bytes], list[tuple[int, str]]]:
    """Read instructions and (instruction, map) pairs; what the program calls comes after it."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.relocation import RelocationSection
    from elftools.elf.sections import SymbolTableSection

    code: list[bytes] = []
    maps: list[tuple[int, str]] = []
    with path.open("rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        sections = {section.name: section for section in elf.iter_sections()}
        data = {name: sections[name].data() for name in (SECTION, CALLED)}
        called_at = len(data[SECTION]) // INSTRUCTION.size
        for name, start in ((SECTION, 0), (CALLED, called_at)):
            code += (bytes(data[name][i : i + 8]) for i in range(0, len(data[name]), 8))
            relocations = elf.get_section_by_name(f".rel{name}")
            if not isinstance(relocations, RelocationSection):
                continue
            for relocation in relocations.iter_relocations():
                at = start + relocation["r_offset"] // INSTRUCTION.size
                symbol = symbols.get_symbol(relocation["r_info_sym"])
                kind = relocation["r_info_type"]
                if kind == R_BPF_64_64 and symbol.name.endswith("_map"):
                    maps.append((at, symbol.name.removesuffix("_map")))
                elif kind == R_BPF_64_32:
                    target = called_at + symbol["st_value"] // INSTRUCTION.size
                    code[at] = relocate_call(code[at], at, target)
                else:
                    raise SystemExit(f"{path}: a relocation of type {kind} to {symbol.name!r}")
    return code, maps


def relocate_call(instruction: bytes, at: int, target: int) -> bytes:
    """Make a call relative to itself, as the kernel counts; it was relative to `target` - 1."""
    opcode, registers, offset, immediate = INSTRUCTION.unpack(instruction)
    return INSTRUCTION.pack(opcode, registers, offset, target + immediate - at)


def write_header(path: Path, code: list[bytes], maps: list[tuple[int, str]]) -> None:
    """Write the C header that csrc/mirror/load.c includes."""
    instructions = [f"    {int.from_bytes(one, 'little'):#018x}," for one in code]
    relocations = [f"    {{{at}, RF_MIRROR_MAP_{name.upper()}}}," for at, name in maps]
    lines = [
        "/* Made from csrc/mirror/ by tools/mirror_program.py. */",
        "static const uint64_t program_code[] = {",
        *instructions,
        "};",
        "",
        "static const struct {",
        "    uint32_t instruction;",
        "    uint32_t map;",
        "} program_maps[] = {",
        *relocations,
        "};",
    ]
    text = "\n".join(lines) + "\n"
    if not re.search("RF_MIRROR_MAP_ROUTES", text):
        raise SystemExit(f"{path}: the program has no maps")
    path.write_text(text)


def main() -> None:
    """Compile, read, write."""
    clang = os.environ.get("CLANG", "clang")
    if len(sys.argv) != 2:
        raise SystemExit("usage: mirror_program.py HEADER")
    lacking = find_lacking(clang)
    if lacking:
        raise SystemExit(LACKING + lacking)
    with tempfile.TemporaryDirectory() as scratch:
        compiled = Path(scratch, "mirror.o")
        compile_program(clang, compiled)
        code, maps = read_program(compiled)
    write_header(Path(sys.argv[1]), code, maps)


if __name__ == "__main__":
    main()
