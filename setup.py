"""Builds reflector._core and reflector._mirror; everything declarative is in pyproject.toml.

Environment switches (each mode keeps its objects in a directory of its own under build/):
    REFLECTOR_DEBUG=1                       -O0 -g and the assertions of csrc/ (RF_DEBUG)
    REFLECTOR_SANITIZE=address,undefined    -fsanitize of that, RF_SANITIZE; or
    REFLECTOR_SANITIZE=thread               the same and RF_SANITIZE_THREAD
    REFLECTOR_WERROR=1                      warnings are errors, in C core and Cython layer

The mirror takes clang, for its BPF program (tools/mirror_program.py), and libbpf, which loads it.
Without them the package has no reflector._mirror, which it does without:
    REFLECTOR_MIRROR=1                      what is lacking is an error; =0: not even tried
    REFLECTOR_MIRROR_PROGRAM=PATH           a header that tools/mirror_program.py made elsewhere
    REFLECTOR_LIBBPF=PREFIX                 PREFIX/include, and PREFIX/lib/lib{bpf,elf,z}.a to be
                                            linked in, in place of the system's libbpf.so
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

if sys.platform != "linux":
    sys.exit(f"reflector needs Linux (epoll and splice); this platform is {sys.platform}")

DEBUG = os.environ.get("REFLECTOR_DEBUG", "0") not in ("", "0")
WERROR = os.environ.get("REFLECTOR_WERROR", "0") not in ("", "0")
SANITIZE = os.environ.get("REFLECTOR_SANITIZE", "")
MIRROR = os.environ.get("REFLECTOR_MIRROR", "")
MIRROR_PROGRAM = os.environ.get("REFLECTOR_MIRROR_PROGRAM", "")
LIBBPF = os.environ.get("REFLECTOR_LIBBPF", "")
if not re.fullmatch(r"(|thread|address|undefined|address,undefined)", SANITIZE):
    sys.exit(f"REFLECTOR_SANITIZE={SANITIZE}: it may be address, undefined, both, or thread")

MODE = SANITIZE.replace(",", "-") or "release"
if DEBUG:
    MODE += "-debug"

# A free-threaded interpreter has no Limited API before Python 3.15: its build is for itself alone.
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")

# Each extension: the sources of its C side, and what else it is built from.
CORE_SOURCES = {
    "reflector._core": sorted(glob("csrc/*.c")),
    "reflector._mirror": sorted(set(glob("csrc/mirror/*.c")) - set(glob("csrc/mirror/*.bpf.c"))),
}
MIRROR_DEPENDS = [*glob("csrc/mirror/*.[ch]"), "tools/mirror_program.py"]
CYTHON = {"language_level": 3, "include_path": ["."]}

CORE_WARNINGS = [
    "-Wall",
    "-Wextra",
    "-Wcast-qual",
    "-Wconversion",
    "-Wformat=2",
    "-Wmissing-prototypes",
    "-Wpointer-arith",
    "-Wshadow",
    "-Wsign-conversion",
    "-Wstrict-prototypes",
    "-Wundef",
    "-Wvla",
    "-Wwrite-strings",
]
# Generated code: its own idioms are not ours to mend, a real mistake in it still shows.
CYTHON_WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]

LINK_FLAGS = ["-pthread", "-Wl,-z,relro,-z,now", "-Wl,-z,noexecstack"]

# What reflector._mirror is compiled and linked with beside that. Hidden, the libraries within it
# cannot meet others of their kind in the process; zig's linker does not know the flag, but what
# tools/libbpf.py builds is hidden by itself.
LIBBPF_INCLUDE = ["-isystem", f"{LIBBPF}/include"] if LIBBPF else []
LIBBPF_LINK = [f"{LIBBPF}/lib/lib{name}.a" for name in ("bpf", "elf", "z")] if LIBBPF else ["-lbpf"]
LIBBPF_HIDE = ["-Wl,--exclude-libs,ALL"] if LIBBPF else []
LIBBPF_PROBE = """
#include <bpf/libbpf.h>
#if LIBBPF_MAJOR_VERSION < 1
#error "too old"
#endif
int probe(void);
int probe(void) { return (int)libbpf_major_version(); }
"""


def mode_flags() -> tuple[list[str], list[str]]:
    """Compiler and linker flags that the environment switches call for."""
    link = list(LINK_FLAGS)
    if SANITIZE:
        sanitize = [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer"]
        compile_ = ["-O0" if DEBUG else "-O1", "-g", "-UNDEBUG", *sanitize]
        if "undefined" in SANITIZE:
            # The interpreter's own flags bring -fwrapv, under which no overflow is ever found. A
            # trap reaches AddressSanitizer's report file, UBSan's message only stderr.
            compile_ += ["-fno-wrapv", "-fsanitize-undefined-trap-on-error"]
        link += sanitize
    elif DEBUG:
        compile_ = ["-O0", "-g", "-UNDEBUG"]
    else:
        # Interpreters differ in the level that their own flags bring; ours must not clash with it.
        compile_ = ["-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
    if SANITIZE or DEBUG:
        # Fortified calls hide accesses from the sanitizers and need an optimising compiler.
        compile_.append("-U_FORTIFY_SOURCE")
    compile_ += ["-fPIC", "-fvisibility=hidden", "-fstack-protector-strong", "-pthread"]
    return compile_, link


def mode_macros() -> list[tuple[str, str | None]]:
    """Macros that both the C core and the Cython layer see."""
    macros: list[tuple[str, str | None]] = [("_GNU_SOURCE", "1")]
    if DEBUG:
        macros.append(("RF_DEBUG", "1"))
    if SANITIZE:
        macros.append(("RF_SANITIZE", "1"))
    if SANITIZE == "thread":
        macros.append(("RF_SANITIZE_THREAD", "1"))
    if ABI3:
        macros.append(("Py_LIMITED_API", "0x030A0000"))
    return macros


class BuildPerMode(build):
    """`build` with a directory of its own for each mode, so that no stale object is reused."""

    def initialize_options(self) -> None:
        """Sets the default that --build-base overrides."""
        super().initialize_options()
        self.build_base = os.path.join("build", MODE)


class BuildCore(build_ext):
    """`build_ext` that gives the C core stricter warnings than the file that Cython generates."""

    def build_extensions(self) -> None:
        """Leaves the mirror out where something that it takes is lacking, then builds the rest."""
        lacking = "REFLECTOR_MIRROR=0" if MIRROR == "0" else self.prepare_mirror()
        if lacking and MIRROR not in ("", "0"):
            sys.exit(lacking)
        if lacking:
            print(f"reflector is built without its mirror: {lacking}", file=sys.stderr)
            self.extensions = [ext for ext in self.extensions if ext.name != "reflector._mirror"]
        super().build_extensions()

    def prepare_mirror(self) -> str:
        """Sees to what the mirror takes beside a C compiler; what is lacking, or empty."""
        if not self.builds(LIBBPF_PROBE, [*LIBBPF_INCLUDE, *LIBBPF_LINK]):
            wanted = f"{LIBBPF}/include and {LIBBPF}/lib/lib{{bpf,elf,z}}.a" if LIBBPF else "libbpf"
            return (
                f"the mirror needs clang and libbpf to be built; lacking: {wanted}, "
                f"1.0 or later (Debian: libbpf-dev)"
            )
        return self.make_mirror_program()

    def make_mirror_program(self) -> str:
        """Compiles the mirror's program for the kernel; what was lacking, or empty."""
        header = Path(self.build_temp, "mirror_program.h")
        header.parent.mkdir(parents=True, exist_ok=True)
        if MIRROR_PROGRAM:
            shutil.copyfile(MIRROR_PROGRAM, header)
            return ""
        if not self.force and not newer_group(MIRROR_DEPENDS, str(header)):
            return ""
        command = [sys.executable, "tools/mirror_program.py", str(header)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        return done.stderr.strip() if done.returncode else ""

    def build_extension(self, ext: Extension) -> None:
        """Compiles csrc/, lets Cython write its file into the build directory, links both."""
        inputs = [*ext.sources, *ext.depends]
        if not self.force and not newer_group(inputs, self.get_ext_fullpath(ext.name)):
            return
        compile_flags, link_flags = mode_flags()
        is_mirror = ext.name == "reflector._mirror"
        include_flags = LIBBPF_INCLUDE if is_mirror else []
        werror = ["-Werror"] if WERROR else []
        ext.extra_objects = self.compiler.compile(
            CORE_SOURCES[ext.name],
            output_dir=self.build_temp,
            macros=ext.define_macros,
            include_dirs=[*ext.include_dirs, self.build_temp],
            extra_postargs=self.known(["-std=c11", *compile_flags, *CORE_WARNINGS])
            + include_flags
            + werror,
        )
        ext.extra_compile_args = self.known([*compile_flags, *CYTHON_WARNINGS]) + werror
        link_flags += LIBBPF_HIDE if is_mirror else []
        ext.extra_link_args = self.known(link_flags, link=True)
        ext.extra_link_args += LIBBPF_LINK if is_mirror else []
        # setuptools' own step finds the C file and has nothing left to translate.
        ext.sources = cythonize(ext, build_dir=self.build_temp, quiet=True, **CYTHON)[0].sources
        super().build_extension(ext)

    def known(self, flags: list[str], link: bool = False) -> list[str]:
        """The flags that this compiler (or, with `link`, its linker) knows, in their order."""
        if self.accepts(flags, link):
            return flags
        return [flag for flag in flags if self.accepts([flag], link)]

    def accepts(self, flags: list[str], link: bool) -> bool:
        """Whether a tiny program builds with all of these flags and without a warning."""
        # A function without a prototype would trip the strict warnings themselves.
        source = "int probe(void);\nint probe(void) { return 0; }\n"
        return self.builds(source, flags if link else ["-Werror", "-c", *flags], link)

    def builds(self, source: str, flags: list[str], link: bool = True) -> bool:
        """Whether that C source becomes a shared object (else, without `link`, an object file)."""
        with tempfile.TemporaryDirectory() as scratch:
            probe = Path(scratch, "probe.c")
            probe.write_text(source)
            command = self.compiler.linker_so if link else self.compiler.compiler_so
            # -fPIC comes with the command that compiles, not with the one that links.
            command = [*command, "-fPIC", str(probe), *flags, "-o", str(Path(scratch, "probe.out"))]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0


def extension(name: str, depends: list[str]) -> Extension:
    """An extension of the package: a thin Cython layer over a C side that knows no Python."""
    return Extension(
        f"reflector.{name}",
        [f"reflector/{name}.pyx"],
        depends=["setup.py", f"reflector/{name}.pxd", *depends],
        include_dirs=["csrc"],
        define_macros=mode_macros(),
        py_limited_api=ABI3,
    )


setup(
    ext_modules=[
        extension("_core", glob("csrc/*.[ch]")),
        extension("_mirror", MIRROR_DEPENDS),
    ],
    cmdclass={"build": BuildPerMode, "build_ext": BuildCore},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if ABI3 else {},
)
