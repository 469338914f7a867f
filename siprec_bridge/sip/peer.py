"""Where a message came from, and where another one goes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peer:
    """An address as IP literal; `flow` is the listener (UDP) or connection that carries it."""

    transport: str  # udp, tcp or tls
    host: str
    port: int
    flow: int = 0
    local_host: str = ""
    local_port: int = 0

    @property
    def reliable(self) -> bool:
        """Whether the transport itself repeats what is lost."""
        return self.transport != "udp"
