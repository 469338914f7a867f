"""A TCP proxy between a test and a server, which can hold answers back, fall silent, and cut."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Proxy:
    """`port` on 127.0.0.1 leads to the server while `answers` and `asks` let octets through."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self.port = 0
        self.connections = 0
        self.asked = 0  # octets that the server got
        self.answers = asyncio.Event()
        self.answers.set()
        self.asks = asyncio.Event()
        self.asks.set()
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.close()
            return
        self._open |= {writer, back}
        try:
            await asyncio.gather(
                self._pass(reader, back, self.asks, asking=True),
                self._pass(there, writer, self.answers, asking=False),
            )
        finally:
            self._open -= {writer, back}

    async def _pass(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        gate: asyncio.Event,
        *,
        asking: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                await gate.wait()
                self.asked += len(data) * asking
                sink.write(data)
                await sink.drain()
        sink.close()

    def cut(self) -> None:
        """Reset all connections, whatever is on its way."""
        for writer in self._open:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def proxy_to(port: int) -> AsyncIterator[Proxy]:
    """A proxy to this port."""
    proxy = Proxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    async with server:
        yield proxy
        proxy.answers.set()
        proxy.asks.set()
        proxy.cut()
