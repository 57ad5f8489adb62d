"""The place of the measurements: a network of their own, and every process in it.

Two network namespaces without names, joined by a veth pair, so that all vanish with the last
process in them, whatever happens:

    the reflector's host                       the nodes
    192.0.2.1/30  ------------ veth ---------- 192.0.2.2/30
    198.18.0.0/15 by 192.0.2.2                 198.18.0.0/15, every address of it, by AnyIP

This process lives on the reflector's host, and reaches 131,072 nodes through one gateway: otherwise
the neighbour table is what is measured. Where there is no namespace to be had, the loopback of the
host is all there is, with 127.1.0.0 and up for nodes; what cannot do with that says so.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent

#: where the reflector listens in every measurement, and its return port
REFLECTOR_PORT = 10022
SERVICE_PORT = 2222

#: the two ends of the veth pair, and the nodes behind the second
REFLECTOR_ADDRESS = "192.0.2.1"
GATEWAY_ADDRESS = "192.0.2.2"
NODES = "198.18.0.0/15"
NODES_COUNT = 1 << 17

#: the first node's address, in the network and on loopback alone
_FIRST_NODE = 0xC612_0001
_FIRST_LOOPBACK_NODE = 0x7F01_0000

#: In both namespaces. A port that one side has used waits in TIME_WAIT for a minute: without these
#: two, a node that is checked some hundred times a second runs out of ports, and that is measured.
_SYSCTLS = {"ip_local_port_range": "1024 65535", "tcp_tw_reuse": "1"}
#: The same, where the kernel lets a namespace set it. Past this many the end of a connection goes
#: without TIME_WAIT, and costs less: a long run of checks would be measured on two kinds of end.
_SYSCTLS_WHERE_ALLOWED = {"tcp_max_tw_buckets": "1048576"}

#: What Linux comes with, and what stands for it where a host allows only listed ones in namespaces.
#: Not the host's own: BBR, if it is that, paces bulk by timers that cost more than carrying it.
_CONGESTION_CONTROLS = ("cubic", "reno")
_NODE_END = f"""
address add {GATEWAY_ADDRESS}/30 dev nodes
link set nodes up
route add local {NODES} dev lo
route change 192.0.2.0/30 dev nodes src 198.18.0.1
"""
_REFLECTOR_END = f"""
address add {REFLECTOR_ADDRESS}/30 dev reflector
link set reflector up
route add {NODES} via {GATEWAY_ADDRESS}
"""

#: seconds for a process to be ready, and for a load to end
_READY_WITHIN = 10.0
_LOAD_WITHIN = 120

_IN_NAMESPACE = "REFLECTOR_BENCH_NAMESPACE"
_CONGESTION_CONTROL = "REFLECTOR_BENCH_CONGESTION"
_IPV4 = Path("/proc/sys/net/ipv4")
_CFLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra"]
_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None)


class BenchError(Exception):
    """A measurement that could not be made, and why, in one line."""


def _to_stderr(text: str) -> None:
    print(f"{Path(sys.argv[0]).stem}: {text}", file=sys.stderr, flush=True)


_tell: Callable[[str], None] = _to_stderr


def progress(text: str) -> None:
    """Tell what is going on: on stderr, or where `tell_by` has put it."""
    _tell(text)


def tell_by(tell: Callable[[str], None]) -> None:
    """Have `tell` take what goes on."""
    global _tell
    _tell = tell


#: the namespace of the nodes, held open; None: there is none, and loopback is all
_nodes_fd: int | None = None


def enter_namespace(*, required: bool = False) -> None:
    """Start this command again in namespaces of its own, and make the network there.

    Where the system allows none, all goes on with the loopback of the host, or, if the network is
    required, raises BenchError with the mend.
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
    try:
        if os.environ[_IN_NAMESPACE] == "0":
            raise BenchError("no network namespace to be had (run as root)")
        change_network()
    except BenchError as error:
        if required:
            raise
        progress(f"{error}: measuring on loopback")
        if os.environ[_IN_NAMESPACE] == "1":
            _bring_up_loopback()
            os.environ[_IN_NAMESPACE] = "0"


def use_congestion_control(name: str) -> None:
    """Measure with this congestion control; to be said before enter_namespace."""
    os.environ[_CONGESTION_CONTROL] = name


def entered() -> bool:
    """Tell whether enter_namespace has started this command again already."""
    return _IN_NAMESPACE in os.environ


def change_network() -> None:
    """Go on in a new network, without what waits in TIME_WAIT in this one.

    Nobody may be left in the old one. Where all is on loopback, it goes on there. Raises BenchError
    where the network cannot be made.
    """
    global _nodes_fd
    if os.environ.get(_IN_NAMESPACE) != "1":
        return
    if _nodes_fd is not None:
        os.close(_nodes_fd)
        _nodes_fd = None
    _new_namespace()
    nodes_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _new_namespace()
        peer = f"/proc/{os.getpid()}/fd/{nodes_fd}"
        _ip(f"link add reflector type veth peer name nodes netns {peer}{_REFLECTOR_END}")
        _nodes_fd = nodes_fd
        _ip(_NODE_END, on_node=True)
    except BaseException:
        _nodes_fd = None
        os.close(nodes_fd)
        raise


