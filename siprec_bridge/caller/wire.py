"""The caller's way to the server: one UDP socket, or one TCP or TLS connection."""

import asyncio
import socket
import ssl
from collections.abc import Callable

from siprec_bridge.caller.audio import CallError
from siprec_bridge.caller.target import Target
from siprec_bridge.sip import KeepAlive, MalformedMessage, StreamFramer

_CONNECT_TIMEOUT_S = 10.0


class Wire:
    """Whole SIP messages in both directions."""

    def __init__(
        self,
        local: tuple[str, int],
        inbox: "asyncio.Queue[bytes]",
        send: Callable[[bytes], None],
        close: Callable[[], None],
        *,
        reliable: bool,
    ) -> None:
        self.local_host, self.local_port = local
        self.reliable = reliable
        self.send = send
        self.close = close
        self._inbox = inbox

    async def receive(self) -> bytes:
        """The next message from the server."""
        return await self._inbox.get()


async def connect(target: Target, tls: ssl.SSLContext | None = None) -> Wire:
    """Raises CallError when the server cannot be reached, or its certificate is not accepted."""
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[bytes] = asyncio.Queue(1000)
    address = (target.host, target.port)
    try:
        if target.transport == "udp":
            # An unconnected socket, since answers may come from another port; but the way there
            # tells which of our addresses the server can reach.
            family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)
                own = probe.getsockname()[0]
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(inbox), local_addr=(own, 0)
            )
            local = transport.get_extra_info("sockname")[:2]
            return Wire(
                local,
                inbox,
                lambda data: transport.sendto(data, address),
                transport.close,
                reliable=False,
            )
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            secure = (tls or unverified()) if target.transport == "tls" else None
            stream, _ = await loop.create_connection(
                lambda: _Stream(inbox),
                *address,
                ssl=secure,
                server_hostname=target.name if secure is not None else None,
            )
        local = stream.get_extra_info("sockname")[:2]
        return Wire(local, inbox, stream.write, stream.close, reliable=True)
    except (OSError, TimeoutError) as error:
        cause = getattr(error, "strerror", None) or str(error) or "no answer"
        raise CallError(f"{target.transport} {target.host}:{target.port}: {cause}") from error


def unverified() -> ssl.SSLContext:
    """Takes any certificate: a test tool first of all says whether a server answers."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, inbox: "asyncio.Queue[bytes]") -> None:
        self._inbox = inbox

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if data.strip() and not self._inbox.full():
            self._inbox.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there: the transaction's timers say so in the end."""


class _Stream(asyncio.Protocol):
    def __init__(self, inbox: "asyncio.Queue[bytes]") -> None:
        self._inbox = inbox
        self._framer = StreamFramer()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._framer.feed(data):
                if not isinstance(message, KeepAlive) and not self._inbox.full():
                    self._inbox.put_nowait(message)
        except MalformedMessage:
            if self._transport is not None:
                self._transport.close()
