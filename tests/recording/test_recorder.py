"""One call at a desk with real media and store: answered, changed, ended; and when it cannot be."""

import asyncio
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection

from harness.bridge import eventually
from harness.desk import Office, office
from harness.ports import rtp_ports
from harness.rtp import packets, send, tone
from harness.src import METADATA, OFFER, PEER, multipart, request
from siprec_bridge import sdp
from siprec_bridge.media import MediaEvent, supervisor
from siprec_bridge.recording import Capacity, Completion, recover
from siprec_bridge.rtp import build_packet
from siprec_bridge.sip import (
    AckReceived,
    DialogEnded,
    DialogId,
    InviteCancelled,
    InviteReceived,
    Request,
    RequestAnswered,
    RequestReceived,
    Response,
    UpdateReceived,
    parse,
)
from siprec_bridge.siprec import PauseOrder, SessionDocument
from siprec_bridge.store import SessionRow, StoreError, jobs, outbox, recordings
from siprec_bridge.transcript import RunFacts

DIALOG = DialogId("call-1", "ours", "src")
METADATA_TYPE = "application/rs-metadata+xml"
ECHOED = "Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK9\r\nCall-ID: call-1\r\nCSeq: 1 INVITE\r\n"


def message(
    method: str, body: bytes = b"", content_type: str = "multipart/mixed;boundary=b"
) -> Request:
    parsed = parse(request(method, body=body, content_type=content_type))
    assert isinstance(parsed, Request)
    return parsed


def invite(body: bytes | None = None, *, id: str = "i1", initial: bool = True) -> InviteReceived:
    carried = multipart() if body is None else body
    return InviteReceived(id, DIALOG, message("INVITE", carried), PEER, initial)


async def answered(here: Office, id: str = "i1") -> int:
    await eventually(lambda: id in here.phone.answers, f"an answer to {id}")
    return here.phone.answers[id].status


async def sessions(here: Office) -> list[SessionRow]:
    return await here.database.read(partial(recordings.listing, limit=10))


async def hang_up(here: Office) -> SessionRow:
    here.service.on_sip(DialogEnded(DIALOG, "bye"))
    await finished(here)
    (row,) = await sessions(here)
    return row


