"""Time in tests: one scale for slow machines and sanitizers, and waiting that always ends.

REFLECTOR_TEST_SLOWDOWN (a float, 1 by default) says how many times slower than usual this run may
be. Time-outs of the tests grow with it and transfers shrink with it; what is measured does not
change.
"""

import os
import time
from collections.abc import Callable

SLOWDOWN = max(1.0, float(os.environ.get("REFLECTOR_TEST_SLOWDOWN", "1")))

MB = 1_000_000


def patience(seconds: float) -> float:
    """How long to wait for something that takes at most `seconds` on an ordinary machine."""
    return seconds * SLOWDOWN


def scaled(amount: int, least: int = 1) -> int:
    """An amount of work (bytes, connections, rounds), shrunk on slow runs but not below `least`."""
    return max(least, int(amount / SLOWDOWN))


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Wait until `condition` holds; AssertionError naming `what` when it does not in time."""
    deadline = time.monotonic() + patience(seconds)
    pause_s = 0.001
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience(seconds):.0f} s in vain for: {what}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)


def stays_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition` holds at every look during `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not condition():
            return False
        time.sleep(0.005)
    return condition()
