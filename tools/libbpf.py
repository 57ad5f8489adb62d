"""Build libbpf, with the libelf and zlib that it needs, as static archives: `libbpf.py PREFIX`.

The wheels link them into reflector._mirror, so that it needs nothing of the host but the kernel.
The compiler is $CC, as `zig cc -target aarch64-linux-musl`; $AR makes the archives. The objects are
position-independent and their symbols hidden. PREFIX gets lib/, include/ and licenses/; a second
run with the same sources and compiler finds them in place and does nothing.

The sources are those of this machine's Debian or Ubuntu release, fetched by apt into build/, which
checks their signatures; nothing is installed. Elsewhere `--source DIR` takes unpacked ones, of any
release: DIR/libbpf-*, DIR/elfutils-* and DIR/zlib-*. `--fetch --source DIR` only fetches them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
SOURCES = PROJECT / "build" / "libbpf" / "source"
ORIGINS = ("Debian", "Ubuntu")
STAMP = "built.txt"

FLAGS = ["-std=gnu11", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-fstack-protector-strong"]
# Each function is a section of its own, so that a link can leave out what nothing calls. Warnings
# about other people's code are not ours to mend.
FLAGS += ["-ffunction-sections", "-fdata-sections", "-w", "-D_GNU_SOURCE"]

# What elfutils' configure would find. Its own run cannot be had: it insists on argp, fts and
# obstack, which musl lacks and libelf does not use.
LIBELF_CONFIG = """\
#define HAVE_DECL_MEMPCPY 1
#define HAVE_DECL_MEMRCHR 1
#define HAVE_DECL_POWEROF2 1
#define HAVE_DECL_RAWMEMCHR 0 /* musl has none; libelf then does without */
#define HAVE_FALLTHROUGH 1
#define HAVE_MREMAP 1
#define HAVE_STDATOMIC_H 1
#define HAVE_VISIBILITY 1
#if __has_include(<error.h>)
#define HAVE_ERROR_H 1
#else
#define HAVE_ERR_H 1
#endif
/* glibc before 2.26 has none. libelf brings its own, which must not clash with a declared one. */
#include <stdlib.h>
#define HAVE_DECL_REALLOCARRAY 0
#define reallocarray libelf_reallocarray
#include <eu-config.h>
"""


class LibraryError(Exception):
    """The libraries cannot be built; the message is one line that says why."""


@dataclass(frozen=True)
class Library:
    """One library: where its sources are in its package, and how they are compiled."""

    name: str
    package: str
    home: str
    files: tuple[str, ...]
    flags: tuple[str, ...]
    licences: tuple[str, ...]
    terms: str


LIBRARIES = (
    Library(
        "libz",
        "zlib",
        "https://zlib.net/",
        ("*.c",),
        ("-DHAVE_UNISTD_H", "-D_LARGEFILE64_SOURCE=1"),
        ("LICENSE", "README"),
        "the zlib licence",
    ),
    Library(
        "libelf",
        "elfutils",
        "https://sourceware.org/elfutils/",
        ("libelf/*.c", "lib/eu-search.c"),  # the latter since 0.192
        ("-DHAVE_CONFIG_H", "-Ilibelf", "-Ilib", "-I{libz}"),
        ("COPYING-LGPLV3", "COPYING"),
        "the GNU Lesser General Public License, version 3 or later (elfutils offers the GNU\n"
        "General Public License, version 2 or later, as well)",
    ),
    Library(
        "libbpf",
        "libbpf",
        "https://github.com/libbpf/libbpf",
        ("src/*.c",),
        # The headers mark what is public as visible, which it is not to be here.
        (
            *("-DLIBBPF_API=", "-D_LARGEFILE64_SOURCE", "-D_FILE_OFFSET_BITS=64", "-Isrc"),
            *("-Iinclude", "-Iinclude/uapi", "-I{libelf}/libelf", "-I{libz}"),
        ),
        ("LICENSE.BSD-2-Clause",),
        "the 2-clause BSD licence (libbpf offers the GNU Lesser General Public License,\n"
        "version 2.1, as well)",
    ),
)

# What a user of libbpf includes, with the kernel's headers of the same age: the system's may be
# older (manylinux2014).
HEADERS = {
    "include/bpf": [
        *("src/bpf.h", "src/btf.h", "src/libbpf.h", "src/libbpf_common.h"),
        *("src/libbpf_legacy.h", "src/libbpf_version.h"),
    ],
    "include/linux": [f"include/uapi/linux/{name}.h" for name in ("bpf", "bpf_common", "btf")],
}


def say(text: str) -> None:
    """Print a progress line at once."""
    print(f"libbpf: {text}", flush=True)


# --- the sources ----------------------------------------------------------------------------------


def run_apt(command: list[str], folder: Path) -> str:
    """Run one of apt's programs in a folder; its output. Raises LibraryError with its words."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise LibraryError(
            f"no {error.filename} here to fetch the sources with; --source DIR takes unpacked ones"
        ) from None
    if done.returncode != 0:
        first = (done.stderr.strip() or "no message").splitlines()[0]
        raise LibraryError(f"the sources cannot be fetched: {first}")
    return done.stdout


