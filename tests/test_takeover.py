"""--share-ports: a new reflector takes the ports over from one that runs.

What is guaranteed: the port is served all the time, and every connection that the old one has
accepted runs to its end. A connection whose handshake with the old listener is not over when that
closes can be reset by the kernel; with net.ipv4.tcp_migrate_req=1 it goes to the new one.
"""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cli_support import Foreground, one_line, run_command
from support.bulk import Pump
from support.lab import NODE, REFLECTOR, Lab, Running, exchange, finish
from support.lab import Path as LabPath
from support.namespaces import Namespace
from support.timing import patience, wait_until

import reflector

BANNER = b"SSH-2.0-takeover\r\n"

CHECKERS = 4
WORKERS = 2


class Checks:
    """A steady load: checkers dial, read the banner and close, one check after the other."""

    def __init__(self, port: int) -> None:
        self.passed = 0
        #: of each check that failed: how, and when it had begun
        self.failed: list[tuple[str, float]] = []
        self._port = port
        self._over = threading.Event()

    def check(self) -> None:
        """Check until the load is over."""
        while not self._over.is_set():
            began = time.monotonic()
            outcome = self._once()
            if outcome == "passed":
                self.passed += 1
            else:
                self.failed.append((outcome, began))

    def _once(self) -> str:
        try:
            with socket.create_connection(
                (REFLECTOR, self._port), patience(5), source_address=(NODE, 0)
            ) as connection:
                got = b""
                while data := connection.recv(100):
                    got += data
                return "passed" if got == BANNER else f"ended after {got!r}"
        except OSError as error:
            return type(error).__name__

    def wait_more(self, count: int) -> None:
        """Wait until so many more checks have passed."""
        enough = self.passed + count
        wait_until(lambda: self.passed >= enough, f"{count} more checks to pass")

    @contextmanager
    def running(self) -> Iterator[None]:
        """The load, for as long as the context."""
        with ExitStack() as checkers:
            for _ in range(CHECKERS):
                checkers.enter_context(Pump(self.check))
            try:
                yield
            finally:
                self._over.set()


@contextmanager
def banner_service() -> Iterator[int]:
    """A service of NODE that says its banner and closes; its port."""
    with socket.create_server((NODE, 0), backlog=256) as listener:

        def serve() -> None:
            while not over.is_set():
                connection, _ = listener.accept()
                with connection:
                    try:
                        connection.sendall(BANNER)
                        connection.shutdown(socket.SHUT_WR)
                        connection.recv(1)
                    except OSError:  # a check that was reset on its way
                        pass

        over = threading.Event()
        with Pump(serve):
            try:
                yield int(listener.getsockname()[1])
            finally:
                over.set()
                socket.create_connection(listener.getsockname(), patience(5)).close()


def take_over(folder: Path) -> tuple[Checks, float]:
    """The load while a new reflector takes over from an old one, and when the old one had ended."""
    with banner_service() as service:
        options = ("--share-ports", "--workers", str(WORKERS))
        old = Foreground(folder / "old", *options, f"{REFLECTOR}:0:{service}")
        new = None
        try:
            old.wait_ready()
            port = old.ports[0]
            checks = Checks(port)
            with checks.running():
                checks.wait_more(50)
                new = Foreground(folder / "new", *options, f"{REFLECTOR}:{port}:{service}")
                new.wait_ready()
                checks.wait_more(50)
                old.signal(signal.SIGTERM)
                assert old.wait() == 0, old.output()
                ended = time.monotonic()
                checks.wait_more(200)
            new.signal(signal.SIGTERM)
            assert new.wait() == 0, new.output()
            for running in (old, new):
                assert "stopped: 0 connections" not in running.output()
        finally:
            old.close()
            if new is not None:
                new.close()
    return checks, ended


def test_new_reflector_takes_over_under_load(tmp_path: Path) -> None:
    """A check may be reset while the old one closes its listeners; none before, none after."""
    checks, ended = take_over(tmp_path)
    assert {outcome for outcome, _ in checks.failed} <= {"ConnectionResetError"}
    assert not [began for _, began in checks.failed if began > ended]
    # Each checker has one connection at a time, and each listener closes once.
    assert len(checks.failed) <= CHECKERS * WORKERS


