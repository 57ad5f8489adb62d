"""A foreground run: ready line, signals, drain, and what went wrong in the last second.

Signals are blocked and fetched with sigtimedwait, so there are no handlers and no races: one
wake-up a second while all is well, and a signal is acted on at once.
"""

import logging
import signal
import sys
import time
from collections.abc import Iterable

from reflector._version import __version__
from reflector.engine import Engine, SpliceEngine, Stats
from reflector.mapping import Mapping, returns_in_a_loop
from reflector.notify import notify
from reflector.settings import SETTINGS, Settings
from reflector.terminal import error_line, painted

_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_SIGNALS = _STOP_SIGNALS | {signal.SIGHUP}

#: seconds between two looks at the counters, so also the least between two lines about them
_REPORT_EVERY = 1.0
#: seconds between two looks for the last connection's end while draining
_DRAIN_POLL = 0.02

_COLOURS = {logging.DEBUG: "dim", logging.WARNING: "yellow", logging.ERROR: "red"}

log = logging.getLogger("reflector")


def run(mappings: tuple[Mapping, ...], settings: Settings) -> int:
    """Reflect until a signal says stop; return the exit code.

    Raises StartError, with nothing left bound, when this host does not allow it.
    """
    _log_to_stderr(settings.log_level)
    # Before the threads start, so that they inherit the mask and no signal is lost meanwhile.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    engine: Engine = SpliceEngine(mappings, settings)
    try:
        engine.start()
        _announce(engine, settings)
        stopped_by = _serve(engine, settings)
        notify("STOPPING=1")
        _drain(engine, settings, stopped_by)
    finally:
        engine.stop()
    stats = engine.stats()
    log.info(
        "stopped: %d connections accepted, %d returned, %d bytes carried",
        stats.accepted,
        stats.legs_connected,
        stats.bytes_to_service + stats.bytes_to_peer,
    )
    return 0


def _announce(engine: Engine, settings: Settings) -> None:
    """Say that every port is bound, whatever the log level, and what the limits came out as."""
    routes = ", ".join(f"{m.listens_on} -> peer:{m.return_port}" for m in engine.mappings)
    workers = "1 worker" if engine.workers == 1 else f"{engine.workers} workers"
    error_line(
        f"reflector {__version__} ready: {routes} ({engine.name} engine, {workers}, at most "
        f"{engine.max_connections:,} connections, {settings.max_per_source:,} per source)"
    )
    for mapping in engine.mappings:
        if returns_in_a_loop(mapping, engine.mappings):
            log.info(
                "%s returns to a reflecting port: peers on this very host are refused, or their "
                "connections would go round for ever",
                mapping.listens_on,
            )
    notify(f"READY=1\nSTATUS={routes}")


def _serve(engine: Engine, settings: Settings) -> str:
    """Wait for a signal that says stop, reporting once a second; return the signal's name."""
    before = engine.stats()
    next_report = time.monotonic() + _REPORT_EVERY
    while True:
        received = signal.sigtimedwait(_SIGNALS, max(0.0, next_report - time.monotonic()))
        if received is None:
            now = engine.stats()
            _report(before, now, engine, settings)
            before = now
            next_report = time.monotonic() + _REPORT_EVERY
        elif received.si_signo in _STOP_SIGNALS:
            return signal.Signals(received.si_signo).name
        else:
            _log_no_reload()


def _drain(engine: Engine, settings: Settings, stopped_by: str) -> None:
    """Stop accepting, and let running connections end until the timeout or another signal."""
    engine.stop_accepting()
    deadline = time.monotonic() + settings.drain_timeout
    if engine.wait(_DRAIN_POLL):
        return
    log.info(
        "%s: no longer accepting; %s may end within %s, a second signal resets them now",
        stopped_by,
        _connections(engine.stats().active),
        SETTINGS["drain_timeout"].kind.show(settings.drain_timeout),
    )
    while (left := deadline - time.monotonic()) > 0:
        received = signal.sigtimedwait(_SIGNALS, min(left, _DRAIN_POLL))
        if received is not None and received.si_signo in _STOP_SIGNALS:
            log.warning("second signal: %s reset", _connections(engine.stats().active))
            return
        if received is not None:
            _log_no_reload()
        if engine.wait(0):
            return
    log.warning("drain timeout: %s reset (--drain-timeout)", _connections(engine.stats().active))


def _report(before: Stats, now: Stats, engine: Engine, settings: Settings) -> None:
    """Log in one line what was refused or held up since the last look, and the mend."""
    troubles = list(_troubles(before, now, engine, settings))
    if troubles:
        log.warning("last second: %s", "; ".join(troubles))
    elif now.accepted != before.accepted:
        log.debug(
            "last second: %d accepted, %d running", now.accepted - before.accepted, now.active
        )


def _troubles(before: Stats, now: Stats, engine: Engine, settings: Settings) -> Iterable[str]:
    if count := now.limited_source - before.limited_source:
        yield (
            f"{_connections(count)} reset, their source has {settings.max_per_source:,} already "
            f"(--max-per-source)"
        )
    if count := now.limited_denied - before.limited_denied:
        yield f"{_connections(count)} reset, their network is denied (--allow, --deny)"
    if count := now.limited_loop - before.limited_loop:
        yield (
            f"{_connections(count)} reset as a loop (a peer on this host must not return to a "
            f"reflecting port)"
        )
    if count := now.limited_resources - before.limited_resources:
        yield (
            f"{_connections(count)} reset for want of descriptors, ports or memory (raise "
            f"ulimit -n or LimitNOFILE=, or lower --max-connections)"
        )
    if count := now.closed_resources - before.closed_resources:
        yield (
            f"{_connections(count)} reset while running for want of descriptors or memory (raise "
            f"ulimit -n or LimitNOFILE=)"
        )
    if count := now.pauses_connections - before.pauses_connections:
        yield (
            f"paused {_times(count)} at {_connections(engine.max_connections)}, new ones wait "
            f"(--max-connections)"
        )
    if count := now.pauses_resources - before.pauses_resources:
        yield (
            f"paused {_times(count)} for want of descriptors or memory, new ones wait (raise "
            f"ulimit -n or LimitNOFILE=)"
        )


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count:,} connections"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _log_no_reload() -> None:
    log.info("SIGHUP: there is no configuration file to reload, all goes on as it was")


class _LineHandler(logging.Handler):
    """Writes each record as one line to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower()
        if record.levelno in _COLOURS:
            level = painted(level, _COLOURS[record.levelno], sys.stderr)
        error_line(f"reflector: {level}: {record.getMessage()}")


def _log_to_stderr(level: str) -> None:
    log.handlers = [_LineHandler()]
    log.propagate = False
    log.setLevel(level.upper())
