"""The proxies that are measured beside each other, each as its own users would set it up.

The configuration files are in rivals/; every proxy that has workers has as many as there are CPUs.
"""

import os
import re
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import place
import psutil
from held import FILE_LIMIT
from place import BenchError, Process, Tools, find_program, progress

from versus.record import MIRROR, OWN, ProxyInfo

#: as many as the reflector takes of itself
WORKERS = len(os.sched_getaffinity(0))

#: seconds for a rival to listen, and to be gone
_READY_WITHIN = 10.0
_GONE_WITHIN = 10.0
_PIP_WITHIN = 120

#: how much of a rival's log is shown
_LOG_LINES = 5

_RIVALS = place.BENCH / "versus" / "rivals"
_ANCESTOR = place.BENCH.parent / "build" / "bench" / "reflector-0.1"


class Start(Protocol):
    """Runs a proxy for the length of a block, which gets its process, or None where it has none.

    The options are for reflector's command line; no rival takes any. Raises BenchError.
    """

    def __call__(self, options: Sequence[str] = ()) -> AbstractContextManager[Process | None]:
        """Start it."""


@dataclass(frozen=True)
class Proxy:
    """A proxy that is measured, how to run it, and how many connections it carries at most."""

    info: ProxyInfo
    start: Start
    carries: int = 1_000_000
    carries_why: str = ""
    #: more failed checks than this share, and there is no value: p99.9 is told without them
    checks_failed_at_most: float = 0.001

    @property
    def in_between(self) -> bool:
        """Whether there is anything between node and service."""
        return self.info.kind != "none"


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def find_reflector(tools: Tools) -> Proxy:
    """Return the reflector, which runs as people run it."""
    del tools

    @contextmanager
    def start(options: Sequence[str] = ()) -> Iterator[Process]:
        with place.reflector(*options, files=FILE_LIMIT) as process:
            yield process

    return Proxy(ProxyInfo(OWN, "reflector", _own_version(), "proxy"), start)


def find_mirror(tools: Tools) -> Proxy:
    """Return the reflector with the mirror engine. Raises BenchError where that cannot be had."""
    del tools

    @contextmanager
    def start(options: Sequence[str] = ()) -> Iterator[None]:
        with place.reflector("--engine", "mirror", *options, files=FILE_LIMIT):
            yield None  # what its process does is to wait

    with start():
        return Proxy(ProxyInfo(MIRROR, "reflector, mirror", _own_version(), "kernel"), start)


def _own_version() -> str:
    told = _told([sys.executable, "-m", "reflector", "--version"])
    if not told:
        raise BenchError("reflector does not run (./dev test builds it)")
    return _version(r"(\d\S*)", told)


def find_nginx(tools: Tools) -> Proxy:
    """Return nginx with its stream module. Raises BenchError where it is not installed."""
    command, about = nginx_command(tools, "nginx.conf", place.SERVICE_PORT, stream=True)
    info = ProxyInfo("nginx", "nginx stream", _version(r"nginx/(\S+)", about), "proxy")
    why = "worker_connections 16384, two for each, in every worker"
    return Proxy(info, _rival(info, command, tools), 8_000 * WORKERS, why)


def nginx_command(
    tools: Tools, config: str, return_port: int, *, stream: bool
) -> tuple[list[str], str]:
    """Return the command that runs nginx with a configuration, and what nginx tells of itself.

    Raises BenchError where it, or the stream module that is asked for, is not installed.
    """
    packages = "nginx-light libnginx-mod-stream" if stream else "nginx-light"
    program = find_program("nginx", packages)
    about = _told([program, "-V"])
    # In a user namespace the workers find no other user than root.
    directives = f"daemon off; user root; pid {tools.directory}/{config}.pid;"
    if stream and "--with-stream=dynamic" in about:
        modules = re.search(r"--modules-path=(\S+)", about)
        module = Path(modules[1] if modules else "", "ngx_stream_module.so")
        if not module.exists():
            raise BenchError("no stream module (apt-get install libnginx-mod-stream)")
        directives += f" load_module {module};"
    # Until its configuration is read it writes to a log of the system, before 1.19.5 in any case.
    version = _version(r"nginx/(\S+)", about)
    log = ["-e", "stderr"] if _at_least(version, 1, 19, 5) else []
    path = configure(tools, config, return_port)
    return [program, *log, "-g", directives, "-c", path], about