async def finished(here: Office) -> None:
    async with asyncio.timeout(20):
        while not all(row.state == "finished" for row in await sessions(here)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_call_is_on_disk_before_it_is_answered_and_has_a_job_when_it_is_over(
    tmp_path: Path,
) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        assert await answered(here) == 200
        (row,) = await sessions(here)
        answer = sdp.parse(here.phone.answers["i1"].body)
        for line in answer.media:
            send(packets(tone(440, 0.2)), line.port)
        last = await hang_up(here)
        (job,) = await here.database.read(partial(jobs.listing, limit=10))
        events = await here.database.read(partial(outbox.since, seq=0, limit=10))

    assert (row.state, row.sip_call_id) == ("recording", "call-1")
    assert (last.state, last.end_cause) == ("finished", "bye")
    assert job.audio_seconds == pytest.approx(0.4, abs=0.02)
    assert [event.type for event in events] == ["session.started", "session.ended"]
    ended = json.loads(events[1].body)
    # Its own job, and both streams for as long as the call was.
    assert ended["transcript_eta"] == pytest.approx(100 + 2 * ended["duration"], abs=0.2)


async def test_the_document_tells_how_each_stream_arrived_over_all_its_openings(
    tmp_path: Path,
) -> None:
    without = multipart(sdp=OFFER.replace("audio 30002", "audio 0"))
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        first, second = sdp.parse(here.phone.answers["i1"].body).media
        voice = packets(tone(440, 1.0))
        send([*voice[:20], *voice[22:]], first.port)
        send(packets(tone(440, 0.5), codec="PCMA"), second.port)
        here.service.on_sip(invite(without, id="i2", initial=False))
        here.service.on_sip(invite(id="i3", initial=False))
        assert [await answered(here, id) for id in ("i2", "i3")] == [200, 200]
        again = sdp.parse(here.phone.answers["i3"].body).media[1]
        send(packets(tone(440, 0.5), codec="PCMA"), again.port)
        row = await hang_up(here)
        metrics = here.metrics.registry

    one, two = SessionDocument.model_validate_json(row.document).streams
    assert one.quality is not None
    assert two.quality is not None
    assert (one.quality.packets, one.quality.lost, one.quality.loss_ratio) == (48, 2, 0.04)
    assert one.quality.mos == 2.44
    assert one.quality.jitter_ms is not None
    assert (two.quality.packets, two.quality.lost, two.quality.mos) == (50, 0, 4.41)
    assert metrics.get_sample_value("siprec_stream_mos_count") == 3
    assert metrics.get_sample_value("siprec_stream_loss_ratio_bucket", {"le": "0.02"}) == 2


async def test_a_call_with_one_silent_line_says_so_in_its_document_and_the_metrics(
    tmp_path: Path,
) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        first, _ = sdp.parse(here.phone.answers["i1"].body).media
        send(packets(tone(440, 2.0)), first.port)
        await asyncio.sleep(1.1)  # a stream of less than a second is not judged
        row = await hang_up(here)
        only = await here.database.read(
            partial(recordings.listing, limit=10, assurance="incomplete")
        )
        whole = await here.database.read(
            partial(recordings.listing, limit=10, assurance="complete")
        )
        value = here.metrics.registry.get_sample_value
        counted = [
            value("siprec_sessions_assured_total", {"verdict": "incomplete"}),
            value("siprec_assurance_findings_total", {"code": "nothing_received"}),
        ]
        expected = value("siprec_audio_expected_seconds_total")
        captured = value("siprec_audio_captured_seconds_total")

    assurance = SessionDocument.model_validate_json(row.document).assurance
    assert assurance is not None
    assert row.assurance == assurance.verdict == "incomplete"
    assert [(one.code, one.label) for one in assurance.findings] == [("nothing_received", "97")]
    assert [one.verdict for one in assurance.streams] == ["complete", "nothing"]
    assert (only, whole) == ([row], [])
    assert counted == [1, 1]
    assert expected is not None
    assert captured is not None
    assert 2.2 < expected < 10
    assert 0 < captured < expected / 2 + 0.1


async def test_a_session_whose_folder_is_gone_after_a_crash_is_nothing(tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        (row,) = await sessions(here)
        shutil.rmtree(here.recordings)
        await recover([row], here.archive, lambda: row.started_at)
        (after,) = await sessions(here)
        counted = here.metrics.registry.get_sample_value(
            "siprec_sessions_assured_total", {"verdict": "nothing"}
        )

    assurance = SessionDocument.model_validate_json(after.document).assurance
    assert assurance is not None
    assert (after.state, after.assurance, counted) == ("failed", "nothing", 1)
    assert [one.code for one in assurance.findings] == ["audio_missing"]


async def test_a_settled_service_has_answered_what_it_was_told_and_archived_what_is_over(
    tmp_path: Path,
) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await here.service.settled()
        answers = dict(here.phone.answers)
        here.service.on_sip(DialogEnded(DIALOG, "bye"))
        await here.service.settled()
        (row,) = await sessions(here)

    assert [one.status for one in answers.values()] == [200]
    assert row.state == "finished"


async def test_hold_resume_and_a_new_speaker_reach_the_listeners(tmp_path: Path) -> None:
    held = multipart(sdp=OFFER.replace("a=sendonly", "a=inactive", 1))
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        here.service.on_sip(invite(held, id="i2", initial=False))
        here.service.on_sip(invite(id="i3", initial=False))
        renamed = multipart().replace(b"<name>Bob", b"<name>Robert")
        update = UpdateReceived("u1", DIALOG, message("UPDATE", renamed), PEER)
        here.service.on_sip(update)
        assert [await answered(here, id) for id in ("i2", "i3", "u1")] == [200, 200, 200]
        await hang_up(here)
        events = await here.database.read(partial(outbox.since, seq=0, limit=10))

    assert b"a=inactive" in here.phone.answers["i2"].body
    assert [event.type for event in events] == [
        "session.started", "session.paused", "session.resumed", "session.updated", "session.ended",
    ]  # fmt: skip
    assert "Robert" in events[3].body


async def test_a_bye_may_carry_the_last_metadata(tmp_path: Path) -> None:
    last = METADATA.replace("<name>Bob", "<name>Robert").encode()
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        here.service.on_sip(DialogEnded(DIALOG, "bye", message("BYE", last, METADATA_TYPE)))
        await finished(here)
        (row,) = await sessions(here)

    assert (row.end_cause, row.warnings) == ("bye", ())
    assert "Robert" in row.document


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"?", "text/plain"), (b"<recording", METADATA_TYPE), (b"--b", "multipart/mixed")],
)
async def test_whatever_a_bye_carries_the_call_is_over(
    tmp_path: Path, body: bytes, content_type: str
) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        here.service.on_sip(DialogEnded(DIALOG, "bye", message("BYE", body, content_type)))
        await finished(here)
        (row,) = await sessions(here)

    assert row.end_cause == "bye"
    assert "Alice" in row.document


