"""Three hosts in a row: a node, a router, and the reflector's host."""

from collections.abc import Callable
from dataclasses import dataclass

from support.lab import Lab, Running
from support.namespaces import Namespace, join
from support.peer import Peer, Service

NODE, HOST = "10.7.1.2", "10.7.2.2"
NODE6, HOST6 = "fd00:7:1::2", "fd00:7:2::2"
SERVICE_PORT, PORT = 7022, 17022


@dataclass
class Site:
    """A node, a router and the reflector's host, in a row."""

    node: Namespace
    router: Namespace
    host: Namespace

    @classmethod
    def build(cls, namespace: Callable[[str], Namespace]) -> "Site":
        """Make the three, with addresses and routes of both families."""
        node, router, host = namespace("node"), namespace("router"), namespace("host")
        join(node, "v0", router, "node")
        join(host, "v0", router, "host")
        for name in ("all", "default"):
            router.sysctl(f"net/ipv6/conf/{name}/forwarding", "1")
        router.sysctl("net/ipv4/ip_forward", "1")
        for end, link, near, near6 in (
            (node, "node", NODE, NODE6),
            (host, "host", HOST, HOST6),
        ):
            gateway, gateway6 = near[:-1] + "1", near6[:-1] + "1"
            end.ip(f"address add {near}/24 dev v0")
            end.ip(f"address add {near6}/64 dev v0 nodad")
            router.ip(f"address add {gateway}/24 dev {link}")
            router.ip(f"address add {gateway6}/64 dev {link} nodad")
            end.ip(f"route add default via {gateway}")
            end.ip(f"route add default via {gateway6}")
        return cls(node, router, host)

    def serve(self, lab: Lab) -> Service:
        """The service, on the node."""
        with self.node:
            return lab.serve(NODE, SERVICE_PORT)

    def reflect(self, lab: Lab, **settings: float) -> Running:
        """A reflector in this process, on the host."""
        with self.host:
            return lab.reflector(f"{PORT}:{SERVICE_PORT}", **settings)

    def dial(self, lab: Lab) -> Peer:
        """A connection from the node to the reflector."""
        with self.node:
            return lab.dial(NODE, HOST, PORT)

    def pull_cable(self) -> None:
        """Between node and router; neither end is told by its peer's TCP."""
        self.router.ip("link set node down")

    def plug_cable(self) -> None:
        """Plug it in again."""
        self.router.ip("link set node up")
