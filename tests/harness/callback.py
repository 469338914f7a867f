"""An SRC that can be called, and a listener whose connections go: for messages that need another one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from harness.bridge import eventually
from harness.src import new_server, request
from siprec_bridge.signalling import Admission, Listener, TlsServerContext
from siprec_bridge.sip import (
    DialogId,
    InviteReceived,
    Output,
    Request,
    Response,
    StreamFramer,
    parse,
)
from siprec_bridge.telemetry import Metrics


class Src:
    """An SRC that listens: what came, on how many connections; it answers requests with `status`.

    `hangs_up`: after each answer.
    """

    def __init__(self) -> None:
        self.status = 200
        self.hangs_up = False
        self.port = 0
        self.connections = 0
        self.got: list[Request | Response] = []
        self._serving = 0
        self._server: asyncio.Server | None = None

    async def listen(self, tls: TlsServerContext | None = None) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=tls.context if tls is not None else None
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await eventually(lambda: self._serving == 0, "the end of the SRC's connections")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._serving += 1
        with contextlib.suppress(ConnectionError):  # we may be gone before its answer
            await self._answer(reader, writer)
        writer.close()
        self._serving -= 1

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        framer = StreamFramer()
        while data := await reader.read(65536):
            for one in framer.feed(data):
                assert isinstance(one, bytes)
                message = parse(one)
                self.got.append(message)
                if isinstance(message, Request):
                    writer.write(answer(message, self.status))
                    if self.hangs_up:
                        return

    def message(self, data: bytes) -> bytes:
        """The message with this SRC's address in Via and Contact."""
        return data.replace(b"192.0.2.10:5070", f"127.0.0.1:{self.port}".encode())


def answer(asked: Request, status: int) -> bytes:
    lines = [f"SIP/2.0 {status} Whatever"]
    lines += [
        f"{name}: {asked.headers.get(name)}" for name in ("Via", "From", "To", "Call-ID", "CSeq")
    ]
    return ("\r\n".join([*lines, "Content-Length: 0", "", ""])).encode()


class UdpSrc(asyncio.DatagramProtocol):
    """The UDP side of an SRC: requests that came; each is answered with `status`."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.port = 0
        self.got: list[Request] = []
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        message = parse(data)
        if isinstance(message, Request):
            self.got.append(message)
            self.send(answer(message, self.status), address)

    def send(self, data: bytes, address: tuple[str, int]) -> None:
        assert self._transport is not None
        self._transport.sendto(data, address)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


@asynccontextmanager
async def udp_src(status: int = 200, host: str = "127.0.0.1") -> AsyncIterator[UdpSrc]:
    loop = asyncio.get_running_loop()
    _, one = await loop.create_datagram_endpoint(lambda: UdpSrc(status), local_addr=(host, 0))
    try:
        yield one
    finally:
        one.close()


@asynccontextmanager
async def src(tls: TlsServerContext | None = None) -> AsyncIterator[Src]:
    one = Src()
    await one.listen(tls)
    try:
        yield one
    finally:
        await one.stop()


class Srs:
    """A listener on TCP or TLS with the events that it reports."""

    def __init__(
        self,
        admission: Admission | None = None,
        tls: TlsServerContext | None = None,
        nameservers: Sequence[tuple[str, int]] = (),
    ) -> None:
        self.events: list[Output] = []
        self.metrics = Metrics()
        self.listener = Listener(
            new_server(), self.events.append, self.metrics, admission, nameservers=nameservers
        )
        self._tls = tls

    async def __aenter__(self) -> "Srs":
        await self.listener.start(
            ["127.0.0.1"], udp_ports=[], tcp_ports=[0] if self._tls is None else [],
            tls_port=None if self._tls is None else 0, tls=self._tls,
        )  # fmt: skip
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.listener.stop()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[asyncio.StreamWriter]:
        """A connection to us, which is gone at the end."""
        (place,) = self.listener.endpoints
        tls = None if self._tls is None else self._tls.client_context()
        reader, writer = await asyncio.open_connection(place.host, place.port, ssl=tls)
        yield writer
        writer.close()
        await eventually(lambda: not self.listener._connections, "the end of the connection")
        await reader.read()

    async def calls(self, peer: Src, count: int, contact: str = "") -> list[DialogId]:
        """Calls that have been answered and acknowledged over a connection that is gone now."""
        async with self.connected() as writer:
            for one in range(count):
                data = peer.message(
                    request("INVITE", call_id=f"c{one}", branch=f"z9hG4bKi{one}", transport="TCP")
                )
                if contact:
                    old = f"<sip:src@127.0.0.1:{peer.port}>".encode()
                    data = data.replace(old, f"<{contact}>".encode())
                writer.write(data)
            await eventually(lambda: len(self.events) == count, "the INVITEs")
            invites = [one for one in self.events if isinstance(one, InviteReceived)]
            for number, invite in enumerate(invites):
                self.listener.respond(invite.id, 200)
                writer.write(
                    request(
                        "ACK", call_id=invite.dialog.call_id, to_tag=invite.dialog.local_tag,
                        branch=f"z9hG4bKa{number}", transport="TCP",
                    )
                )  # fmt: skip
            await eventually(lambda: len(self.events) == 2 * count, "the ACKs")
        self.events.clear()
        return [invite.dialog for invite in invites]

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"siprec_sip_{name}_total", labels) or 0
