"""A session's files in its vCon: along with it, by address, or not; and what is wrong with them."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from harness.vcons import checked, self_signed
from siprec_bridge.media import FinishedAudio, FinishedFile, FinishedLeg
from siprec_bridge.recording import (
    AudioChanged,
    AudioDeleted,
    AudioWithheld,
    NotOver,
    VconEvents,
    Vcons,
)
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.recording.vcons import inline_octets, written
from siprec_bridge.siprec import Presence, SessionDocument, StreamDocument
from siprec_bridge.store import SessionRow
from siprec_bridge.transcript import Conversation, KeyPress, Participant, Redaction
from siprec_bridge.vcon import Signer, Spoken

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
FILES = {"s-0.wav": b"left" * 100_001, "s-1.flac": b"right", "s-stereo.opus": b"both"}
LEGS = ("s-0.wav", "s-1.flac")
BASE = "https://bridge.example.com"


def row(folder: Path, files: Mapping[str, bytes] = FILES, **more: Any) -> SessionRow:
    """A finished session whose files are in the folder."""
    for name, octets in files.items():
        (folder / name).write_bytes(octets)
    legs = (
        FinishedLeg("x", 0, "1", "s-0.wav", NOW, 8.0, 16000, 50),
        FinishedLeg(
            "y", 1, "2", "s-1.flac", NOW + timedelta(seconds=1), 7.0, 16000, 50,
            keys=(KeyPress(key="*", start=2.0, duration=0.5),),
        ),
    )  # fmt: skip
    notes = tuple(
        FinishedFile(name, len(octets), hashlib.sha256(octets).hexdigest())
        for name, octets in files.items()
    )
    audio = FinishedAudio(legs, stereo="s-stereo.opus", started_at=NOW, duration=8.0, files=notes)
    streams = tuple(
        StreamDocument(
            index=index, label=label, state="closed", opened_at=NOW,
            presences=(Presence(participant_id=id, since=NOW),),
        )
        for index, label, id in ((0, "1", "a"), (1, "2", "b"))
    )  # fmt: skip
    document = SessionDocument(
        session_id="s", streams=streams,
        participants=(Participant(id="a", name="Alice"), Participant(id="b", name="Bob")),
    )  # fmt: skip
    fields: dict[str, Any] = {
        "ended_at": NOW + timedelta(seconds=9),
        "audio": AUDIO.dump_json(audio).decode(),
    }
    return SessionRow(
        "s", "call@src", "finished", NOW, "udp:192.0.2.1:5060", str(folder),
        document.model_dump_json(), **(fields | more),
    )  # fmt: skip


def spoken(version: int = 1) -> Spoken:
    conversation = Conversation(
        session_id="s", sip_call_id="call@src", started_at=NOW, ended_at=NOW, duration=9,
        provider="whisper", model="base",
    )  # fmt: skip
    return Spoken(conversation, version, NOW + timedelta(minutes=1))


def made(vcons: Vcons, session: SessionRow) -> dict[str, Any]:
    vcon = vcons.of(session, None)
    with written(vcon, Path(session.folder)) as pieces:
        return checked(b"".join(pieces))


def test_files_are_referred_to_with_the_hash_that_a_reader_compares(tmp_path: Path) -> None:
    vcon = made(Vcons("url", "legs", BASE), row(tmp_path))

    for dialog, name in zip(vcon["dialog"][:2], LEGS, strict=True):
        digest = base64.urlsafe_b64encode(hashlib.sha512(FILES[name]).digest()).rstrip(b"=")
        assert dialog["url"] == f"{BASE}/api/sessions/s/audio/{name}"
        assert dialog["content_hash"] == f"sha512-{digest.decode()}"
    assert [one["mediatype"] for one in vcon["dialog"][:2]] == ["audio/x-wav", "audio/flac"]


def test_files_come_along_in_pieces_that_do_not_grow_with_them(tmp_path: Path) -> None:
    session = row(tmp_path)
    vcon = Vcons("inline", "legs").of(session, None)

    with written(vcon, tmp_path) as pieces:
        parts = list(pieces)

    assert inline_octets(vcon, tmp_path) == sum(len(FILES[name]) for name in LEGS)
    assert max(map(len, parts)) < 300_000
    for dialog, name in zip(checked(b"".join(parts))["dialog"][:2], LEGS, strict=True):
        padding = "=" * (-len(dialog["body"]) % 4)
        assert base64.urlsafe_b64decode(dialog["body"] + padding) == FILES[name]


def test_a_deletion_does_not_cut_off_what_is_being_written(tmp_path: Path) -> None:
    vcon = Vcons("inline", "legs").of(row(tmp_path), None)

    with written(vcon, tmp_path) as pieces:
        start = next(pieces)
        (tmp_path / "s-1.flac").unlink()
        whole = checked(start + b"".join(pieces))

    assert whole["dialog"][1]["body"] == "cmlnaHQ"


def test_the_stereo_file_is_one_dialog_of_both_with_keys_on_its_own_time(tmp_path: Path) -> None:
    vcon = made(Vcons("inline", "stereo"), row(tmp_path))

    (stereo,) = vcon["dialog"]
    assert stereo["parties"] == [0, 1]
    assert (stereo["filename"], stereo["mediatype"]) == ("s-stereo.opus", "audio/ogg")
    down = next(one for one in stereo["party_history"] if one["event"] == "keydown")
    assert (down["time"], down["party"]) == ("2026-05-04T12:00:03Z", 1)


def test_without_audio_nothing_is_read(tmp_path: Path) -> None:
    vcon = made(Vcons("none", "legs"), row(tmp_path, {}))

    assert [one.get("filename") for one in vcon["dialog"]] == ["s-0.wav", "s-1.flac", None]
    assert not {"url", "body", "content_hash"} & set(vcon["dialog"][0])


@pytest.mark.parametrize("audio", ["inline", "url"])
def test_a_file_that_is_not_what_was_written_is_not_passed_on(tmp_path: Path, audio: Any) -> None:
    session = row(tmp_path)
    (tmp_path / "s-1.flac").write_bytes(b"forged")

    with pytest.raises(AudioChanged, match=r"s-1\.flac is not what was written"):
        Vcons(audio, "legs").of(session, None)


def test_audio_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    session = row(tmp_path)
    (tmp_path / "s-1.flac").unlink()
    deleted = replace(session, audio_deleted_at=NOW)

    with pytest.raises(FileNotFoundError):
        Vcons("url", "legs").of(session, None)
    with pytest.raises(AudioDeleted):
        Vcons("inline").of(deleted, None)
    assert made(Vcons(), deleted)["attachments"][0]["body"]["audio_deleted_at"]


def test_what_was_taken_out_is_named_and_audio_waits_until_it_is_covered(tmp_path: Path) -> None:
    session = row(tmp_path)
    taken = Redaction(kind="card", label="1", start=1.0, end=2.0)
    audio = replace(AUDIO.validate_json(session.audio or ""), redactions=(taken,), withheld=True)
    waiting = replace(session, audio=AUDIO.dump_json(audio).decode())
    done = replace(session, audio=AUDIO.dump_json(replace(audio, withheld=False)).decode())

    with pytest.raises(AudioWithheld):
        Vcons("inline").of(waiting, None)
    assert made(Vcons(), waiting)["redacted"] == {"type": "card"}
    assert made(Vcons("inline"), done)["redacted"] == {"type": "card"}
    assert "redacted" not in made(Vcons(), session)


@pytest.mark.parametrize("state", ["recording", "finishing"])
def test_a_session_that_is_not_over_has_no_container(tmp_path: Path, state: Any) -> None:
    with pytest.raises(NotOver, match=state):
        Vcons().of(replace(row(tmp_path), state=state), None)


def test_a_session_that_failed_without_audio_has_one_all_the_same(tmp_path: Path) -> None:
    vcon = made(Vcons("inline", "stereo"), replace(row(tmp_path), state="failed", audio=None))

    assert [one["type"] for one in vcon["dialog"]] == ["recording-set"]


async def test_the_event_carries_the_container_and_is_the_same_when_built_again(
    tmp_path: Path,
) -> None:
    events = VconEvents(Vcons("url", address=BASE))

    first, again = [await events.event(row(tmp_path), spoken()) for _ in range(2)]
    newer = await events.event(row(tmp_path), spoken(2))

    assert first == again
    assert newer.id != first.id
    data = json.loads(first.body)
    assert (first.type, data["version"], data["final"]) == ("session.vcon", 1, True)
    vcon = checked(json.dumps(data["vcon"]))
    assert vcon["dialog"][0]["url"].startswith(BASE)
    assert vcon["uuid"] == json.loads(newer.body)["vcon"]["uuid"]


async def test_what_is_signed_is_the_same_container_with_its_audio_and_in_events(
    tmp_path: Path,
) -> None:
    signer = Signer.read(*self_signed(tmp_path))
    vcon = Vcons("inline", "legs").of(row(tmp_path), spoken())

    with written(vcon, tmp_path) as unsigned, written(vcon, tmp_path, signer) as signed:
        plain, text = b"".join(unsigned), json.loads(b"".join(signed))
    event = await VconEvents(Vcons(), signer).event(row(tmp_path), spoken())

    assert base64.urlsafe_b64decode(text["payload"] + "==") == plain
    assert text["signatures"][0]["header"]["uuid"] == vcon.uuid
    told = json.loads(event.body)["vcon"]
    assert set(told) == {"payload", "signatures"}
    assert checked(base64.urlsafe_b64decode(told["payload"] + "=="))["uuid"] == vcon.uuid


async def test_a_transcript_does_not_wait_for_audio_that_is_gone(tmp_path: Path) -> None:
    session = row(tmp_path)
    (tmp_path / "s-stereo.opus").unlink()

    event = await VconEvents(Vcons("url", address=BASE)).event(session, spoken())

    vcon = checked(json.dumps(json.loads(event.body)["vcon"]))
    assert "url" not in vcon["dialog"][0]
    assert len(vcon["analysis"]) == 1
