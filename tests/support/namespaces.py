"""Network namespaces without names: they are gone with their last descriptor, whatever happens.

`with namespace:` moves the calling thread into it; sockets, threads and programs made there belong
to it and stay in it. Needs root; `why_no_namespaces()` says why there are none.
"""

import ctypes
import functools
import os
import subprocess
from pathlib import Path
from types import TracebackType

from support.programs import clean_environment

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace with its loopback device up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._homes: list[int] = []
        home = _current()
        try:
            _check(_libc.unshare(_CLONE_NEWNET), "unshare")
            try:
                self._fd = _current()
                self.run("ip", "link", "set", "lo", "up")
            finally:
                _check(_libc.setns(home, 0), "setns")
        finally:
            os.close(home)

    def __enter__(self) -> "Namespace":
        self._homes.append(_current())
        _check(_libc.setns(self._fd, 0), "setns")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        home = self._homes.pop()
        _check(_libc.setns(home, 0), "setns")
        os.close(home)

    @property
    def path(self) -> str:
        """Where other programs find this namespace while it lives."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def run(self, *command: str, stdin: str = "") -> str:
        """Run a program in the calling thread's namespace; its output. It must succeed."""
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            env=clean_environment(),
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
        return done.stdout

    def ip(self, command: str) -> str:
        """`ip ...` in this namespace."""
        with self:
            return self.run("ip", *command.split())

    def sysctl(self, name: str, value: str) -> None:
        """Set net.* of this namespace; `name` is the path below /proc/sys."""
        with self:
            Path("/proc/sys", name).write_text(value)

    def reject(self, rule: str, hook: str = "input") -> None:
        """Add a rule to the filter (input, forward), for example "tcp dport 22 drop"."""
        table = "add table inet test\n"
        chain = f"add chain inet test {hook} {{ type filter hook {hook} priority 0; }}\n"
        with self:
            self.run("nft", "-f", "-", stdin=f"{table}{chain}add rule inet test {hook} {rule}\n")

    def accept_all(self) -> None:
        """Take all rules away again."""
        with self:
            self.run("nft", "flush", "ruleset")

    def close(self) -> None:
        """Give the namespace up."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def join(one: Namespace, one_device: str, other: Namespace, other_device: str) -> None:
    """A cable (veth pair) between two namespaces, both ends up; addresses are for the caller."""
    one.ip(
        f"link add {one_device} type veth peer name {other_device} netns {other.path}",
    )
    one.ip(f"link set {one_device} up")
    other.ip(f"link set {other_device} up")


@functools.cache
def why_no_namespaces() -> str:
    """Empty when this process can make network namespaces, else the reason."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        one, other = Namespace("one"), Namespace("other")
    except (OSError, AssertionError) as error:
        return f"no network namespaces here: {error}"
    try:
        join(one, "v0", other, "v0")
        one.reject("tcp dport 1 drop")
    except (OSError, AssertionError) as error:
        return f"no veth or no nft here: {error}"
    finally:
        one.close()
        other.close()
    return ""


def _current() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
