"""The proxies that are measured beside each other: the reflector, nginx and HAProxy.

Each is run with as many workers as the others. The configuration files are in rivals/.
"""

import os
import re
import shutil
import string
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import place
import psutil  # type: ignore[import-untyped]
from held import FILE_LIMIT
from place import BenchError, Process, Tools, progress, settle

#: as many as the reflector takes of itself
WORKERS = len(os.sched_getaffinity(0))

#: seconds for a rival to listen, and to be gone
_READY_WITHIN = 10.0
_GONE_WITHIN = 10.0

#: how much of a rival's log is shown
_LOG_LINES = 5


@dataclass(frozen=True)
class Proxy:
    """A proxy that is measured, and how to run one for the length of a block."""

    name: str
    version: str
    start: Callable[[], AbstractContextManager[Process]]


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def find_reflector(version: str) -> Proxy:
    """Return the reflector, which runs as people run it."""
    return Proxy("reflector", version, partial(place.reflector, files=FILE_LIMIT))


def find_nginx(tools: Tools) -> Proxy:
    """Return nginx with its stream module. Raises BenchError where it is not installed."""
    program, about = _program("nginx", "-V", "apt-get install nginx-light libnginx-mod-stream")
    # In a user namespace the workers find no other user than root.
    directives = f"daemon off; user root; pid {tools.directory}/nginx.pid;"
    if "--with-stream=dynamic" in about:
        modules = re.search(r"--modules-path=(\S+)", about)
        module = Path(modules[1] if modules else "", "ngx_stream_module.so")
        if not module.exists():
            raise BenchError("no stream module (apt-get install libnginx-mod-stream)")
        directives += f" load_module {module};"
    command = [program, "-e", "stderr", "-g", directives, "-c", _configure(tools, "nginx.conf")]
    return _rival("nginx", r"nginx/(\S+)", about, command, tools)


def find_haproxy(tools: Tools) -> Proxy:
    """Return HAProxy. Raises BenchError where it is not installed."""
    program, about = _program("haproxy", "-v", "apt-get install haproxy")
    command = [program, "-db", "-f", _configure(tools, "haproxy.cfg")]
    return _rival("HAProxy", r"version (\S+)", about, command, tools)


def _program(name: str, tell: str, mend: str) -> tuple[str, str]:
    """Return the path of a program, and what it tells of itself."""
    program = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
    if program is None:
        raise BenchError(f"not installed ({mend})")
    told = subprocess.run([program, tell], capture_output=True, text=True, check=False)
    return program, told.stdout + told.stderr


def _configure(tools: Tools, name: str) -> str:
    """Fill in a configuration file; what is not known here is a variable of its own."""
    ports = {"port": place.REFLECTOR_PORT, "return_port": place.SERVICE_PORT}
    template = string.Template((place.BENCH / "rivals" / name).read_text())
    path = tools.directory / name
    path.write_text(template.safe_substitute(ports, workers=WORKERS))
    return str(path)


def _rival(name: str, version: str, about: str, command: list[str], tools: Tools) -> Proxy:
    found = re.search(version, about)
    log = tools.directory / f"{name}.log"
    return Proxy(name, found[1] if found else "?", partial(_running, name, command, log))


@contextmanager
def _running(name: str, command: list[str], log: Path) -> Iterator[Process]:
    """Run a rival in a process namespace: the kernel ends its workers too, whatever happens."""
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--", *command]
    with log.open("w") as output:
        with place.running(inside, FILE_LIMIT, stdout=output, stderr=output) as process:
            _wait_until_listening(process, log)
            tree = process_tree(process.pid)
            yield process
        psutil.wait_procs(tree, timeout=_GONE_WITHIN)
    for line in log.read_text().splitlines()[:_LOG_LINES]:
        progress(f"{name}: {line}")


def _wait_until_listening(process: Process, log: Path) -> None:
    """Wait for the port in the kernel's table: a connection would be carried, and count."""
    listening = re.compile(rf":{place.REFLECTOR_PORT:04X} 0+:0000 0A ")
    until = time.monotonic() + _READY_WITHIN
    while not listening.search(Path("/proc/net/tcp").read_text()):
        if process.popen.poll() is not None or time.monotonic() > until:
            raise BenchError(f"not started: {' '.join(log.read_text().split()) or 'no word why'}")
        time.sleep(0.05)
    settle()
