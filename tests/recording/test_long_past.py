"""Sessions of weeks, with people who come and go: what is written with each change stays small."""

import stat
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from harness.desk import Office, office
from harness.src import PEER, multipart, request
from siprec_bridge.recording import recover
from siprec_bridge.sip import (
    DialogEnded,
    DialogId,
    InviteReceived,
    Request,
    UpdateReceived,
    parse,
)
from siprec_bridge.siprec import Presence, SessionDocument
from siprec_bridge.store import SessionRow, recordings

DIALOG = DialogId("call-1", "ours", "src")
CHANGES = 26
AT_ONCE = 50
EVERYBODY = sorted(["alice", *(f"caller-{one}" for one in range(CHANGES * AT_ONCE))])


def metadata(change: int) -> str:
    """Alice is on the first stream with callers who know nothing of those before them."""
    callers = [f"caller-{change * AT_ONCE + one}" for one in range(AT_ONCE)]
    people = "".join(
        f'<participant participant_id="{id}"><nameID aor="sip:{id}@example.com"><name>{id}</name>'
        f"</nameID></participant>"
        f'<participantstreamassoc participant_id="{id}"><send>t1</send></participantstreamassoc>'
        for id in ("alice", *callers)
    )
    return (
        '<recording xmlns="urn:ietf:params:xml:ns:recording:1"><datamode>complete</datamode>'
        f'{people}<stream stream_id="t1"><label>96</label></stream></recording>'
    )


def message(method: str, number: int, body: bytes, kind: str) -> Request:
    parsed = parse(request(method, number=number, body=body, content_type=kind))
    assert isinstance(parsed, Request)
    return parsed


async def the_row(here: Office) -> SessionRow:
    (row,) = await here.database.read(partial(recordings.listing, limit=10))
    return row


async def called(here: Office) -> SessionRow:
    body = multipart(metadata=metadata(0))
    invite = message("INVITE", 1, body, "multipart/mixed;boundary=b")
    here.service.on_sip(InviteReceived("i", DIALOG, invite, PEER, True))
    await here.service.settled()
    return await the_row(here)


async def changed(here: Office) -> SessionRow:
    for number in range(1, CHANGES):
        body = metadata(number).encode()
        update = message("UPDATE", number + 1, body, "application/rs-metadata+xml")
        here.service.on_sip(UpdateReceived(f"u{number}", DIALOG, update, PEER))
    await here.service.settled()
    return await the_row(here)


async def ended(here: Office) -> SessionRow:
    here.service.on_sip(DialogEnded(DIALOG, "bye"))
    await here.service.settled()
    return await the_row(here)


def presences(row: SessionRow) -> tuple[Presence, ...]:
    return SessionDocument.model_validate_json(row.document).streams[0].presences


@pytest.mark.parametrize("killed", [False, True], ids=["hung up", "after kill -9"])
async def test_who_was_there_long_ago_is_in_no_update_and_in_the_document_of_the_end(
    tmp_path: Path, killed: bool
) -> None:
    async with office(tmp_path) as here:
        await called(here)
        running = await changed(here)
        (noted,) = Path(running.folder).glob("*.presences.jsonl")
        mode = stat.S_IMODE(noted.stat().st_mode)
        if killed:  # as it is after a start: the session is not known to anybody
            with noted.open("ab") as file:
                file.write(b'{"index":0,"presence":{"partici')  # a line that was being written
            await recover([running], here.archive, lambda: datetime.now(UTC))
            row = await the_row(here)
        else:
            row = await ended(here)
        assert not noted.exists()

    assert len(presences(running)) < 1000
    assert (mode, row.state) == (0o600, "finished")
    there = presences(row)
    assert sorted(one.participant_id for one in there) == EVERYBODY
    assert [one.since for one in there] == sorted(one.since for one in there)
    gone = [one for one in there if one.participant_id == "caller-0"]
    assert [one.until is not None for one in gone] == [True]
    document = SessionDocument.model_validate_json(row.document)
    assert sorted(one.name or "" for one in document.participants) == EVERYBODY


async def test_what_cannot_be_noted_stays_in_the_document(tmp_path: Path) -> None:
    async with office(tmp_path) as here:
        row = await called(here)
        in_the_way = Path(row.folder) / f"{row.id}.presences.jsonl"
        in_the_way.mkdir()
        with capture_logs() as logs:
            running = await changed(here)
        in_the_way.rmdir()
        await ended(here)

    assert sorted(one.participant_id for one in presences(running)) == EVERYBODY
    assert "session.past_not_noted" in {one["event"] for one in logs}
