"""One port for HTTP and WebSocket: looks at the first line, then steps aside.

The page, the API and the transcript socket then have one address, one origin and one firewall
rule. After the first line the connection belongs to its real protocol; nothing is copied.
"""

import asyncio
import ssl
from collections.abc import Callable

from siprec_bridge.provider import ConfigurationError

_FIRST_LINE_TIMEOUT_S = 15.0
_LONGEST_LINE = 8192
_TLS_HANDSHAKE_TIMEOUT_S = 15.0

ProtocolFactory = Callable[[], asyncio.BaseProtocol]


class Front:
    """Listens and hands each connection to `websocket` or `http` by the path that it asks for."""

    def __init__(self, *, websocket: ProtocolFactory, http: ProtocolFactory) -> None:
        self._websocket = websocket
        self._http = http
        self.address = ("", 0)

    async def listen(
        self, host: str, port: int, tls: ssl.SSLContext | None = None
    ) -> asyncio.Server:
        """With `tls`, nothing else is spoken. Raises ConfigurationError when the address cannot be bound."""
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(
                lambda: _FirstLine(self._choose),
                host,
                port,
                reuse_address=True,
                ssl=tls,
                ssl_handshake_timeout=_TLS_HANDSHAKE_TIMEOUT_S if tls is not None else None,
            )
        except OSError as error:
            raise ConfigurationError.cannot_listen(
                "HTTP", (host, port), error, host="HTTP_HOST", port="HTTP_PORT"
            ) from error
        self.address = server.sockets[0].getsockname()[:2]
        return server

    def _choose(self, line: bytes) -> asyncio.BaseProtocol:
        _, _, rest = line.partition(b" ")
        return self._websocket() if rest.startswith(b"/ws/") else self._http()


class _FirstLine(asyncio.Protocol):
    """Waits for the first line of a connection, then gives the connection away."""

    def __init__(self, choose: Callable[[bytes], asyncio.BaseProtocol]) -> None:
        self._choose = choose
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        loop = asyncio.get_running_loop()
        self._patience = loop.call_later(_FIRST_LINE_TIMEOUT_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if b"\n" not in self._buffer and len(self._buffer) < _LONGEST_LINE:
            return
        assert self._transport is not None
        self._stop_waiting()
        chosen = self._choose(self._buffer.partition(b"\n")[0])
        assert isinstance(chosen, asyncio.Protocol)
        self._transport.set_protocol(chosen)
        chosen.connection_made(self._transport)
        chosen.data_received(self._buffer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
