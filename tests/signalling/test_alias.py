"""Connections that SRCs ask to be called over, RFC 5923: who gets what that way, and who does not."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from harness.bridge import eventually
from harness.callback import Srs
from harness.certificates import Authority
from harness.dns import name_server
from harness.src import request
from siprec_bridge.signalling import TlsFiles, TlsServerContext
from siprec_bridge.sip import AckReceived, InviteReceived, RequestReceived

SBC = "sbc.example.com"


@contextlib.asynccontextmanager
async def connection(
    srs: Srs, authority: Authority, name: str | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TLS connection of an SRC whose certificate is for this name; None: it has none."""
    context = ssl.create_default_context(cafile=authority.ca)
    if name is not None:
        context.load_cert_chain(*authority.sign(name))
    (place,) = srs.listener.endpoints
    reader, writer = await asyncio.open_connection(place.host, place.port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


def said(method: str, port: int, *, branch: str, to_tag: str = "", alias: bool = True) -> bytes:
    """A message of the SRC that says to be called at this port."""
    data = request(method, branch=branch, to_tag=to_tag, transport="TLS")
    data = data.replace(b"<sip:src@192.0.2.10:5070>", f"<sips:src@{SBC}>".encode())
    via = f"127.0.0.1:{port};alias;" if alias else f"127.0.0.1:{port};"
    return data.replace(b"192.0.2.10:5070;", via.encode())


async def call(srs: Srs, writer: asyncio.StreamWriter, port: int) -> InviteReceived:
    writer.write(said("INVITE", port, branch="z9hG4bKinvite"))
    await eventually(lambda: len(srs.events) == 1, "the INVITE")
    invite = srs.events[0]
    assert isinstance(invite, InviteReceived)
    srs.listener.respond(invite.id, 200)
    writer.write(said("ACK", port, branch="z9hG4bKack", to_tag=invite.dialog.local_tag))
    await eventually(lambda: any(isinstance(one, AckReceived) for one in srs.events), "the ACK")
    srs.events.clear()
    return invite


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody listens on, nor can."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def zone(port: int) -> dict[tuple[str, str], list[str]]:
    """The SBC is at this port, by its SRV record."""
    return {
        (f"_sips._tcp.{SBC}", "SRV"): [f"10 0 {port} a.example.com."],
        ("a.example.com", "A"): ["127.0.0.1"],
    }


@pytest.mark.parametrize(
    ("name", "alias", "off", "arrives"),
    [
        (SBC, True, 0, True),
        (SBC, False, 0, False),  # nobody asked for it
        (SBC, True, 1, False),  # not what its domain says where it is
        ("other.example.com", True, 0, False),  # a neighbour behind the same address
    ],
)
async def test_a_bye_takes_the_connection_that_its_peer_has_opened_anew_and_asks_for(
    tmp_path: Path, port: int, name: str, alias: bool, off: int, arrives: bool
) -> None:
    authority = Authority(tmp_path / "ca")
    tls = TlsServerContext(TlsFiles(*authority.sign("localhost"), authority.ca))
    async with name_server(zone(port)) as names, Srs(tls=tls, nameservers=[names.place]) as srs:
        async with connection(srs, authority, SBC) as (_, writer):
            invite = await call(srs, writer, port)
        await eventually(lambda: not srs.listener._connections, "the end of the connection")
        async with connection(srs, authority, name) as (reader, writer):
            writer.write(said("OPTIONS", port + off, alias=alias, branch="z9hG4bKoptions"))
            await eventually(lambda: bool(srs.events), "the OPTIONS")
            assert isinstance(srs.events[0], RequestReceived)

            srs.listener.request(invite.dialog, "BYE")

            result = "reused" if arrives else "failed"
            await eventually(
                lambda: srs.count("connections_opened", transport="tls", result=result) == 1, result
            )
            if arrives:
                line = await asyncio.wait_for(reader.readline(), 5)
                assert line.startswith(f"BYE sips:src@{SBC} ".encode())


async def test_who_shows_no_certificate_is_not_called_for_others(tmp_path: Path, port: int) -> None:
    authority = Authority(tmp_path / "ca")
    tls = TlsServerContext(TlsFiles(*authority.sign("localhost")))
    async with name_server(zone(port)) as names, Srs(tls=tls, nameservers=[names.place]) as srs:
        async with connection(srs, authority, None) as (_, writer):
            invite = await call(srs, writer, port)
        await eventually(lambda: not srs.listener._connections, "the end of the connection")
        async with connection(srs, authority, None) as (_, writer):
            writer.write(said("OPTIONS", port, branch="z9hG4bKoptions"))
            await eventually(lambda: bool(srs.events), "the OPTIONS")

            srs.listener.request(invite.dialog, "BYE")

            await eventually(lambda: srs.count("undelivered", transport="tls") == 1, "the loss")
