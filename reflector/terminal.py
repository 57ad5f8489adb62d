"""Lines on stdout and stderr that survive a closed descriptor and a reader that left."""

import os
import sys
from contextlib import suppress
from typing import TextIO

_COLOURS = {"dim": "2", "red": "31", "green": "32", "yellow": "33"}


def open_standard_files() -> None:
    """Fill descriptors 0 to 2 where the caller closed them.

    Otherwise a socket would take the number, and a message meant for stderr would end up in it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def error_line(text: str) -> None:
    """Write one line to stderr; where nobody can read it, it is lost.

    Past sys.stderr, whose buffer would keep a line that failed and complain when Python ends.
    """
    with suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))


def flush_output() -> str | None:
    """Bring out what was written to stdout; return what went wrong, if it matters.

    A reader that left early, as `head` does, does not matter.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer goes nowhere, so that Python's end does not complain.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        if not isinstance(error, BrokenPipeError):
            return f"cannot write to stdout: {error.strerror}"
    return None


def painted(text: str, colour: str, stream: TextIO) -> str:
    """Colour `text` where `stream` is a terminal and NO_COLOR is not set; "" is no colour."""
    if not colour or not stream.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"