def has_network() -> bool:
    """Tell whether there is a network of our own; otherwise all is on loopback."""
    return _nodes_fd is not None


def _new_namespace() -> None:
    """Leave for a new network namespace, with loopback up and the settings in place."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise BenchError("no network namespace to be had (run as root)")
    _bring_up_loopback()
    for name, value in _SYSCTLS.items():
        (_IPV4 / name).write_text(value)
    for name, value in _SYSCTLS_WHERE_ALLOWED.items():
        with suppress(OSError):
            (_IPV4 / name).write_text(value)
    _set_congestion_control()


def _set_congestion_control() -> None:
    asked = os.environ.get(_CONGESTION_CONTROL)
    for name in [asked] if asked else _CONGESTION_CONTROLS:
        try:
            (_IPV4 / "tcp_congestion_control").write_text(name)
            return
        except OSError:
            continue
    allowed = (_IPV4 / "tcp_allowed_congestion_control").read_text().strip()
    if asked:
        raise BenchError(f"{asked}: not a congestion control that is allowed here ({allowed})")


def congestion_control() -> str:
    """Return the name of the congestion control that is measured with."""
    return (_IPV4 / "tcp_congestion_control").read_text().strip()


def _ip(batch: str, on_node: bool = False) -> None:
    """Have ip(8) obey these lines. Raises BenchError with what it said."""
    command = [find_program("ip", "iproute2"), "-batch", "-"]
    done = subprocess.run(
        command,
        input=batch,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=_go_to_nodes if on_node else None,
    )
    if done.returncode != 0:
        raise BenchError(f"no veth pair to be had (run as root): {done.stderr.strip()}")


def _go_to_nodes() -> None:
    """Enter the namespace of the nodes; for a child before it executes its program."""
    if _nodes_fd is not None and _libc.setns(_nodes_fd, _CLONE_NEWNET) != 0:
        os._exit(126)


def find_program(name: str, package: str) -> str:
    """Return the path of a program, looking where root's are too. Raises BenchError."""
    program = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if program is None:
        raise BenchError(f"not installed (apt-get install {package})")
    return program


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
    first = _FIRST_NODE if has_network() else _FIRST_LOOPBACK_NODE
    return socket.inet_ntoa(struct.pack("!I", first + index))


def reflector_address() -> str:
    """Return the address at which nodes reach the reflector."""
    return REFLECTOR_ADDRESS if has_network() else "127.0.0.1"


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
        self,
        mode: str,
        port: int = SERVICE_PORT,
        files: int | None = None,
        on_node: bool = True,
    ) -> Iterator[int]:
        """Run a service (service.c) at a port of every node; the block gets the port.

        Port 0 picks a free one. Not on_node: it runs on the reflector's host.
        """
        command = [self.path("service"), mode, "-p", str(port)]
        with running(command, files, on_node, stdout=subprocess.PIPE) as process:
            yield int(process.expect("ready", process.popen.stdout).split()[1])

    def load(self, mode: str, **options: Any) -> dict[str, Any]:
        """Run a load (see start_load) to the end of its first phase and return its report."""
        with self.start_load(mode, **options) as process:
            return process.read_report()

    @contextmanager
    def start_load(
        self,
        mode: str,
        *,
        count: int = 1,
        seconds: float = 0,
        warm_up: float = 0,
        rate: float = 0,
        at_a_time: int = 1,
        nodes: int = 1,
        first_node: int = 0,
        size: int = 0,
        port: int = REFLECTOR_PORT,
        files: int | None = None,
        within: int = _LOAD_WITHIN,
    ) -> Iterator["Process"]:
        """Run a load (load.c): exchanges of `size` bytes from `nodes` addresses.

        `count` of them, or what begins in so many `seconds`, at a `rate` per second if there is
        one. With `warm_up` seconds there is a phase of that length before. It is killed when a
        phase of it takes longer than `within` seconds.
        """
        command = [self.path("load"), mode, "-a", reflector_address(), "-p", str(port)]
        command += ["-s", node(first_node), "-d", str(seconds), "-w", str(warm_up), "-r", str(rate)]
        command += ["-m", str(nodes), "-n", str(count), "-c", str(at_a_time), "-b", str(size)]
        command += ["-t", str(within)]
        pipe = subprocess.PIPE
        with running(command, files, True, stdin=pipe, stdout=pipe) as process:
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
        """Have a load go on with another phase."""
        assert self.popen.stdin is not None
        print(file=self.popen.stdin, flush=True)


@contextmanager
def running(
    command: Sequence[str], files: int | None = None, on_node: bool = False, **pipes: Any
) -> Iterator[Process]:
    """Run a child for the length of the block, under an open-file limit of `files`."""

    if files is not None and files > resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 0:
        raise BenchError(f"needs a hard limit of {files:,} open files (ulimit -Hn)")

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if on_node:
            _go_to_nodes()
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
