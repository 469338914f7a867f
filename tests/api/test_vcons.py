"""A session as a vCon over HTTP, and what is answered where there is none."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from sqlalchemy import Connection

from harness.desk import Office, office
from harness.provider import ScriptedProvider
from harness.vcons import checked, self_signed
from siprec_bridge.access import Gate
from siprec_bridge.api import Api
from siprec_bridge.media import FinishedAudio, FinishedFile, FinishedLeg
from siprec_bridge.recording import (
    Eraser,
    Keep,
    LateRedaction,
    Orders,
    Redactor,
    Retention,
    StoredAudio,
    Stores,
)
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.redaction import KINDS, Policy
from siprec_bridge.store import SessionRow, deposits, recordings, schema, transcripts
from siprec_bridge.telemetry import Health
from siprec_bridge.transcript import Conversation
from siprec_bridge.transcription import Scheduler
from siprec_bridge.vcon import Signer

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
SOUND = bytes(range(256)) * 2000


async def _nothing_runs(*_: object) -> Any:
    raise AssertionError("nothing is transcribed here")


@dataclass
class Desk:
    place: Office
    url: str
    http: aiohttp.ClientSession

    async def get(self, query: str = "", id: str = "s") -> tuple[int, str, bytes]:
        """Status, media type and body."""
        path = f"{self.url}/api/sessions/{id}/vcon{query}"
        async with self.http.get(path) as answer:
            return answer.status, answer.content_type, await answer.read()

    async def vcon(self, query: str = "") -> dict[str, Any]:
        status, kind, body = await self.get(query)
        assert (status, kind) == (200, "application/vcon"), body
        return checked(body)

    async def add(self, **changed: Any) -> None:
        """The session, and its files in its folder."""
        folder = self.place.recordings
        folder.mkdir(exist_ok=True)
        (folder / "s-0.wav").write_bytes(SOUND)
        note = FinishedFile("s-0.wav", len(SOUND), hashlib.sha256(SOUND).hexdigest())
        leg = FinishedLeg("x", 0, "1", "s-0.wav", NOW, 1.0, 16000, 50)
        audio = AUDIO.dump_json(FinishedAudio((leg,), "s-0.wav", NOW, 1.0, files=(note,))).decode()
        row = SessionRow(
            "s", "c@pbx", "finished", NOW, "udp:192.0.2.1:5060", str(folder),
            '{"session_id": "s", "participants": [{"id": "p", "name": "Zoë"}]}',
            ended_at=NOW + timedelta(seconds=2), audio=audio,
        )  # fmt: skip
        await self.place.database.write(
            lambda connection: recordings.insert(connection, replace(row, **changed))
        )

    async def change(self, **changed: Any) -> None:
        """What is known of the audio."""
        row = await self.place.database.read(partial(recordings.get, session_id="s"))
        assert row is not None
        audio = replace(AUDIO.validate_json(row.audio or ""), **changed)
        text = AUDIO.dump_json(audio).decode()
        await self.place.database.write(partial(recordings.update, session_id="s", audio=text))

    async def transcribe(self, *texts: str) -> None:
        for version, text in enumerate(texts, 1):
            talk = Conversation(
                session_id="s", sip_call_id="c@pbx", started_at=NOW, ended_at=NOW, duration=2,
                language=text, provider="whisper", model="base",
            ).model_dump_json()  # fmt: skip
            save = partial(
                transcripts.save, session_id="s", version=version, job_id="s.1", text="",
                document=talk, at=NOW + timedelta(minutes=version),
            )  # fmt: skip
            await self.place.database.write(save)


@asynccontextmanager
async def desk(folder: Path, **options: Any) -> AsyncIterator[Desk]:
    async with office(folder, receiving=False) as place:
        retention = Retention(place.database, place.metrics, Keep(), clock=lambda: NOW)
        scheduler = Scheduler(
            place.database, [ScriptedProvider()], place.metrics,
            load=_nothing_runs, on_done=_nothing_runs, on_failed=_nothing_runs, clock=lambda: NOW,
        )  # fmt: skip
        stored = StoredAudio(place.database, Stores(None, {}), clock=lambda: NOW)
        orders = Orders("scripted", ("scripted",))
        redactor = Redactor(Policy(frozenset(KINDS)), orders, place.metrics)
        api = Api(
            place.database, place.metrics, Health(), place.service, retention,
            Gate([], place.metrics), orders, scheduler,
            Eraser(
                place.database, place.metrics, retention, stored, sinks=[], clock=lambda: NOW
            ),
            LateRedaction(
                place.database, place.metrics, redactor, stored, sinks=[], clock=lambda: NOW
            ),
            Stores(None, {}), **options,
        )  # fmt: skip
        async with TestServer(api.application()) as server, aiohttp.ClientSession() as http:
            yield Desk(place, str(server.make_url("")).rstrip("/"), http)


async def test_it_is_signed_where_there_is_a_key_unless_it_is_asked_for_without(
    tmp_path: Path,
) -> None:
    for folder in ("with", "without"):
        (tmp_path / folder).mkdir()
    async with desk(tmp_path / "with", vcon_signer=Signer.read(*self_signed(tmp_path))) as place:
        await place.add()
        signed = (await place.get("?audio=inline"))[2]
        unsigned = (await place.get("?audio=inline&form=unsigned"))[2]
    async with desk(tmp_path / "without") as place:
        await place.add()
        refused = await place.get("?form=signed")

    payload = json.loads(signed)["payload"]
    assert base64.urlsafe_b64decode(payload + "==") == unsigned
    assert refused[0] == 400
    assert b"VCON_SIGN_CERT_PATH" in refused[2]


async def test_it_has_the_newest_transcript_or_the_version_that_is_asked_for(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as place:
        await place.add()
        before = await place.vcon()
        await place.transcribe("en", "de")
        newest, first = await place.vcon(), await place.vcon("?version=1")
        missing = await place.get("?version=3")

    assert "analysis" not in before
    assert [one["analysis"][0]["body"]["language"] for one in (newest, first)] == ["de", "en"]
    assert before["uuid"] == newest["uuid"]
    assert before["updated_at"] < newest["updated_at"]
    assert missing[0] == 404


async def test_its_audio_comes_along_by_address_or_not_at_all(tmp_path: Path) -> None:
    async with desk(tmp_path) as place:
        await place.add()
        (none,), (along,), (referred,) = [
            (await place.vcon(f"?audio={form}"))["dialog"] for form in ("none", "inline", "url")
        ]
        async with place.http.get(referred["url"]) as answer:
            fetched = await answer.read()
        async with place.http.head(f"{place.url}/api/sessions/s/vcon?audio=inline") as head:
            said = (head.status, head.content_type, head.headers["Content-Disposition"])

    assert "body" not in none
    assert len(along["body"]) == -(-len(SOUND) * 4 // 3)
    assert referred["url"] == f"{place.url}/api/sessions/s/audio/s-0.wav"
    assert fetched == SOUND
    assert said == (200, "application/vcon", 'attachment; filename="s.vcon"')


async def test_a_public_address_goes_before_the_one_that_was_asked(tmp_path: Path) -> None:
    async with desk(tmp_path, public_url="https://b.example.com/siprec") as place:
        await place.add()
        vcon = await place.vcon("?audio=url")

    assert vcon["dialog"][0]["url"].startswith("https://b.example.com/siprec/api/sessions/s/audio/")


@pytest.mark.parametrize(
    ("changed", "query", "status", "why"),
    [
        ({"state": "recording", "ended_at": None}, "", 409, "the session is recording, not over"),
        ({"state": "finishing"}, "", 409, "the session is finishing, not over"),
        ({"audio_deleted_at": NOW}, "?audio=url", 410, "the audio was deleted at 2026-05-04"),
        ({"folder": "/none"}, "?audio=url", 404, "the audio is not there: No such file"),
        ({"folder": "/none", "node": "n2"}, "?audio=inline", 404, "the audio is on node n2"),
        ({}, "?audio=mp3", 400, "audio must be one of: none, inline, url"),
        ({}, "?files=all", 400, "files must be one of: legs, stereo"),
        ({}, "?version=no", 400, "version must be a number"),
        ({}, "?audio=inline", 422, "the audio has 512,000 octets, more than VCON_INLINE_MAX"),
    ],
)
async def test_what_cannot_be_given_is_refused_with_its_reason(
    tmp_path: Path, changed: dict[str, Any], query: str, status: int, why: str
) -> None:
    async with desk(tmp_path, vcon_inline_max=500_000) as place:
        await place.add(**changed)
        found, kind, body = await place.get(query)

    assert (found, kind) == (status, "application/json")
    assert why in body.decode()


async def test_audio_that_nobody_may_hear_yet_or_read_here_is_refused_with_the_reason(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as place:
        await place.add()
        await place.change(withheld=True)
        withheld, rest = await place.get("?audio=inline"), await place.vcon()
        await place.change(withheld=False)
        (place.place.recordings / "s-0.wav").unlink()

        def seal(connection: Connection) -> None:
            deposits.add(connection, "s", None, NOW)
            gone = {"sealed_at": NOW, "plain_gone_at": NOW}
            connection.execute(schema.deposits.update().values(**gone))

        await place.place.database.write(seal)
        sealed = await place.get("?audio=url")

    assert (withheld[0], sealed[0]) == (409, 409)
    assert b"the audio is not redacted, or not yet" in withheld[2]
    assert b"the audio is encrypted" in sealed[2]
    assert "body" not in rest["dialog"][0]


async def test_a_file_that_was_changed_is_refused_and_the_rest_is_given(tmp_path: Path) -> None:
    async with desk(tmp_path) as place:
        await place.add()
        (place.place.recordings / "s-0.wav").write_bytes(SOUND[::-1])
        refused = await place.get("?audio=inline")
        rest = await place.vcon()

    assert refused[0] == 409
    assert b"s-0.wav is not what was written" in refused[2]
    assert rest["dialog"][0]["filename"] == "s-0.wav"


@pytest.mark.parametrize("host", [b"\xff\xfe", b"127.0.0.1:99999", b"a b", b""])
async def test_an_address_cannot_be_made_of_a_host_that_is_none(
    tmp_path: Path, host: bytes
) -> None:
    async with desk(tmp_path) as place:
        await place.add()
        reader, writer = await asyncio.open_connection("127.0.0.1", place.url.rpartition(":")[2])
        path = b"/api/sessions/s/vcon?audio=url"
        writer.write(b"GET %b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (path, host))
        answer = await reader.read()
        writer.close()

    assert int(answer.split()[1]) in (400, 403)
