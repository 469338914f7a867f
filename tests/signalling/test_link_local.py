"""SRCs whose addresses are link-local, and mean something on their own link alone. RFC 4007 §11.2."""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from harness.bridge import eventually
from harness.callback import answer
from harness.hosts import link_local
from harness.src import request
from siprec_bridge.signalling import Listener
from siprec_bridge.sip import (
    InviteReceived,
    Output,
    Peer,
    Request,
    RequestAnswered,
    SipServer,
    parse,
)
from siprec_bridge.telemetry import Metrics

ADDRESS, LINK = link_local() or ("", 0)
pytestmark = pytest.mark.skipif(not ADDRESS, reason="no link-local address here")


class Srs:
    """A listener, what it reports and what it sends."""

    def __init__(self) -> None:
        self.events: list[Output] = []
        self.sent: list[bytes] = []
        self.listener = Listener(
            SipServer(
                token=lambda: secrets.token_hex(8), contact=lambda peer: f"<sip:srs@{peer.local}>"
            ),
            self.events.append,
            Metrics(),
            trace=self._trace,
        )

    def _trace(self, data: bytes, peer: Peer, sent: bool) -> None:
        if sent:
            self.sent.append(data)

    @property
    def port(self) -> int:
        return self.listener.endpoints[0].port

    async def accept(self) -> InviteReceived:
        await eventually(lambda: bool(self.events), "the INVITE")
        (invite,) = self.events
        assert isinstance(invite, InviteReceived)
        self.listener.respond(invite.id, 200)
        return invite

    async def hang_up(self, invite: InviteReceived) -> None:
        self.listener.request(invite.dialog, "BYE")
        await eventually(lambda: self.answers() == [200], "the answer to the BYE")

    def answers(self) -> list[int]:
        return [one.response.status for one in self.events if isinstance(one, RequestAnswered)]


@asynccontextmanager
async def listening(host: str) -> AsyncIterator[Srs]:
    one = Srs()
    await one.listener.start([host], udp_ports=[0], tcp_ports=[0])
    try:
        yield one
    finally:
        await one.listener.stop()


def here(data: bytes, port: int) -> bytes:
    """The message with the address of this test in Via and Contact."""
    return data.replace(b"192.0.2.10:5070", f"[{ADDRESS}]:{port}".encode())


@pytest.mark.parametrize("host", ["::", f"{ADDRESS}%{LINK}"], ids=["any address", "its own"])
async def test_a_call_over_udp_is_answered_and_hung_up_on_its_link(host: str) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as src:
        src.bind((ADDRESS, 0, 0, LINK))
        src.setblocking(False)
        invite = here(request("INVITE"), src.getsockname()[1])
        async with listening(host) as srs:
            await loop.sock_sendto(src, invite, (ADDRESS, srs.port, 0, LINK))
            accepted = await srs.accept()
            async with asyncio.timeout(30):
                got = [parse(await loop.sock_recv(src, 65536)) for _ in range(2)]
                srs.listener.request(accepted.dialog, "BYE")
                bye = parse(await loop.sock_recv(src, 65536))
            assert isinstance(bye, Request)
            await loop.sock_sendto(src, answer(bye, 200), (ADDRESS, srs.port, 0, LINK))
            await eventually(lambda: srs.answers() == [200], "the answer to the BYE")

    assert [getattr(one, "status", 0) for one in got] == [100, 200]
    assert (bye.method, bye.via.host) == ("BYE", ADDRESS)
    assert f"<sip:srs@[{ADDRESS}]:" in (got[1].headers.get("Contact") or "")
    assert all(b"%" not in one for one in srs.sent)


@pytest.mark.parametrize("host", ["::", f"{ADDRESS}%{LINK}"], ids=["any address", "its own"])
async def test_where_its_connection_is_gone_it_is_called_on_its_link(host: str) -> None:
    got: list[Request] = []
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bye = parse(await reader.readuntil(b"\r\n\r\n"))
        assert isinstance(bye, Request)
        got.append(bye)
        writer.write(answer(bye, 200))
        await reader.read()
        writer.close()
        over.set()

    place = f"{ADDRESS}%{LINK}"
    server = await asyncio.start_server(serve, place, 0)
    async with server:
        async with listening(host) as srs:
            invite = here(request("INVITE", transport="TCP"), server.sockets[0].getsockname()[1])
            reader, writer = await asyncio.open_connection(place, srs.port)
            writer.write(invite)
            accepted = await srs.accept()
            async with asyncio.timeout(30):
                await reader.readuntil(b"200 OK")
            writer.close()
            await eventually(lambda: not srs.listener._connections, "the end of the connection")
            await srs.hang_up(accepted)
        async with asyncio.timeout(30):
            await over.wait()

    assert [one.method for one in got] == ["BYE"]
    assert all(b"%" not in one for one in srs.sent)
