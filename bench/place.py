"""The place of the measurements: a network of their own, and every process in it.

All traffic stays on the loopback interface of a network namespace without a name: it vanishes with
the last process in it, whatever happens, and 16 million addresses of 127.0.0.0/8 serve as nodes.
Children are killed when their block is left, and by the kernel should this process be killed.
"""

import ctypes
import fcntl
import importlib.util
import json
import os
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent

#: where the reflector listens in every measurement, and its return port
REFLECTOR_PORT = 10022
SERVICE_PORT = 2222

#: the nodes leave from this address and the ones after it
FIRST_NODE = 0x7F01_0000

#: seconds for a process to be ready, and for a load to end
_READY_WITHIN = 10.0
_LOAD_WITHIN = 120

_IN_NAMESPACE = "REFLECTOR_BENCH_NAMESPACE"
_CFLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra"]
_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None)


class BenchError(Exception):
    """A measurement that could not be made, and why, in one line."""


def progress(text: str) -> None:
    """Tell on stderr what is going on."""
    print(f"figures: {text}", file=sys.stderr, flush=True)


def enter_namespace() -> None:
    """Start this command again in a network namespace of its own, then bring up its loopback.

    Where the system allows none, all goes on with the loopback of the host.
    """
    if os.environ.get(_IN_NAMESPACE) is None:
        os.environ[_IN_NAMESPACE] = "1"
        # A mount namespace as well: perf mounts tracefs where it is not.
        plain = ["unshare", "--net", "--mount"]
        for command in (plain, [*plain, "--map-root-user"]):
            if shutil.which("unshare") and _succeeds([*command, "true"]):
                sys.stderr.flush()
                os.execvp("unshare", [*command, "--", sys.executable, *sys.argv])
        os.environ[_IN_NAMESPACE] = "0"
        progress("no network namespace to be had: measuring on the loopback of the host")
    elif os.environ[_IN_NAMESPACE] == "1":
        _bring_up_loopback()


def change_network() -> None:
    """Go on in a new network, without what waits in TIME_WAIT in this one.

    Where there is no namespace of our own, all goes on where it is.
    """
    if os.environ.get(_IN_NAMESPACE) == "1" and _libc.unshare(_CLONE_NEWNET) == 0:
        _bring_up_loopback()


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _bring_up_loopback() -> None:
    """Set IFF_UP on lo, as `ip link set lo up` would (netdevice(7))."""
    get_flags, set_flags, up = 0x8913, 0x8914, 0x1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(control, get_flags, request))[1]
        fcntl.ioctl(control, set_flags, struct.pack("16sh22x", b"lo", flags | up))


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP unwind like Ctrl-C does, so that every child ends."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))


def node(index: int) -> str:
    """Return the address of the node of that index."""
    return socket.inet_ntoa(struct.pack("!I", FIRST_NODE + index))


@contextmanager
def tools() -> Iterator["Tools"]:
    """Compile the C programs beside this file, for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="reflector-bench-") as directory:
        yield Tools(Path(directory))


class Tools:
    """The load generator, the service and the bare relay, compiled when first asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, name: str) -> str:
        """Return the path of the program of that name. Raises BenchError."""
        program = self.directory / name
        if not program.exists():
            compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
            if not compiler:
                raise BenchError("needs a C compiler (apt-get install gcc libc6-dev)")
            command = [*compiler.split(), *_CFLAGS, "-o", str(program), str(BENCH / f"{name}.c")]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode != 0:
                raise BenchError(f"{' '.join(command)}: {made.stderr.strip()}")
        return str(program)

    @contextmanager
    def service(
        self, mode: str, port: int = SERVICE_PORT, files: int | None = None
    ) -> Iterator[int]:
        """Run a service (banner, echo or source) at a port of every node; the block gets the port.

        Port 0 picks a free one.
        """
        command = [self.path("service"), mode, "-p", str(port)]
        with running(command, files, stdout=subprocess.PIPE) as process:
            yield int(process.expect("ready", process.popen.stdout).split()[1])

    def load(self, mode: str, *, count: int, at_a_time: int = 1, **options: Any) -> dict[str, Any]:
        """Run a load to its end and return what it reports."""
        with self.start_load(mode, count=count, at_a_time=at_a_time, **options) as process:
            return process.read_report()

    @contextmanager
    def start_load(
        self,
        mode: str,
        *,
        count: int,
        at_a_time: int = 1,
        nodes: int = 1,
        first_node: int = 0,
        size: int = 0,
        port: int = REFLECTOR_PORT,
        files: int | None = None,
    ) -> Iterator["Process"]:
        """Run a load (load.c): `count` exchanges of `size` bytes from `nodes` addresses."""
        command = [self.path("load"), mode, "-p", str(port), "-s", node(first_node)]
        command += ["-m", str(nodes), "-n", str(count), "-c", str(at_a_time), "-b", str(size)]
        command += ["-t", str(_LOAD_WITHIN)]
        pipe = subprocess.PIPE
        with running(command, files, stdin=pipe, stdout=pipe) as process:
            yield process


class Process:
    """A child, and what can be asked of it."""

    def __init__(self, name: str, popen: "subprocess.Popen[str]") -> None:
        self.name = name
        self.popen = popen
        self.pid = popen.pid

    def expect(self, word: str, stream: Any) -> str:
        """Return the child's next line, which must hold `word` and come soon."""
        if not select.select([stream], [], [], _READY_WITHIN)[0]:
            raise BenchError(f"{self.name} is not ready after {_READY_WITHIN:.0f} s")
        line = str(stream.readline()).strip()
        if word not in line:
            raise BenchError(f"{self.name} did not start: {line or 'it ended'}")
        return line

    def read_report(self) -> dict[str, Any]:
        """Wait for the end of a load's phase and return what it measured."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise BenchError(f"the load ended early, by status {self.popen.wait()}")
        report: dict[str, Any] = json.loads(line)
        return report

    def next_phase(self) -> None:
        """Have a load that holds connections do its exchanges again."""
        assert self.popen.stdin is not None
        print(file=self.popen.stdin, flush=True)


@contextmanager
def running(command: Sequence[str], files: int | None = None, **pipes: Any) -> Iterator[Process]:
    """Run a child for the length of the block, under an open-file limit of `files`."""

    if files is not None and files > resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 0:
        raise BenchError(f"needs a hard limit of {files:,} open files (ulimit -Hn)")

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    with subprocess.Popen(command, text=True, preexec_fn=prepare, **pipes) as popen:
        try:
            yield Process(" ".join(command), popen)
        finally:
            popen.kill()


@contextmanager
def reflector(*options: str, files: int | None = None) -> Iterator[Process]:
    """Run the reflector, listening on the wildcard, as people run it."""
    command = [sys.executable, "-m", "reflector", "--return-port", str(SERVICE_PORT)]
    command += [*options, str(REFLECTOR_PORT)]
    with running(command, files, stderr=subprocess.PIPE) as process:
        progress(process.expect("ready", process.popen.stderr))
        try:
            yield process
        finally:
            process.popen.kill()
            # What it had to say meanwhile: connections refused, limits met.
            for line in process.popen.stderr or ():
                progress(line.rstrip())


def find_reflector() -> None:
    """Let children find the package where it is not installed: beside this directory."""
    if importlib.util.find_spec("reflector") is None:
        paths = [str(BENCH.parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        sys.path.insert(0, str(BENCH.parent))


def settle(seconds: float = 0.3) -> None:
    """Let the last connections end."""
    time.sleep(seconds)
