"""SIP over UDP: a datagram is a message."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from siprec_bridge.sip import Peer

WILDCARDS = ("0.0.0.0", "::")


@lru_cache(maxsize=4096)
def local_address(host: str, zone: int = 0) -> str:
    """Our address on the way to a host: what it can send to, where we listen on all of them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_address(host, 9, zone))  # UDP: looks the route up, sends nothing
        except OSError:
            return "127.0.0.1" if family == socket.AF_INET else "::1"
        return str(probe.getsockname()[0])


def zone_of(address: Sequence[Any]) -> int:
    """Of a socket's address, as Python has it: the number of its link if it is link-local, or 0."""
    return int(address[3]) if len(address) > 3 else 0


def _address(host: str, port: int, zone: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """What a socket sends to."""
    return (host, port, 0, zone) if zone else (host, port)


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

    def datagram_received(self, data: bytes, address: tuple[Any, ...]) -> None:
        """Asyncio: a datagram came."""
        host, port, zone = *address[:2], zone_of(address)
        own = local_address(host, zone) if self.host in WILDCARDS else self.host
        peer = Peer("udp", host, port, self._flow, own, self.port, zone=zone)
        self._receive(data, peer)

    def error_received(self, exc: Exception) -> None:
        """Asyncio: an ICMP error for something sent; the transaction's timers deal with it."""

    def send(self, data: bytes, peer: Peer) -> None:
        """Send a datagram."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, _address(peer.host, peer.port, peer.zone))

    def close(self) -> None:
        """Unbind."""
        if self._transport is not None:
            self._transport.close()
