from collections.abc import Sequence

class Engine:
    def __init__(
        self,
        mappings: Sequence[tuple[str | None, int, int, int]],
        *,
        workers: int = 0,
        max_connections: int = 0,
        max_per_source: int = 512,
        connect_timeout_ms: int = 3000,
        idle_timeout_ms: int = 600000,
        half_close_timeout_ms: int = 60000,
        udp_idle_timeout_ms: int = 30000,
        return_source4: str | None = None,
        return_source6: str | None = None,
        share_ports: bool = False,
        networks: Sequence[tuple[str, int, bool]] = (),
    ) -> None: ...
    def start(self) -> None: ...
    @property
    def ports(self) -> list[int]: ...
    @property
    def workers(self) -> int: ...
    @property
    def max_connections(self) -> int: ...
    def stop_accepting(self) -> None: ...
    def wait(self, timeout: float) -> bool: ...
    def stop(self) -> None: ...
    def stats(self) -> dict[str, int]: ...
