"""What can go wrong before traffic flows, each told in one line."""


class ReflectorError(Exception):
    """Base of this package's errors. Its text is one line: what, where, what would be right."""


class UsageError(ReflectorError, ValueError):
    """An argument is wrong: a mapping, a limit, an address. The command exits with 2."""


class StartError(ReflectorError):
    """This host does not allow it: a port is taken, a privilege missing, an address not ours.

    The command exits with 1. ``errno`` is the system's error number, None where no system call
    failed.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


def quoted(value: object) -> str:
    """Return `value` as people typed it, safe to stand in a one-line message.

    Control characters and undecodable bytes are escaped, and what is very long is cut.
    """
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"
