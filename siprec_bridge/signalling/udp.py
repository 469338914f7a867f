"""SIP over UDP: a datagram is a message."""

import asyncio
import socket
from collections.abc import Callable
from functools import lru_cache

from siprec_bridge.sip import Peer

WILDCARDS = ("0.0.0.0", "::")


@lru_cache(maxsize=4096)
def local_address(host: str) -> str:
    """Our address on the way to a host: what it can send to, where we listen on all of them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # UDP: looks the route up, sends nothing
        except OSError:
            return "127.0.0.1" if family == socket.AF_INET else "::1"
        return str(probe.getsockname()[0])


class UdpEndpoint(asyncio.DatagramProtocol):
    """One bound UDP socket."""

    def __init__(self, flow: int, receive: Callable[[bytes, Peer], None]) -> None:
        self._flow = flow
        self._receive = receive
        self._transport: asyncio.DatagramTransport | None = None
        self.host, self.port = "", 0

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Asyncio: the socket is bound."""
        self._transport = transport
        self.host, self.port = transport.get_extra_info("sockname")[:2]

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        """Asyncio: a datagram came."""
        own = local_address(address[0]) if self.host in WILDCARDS else self.host
        peer = Peer("udp", address[0], address[1], self._flow, own, self.port)
        self._receive(data, peer)

    def error_received(self, exc: Exception) -> None:
        """Asyncio: an ICMP error for something sent; the transaction's timers deal with it."""

    def send(self, data: bytes, peer: Peer) -> None:
        """Send a datagram."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, (peer.host, peer.port))

    def close(self) -> None:
        """Unbind."""
        if self._transport is not None:
            self._transport.close()