def set_migration(site: Namespace, value: str) -> None:
    """Set whether handshakes go from a listener that closes to another one of the port."""
    try:
        site.sysctl("net/ipv4/tcp_migrate_req", value)
    except OSError as error:
        pytest.skip(f"no net.ipv4.tcp_migrate_req here: {error}")


@pytest.mark.parametrize("migrates", [True, False])
def test_handshake_with_the_old_one_is_reset_or_goes_to_the_new_one(
    lab: Lab, namespace: Callable[[str], Namespace], migrates: bool
) -> None:
    """The peer's half of a handshake is held up until the old reflector has gone."""
    site = namespace("site")
    set_migration(site, "1" if migrates else "0")
    with site:
        old = lab.path(share_ports=True, workers=1)
        site.reject(f"tcp dport {old.running.port} tcp flags & (syn | rst) == 0 drop")
        client = old.dial()
        client.send(b"held up")
        new = lab.reflector(
            f"{REFLECTOR}:{old.running.port}:{old.service.port}", share_ports=True, workers=1
        )
        assert old.running.reflector.drain(patience(10))
        site.accept_all()
        if migrates:
            old.service.accept().expect(b"held up")
        else:
            client.expect_rst()
    assert old.count("accepted") == 0
    assert new.count("accepted") == int(migrates)


def test_with_migration_in_the_kernel_not_one_check_is_lost(
    namespace: Callable[[str], Namespace], tmp_path: Path
) -> None:
    site = namespace("site")
    set_migration(site, "1")
    for round_number in range(3):
        folder = tmp_path / str(round_number)
        folder.mkdir()
        with site:  # the threads and programs made in it belong to it
            checks, _ = take_over(folder)
        assert not checks.failed


def test_connections_of_the_old_one_run_to_their_end(lab: Lab) -> None:
    old = lab.path(share_ports=True)
    client, service = old.connect()
    exchange(client, service)
    new = lab.reflector(f"{REFLECTOR}:{old.running.port}:{old.service.port}", share_ports=True)
    with Pump(lambda: old.running.reflector.drain(patience(10))):
        wait_until(lambda: _served_by(new, old), "the new one to serve")
        exchange(client, service)
        old.running.wait_active(1)
        finish(client, service)
    assert old.count("closed_stopped") == 0


def _served_by(new: Running, old: LabPath) -> bool:
    """Dial once more; until the old one has closed its listeners, it may get that."""
    old.dial().rst()
    return new.count("accepted") > 0


@pytest.mark.parametrize("address", ["", "127.0.0.1:", "[::1]:"])
def test_ports_are_shared_on_every_kind_of_address(address: str) -> None:
    with (
        reflector.Reflector(f"{address}0:1", share_ports=True, workers=2) as old,
        reflector.Reflector(f"{address}{old.ports[0]}:1", share_ports=True, workers=2) as new,
    ):
        assert new.ports == old.ports


@pytest.mark.parametrize(("old_shares", "new_shares"), [(True, False), (False, True)])
@pytest.mark.parametrize(
    ("old_address", "new_address"),
    [("", ""), ("127.0.0.1:", "127.0.0.1:"), ("127.0.0.1:", ""), ("", "[::1]:")],
)
def test_both_must_share(
    old_shares: bool, new_shares: bool, old_address: str, new_address: str
) -> None:
    with reflector.Reflector(f"{old_address}0:1", share_ports=old_shares, workers=2) as old:
        port = old.ports[0]
        new = reflector.Reflector(f"{new_address}{port}:1", share_ports=new_shares, workers=2)
        with pytest.raises(reflector.StartError, match=f"port {port} is taken"):
            new.start()


def test_other_addresses_of_the_port_are_no_obstacle() -> None:
    """A stranger on 127.0.0.9 is not in the way of two that share 127.0.0.8."""
    with reflector.Reflector("127.0.0.8:0:1", share_ports=True) as old:
        port = old.ports[0]
        with socket.create_server(("127.0.0.9", port)):
            reflector.Reflector(f"127.0.0.8:{port}:1", share_ports=True).start()


def test_port_of_another_program_is_not_joined() -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        refused = run_command("--share-ports", f"127.0.0.1:{port}:1")
    assert refused.returncode == 1
    line = one_line(refused.stderr)
    assert f"port {port} is taken by a program that does not share it" in line
    assert "--share-ports" in line