async def test_calls_of_one_second_have_descriptions_of_their_own(tmp_path: Path) -> None:
    other = DialogId("call-2", "ours-2", "src")
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        here.service.on_sip(InviteReceived("i2", other, message("INVITE", multipart()), PEER, True))
        await answered(here)
        await answered(here, "i2")
        origins = [sdp.parse(here.phone.answers[id].body).origin for id in ("i1", "i2")]
        await hang_up_all(here, DIALOG, other)

    # RFC 8866 §5.2: user, number and address name one session in the world.
    assert len({tuple(one.split()[:2]) for one in origins}) == 2


async def hang_up_all(here: Office, *dialogs: DialogId) -> None:
    for one in dialogs:
        here.service.on_sip(DialogEnded(one, "bye"))
    await finished(here)


@pytest.mark.parametrize(
    ("body", "content_type", "answers_sdp"),
    [
        (b"", "", False),
        (METADATA.encode(), METADATA_TYPE, False),
        (METADATA.encode(), "application/rs-metadata", False),
        (OFFER.encode(), "application/sdp", True),
        (multipart(), "multipart/mixed;boundary=b", True),
    ],
    ids=["nothing", "metadata", "metadata of the draft", "sdp", "both"],
)
async def test_an_update_gets_sdp_for_sdp(
    tmp_path: Path, body: bytes, content_type: str, answers_sdp: bool
) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        here.service.on_sip(
            UpdateReceived("u1", DIALOG, message("UPDATE", body, content_type), PEER)
        )
        assert await answered(here, "u1") == 200
        first, second = here.phone.answers["i1"].body, here.phone.answers["u1"].body

    assert second == (first if answers_sdp else b"")


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"hello", "application/sdp", 400),
        (OFFER.replace("RTP/AVP", "RTP/SAVP").encode(), "application/sdp", 488),
        (b"?", "text/plain", 415),
    ],
)
async def test_a_change_that_is_refused_leaves_the_call_as_it_was(
    tmp_path: Path, body: bytes, content_type: str, status: int
) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        change = message("INVITE", body, content_type)
        here.service.on_sip(InviteReceived("i2", DIALOG, change, PEER, False))
        assert await answered(here, "i2") == status
        here.service.on_sip(invite(id="i3", initial=False))
        assert await answered(here, "i3") == 200
        assert here.phone.answers["i3"].body == here.phone.answers["i1"].body


@pytest.mark.parametrize("method", ["INFO", "MESSAGE", "NOTIFY"])
async def test_an_info_in_a_call_is_answered_whatever_is_in_it(tmp_path: Path, method: str) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        dtmf = message(method, b"Signal=5\r\nDuration=160\r\n", "application/dtmf-relay")
        here.service.on_sip(RequestReceived("r1", DIALOG, dtmf, PEER))

        assert here.phone.answers["r1"].status == 200
        assert here.service.active == 1


