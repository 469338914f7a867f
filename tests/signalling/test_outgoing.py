"""Messages whose connection is gone: where they go then, and that nobody is stormed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from harness.bridge import eventually
from harness.certificates import Authority
from harness.src import new_server, request
from siprec_bridge.signalling import Admission, Listener, TlsFiles, TlsServerContext
from siprec_bridge.signalling.outgoing import Outgoing, Place
from siprec_bridge.signalling.stream import StreamConnection
from siprec_bridge.sip import (
    DialogId,
    InviteReceived,
    Output,
    Request,
    RequestAnswered,
    RequestReceived,
    Response,
    StreamFramer,
    parse,
)
from siprec_bridge.telemetry import Metrics


class Src:
    """An SRC that listens: what came, on how many connections; it answers requests with 200."""

    def __init__(self) -> None:
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
                    writer.write(ok(message))

    def message(self, data: bytes) -> bytes:
        """The message with this SRC's address in Via and Contact."""
        return data.replace(b"192.0.2.10:5070", f"127.0.0.1:{self.port}".encode())


def ok(asked: Request) -> bytes:
    lines = ["SIP/2.0 200 OK"]
    lines += [
        f"{name}: {asked.headers.get(name)}" for name in ("Via", "From", "To", "Call-ID", "CSeq")
    ]
    return ("\r\n".join([*lines, "Content-Length: 0", "", ""])).encode()


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
        self, admission: Admission | None = None, tls: TlsServerContext | None = None
    ) -> None:
        self.events: list[Output] = []
        self.metrics = Metrics()
        self.listener = Listener(new_server(), self.events.append, self.metrics, admission)
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


async def test_an_answer_whose_connection_is_gone_goes_where_the_via_says() -> None:
    async with src() as peer, Srs() as srs:
        async with srs.connected() as writer:
            writer.write(peer.message(request("OPTIONS", transport="TCP")))
            await eventually(lambda: bool(srs.events), "a request")
        (asked,) = srs.events
        assert isinstance(asked, RequestReceived)

        srs.listener.respond(asked.id, 200)

        await eventually(lambda: bool(peer.got), "an answer")
    (answer,) = peer.got
    assert isinstance(answer, Response)
    assert (answer.status, answer.cseq.method) == (200, "OPTIONS")


async def test_byes_whose_connection_is_gone_share_one_to_the_contact_and_are_answered_there() -> (
    None
):
    async with src() as peer, Srs() as srs:
        dialogs = await srs.calls(peer, 20)

        for dialog in dialogs[:10]:
            srs.listener.request(dialog, "BYE")
        await eventually(lambda: len(peer.got) == 10, "the first BYEs")
        for dialog in dialogs[10:]:
            srs.listener.request(dialog, "BYE")

        def answered() -> list[int]:
            return [one.response.status for one in srs.events if isinstance(one, RequestAnswered)]

        await eventually(lambda: len(answered()) == 20, "answers")
    assert answered() == [200] * 20
    assert {one.call_id for one in peer.got} == {dialog.call_id for dialog in dialogs}
    assert (
        peer.connections,
        srs.count("connections_opened", transport="tcp", result="opened"),
    ) == (1, 1)


async def test_a_bye_at_the_last_moment_still_gets_there() -> None:
    async with src() as peer, Srs() as srs:
        (dialog,) = await srs.calls(peer, 1)

        srs.listener.request(dialog, "BYE")
        await srs.listener.stop()

        await eventually(lambda: bool(peer.got), "the BYE")


async def test_a_peer_that_is_down_costs_one_attempt_and_one_line() -> None:
    peer = Src()
    await peer.listen()
    async with Srs() as srs:
        dialogs = await srs.calls(peer, 30)
        await peer.stop()

        with capture_logs() as logs:
            for dialog in dialogs[:20]:
                srs.listener.request(dialog, "BYE")
            await eventually(lambda: srs.count("undelivered", transport="tcp") == 20, "the losses")
            for dialog in dialogs[20:]:
                srs.listener.request(dialog, "BYE")

        failed = srs.count("connections_opened", transport="tcp", result="failed")
        lost = srs.count("undelivered", transport="tcp")
    assert (failed, lost) == (1, 30)
    assert [one["event"] for one in logs] == ["sip.peer_unreachable"]


