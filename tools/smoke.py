"""Proves that the installed reflector works: a real connection is reflected, both ways.

Run by the interpreter that the package is installed for; needs no privilege.
"""

import socket
import sys

import reflector

BANNER = b"a service of this node\n"
TIMEOUT_S = 30


def main() -> None:
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
    print(f"reflector {reflector.__version__} reflects on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
