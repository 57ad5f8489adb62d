"""Tell systemd how the service stands: the protocol of sd_notify(3), as far as it is needed."""

import os
import socket


def notify(state: str) -> None:
    """Send `state`, such as ``READY=1``, to the service manager; nothing where there is none.

    A manager that cannot be reached is no reason to stop carrying connections: errors are passed
    over.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.connect(address)
            manager.send(state.encode())
    except OSError:
        pass