def list_source_lines(folder: Path) -> str:
    """Make the sources list of source packages that goes with this machine's of binary ones."""
    form = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    lines = set()  # with what they sort by
    for line in run_apt(command, folder).splitlines():
        uri, release, component, origin = line.split("|")
        if origin not in ORIGINS or component != "main":
            continue
        # An entry that names its key itself has it from the distribution's keyring package.
        keyrings = sorted(Path("/usr/share/keyrings").glob(f"{origin.lower()}-archive-keyring.?g?"))
        option = f" [signed-by={keyrings[0]}]" if keyrings else ""
        # Of a package that several hold in the same version apt takes the first: the release's own
        # comes before its updates, which do not keep their files for long.
        lines.add(("-" in release, f"deb-src{option} {uri} {release} {component}\n"))
    if not lines:
        raise LibraryError(
            f"no archive of {' or '.join(ORIGINS)} among this machine's apt sources; "
            "--source DIR takes unpacked sources"
        )
    return "".join(line for _, line in sorted(lines))


def fetch_sources(folder: Path) -> None:
    """Fetch and unpack the source packages into a folder that does not exist yet."""
    if not shutil.which("dpkg-source"):
        raise LibraryError(
            "dpkg-source is not installed (Debian: dpkg-dev); --source DIR takes unpacked sources"
        )
    say(f"fetching the sources of {', '.join(library.package for library in LIBRARIES)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        scratch = Path(made)
        for needed in ("state/lists/partial", "cache/archives/partial", "source"):
            (scratch / needed).mkdir(parents=True)
        (scratch / "sources.list").write_text(list_source_lines(scratch))
        options = {
            "Dir::Etc::SourceList": scratch / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State": scratch / "state",
            "Dir::Cache": scratch / "cache",
            "APT::Sandbox::User": "root",  # apt's own user may not be able to write here
            "Acquire::Languages": "none",
        }
        apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
        run_apt([*apt, "update"], scratch)
        names = [library.package for library in LIBRARIES]
        run_apt([*apt, "source", *names], scratch / "source")
        (scratch / "source").rename(folder)


def find_sources(folder: Path) -> dict[str, Path]:
    """Find each library's unpacked sources in a folder, by the library's name."""
    found = {}
    for library in LIBRARIES:
        matches = [path for path in folder.glob(f"{library.package}-*") if path.is_dir()]
        if len(matches) != 1:
            raise LibraryError(
                f"{folder} is to hold one folder {library.package}-VERSION, not {len(matches)}"
            )
        found[library.name] = matches[0].resolve()
    return found


def describe(source: Path) -> str:
    """Name the sources in a folder with their release, as `zlib 1.3.1 (Debian package 1.3.1-2)`."""
    package, _, version = source.name.partition("-")
    changelog = source / "debian" / "changelog"
    if not changelog.exists():
        return f"{package} {version}"
    # Debian's Policy Manual, section 4.4: the first line names package and version.
    packaged = changelog.read_text(errors="replace").partition("(")[2].partition(")")[0]
    return f"{package} {version.partition('.dfsg')[0]} (Debian source package {packaged})"


# --- the archives ---------------------------------------------------------------------------------


def compile_library(
    library: Library, sources: dict[str, Path], scratch: Path, prefix: Path
) -> None:
    """Compile a library on all processors and make its archive."""
    source = sources[library.name]
    folder = scratch / library.name
    folder.mkdir()
    folders = {name: os.path.relpath(path, source) for name, path in sources.items()}
    flags = [flag.format(**folders) for flag in library.flags]
    compiler = [*shlex.split(os.environ.get("CC") or "cc"), *FLAGS, f"-I{scratch}", *flags]

    def compile_file(path: Path) -> Path:
        made = folder / f"{path.stem}.o"
        # A path from the root would stand in the wheel, put there by assert().
        run_tool([*compiler, "-c", str(path.relative_to(source)), "-o", str(made)], source)
        return made

    files = sorted(path for pattern in library.files for path in source.glob(pattern))
    if not files:
        raise LibraryError(f"{source} holds no {library.files[0]}: these are other sources")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_file, files))
    archive = folder / f"{library.name}.a"
    archiver = shlex.split(os.environ.get("AR") or "ar")
    run_tool([*archiver, "rcsD", str(archive), *map(str, objects)], source)
    (prefix / "lib").mkdir(parents=True, exist_ok=True)
    shutil.move(archive, prefix / "lib" / archive.name)
    say(f"{prefix.name}: {library.name} of {describe(source)}, {len(files)} files")