def find_haproxy(
    tools: Tools, key: str = "haproxy", name: str = "HAProxy, splice", config: str = "haproxy.cfg"
) -> Proxy:
    """Return HAProxy. Raises BenchError where it is not installed."""
    program = find_program("haproxy", "haproxy")
    version = _version(r"version (\d[\d.]*)", _told([program, "-v"]))
    path = Path(configure(tools, config))
    if not _at_least(version, 2, 5):
        path.write_text(path.read_text().replace(" shards by-thread", ""))
    command = [program, "-db", "-f", str(path)]
    info = ProxyInfo(key, name, version, "proxy")
    why = "maxconn 7000: two descriptors for each and pipes, within 20,000 open files"
    return Proxy(info, _rival(info, command, tools), 7_000, why)


def find_haproxy_1m(tools: Tools) -> Proxy:
    """Return HAProxy as one sets it up for bulk alone. Raises BenchError where not installed."""
    return find_haproxy(tools, "haproxy_1m", "HAProxy, pipes of 1 MB", "haproxy-1m.cfg")


def find_socat(tools: Tools) -> Proxy:
    """Return socat. Raises BenchError where it is not installed."""
    version = _version(r"version (\d\S*)", _told([find_program("socat", "socat"), "-V"]))
    info = ProxyInfo("socat", "socat", version, "proxy")
    script = Path(configure(tools, "socat.sh"))
    script.chmod(0o755)
    why = "a process for each connection"
    return Proxy(info, _rival(info, [str(script)], tools), 500, why)


def find_nft(tools: Tools) -> Proxy:
    """Return the kernel's NAT, as nftables sets it up. Raises BenchError where it cannot."""
    program = find_program("nft", "nftables")
    rules = configure(tools, "nftables.nft")
    info = ProxyInfo("nft", "nftables", _version(r"v(\d[\d.]*)", _told([program, "-v"])), "kernel")

    @contextmanager
    def start(options: Sequence[str] = ()) -> Iterator[None]:
        del options
        loaded = subprocess.run([program, "-f", rules], capture_output=True, text=True, check=False)
        if loaded.returncode != 0:
            raise BenchError(f"{' '.join(loaded.stderr.split())} (run as root)")
        try:
            for name, value in (
                ("ipv4/ip_forward", 1),
                ("ipv4/conf/all/send_redirects", 0),
                ("ipv4/conf/reflector/send_redirects", 0),
                ("netfilter/nf_conntrack_tcp_timeout_time_wait", 10),
            ):
                Path("/proc/sys/net", name).write_text(str(value))
            yield None
        finally:
            subprocess.run([program, "delete", "table", "ip", "reflector"], check=False)

    return Proxy(info, start)


def find_ancestor(tools: Tools) -> Proxy:
    """Return reflector 0.1. Raises BenchError where `fetch_ancestor` could not have it."""
    program = _ANCESTOR / "reflector.py"
    if not program.exists():
        root = place.BENCH.parent
        files = _ANCESTOR.relative_to(root), (_RIVALS / "reflector-0.1.txt").relative_to(root)
        mend = f"pip install --target {files[0]} -r {files[1]}"
        raise BenchError(f"pip could not install it ({mend})")
    info = ProxyInfo("reflector01", "reflector 0.1", "0.1", "proxy")
    command = [sys.executable, str(program), "--return-port", str(place.SERVICE_PORT)]
    start = _rival(info, [*command, str(place.REFLECTOR_PORT)], tools)
    why = "select(): 1,024 descriptors"
    return Proxy(info, start, 500, why, checks_failed_at_most=0.01)  # it leaves some unanswered


