"""Proves that the installed reflector works: a real connection is reflected, both ways.

Run by the interpreter that the package is installed for; needs no privilege. `--mirror`: the
package has to have its mirror too, which is loaded where kernel and privileges allow it.
"""

import errno
import os
import socket
import sys

import reflector

BANNER = b"a service of this node\n"
TIMEOUT_S = 30
# No right to, or an emulator that does not know bpf(2).
NOT_ALLOWED = (errno.EPERM, errno.EACCES, errno.ENOSYS)


def load_mirror() -> str:
    """Loads the mirror's program and drops it again; says how that went."""
    from reflector import _mirror

    try:
        _mirror.Mirror(1, 1).close()
    except OSError as error:
        if error.errno not in NOT_ALLOWED:
            raise
        return f"has its mirror, not loaded: {os.strerror(error.errno)}"
    return "loads its mirror"


def reflect() -> None:
    """Checks one connection: a banner to the peer, the same bytes back, both ends, the count."""
    with socket.create_server(("127.0.0.1", 0)) as service:
        service.settimeout(TIMEOUT_S)
        service_port = service.getsockname()[1]
        with reflector.Reflector([f"127.0.0.1:0:{service_port}"]) as running:
            with socket.create_connection(("127.0.0.1", running.ports[0]), TIMEOUT_S) as peer:
                served, _ = service.accept()
                with served:
                    served.settimeout(TIMEOUT_S)
                    served.sendall(BANNER)
                    served.shutdown(socket.SHUT_WR)
                    assert peer.makefile("rb").read() == BANNER
                    peer.sendall(BANNER)
                    peer.shutdown(socket.SHUT_WR)
                    assert served.makefile("rb").read() == BANNER
            assert running.drain(TIMEOUT_S)
            assert running.stats().closed_finished == 1


def main() -> None:
    """Checks, and says what was checked."""
    reflect()
    mirror = f", {load_mirror()}" if "--mirror" in sys.argv[1:] else ""
    version = sys.version.split()[0]
    print(f"reflector {reflector.__version__} reflects on Python {version}{mirror}")


if __name__ == "__main__":
    main()