def run_tool(command: list[str], folder: Path) -> None:
    """Run a compiler or archiver. Raises LibraryError with the line that says what is wrong."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise LibraryError(f"there is no {error.filename}; CC and AR name others") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()
        reason = next((line for line in said if "error" in line), said[-1])
        raise LibraryError(f"{folder.name}: {Path(command[0]).name} failed: {reason}")


def install_headers(source: Path, prefix: Path) -> None:
    """Copy what the users of libbpf include."""
    for folder, names in HEADERS.items():
        (prefix / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(source / name, prefix / folder)


def write_licences(sources: dict[str, Path], prefix: Path) -> None:
    """Write what is to be told to whoever gets the archives: PREFIX/licenses/LICENSE.*."""
    (prefix / "licenses").mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        source = sources[library.name]
        texts = [source / name for name in library.licences if (source / name).exists()]
        if not texts:
            raise LibraryError(f"{source} holds no {library.licences[0]}")
        if library.package == "zlib":
            texts = texts[:1]
        head = (
            f"{library.name} of {describe(source)} is linked into reflector/_mirror.abi3.so,\n"
            f"unchanged, and is used under {library.terms}.\n"
            f"Its sources are the package named here, and at {library.home}.\n"
        )
        parts = [head, *(text.read_text(errors="replace") for text in texts)]
        (prefix / "licenses" / f"LICENSE.{library.name}").write_text(
            f"\n{'-' * 80}\n\n".join(parts)
        )


def build(prefix: Path, folder: Path | None = None) -> None:
    """Build all archives in a prefix, unless they are there.

    Args:
        prefix: where lib/, include/ and licenses/ go.
        folder: the unpacked sources; None fetches them if that has not been done.

    Raises:
        LibraryError: when they cannot be had or built.
    """
    if folder is None:
        folder = SOURCES
        if not folder.exists():
            fetch_sources(folder)
    sources = find_sources(folder)
    key = [os.environ.get("CC", ""), os.environ.get("AR", "")]
    key += [describe(source) for source in sources.values()]
    key.append(hashlib.sha256(Path(__file__).read_bytes()).hexdigest())
    stamp, text = prefix / STAMP, "\n".join(key) + "\n"
    if stamp.exists() and stamp.read_text() == text:
        say(f"{prefix.name}: in place")
        return
    prefix.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=prefix) as scratch:
        Path(scratch, "config.h").write_text(LIBELF_CONFIG)
        for library in LIBRARIES:
            compile_library(library, sources, Path(scratch), prefix)
    install_headers(sources["libbpf"], prefix)
    write_licences(sources, prefix)
    stamp.write_text(text)


def main() -> int:
    """Run the command line; exit status 1 with one line when something is lacking."""
    parser = argparse.ArgumentParser(description="Build libbpf, libelf and zlib for the wheels.")
    parser.add_argument("prefix", type=Path, nargs="?", help="where lib/ and include/ go")
    parser.add_argument("--source", type=Path, metavar="DIR", help="unpacked sources")
    parser.add_argument("--fetch", action="store_true", help="only fetch the sources, into DIR")
    arguments = parser.parse_args()
    if arguments.fetch == bool(arguments.prefix):
        parser.error("either PREFIX or --fetch is wanted")
    try:
        if arguments.fetch:
            folder = arguments.source or SOURCES
            if not folder.exists():
                fetch_sources(folder)
            find_sources(folder)
        else:
            build(arguments.prefix.absolute(), arguments.source)
    except LibraryError as error:
        print(f"libbpf: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