def fetch_ancestor() -> None:
    """Have pip install reflector 0.1 below build/, once; from where it is, there is a network."""
    if (_ANCESTOR / "reflector.py").exists():
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-compile", "--target", str(_ANCESTOR)]
    command += ["-r", str(_RIVALS / "reflector-0.1.txt")]
    progress("installing reflector 0.1 below build/")
    try:
        subprocess.run(command, capture_output=True, timeout=_PIP_WITHIN, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(_ANCESTOR, ignore_errors=True)
        progress(f"pip could not install reflector 0.1: {error}")


def find_direct(tools: Tools) -> Proxy:
    """Return no proxy: the service itself is on the reflector's host, at the reflector's port."""
    del tools

    @contextmanager
    def start(options: Sequence[str] = ()) -> Iterator[None]:
        del options
        yield None

    return Proxy(ProxyInfo("direct", "direct", "", "none"), start)


#: by key, in the order of the table
FINDERS: dict[str, Callable[[Tools], Proxy]] = {
    OWN: find_reflector,
    MIRROR: find_mirror,
    "nginx": find_nginx,
    "haproxy": find_haproxy,
    "haproxy_1m": find_haproxy_1m,
    "socat": find_socat,
    "nft": find_nft,
    "reflector01": find_ancestor,
    "direct": find_direct,
}

#: by key, what people call it where it could not even be found
NAMES = {
    **{OWN: "reflector", MIRROR: "reflector, mirror"},
    **{"nginx": "nginx stream", "haproxy": "HAProxy"},
    **{"haproxy_1m": "HAProxy, pipes of 1 MB", "socat": "socat", "nft": "nftables"},
    **{"reflector01": "reflector 0.1", "direct": "direct"},
}


def configure(tools: Tools, name: str, return_port: int = place.SERVICE_PORT) -> str:
    """Fill in a configuration file; what is not known here is a variable of its own."""
    template = string.Template((_RIVALS / name).read_text())
    path = tools.directory / f"{return_port}-{name}"
    values = {
        "port": place.REFLECTOR_PORT,
        "return_port": return_port,
        "workers": WORKERS,
        "directory": tools.directory,
    }
    path.write_text(template.safe_substitute(values))
    return str(path)


def _told(command: list[str]) -> str:
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return told.stdout + told.stderr if told.returncode == 0 else ""


def _version(pattern: str, told: str) -> str:
    found = re.search(pattern, told)
    return found[1] if found else "?"


def _at_least(version: str, *least: int) -> bool:
    """Compare versions; one that is not known is taken for a new one."""
    numbers = [int(number) for number in re.findall(r"\d+", version)]
    return not numbers or tuple(numbers) >= least


def _rival(info: ProxyInfo, command: list[str], tools: Tools) -> Start:
    log = tools.directory / f"{info.key}.log"

    def start(options: Sequence[str] = ()) -> AbstractContextManager[Process]:
        del options
        return run_apart(info.name, command, log, place.REFLECTOR_PORT)

    return start


@contextmanager
def run_apart(
    name: str, command: list[str], log: Path, port: int, on_node: bool = False
) -> Iterator[Process]:
    """Run a program in a process namespace: the kernel ends its workers too, whatever happens.

    Waits until something listens at the port, on the reflector's host or a node. What the program
    says goes to the log, and its first lines are told at the end.
    """
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--", *command]
    with log.open("w") as output:
        with place.running(inside, FILE_LIMIT, on_node, stdout=output, stderr=output) as process:
            wait_until_listening(process, log, port)
            tree = process_tree(process.pid)
            try:
                yield process
            except BenchError:
                if process.popen.poll() is None:
                    raise
                said = log.read_text().split("\n")[-2:]
                raise BenchError(f"it ended by itself: {' '.join(said).strip()}") from None
        _wait_until_gone(tree)
    for line in log.read_text().splitlines()[:_LOG_LINES]:
        progress(f"{name}: {line}")


def _wait_until_gone(tree: list[psutil.Process]) -> None:
    """Wait for the ends of processes that are killed; who reaps them may take its time."""
    until = time.monotonic() + _GONE_WITHIN
    while any(_runs(one) for one in tree) and time.monotonic() < until:
        time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until_listening(process: Process, log: Path, port: int) -> None:
    """Wait for the port in the kernel's table: a connection would be carried, and count."""
    listening = re.compile(rf":{port:04X} 0+:0000 0A ")
    table = Path(f"/proc/{process.pid}/net/tcp")  # of the namespace that the process is in
    until = time.monotonic() + _READY_WITHIN
    while process.popen.poll() is None and time.monotonic() < until:
        if listening.search(table.read_text()):
            place.settle(0.1)
            return
        time.sleep(0.02)
    raise BenchError(f"not started: {' '.join(log.read_text().split()) or 'no word why'}")
