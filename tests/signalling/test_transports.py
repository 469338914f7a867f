"""Requests of ours to a Contact of another transport than the call came over, on real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from harness.bridge import eventually
from harness.callback import Src, UdpSrc, src, udp_src
from harness.hosts import has_ipv6
from harness.src import new_server, request
from siprec_bridge.signalling import Listener
from siprec_bridge.sip import DialogId, InviteReceived, Output, Request, RequestAnswered
from siprec_bridge.telemetry import Metrics


class Bridge:
    """A listener on UDP and TCP."""

    def __init__(self) -> None:
        self.events: list[Output] = []
        self.listener = Listener(new_server(), self.events.append, Metrics())

    async def called(self, contact: str, send: Callable[[bytes], None]) -> DialogId:
        """A call that has been answered."""
        invite = request("INVITE").replace(b"sip:src@192.0.2.10:5070", contact.encode())
        send(invite)
        await eventually(lambda: bool(self.events), "the INVITE")
        (asked,) = self.events
        assert isinstance(asked, InviteReceived)
        self.listener.respond(asked.id, 200)
        return asked.dialog

    def answers(self) -> list[int]:
        return [one.response.status for one in self.events if isinstance(one, RequestAnswered)]

    def place(self, transport: str) -> tuple[str, int]:
        (one,) = (each for each in self.listener.endpoints if each.transport == transport)
        return one.host, one.port


@asynccontextmanager
async def bridge(*hosts: str, port: int = 0) -> AsyncIterator[Bridge]:
    one = Bridge()
    await one.listener.start(hosts or ["127.0.0.1"], udp_ports=[port], tcp_ports=[port])
    try:
        yield one
    finally:
        await one.listener.stop()


def byes(peer: Src | UdpSrc) -> list[Request]:
    return [one for one in peer.got if isinstance(one, Request) and one.method == "BYE"]


async def test_a_call_over_udp_with_a_contact_of_tcp_gets_its_bye_over_tcp() -> None:
    async with src() as there, udp_src() as here, bridge() as ours:
        contact = f"sip:src@127.0.0.1:{there.port};transport=tcp"
        dialog = await ours.called(contact, lambda data: here.send(data, ours.place("udp")))

        ours.listener.request(dialog, "BYE")

        await eventually(lambda: bool(ours.answers()), "the answer")
    ((bye,), over_udp) = byes(there), byes(here)
    assert (bye.via.transport, over_udp, ours.answers()) == ("TCP", [], [200])


@pytest.mark.parametrize("at_once", [True, False], ids=["as the bridge stops", "in its time"])
async def test_where_nobody_listens_there_the_bye_comes_over_udp(at_once: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = free.getsockname()[1]
    async with udp_src() as here, bridge() as ours:
        contact = f"sip:src@127.0.0.1:{nobody};transport=tcp"
        dialog = await ours.called(contact, lambda data: here.send(data, ours.place("udp")))

        ours.listener.request(dialog, "BYE")
        if at_once:
            await ours.listener.stop()

        await eventually(lambda: bool(byes(here)), "the BYE")
    assert {one.via.transport for one in byes(here)} == {"UDP"}


async def test_a_call_over_tcp_with_a_contact_of_udp_gets_its_bye_over_udp() -> None:
    async with udp_src() as there, bridge() as ours:
        reader, writer = await asyncio.open_connection(*ours.place("tcp"))
        dialog = await ours.called(
            f"sip:src@127.0.0.1:{there.port};transport=udp",
            lambda data: writer.write(data.replace(b"SIP/2.0/UDP", b"SIP/2.0/TCP")),
        )

        ours.listener.request(dialog, "BYE")

        await eventually(lambda: bool(ours.answers()), "the answer")
        over_tcp = await reader.read(65536)
        writer.close()
    assert {one.via.transport for one in byes(there)} == {"UDP"}
    assert b"BYE sip:" not in over_tcp
    assert ours.answers() == [200]


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
async def test_over_udp_it_goes_by_a_socket_of_its_family() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with udp_src(host="::1") as there, bridge("0.0.0.0", "::", port=port) as ours:
        _, writer = await asyncio.open_connection("::1", port)
        dialog = await ours.called(f"sip:src@[::1]:{there.port};transport=udp", writer.write)

        ours.listener.request(dialog, "BYE")

        await eventually(lambda: bool(ours.answers()), "the answer")
        writer.close()
    assert ([one.via.host for one in byes(there)], ours.answers()) == (["::1"], [200])


async def test_without_a_socket_of_that_transport_the_bye_takes_the_connection_of_the_call() -> (
    None
):
    ours = Bridge()
    await ours.listener.start(["127.0.0.1"], udp_ports=[], tcp_ports=[0])
    reader, writer = await asyncio.open_connection(*ours.place("tcp"))
    dialog = await ours.called("sip:src@127.0.0.1:9;transport=udp", writer.write)

    ours.listener.request(dialog, "BYE")

    async with asyncio.timeout(20):
        while b"BYE sip:src" not in await reader.readuntil(b"\r\n"):
            pass
    writer.close()
    await ours.listener.stop()