async def test_nothing_is_ever_sent_to_where_the_media_comes_from(tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
            source.bind(("127.0.0.1", 0))
            offer = OFFER.replace("192.0.2.10", "127.0.0.1")
            offer = offer.replace("30000", str(source.getsockname()[1])).replace(
                "a=sendonly", "a=sendrecv"
            )
            here.service.on_sip(invite(multipart(sdp=offer)))
            await answered(here)
            line = sdp.parse(here.phone.answers["i1"].body).media[0]
            for packet in packets(tone(440, 0.2)):
                source.sendto(packet, ("127.0.0.1", line.port))
            row = await hang_up(here)

            source.setblocking(False)
            with pytest.raises(BlockingIOError):
                source.recv(2048)

    assert line.direction == "recvonly"
    assert '"packets":10' in (row.audio or "")


async def test_a_cancelled_change_does_not_end_the_call(tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        here.service.on_sip(invite(id="i2", initial=False))
        here.service.on_sip(InviteCancelled("i2", DIALOG))
        here.service.on_sip(invite(id="i3", initial=False))

        assert await answered(here, "i3") == 200
        assert here.service.active == 1


async def test_a_cancelled_call_ends(tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        here.service.on_sip(InviteCancelled("i1", DIALOG))
        await answered(here)
        await finished(here)
        (row,) = await sessions(here)

    assert row.end_cause == "cancelled"
    assert here.service.active == 0


async def test_an_answer_in_the_ack_is_taken(tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite(b""))
        await answered(here)
        ours = sdp.parse(here.phone.answers["i1"].body)
        ack = AckReceived(DIALOG, message("ACK", OFFER.encode(), "application/sdp"))
        here.service.on_sip(ack)
        send(packets(tone(440, 0.2)), ours.media[0].port)
        row = await hang_up(here)

    assert [line.direction for line in ours.media] == ["recvonly", "recvonly"]
    assert '"packets":10' in (row.audio or "")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (multipart(sdp=OFFER.replace("RTP/AVP", "RTP/SAVP")), 488),
        (multipart(sdp="nonsense"), 400),
    ],
)
async def test_what_cannot_be_recorded_is_refused_and_leaves_nothing_behind(
    tmp_path: Path, body: bytes, status: int
) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite(body))

        assert await answered(here) == status
        await eventually(lambda: here.service.active == 0, "its end")
        assert await sessions(here) == []
        assert not here.recordings.exists() or list(here.recordings.iterdir()) == []


async def test_no_port_no_room_and_no_database_are_503_with_retry_after(tmp_path: Path) -> None:
    async with office(tmp_path, ports=rtp_ports(4)) as here:
        here.service.on_sip(invite())
        await answered(here)
        other = DialogId("call-2", "ours", "src")
        here.service.on_sip(
            InviteReceived("no-port", other, message("INVITE", multipart()), PEER, True)
        )
        assert await answered(here, "no-port") == 503
        await hang_up(here)

        here.recordings.rename(tmp_path / "elsewhere")
        here.recordings.write_text("a file where the folder should be")
        third = DialogId("call-3", "ours", "src")
        here.service.on_sip(
            InviteReceived("no-room", third, message("INVITE", multipart()), PEER, True)
        )
        assert await answered(here, "no-room") == 503

        here.recordings.unlink()
        await here.database.stop()
        fourth = DialogId("call-4", "ours", "src")
        here.service.on_sip(
            InviteReceived("no-db", fourth, message("INVITE", multipart()), PEER, True)
        )
        assert await answered(here, "no-db") == 503

    for id in ("no-port", "no-room", "no-db"):
        assert here.phone.answers[id].headers["Retry-After"]


async def test_a_change_that_finds_no_port_is_refused_and_the_call_goes_on(tmp_path: Path) -> None:
    three = OFFER + "m=audio 30004 RTP/AVP 0\r\na=sendonly\r\na=label:98\r\n"
    async with office(tmp_path, ports=rtp_ports(4)) as here:
        here.service.on_sip(invite())
        await answered(here)
        here.service.on_sip(invite(multipart(sdp=three), id="i2", initial=False))
        assert await answered(here, "i2") == 503
        here.service.on_sip(invite(id="i3", initial=False))

        assert await answered(here, "i3") == 200
        assert here.phone.answers["i3"].body == here.phone.answers["i1"].body


