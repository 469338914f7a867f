"""Messages whose connection is gone: where they go then, and that nobody is stormed."""

import asyncio
from ipaddress import ip_network
from pathlib import Path
from typing import Never

import pytest
from structlog.testing import capture_logs

from harness.bridge import eventually
from harness.callback import Src, Srs, src
from harness.certificates import Authority
from harness.dns import name_server
from harness.src import request
from siprec_bridge.signalling import Admission, TlsFiles, TlsServerContext
from siprec_bridge.signalling.outgoing import Dialler, Outgoing, Place
from siprec_bridge.signalling.stream import StreamConnection
from siprec_bridge.sip import (
    RequestAnswered,
    RequestReceived,
    Response,
)
from siprec_bridge.telemetry import Metrics


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


async def test_where_the_peer_has_closed_that_one_another_is_opened() -> None:
    async with src() as peer, Srs() as srs:
        peer.hangs_up = True
        first, second = await srs.calls(peer, 2)

        srs.listener.request(first, "BYE")
        await eventually(lambda: len(peer.got) == 1, "the first BYE")
        await eventually(lambda: not srs.listener._connections, "the end of the connection")
        srs.listener.request(second, "BYE")
        await eventually(lambda: len(peer.got) == 2, "the second BYE")

    assert peer.connections == 2


@pytest.mark.parametrize(("transport", "port"), [("tcp", 5060), ("tls", 5061)])
async def test_a_name_without_a_service_is_called_at_the_port_of_its_transport(
    transport: str, port: int
) -> None:
    async with name_server({}) as server:
        dialler = Dialler(_never, lambda host: True, _never, nameservers=[server.place])

        servers = await dialler.servers(Place(transport, "localhost", None, "127.0.0.1"))

        dialler.close()
    assert servers[0] == ("127.0.0.1", port)


def _never() -> Never:
    raise AssertionError("nothing is opened")


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

    outgoing = Outgoing(
        connect, lambda data, one: None, lambda data: None, metrics, rest=0.2, attempt=0.05
    )
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
