"""Where a message came from, and where another one goes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Peer:
    """An address as IP literal; `flow` is the listener (UDP) or connection that carries it.

    `elsewhere` is the host, which may be a name, and port that a new connection may be opened to
    when that connection is gone; no port: the domain tells its servers. RFC 3263 §4. With a `flow`
    of 0 there has been none, and this address is the one of those servers that is wanted: by any
    of our UDP sockets, or over a connection of its own. `zone`: the number of the link that
    link-local addresses are of; it is nobody else's affair and never sent. RFC 4007 §11.2.
    """

    transport: str  # udp, tcp or tls
    host: str
    port: int
    flow: int = 0
    local_host: str = ""
    local_port: int = 0
    elsewhere: tuple[str, int | None] | None = None
    zone: int = 0

    @property
    def reliable(self) -> bool:
        """Whether the transport itself repeats what is lost."""
        return self.transport != "udp"

    @property
    def local(self) -> str:
        """Our own host and port, as URIs and Via have them."""
        host = f"[{self.local_host}]" if ":" in self.local_host else self.local_host
        return f"{host}:{self.local_port}"

    @property
    def default_port(self) -> int:
        """The port of its transport."""
        return default_port(self.transport)


def default_port(transport: str) -> int:
    """Where nothing else is said. RFC 3261 §19.1.2."""
    return 5061 if transport == "tls" else 5060