async def test_a_draining_service_sends_new_calls_elsewhere(tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        stopping = asyncio.create_task(here.service.stop(5.0))
        await asyncio.sleep(0)
        other = DialogId("call-2", "ours", "src")
        here.service.on_sip(
            InviteReceived("late", other, message("INVITE", multipart()), PEER, True)
        )
        here.service.on_sip(RequestReceived("options", None, message("OPTIONS"), PEER))
        here.service.on_sip(DialogEnded(DIALOG, "bye"))
        await stopping
        (row,) = await sessions(here)

    assert [here.phone.answers[id].status for id in ("late", "options")] == [503, 503]
    assert here.phone.answers["late"].headers["Retry-After"]
    assert row.state == "finished"
    assert here.phone.asked == []


async def test_a_question_about_a_running_call_is_answered_also_while_draining(
    tmp_path: Path,
) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        stopping = asyncio.create_task(here.service.stop(5.0))
        await asyncio.sleep(0)
        here.service.on_sip(RequestReceived("options", DIALOG, message("OPTIONS"), PEER))
        here.service.on_sip(DialogEnded(DIALOG, "bye"))
        await stopping

    # A 503 would tell some SRCs that this call is lost. RFC 3261 §11.2
    assert here.phone.answers["options"].status == 200


async def test_a_hold_while_no_media_worker_answers_is_taken_and_the_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = multipart(sdp=OFFER.replace("sendonly", "inactive"))
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        monkeypatch.setattr(supervisor, "REPLY_TIMEOUT_S", 0.3)
        (pid,) = here.media.pids
        os.kill(pid, signal.SIGSTOP)
        try:
            here.service.on_sip(invite(held, id="i2", initial=False))
            status = await answered(here, "i2")
        finally:
            os.kill(pid, signal.SIGCONT)
        here.service.on_sip(invite(id="i3", initial=False))
        after = await answered(here, "i3")
        row = await hang_up(here)

    assert (status, after) == (200, 200)
    assert here.phone.asked == []
    document = SessionDocument.model_validate_json(row.document)
    assert [len(one.pauses) for one in document.streams] == [1, 1]


async def test_a_hold_whose_cancel_comes_while_it_is_followed_is_over_with_it(
    tmp_path: Path,
) -> None:
    held = multipart(sdp=OFFER.replace("sendonly", "inactive"))
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        lines = sdp.parse(here.phone.answers["i1"].body).media
        here.service.on_sip(invite(held, id="i2", initial=False))
        here.service.on_sip(InviteCancelled("i2", DIALOG))
        await here.service.settled()
        for line in lines:  # the SRC goes on sending
            send(packets(tone(440, 0.4)), line.port)
        row = await hang_up(here)

    document = SessionDocument.model_validate_json(row.document)
    assert [one.quality and one.quality.packets for one in document.streams] == [20, 20]
    pauses = [pause for one in document.streams for pause in one.pauses]
    assert [(one.cause, one.until is not None) for one in pauses] == 2 * [("hold", True)]


async def test_an_ack_with_a_body_of_another_kind_ends_nothing(tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        here.service.on_sip(AckReceived(DIALOG, message("ACK", b"hello", "text/plain")))
        here.service.on_sip(invite(id="i2", initial=False))

        assert await answered(here, "i2") == 200
        assert here.phone.asked == []


async def test_metadata_in_the_ack_is_kept(tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite(b""))
        await answered(here)
        here.service.on_sip(AckReceived(DIALOG, message("ACK", multipart())))
        row = await hang_up(here)

    document = SessionDocument.model_validate_json(row.document)
    assert [one.name for one in document.participants] == ["Alice", "Bob"]


async def test_the_answer_to_a_refresh_is_followed_where_it_fits_and_ends_nothing_where_not(
    tmp_path: Path,
) -> None:
    def refreshed(offer: str) -> RequestAnswered:
        body = offer.encode()
        head = parse(f"SIP/2.0 200 OK\r\n{ECHOED}Content-Type: application/sdp\r\n\r\n".encode())
        assert isinstance(head, Response)
        return RequestAnswered(DIALOG, "INVITE", Response(200, "OK", head.headers, body))

    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        for offer in (OFFER, "nonsense", OFFER + "m=audio 30006 RTP/AVP 0\r\n"):
            here.service.on_sip(refreshed(offer))
        await here.service.settled()
        (as_before,) = await sessions(here)
        here.service.on_sip(refreshed(OFFER.replace("sendonly", "inactive")))
        await here.service.settled()
        (held,) = await sessions(here)
        await hang_up(here)

    states = [
        [one.state for one in SessionDocument.model_validate_json(row.document).streams]
        for row in (as_before, held)
    ]
    assert states == [["active", "active"], ["paused", "paused"]]
    assert here.phone.asked == []


async def test_a_mute_goes_along_also_beside_an_answer_to_a_refresh_that_is_not_followed(
    tmp_path: Path,
) -> None:
    swapped = METADATA.replace("<send>t1<", "<send>t<").replace("<send>t2<", "<send>t1<")
    body = multipart(sdp="nonsense", metadata=swapped.replace("<send>t<", "<send>t2<"))
    kind = "Content-Type: multipart/mixed;boundary=b"
    head = parse(f"SIP/2.0 200 OK\r\n{ECHOED}{kind}\r\n\r\n".encode())
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        (row,) = await sessions(here)
        muted = await here.service.pause(row.id, PauseOrder(participant_id="p1"))
        answer = Response(200, "OK", head.headers, body)
        here.service.on_sip(RequestAnswered(DIALOG, "INVITE", answer))
        await here.service.settled()
        await hang_up(here)
        told = await here.database.read(partial(outbox.since, seq=0, limit=10))

    types = [one.type.removeprefix("session.") for one in told]
    assert muted == ("96",)
    # What is told is what the media side was told before.
    assert types[:5] == ["started", "paused", "updated", "paused", "resumed"]


@pytest.mark.parametrize("sdp", ["nonsense", OFFER.replace("RTP/AVP", "RTP/SAVP")])
async def test_metadata_beside_an_answer_that_cannot_be_taken_is_kept_of_the_call_that_it_ends(
    tmp_path: Path, sdp: str
) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite(b""))
        await answered(here)
        here.service.on_sip(AckReceived(DIALOG, message("ACK", multipart(sdp=sdp))))
        await eventually(lambda: here.phone.asked != [], "a BYE")
        row = await hang_up(here)

    assert here.phone.asked == [(DIALOG, "BYE")]
    document = SessionDocument.model_validate_json(row.document)
    assert [one.name for one in document.participants] == ["Alice", "Bob"]
    assert [[one.participant_id for one in line.presences] for line in document.streams] == [
        ["p1"], ["p2"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("capacity", "reason"),
    [
        (Capacity(max_calls=1), "capacity"),
        (Capacity(min_free_disk=1000, free_disk=999), "disk"),
        (Capacity(lag=1.0), "overload"),
    ],
)
async def test_a_full_service_sends_new_calls_elsewhere_and_takes_them_again(
    tmp_path: Path, capacity: Capacity, reason: str
) -> None:
    async with office(tmp_path, capacity=capacity) as here:
        if reason != "disk":
            here.service.on_sip(invite())  # the only call is never too much for a busy machine
            assert await answered(here) == 200
        other = DialogId("call-2", "ours", "src")
        late = message("INVITE", multipart())
        here.service.on_sip(InviteReceived("late", other, late, PEER, True))
        here.service.on_sip(RequestReceived("options", None, message("OPTIONS"), PEER))
        capacity.max_calls, capacity.free_disk, capacity.lag = 0, 1001, 0.1
        here.service.on_sip(InviteReceived("again", other, late, PEER, True))
        assert await answered(here, "again") == 200

    assert [here.phone.answers[id].status for id in ("late", "options")] == [503, 503]
    assert here.phone.answers["late"].headers["Retry-After"]
    counted = here.metrics.registry.get_sample_value(
        "siprec_calls_turned_away_total", {"reason": reason}
    )
    assert counted == 1


async def test_options_tells_what_is_accepted(tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(RequestReceived("o1", None, message("OPTIONS"), PEER))

        assert here.phone.answers["o1"].status == 200
        assert "multipart/mixed" in here.phone.answers["o1"].headers["Accept"]


async def test_a_full_database_does_not_end_a_running_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        await answered(here)
        write = here.database.write

        async def full(work: object) -> None:
            raise StoreError("database or disk is full")

        monkeypatch.setattr(here.database, "write", full)
        held = multipart(sdp=OFFER.replace("a=sendonly", "a=inactive", 1))
        here.service.on_sip(invite(held, id="i2", initial=False))
        assert await answered(here, "i2") == 200
        monkeypatch.setattr(here.database, "write", write)
        row = await hang_up(here)
        told = await here.database.read(partial(outbox.since, seq=0, limit=10))

    assert row.state == "finished"
    # What could not be stored when it happened is told before the end, and not left out.
    assert [one.type for one in told][:3] == ["session.started", "session.paused", "session.ended"]


async def test_a_source_beyond_its_rate_is_sent_elsewhere(tmp_path: Path) -> None:
    async with office(tmp_path, capacity=Capacity(max_call_rate=0.4)) as here:
        here.service.on_sip(invite())
        second = replace(invite(id="i2"), dialog=DialogId("call-2", "ours", "src"))
        here.service.on_sip(second)

        assert await answered(here) == 200
        assert await answered(here, "i2") == 503
        assert "Retry-After" in here.phone.answers["i2"].headers


async def test_by_policy_only_siprec_is_recorded(tmp_path: Path) -> None:
    async with office(tmp_path, siprec_only=True) as here:
        plain = parse(
            request("INVITE", body=OFFER.encode(), content_type="application/sdp").replace(
                b";+sip.src", b""
            )
        )
        assert isinstance(plain, Request)
        here.service.on_sip(replace(invite(), request=plain))
        here.service.on_sip(replace(invite(id="i2"), dialog=DialogId("call-2", "ours", "src")))

        assert await answered(here) == 421
        assert here.phone.answers["i1"].headers["Require"] == "siprec"
        assert await answered(here, "i2") == 200


async def test_a_complete_document_is_asked_for_when_one_was_lost(tmp_path: Path) -> None:
    accept = ["Accept: application/sdp, application/rs-metadata-request", "Allow: INVITE, UPDATE"]
    broken = multipart(metadata="<recording>")
    asking = parse(request("INVITE", headers=accept, body=broken))
    assert isinstance(asking, Request)
    async with office(tmp_path) as here:
        here.service.on_sip(replace(invite(), request=asking))
        assert await answered(here) == 200
        here.service.on_sip(AckReceived(DIALOG, message("ACK")))
        await eventually(lambda: bool(here.phone.asked), "a request of ours")
        here.service.on_sip(
            UpdateReceived("u1", DIALOG, message("UPDATE", METADATA.encode(), METADATA_TYPE), PEER)
        )
        assert await answered(here, "u1") == 200
        row = await hang_up(here)

    assert here.phone.asked == [(DIALOG, "UPDATE")]  # once: then it came
    assert '"Alice"' in row.document


async def test_nobody_is_asked_for_a_document_who_does_not_say_that_he_can(tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite(multipart(metadata="<recording>")))
        assert await answered(here) == 200
        here.service.on_sip(AckReceived(DIALOG, message("ACK")))
        row = await hang_up(here)

    assert here.phone.asked == []
    assert any("not well-formed" in one for one in row.warnings)


def silent(here: Office, index: int, name: str = "silent") -> MediaEvent:
    session_id = next(iter(here.service._recorders))
    return MediaEvent(name, f"{session_id}-{index}", session_id, str(index))


async def test_an_src_that_sends_nothing_and_answers_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siprec_bridge.recording.recorder._PROBE_S", 0.05)
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        assert await answered(here) == 200
        for index in (0, 1):
            here.service.on_media(silent(here, index))
        for number in range(1, 4):
            await eventually(lambda n=number: len(here.phone.asked) >= n, "a probe")  # type: ignore[misc]
            here.service.on_sip(RequestAnswered(DIALOG, "OPTIONS", Response(408, "Timeout")))
        await finished(here)
        (row,) = await sessions(here)

    assert row.end_cause == "peer_gone"
    assert (DIALOG, "BYE") in here.phone.asked


async def test_an_src_that_answers_or_is_heard_is_not_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siprec_bridge.recording.recorder._PROBE_S", 0.05)
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        assert await answered(here) == 200
        await asyncio.sleep(0.2)
        before_silence = list(here.phone.asked)
        for index in (0, 1):
            here.service.on_media(silent(here, index))
        await eventually(lambda: bool(here.phone.asked), "a probe")
        for status in (408, 408, 200, 408, 408, 405):
            here.service.on_sip(RequestAnswered(DIALOG, "OPTIONS", Response(status, "")))
        here.service.on_media(silent(here, 1, "heard_again"))
        probes = -1
        async with asyncio.timeout(20):
            while probes != len(here.phone.asked):  # nobody asks whom he hears
                probes = len(here.phone.asked)
                await asyncio.sleep(0.25)
        row = await hang_up(here)

    assert before_silence == []
    assert {method for _, method in here.phone.asked} == {"OPTIONS"}
    assert row.end_cause == "bye"


async def test_while_calls_wait_for_their_answers_too_long_new_ones_are_sent_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siprec_bridge.recording.capacity._MOST_WAIT_S", 0.5)
    async with office(tmp_path) as here:
        slow, write = asyncio.Event(), here.database.write

        async def write_slowly(work: Callable[[Connection], object]) -> object:
            await slow.wait()
            return await write(work)

        monkeypatch.setattr(here.database, "write", write_slowly)
        here.service.on_sip(invite())
        await asyncio.sleep(0.6)
        here.service.on_sip(replace(invite(id="i2"), dialog=DialogId("call-2", "ours", "src")))
        slow.set()
        first = await answered(here)
        here.service.on_sip(replace(invite(id="i3"), dialog=DialogId("call-3", "ours", "src")))

        assert (first, await answered(here, "i2"), await answered(here, "i3")) == (200, 503, 200)


async def test_keys_and_refused_packets_of_a_call_are_told_when_it_is_over(tmp_path: Path) -> None:
    offer = OFFER.replace("RTP/AVP 8", "RTP/AVP 3 8 101\r\na=rtpmap:101 telephone-event/8000")
    pressed = [
        build_packet(101, 20 + n, 9000, 5, b"\x07\x8a" + (160 * 5).to_bytes(2, "big"))
        for n in range(3)
    ]
    voice = [
        build_packet(3, n, 1000 + 160 * n, 5, b"\xd1" + bytes(32) if n % 5 else b"short")
        for n in range(20)
    ]
    async with office(tmp_path) as here:
        here.service.on_sip(invite(multipart(sdp=offer)))
        await answered(here)
        line = sdp.parse(here.phone.answers["i1"].body).media[1]
        send([*voice, *pressed], line.port)
        row = await hang_up(here)
        (job,) = await here.database.read(partial(jobs.listing, limit=10))
        waiting = await here.database.read(lambda connection: jobs.get(connection, job.id))
        completion = Completion(
            here.database, here.metrics, sinks=[], clock=lambda: row.started_at,
            deliver=lambda: None,
        )  # fmt: skip
        assert waiting is not None
        await completion.done(
            waiting, {}, RunFacts(provider="whisper", model="base", status="success")
        )
        (*_, told) = await here.database.read(partial(outbox.since, seq=0, limit=10))

    assert line.formats == ("3", "8", "101")
    assert here.metrics.registry.get_sample_value("siprec_rtp_packets_undecoded_total") == 4
    (leg,) = json.loads(told.body)["legs"]
    assert told.type == "transcript.final"
    assert [(one["key"], one["duration"]) for one in leg["keys"]] == [("*", 0.1)]


async def test_audio_that_a_dead_media_worker_missed_is_told_once_for_all_streams(
    tmp_path: Path,
) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        assert await answered(here) == 200
        for index in (0, 1):
            event = silent(here, index, "interrupted")
            here.service.on_media(replace(event, seconds=0.4))
        await here.service.settled()
        (during,) = await sessions(here)
        here.service.on_media(replace(silent(here, 1, "lost"), cause="port 20000 is taken"))
        row = await hang_up(here)
        events = await here.database.read(partial(outbox.since, seq=0, limit=10))

    told = [f"media worker died; audio of 0.4 s may be missing on label {n}" for n in (96, 97)]
    for_good = "media worker died; all audio from then on is missing on label 97"
    assert [one for one in during.warnings if "worker" in one] == told
    assert [one for one in row.warnings if "worker" in one] == [*told, for_good]
    assert [event.type for event in events] == [
        "session.started", "session.updated", "session.updated", "session.ended",
    ]  # fmt: skip


async def test_what_the_closing_of_streams_brings_to_light_is_told(
    tmp_path: Path,
) -> None:
    async with office(tmp_path) as here:
        here.service.on_sip(invite())
        assert await answered(here) == 200
        here.service.on_sip(DialogEnded(DIALOG, "bye"))
        here.service.on_media(replace(silent(here, 0, "interrupted"), seconds=1.5))
        here.service.on_media(replace(silent(here, 1, "write_failed"), cause="no space left"))
        await finished(here)
        (row,) = await sessions(here)

    assert any("audio of 1.5 s" in one for one in row.warnings)
    assert any("could not be written" in one and "no space left" in one for one in row.warnings)