async def test_nobody_is_called_who_may_not_call_us() -> None:
    async with src() as peer, Srs(Admission([ip_network("127.0.0.1/32")])) as srs:
        (dialog,) = await srs.calls(peer, 1, contact=f"sip:src@127.0.0.2:{peer.port}")

        with capture_logs() as logs:
            srs.listener.request(dialog, "BYE")
            await eventually(lambda: srs.count("undelivered", transport="tcp") == 1, "the loss")

    assert [one["cause"] for one in logs] == ["is no address that may talk to us"]
    assert peer.connections == 0


@pytest.mark.parametrize("contact", ["sip:src@no.such.invalid", "sip:src@" + "a" * 70 + ".example"])
async def test_a_name_that_nobody_knows_is_a_loss_and_nothing_more(contact: str) -> None:
    async with src() as peer, Srs() as srs:
        (dialog,) = await srs.calls(peer, 1, contact=contact)

        srs.listener.request(dialog, "BYE")

        await eventually(lambda: srs.count("undelivered", transport="tcp") == 1, "the loss")


@pytest.mark.parametrize(
    ("host", "name", "with_ca", "arrives"),
    [
        ("localhost", "localhost", True, True),
        ("localhost", "other.example.com", True, False),
        ("localhost", "other.example.com", False, True),
        ("127.0.0.1", "other.example.com", True, True),  # an address is in few certificates
    ],
)
async def test_over_tls_a_peer_that_has_a_name_must_show_a_certificate_for_it(
    tmp_path: Path, host: str, name: str, with_ca: bool, arrives: bool
) -> None:
    authority = Authority(tmp_path / "ca")
    ours = TlsFiles(*authority.sign("bridge"), authority.ca if with_ca else None)
    theirs = TlsServerContext(TlsFiles(*authority.sign(name), authority.ca))
    async with src(theirs) as peer, Srs(tls=TlsServerContext(ours)) as srs:
        (dialog,) = await srs.calls(peer, 1, contact=f"sips:src@{host}:{peer.port}")

        srs.listener.request(dialog, "BYE")

        result = "opened" if arrives else "failed"
        await eventually(
            lambda: srs.count("connections_opened", transport="tls", result=result) == 1, result
        )
        if arrives:
            await eventually(lambda: bool(peer.got), "the BYE")
    assert bool(peer.got) is arrives


async def test_a_certificate_of_a_stranger_is_not_talked_to(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    ours = TlsServerContext(TlsFiles(*authority.sign("bridge"), authority.ca))
    theirs = TlsServerContext(TlsFiles(*stranger.sign("localhost")))
    async with src(theirs) as peer, Srs(tls=ours) as srs:
        (dialog,) = await srs.calls(peer, 1, contact=f"sips:src@localhost:{peer.port}")

        srs.listener.request(dialog, "BYE")

        await eventually(lambda: srs.count("undelivered", transport="tls") == 1, "the loss")
    assert peer.got == []


async def test_an_attempt_ends_in_time_and_the_place_rests_for_a_while() -> None:
    attempts: list[Place] = []
    metrics = Metrics()

    async def connect(place: Place) -> StreamConnection:
        attempts.append(place)
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    def lost() -> float:
        labels = {"transport": "tcp"}
        return metrics.registry.get_sample_value("siprec_sip_undelivered_total", labels) or 0

    outgoing = Outgoing(connect, lambda data, one: None, metrics, rest=0.2, attempt=0.05)
    place = Place("tcp", "192.0.2.1", 5060, "192.0.2.2")

    outgoing.send(b"one", place)
    outgoing.send(b"two", place)
    outgoing.send(b"two", place)  # again: it waits once
    await eventually(lambda: lost() == 2, "the end of the attempt")
    outgoing.send(b"three", place)
    resting = len(attempts)

    def again() -> bool:
        outgoing.send(b"four", place)
        return len(attempts) == 2

    await eventually(again, "another attempt")
    await outgoing.stop()

    assert resting == 1
