"""A recorded call whose numbers are taken out: of documents, database, files and audio alike."""

import asyncio
import hashlib
import json
import wave
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyrage import x25519
from sqlalchemy import text as sql
from typer.testing import CliRunner

from harness.age import recipients_of, secret_key
from harness.vcons import checked
from siprec_bridge.cli import app
from siprec_bridge.delivery import envelope
from siprec_bridge.delivery.events import SessionRedacted, TranscriptFinal
from siprec_bridge.media import FinishedAudio, FinishedLeg
from siprec_bridge.media.audio_file import AudioFile
from siprec_bridge.recording import (
    Altered,
    Completion,
    Custodian,
    Keys,
    LateRedaction,
    Orders,
    Redactor,
    Safekeeping,
    StoredAudio,
    Stores,
    VconEvents,
    Vcons,
)
from siprec_bridge.recording.integrity import verify, verify_stored
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.recording.redactor import CoverMode
from siprec_bridge.redaction import KINDS, Policy
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import (
    Database,
    Event,
    JobRow,
    SessionRow,
    StoreError,
    deposits,
    erasure,
    jobs,
    outbox,
    recordings,
    search,
    transcripts,
)  # fmt: skip
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import Conversation, RunFacts, Segment, Transcript, Word
from siprec_bridge.transcription import RecordedLeg, Rules, merge
from siprec_bridge.transcription.rules import Rule
from siprec_bridge.vault import Identities, Recipients, decrypt_file, open_store
from siprec_bridge.vcon import content_hash

RATE = 8000
EVERYTHING = Policy(frozenset(KINDS))
START = datetime(2026, 5, 4, 12, tzinfo=UTC)
FACTS = RunFacts(
    provider="whisper", model="base", status="success", stderr_tail="heard: 4242 4242 4242 4242"
)


@dataclass
class Desk:
    """A finished session of two legs, ten seconds each, the second a second later."""

    database: Database
    metrics: Metrics
    completion: Completion
    redactor: Redactor
    row: SessionRow
    folder: Path

    async def take(self, heard: dict[str, Transcript], version: int = 1) -> None:
        """What a run of the recogniser came to."""
        job = Orders("whisper", ("whisper",)).first(
            self.row, SessionDocument.model_validate_json(self.row.document), 10.0, START
        )
        job = replace(job, id=f"{self.row.id}.{version}")
        await self.database.write(lambda connection: jobs.insert(connection, job))
        await self.completion.done(job, heard, FACTS)

    async def session(self) -> SessionRow:
        found = await self.database.read(lambda c: recordings.get(c, self.row.id))
        assert found is not None
        return found

    async def events(self) -> list[Event]:
        return await self.database.read(lambda c: outbox.since(c, 0, 100))


@asynccontextmanager
async def desk(
    folder: Path,
    *,
    policy: Policy = EVERYTHING,
    rules: Sequence[Rule] = (),
    cover: CoverMode = "silence",
    vcons: VconEvents | None = None,
    originals: Recipients | None = None,
) -> AsyncIterator[Desk]:
    """A desk on a data folder."""
    metrics = Metrics()
    database = Database(f"sqlite:///{folder / 'bridge.db'}")
    await database.start()
    orders = Orders("whisper", ("whisper",), Rules(rules))
    redactor = Redactor(policy, orders, metrics, cover=cover, originals=originals)
    completion = Completion(
        database, metrics, sinks=["amqp"], clock=lambda: START + timedelta(minutes=1),
        deliver=lambda: None, redactor=redactor, vcons=vcons,
    )  # fmt: skip
    files = folder / "recordings" / "s-1"
    files.mkdir(parents=True)
    document = SessionDocument(session_id="s-1")
    audio = redactor.mark(record(files), document, "udp:192.0.2.1:5060")
    row = SessionRow(
        id="s-1", sip_call_id="c-1", state="finished", started_at=START, peer="udp:192.0.2.1:5060",
        folder=str(files), document=document.model_dump_json(), ended_at=START,
        audio=AUDIO.dump_json(audio).decode(),
    )  # fmt: skip
    await database.write(lambda connection: recordings.insert(connection, row))
    try:
        yield Desk(database, metrics, completion, redactor, row, files)
    finally:
        await database.stop()


def record(folder: Path) -> FinishedAudio:
    """The files of a call."""
    files, legs = [], []
    for index in (0, 1):
        with AudioFile(folder / f"s-1-{index}.wav", 1, RATE) as file:
            file.write(np.full(10 * RATE, 1000, np.int16))
        files.append(file.finished)
        legs.append(
            FinishedLeg(
                stream_id=f"s-1-{index}", index=index, label=str(index), file=f"s-1-{index}.wav",
                started_at=START + timedelta(seconds=index), duration=10.0, sample_rate=RATE,
                packets=1,
            )
        )  # fmt: skip
        (folder / f"s-1-{index}.spool").write_bytes(b"spoken")
    with AudioFile(folder / "s-1-stereo.wav", 2, RATE) as both:
        both.write(np.full((11 * RATE, 2), 1000, np.int16))
    return FinishedAudio(
        tuple(legs), stereo="s-1-stereo.wav", started_at=START, duration=11.0,
        files=(*files, both.finished),
    )  # fmt: skip


def said(*lines: tuple[str, float]) -> Transcript:
    """Segments that begin at these seconds of their file, 0.25 s a word."""
    segments = []
    for text, start in lines:
        words = tuple(
            Word(text=f" {word}", start=start + n / 4, end=start + (n + 1) / 4)
            for n, word in enumerate(text.split())
        )
        segments.append(Segment(text=text, start=start, end=words[-1].end, words=words))
    return Transcript(language="en", segments=tuple(segments), model="base")


CARD = {
    "0": said(("what is your card number", 0.0), ("mm-hm", 4.0)),
    "1": said(("it is 4242 four two four two", 1.0), ("4242 four two four two", 4.0)),
}


def conversation_of(here: Desk) -> Conversation:
    """What the run of CARD comes to."""
    audio = AUDIO.validate_json(here.row.audio or "")
    legs = [RecordedLeg(leg.label, leg.started_at, leg.duration) for leg in audio.legs]
    return merge(
        legs, CARD, lambda label, at: None, session_id="s-1", sip_call_id="c-1", group_id=None,
        participants=(), started_at=START, ended_at=START, facts=FACTS,
    )  # fmt: skip


def silent(path: Path, channel: int = 0) -> tuple[float, float] | None:
    """From when to when all samples are zero."""
    with path.open("rb") as raw, wave.open(raw) as file:
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        (zeros,) = np.nonzero(data.reshape(-1, file.getnchannels())[:, channel] == 0)
    return (zeros[0] / RATE, (zeros[-1] + 1) / RATE) if len(zeros) else None


def everything(folder: Path) -> bytes:
    """All octets below a data folder, of the database and its log, too."""
    return b"\n".join(one.read_bytes() for one in folder.rglob("*") if one.is_file())


async def test_a_card_number_read_out_in_two_breaths_is_nowhere(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await here.take(CARD)
        transcript = await here.database.read(lambda c: transcripts.get(c, "s-1"))
        found = await here.database.read(lambda c: search.search(c, 10, text="4242"))
        events = await here.events()
        while_running = everything(tmp_path)
    afterwards = everything(tmp_path)

    assert transcript is not None
    assert transcript.text.splitlines() == [
        "what is your card number", "it is [card]", "mm-hm", "[card]",
    ]  # fmt: skip
    document = json.loads(transcript.document)
    assert [(one["kind"], one["label"]) for one in document["redactions"]] == 2 * [("card", "1")]
    assert [word["text"] for word in document["utterances"][1]["words"]] == [
        " it",
        " is",
        " [card]",
    ]
    assert [one.type for one in events] == 4 * ["transcript.segment"] + ["transcript.final"]
    assert json.loads(events[-1].body)["redactions"] == document["redactions"]
    assert found == []
    for content in (while_running, afterwards):
        assert b"4242 four" not in content
        assert b"four two" not in content
        assert b"[card]" in content
    assert here.metrics.registry.get_sample_value("siprec_redactions_total", {"kind": "card"}) == 2


async def test_the_original_is_kept_for_who_has_the_key_and_is_nowhere_in_the_clear(
    tmp_path: Path,
) -> None:
    key = secret_key(tmp_path)
    recipients = recipients_of(key)
    async with desk(tmp_path / "data", originals=recipients) as here:
        await here.database.write(lambda c: deposits.add(c, "s-1", None, START))
        # As if it had been archived before it was transcribed.
        await here.database.write(lambda c: c.execute(sql("UPDATE deposits SET state = 'done'")))
        await here.take(CARD)
        await here.take({"0": said(("nothing of note", 0.0)), "1": Transcript()}, 2)
        kept = await here.database.read(lambda c: deposits.get(c, "s-1"))
        while_running = everything(tmp_path / "data")
    opened = decrypt_file(
        here.folder / "s-1-1.original.json.age", tmp_path / "opened.json", Identities(key)
    )
    original = Conversation.model_validate_json((tmp_path / "opened.json").read_bytes())

    assert [one.name for one in here.folder.glob("*original*")] == ["s-1-1.original.json.age"]
    assert kept is not None
    assert kept.state == "pending"
    assert b"4242 four" not in while_running + everything(tmp_path / "data")
    assert original.text.splitlines()[1] == "it is 4242 four two four two"
    assert original.run is not None
    assert (original.run.stderr_tail, original.redactions) == (FACTS.stderr_tail, ())
    assert opened.plain_size == (tmp_path / "opened.json").stat().st_size


async def test_an_original_that_the_disk_does_not_take_keeps_the_transcript_back(
    tmp_path: Path,
) -> None:
    recipients = Recipients((str(x25519.Identity.generate().to_public()),))
    async with desk(tmp_path, originals=recipients) as here:
        (here.folder / "s-1-1.original.json.age").mkdir()  # as a disk that does not give it

        with pytest.raises(StoreError, match="original is not kept"):
            await here.take(CARD)

        assert await here.events() == []
        assert b"4242 four" not in everything(tmp_path)


async def test_the_recording_is_silent_there_and_its_spools_are_gone(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        before = AUDIO.validate_json(here.row.audio or "")
        await here.take(CARD)
        row = await here.session()

    # Two words into the leg's first segment, with 0.2 s before and after; to the end of the other.
    assert silent(here.folder / "s-1-0.wav") is None
    first, last = silent(here.folder / "s-1-1.wav") or (0, 0)
    assert [first, last] == [pytest.approx(1.3), pytest.approx(5.45)]
    assert silent(here.folder / "s-1-stereo.wav", 0) is None
    first, last = silent(here.folder / "s-1-stereo.wav", 1) or (0, 0)
    assert [first, last] == [pytest.approx(2.3), pytest.approx(6.45)]
    after = AUDIO.validate_json(row.audio or "")
    assert (before.withheld, after.withheld) == (True, False)
    assert verify(row).troubles == ()
    assert verify(here.row).troubles != ()
    assert AUDIO.validate_json((here.folder / "s-1.audio.json").read_bytes()) == after
    assert list(here.folder.glob("*.spool")) == []
    seconds = here.metrics.registry.get_sample_value("siprec_audio_redacted_seconds_total")
    assert seconds == pytest.approx(1.65 + 1.65, abs=0.1)


async def test_a_further_version_does_not_uncover_what_an_earlier_one_covered(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:
        await here.take(CARD)
        await here.take({"0": said(("call me at 212 736 5001", 6.0)), "1": Transcript()}, 2)
        row = await here.session()
        transcript = await here.database.read(lambda c: transcripts.get(c, "s-1", 2))

    assert silent(here.folder / "s-1-0.wav") is not None
    assert silent(here.folder / "s-1-1.wav") is not None
    assert verify(row).troubles == ()
    assert transcript is not None
    kinds = [one["kind"] for one in json.loads(transcript.document)["redactions"]]
    assert kinds == ["card", "card", "phone"]


async def test_killed_after_the_audio_was_covered_the_next_run_comes_to_a_sound_whole(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:
        conversation = conversation_of(here)
        await here.redactor.redact(here.row, conversation)  # and nothing is committed
        assert silent(here.folder / "s-1-1.wav") is not None
        await here.take({"0": CARD["0"], "1": said(("it is", 1.0))}, 2)
        row = await here.session()
        transcript = await here.database.read(lambda c: transcripts.get(c, "s-1"))

    assert verify(row).troubles == ()
    assert not AUDIO.validate_json(row.audio or "").withheld
    assert transcript is not None
    assert len(json.loads(transcript.document)["redactions"]) == 2


async def test_audio_that_cannot_be_covered_keeps_the_transcript_back(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        (here.folder / "s-1-stereo.wav").unlink()
        (here.folder / "s-1-stereo.wav").mkdir()  # the disk does not give it, for now

        with pytest.raises(StoreError, match="not covered"):
            await here.take(CARD)

        assert await here.events() == []
        assert AUDIO.validate_json((await here.session()).audio or "").withheld
        assert b"4242 four" not in everything(tmp_path)


@pytest.mark.parametrize("content", [None, b"no audio"])
async def test_audio_that_nobody_can_cover_is_withheld_for_good_and_the_text_goes_on(
    tmp_path: Path, content: bytes | None
) -> None:
    async with desk(tmp_path) as here:
        (here.folder / "s-1-stereo.wav").unlink()
        if content is not None:
            (here.folder / "s-1-stereo.wav").write_bytes(content)
        await here.take(CARD)
        row, events = await here.session(), await here.events()

    assert AUDIO.validate_json(row.audio or "").withheld
    assert len(list(here.folder.glob("*.spool"))) == 2
    assert events[-1].type == "transcript.final"
    assert b"4242 four" not in everything(tmp_path)


async def test_a_rule_has_more_or_nothing_taken_out_of_its_calls(tmp_path: Path) -> None:
    rule = Rule.model_validate({"peer": "192.0.2.0/24", "redact": "off"})
    async with desk(tmp_path / "a", rules=[rule]) as here:
        await here.take(CARD)
        assert AUDIO.validate_json((await here.session()).audio or "").withheld is False
        assert b"4242 four" in everything(tmp_path / "a")
        assert len(list(here.folder.glob("*.spool"))) == 2
    more = Rule.model_validate({"peer": "192.0.2.0/24", "redact": ["cards", "emails"]})
    async with desk(tmp_path / "b", policy=Policy(), rules=[more]) as here:
        await here.take(CARD)
        assert b"4242 four" not in everything(tmp_path / "b")


async def test_audio_is_kept_where_only_text_is_to_be_redacted(tmp_path: Path) -> None:
    async with desk(tmp_path, cover="keep") as here:
        await here.take(CARD)
        row = await here.session()

    assert row.audio == here.row.audio
    assert verify(row).troubles == ()
    assert len(list(here.folder.glob("*.spool"))) == 2
    assert b"4242 four" not in everything(tmp_path)


async def test_the_vcon_of_its_event_is_of_the_covered_audio(tmp_path: Path) -> None:
    vcons = VconEvents(Vcons("url", "legs", "https://bridge.example.com"))
    async with desk(tmp_path, vcons=vcons) as here:
        await here.take(CARD)
        told = await here.events()
        files = {one.name: one.read_bytes() for one in here.folder.glob("*.wav")}

    vcon = checked(json.dumps(json.loads(told[-1].body)["vcon"]))
    assert told[-1].type == "session.vcon"
    assert vcon["redacted"] == {"type": "card"}
    assert "four two" not in vcon["analysis"][0]["body"]["text"]
    assert [one["content_hash"] for one in vcon["dialog"][:2]] == [
        content_hash(hashlib.sha512(files[one["filename"]]).digest()) for one in vcon["dialog"][:2]
    ]
    assert silent(here.folder / vcon["dialog"][1]["filename"]) is not None


@asynccontextmanager
async def before_it_was_wanted(
    folder: Path, originals: Recipients | None = None, cover: CoverMode = "silence"
) -> AsyncIterator[tuple[Desk, LateRedaction]]:
    """A call with a card number, stored as it was said; and who takes it out now."""
    (folder / "store").mkdir()
    async with desk(folder, policy=Policy()) as here:
        await here.take(CARD)
        await here.database.write(lambda c: deposits.add(c, "s-1", None, START))
        place = open_store(str(folder / "store"))
        stores = Stores(place, {})

        def now() -> datetime:
            return START + timedelta(hours=1)

        redactor = Redactor(
            EVERYTHING, Orders("whisper", ("whisper",)), here.metrics, cover=cover,
            originals=originals,
        )  # fmt: skip
        audio = StoredAudio(here.database, stores, clock=now, place=place.place)
        yield (
            here,
            LateRedaction(here.database, here.metrics, redactor, audio, sinks=["amqp"], clock=now),
        )


async def keep(here: Desk, **how: Any) -> None:
    """What becomes of the files, as a bridge does it that comes by hours later."""
    place = open_store(str(here.folder.parent.parent / "store"))
    for later in (2, 4, 6):
        now = START + timedelta(hours=later)
        await Custodian(
            here.database, here.metrics, Safekeeping(**({"store": place} | how)), Stores(place, {}),
            clock=lambda now=now: now,  # type: ignore[misc]
        ).go_round()  # fmt: skip


async def test_what_was_stored_before_is_redacted_in_place_and_is_nowhere_then(
    tmp_path: Path,
) -> None:
    async with before_it_was_wanted(tmp_path) as (here, late):
        events = {one.id: one for one in await here.events()}
        assert b"4242 four" in everything(tmp_path)
        shown = await late.redact(await here.session(), dry_run=True)
        assert b"4242 four" in everything(tmp_path)

        done = await late.redact(await here.session(), by="dpo", reason="2026-31")
        await late.finish()
        again = await late.redact(await here.session())
        row = await here.session()
        transcript = await here.database.read(lambda c: transcripts.get(c, "s-1"))
        found = await here.database.read(lambda c: search.search(c, 10, text="4242"))
        by_place = await here.database.read(lambda c: search.search(c, 10, text="card"))
        *same, told = await here.events()
        lines = await here.database.read(lambda c: erasure.lines(c, 9))
        while_running = everything(tmp_path)
    afterwards = everything(tmp_path)

    assert (shown.outcome, done.outcome, again.outcome) == ("due", "redacted", "clean")
    assert shown.found == done.found == {"card": 2}
    for content in (while_running, afterwards):
        assert b"4242 four" not in content
        assert b"four two" not in content
    assert transcript is not None
    assert transcript.text.splitlines() == [
        "what is your card number", "it is [card]", "mm-hm", "[card]",
    ]  # fmt: skip
    assert (found, len(by_place)) == ([], 1)
    # Who resumes or has not had them yet gets the same events, without it.
    assert {one.id for one in same} == set(events)
    assert json.loads(same[1].body)["text"] == "it is [card]"
    assert [one["text"] for one in json.loads(same[1].body)["words"]] == [" it", " is", " [card]"]
    final = envelope.parse(envelope.structured(same[-1]))
    assert isinstance(final, TranscriptFinal)
    assert final.data.text == transcript.text
    assert len(final.data.redactions) == 2
    event = envelope.parse(envelope.structured(told))
    assert isinstance(event, SessionRedacted)
    assert (event.data.versions, event.data.redactions) == ((1,), final.data.redactions)
    first, last = silent(here.folder / "s-1-1.wav") or (0, 0)
    assert [first, last] == [pytest.approx(1.3), pytest.approx(5.45)]
    assert verify(row).troubles == ()
    assert list(here.folder.glob("*.spool")) == []
    assert [(one.action, one.actor, one.reason, one.subject) for one in lines] == [
        ("redact", "dpo", "2026-31", "cards,emails,phones,ids,ibans")
    ]
    assert json.loads(lines[0].detail) == {"redacted": ["s-1"]}
    moved = here.metrics.registry.get_sample_value("siprec_redactions_total", {"kind": "card"})
    assert moved == 2


async def test_in_the_archive_it_is_redacted_too_and_the_original_is_kept_sealed(
    tmp_path: Path,
) -> None:
    key = secret_key(tmp_path)
    recipients = recipients_of(key)
    async with before_it_was_wanted(tmp_path, originals=recipients) as (here, late):
        await keep(here, keep_local=timedelta(hours=1))
        assert not here.folder.exists()

        done = await late.redact(await here.session())
        await keep(here, keep_local=timedelta(hours=1))
        row, kept = await here.session(), await here.database.read(lambda c: deposits.get(c, "s-1"))
        place = open_store(str(tmp_path / "store"))
        checked = verify_stored(row, kept, place)

    assert (done.outcome, done.treatment, done.replaces) == ("redacted", "silenced", place.place)
    assert not here.folder.exists()
    stored = {one.name: one for one in (tmp_path / "store").rglob("*") if one.is_file()}
    assert sorted(stored) == [
        "manifest.json", "s-1-0.wav", "s-1-1.original.json.age", "s-1-1.wav", "s-1-stereo.wav",
        "s-1.audio.json",
    ]  # fmt: skip
    assert checked.troubles == ()
    assert silent(stored["s-1-1.wav"]) is not None
    decrypt_file(stored["s-1-1.original.json.age"], tmp_path / "opened.json", Identities(key))
    original = Conversation.model_validate_json((tmp_path / "opened.json").read_bytes())
    assert original.text.splitlines()[1] == "it is 4242 four two four two"


async def test_encrypted_audio_takes_the_key_or_a_choice_and_text_can_go_alone(
    tmp_path: Path,
) -> None:
    key = secret_key(tmp_path)
    async with before_it_was_wanted(tmp_path) as (here, late):
        await keep(here, recipients=recipients_of(key))
        sealed = (here.folder / "s-1-1.wav.age").read_bytes()

        refused = await late.redact(await here.session())
        untouched = await here.database.read(lambda c: transcripts.get(c, "s-1"))
        text = await late.redact(await here.session(), text_only=True)
        assert (here.folder / "s-1-1.wav.age").read_bytes() == sealed
        left = await late.redact(await here.session(), dry_run=True)
        opened = await late.redact(await here.session(), keys=Keys(Identities(key)))
        again = await late.redact(await here.session())
        row = await here.session()
        names = sorted(one.name for one in here.folder.iterdir())
    decrypt_file(here.folder / "s-1-1.wav.age", tmp_path / "opened.wav", Identities(key))

    assert refused.outcome == "failed"
    assert "the audio is encrypted" in (refused.cause or "")
    assert untouched is not None
    assert "4242" in untouched.text
    assert (text.outcome, text.treatment) == ("redacted", None)
    assert (left.outcome, left.found) == ("due", {"card": 2})  # the audio is still to be done
    assert (opened.outcome, opened.treatment, again.outcome) == (
        "redacted",
        "sealed_again",
        "clean",
    )
    assert names == [
        "s-1-0.wav.age", "s-1-1.wav.age", "s-1-stereo.wav.age", "s-1.audio.json.age",
        "s-1.manifest.json",
    ]  # fmt: skip
    assert silent(tmp_path / "opened.wav") is not None
    assert len(AUDIO.validate_json(row.audio or "").redactions) == 2


async def test_without_a_key_only_streams_with_something_to_hide_are_deleted(
    tmp_path: Path,
) -> None:
    recipients = Recipients((str(x25519.Identity.generate().to_public()),))
    async with before_it_was_wanted(tmp_path) as (here, late):
        await keep(here, recipients=recipients)

        done = await late.redact(await here.session(), keys=Keys(delete=True))
        again = await late.redact(await here.session())
        row = await here.session()

    assert (done.outcome, done.treatment, again.outcome) == ("redacted", "deleted", "clean")
    audio = AUDIO.validate_json(row.audio or "")
    assert ([leg.label for leg in audio.legs], audio.stereo) == (["0"], None)
    assert sorted(one.name for one in here.folder.glob("*.wav.age")) == ["s-1-0.wav.age"]


@pytest.mark.parametrize("state", ["held", "busy", "changed meanwhile"])
async def test_what_must_not_be_changed_now_is_told_and_stays(tmp_path: Path, state: str) -> None:
    async with before_it_was_wanted(tmp_path) as (here, late):
        row = await here.session()
        if state == "held":
            await here.database.write(lambda c: recordings.update(c, "s-1", held="{}"))
            row = await here.session()
        elif state == "busy":
            job = JobRow("s-1.7", "s-1", "whisper", 1.0, START)
            await here.database.write(lambda c: jobs.insert(c, job))
        else:
            change = late._audio.altered

            @asynccontextmanager
            async def slow(*given: Any) -> AsyncIterator[Altered]:
                await here.take(
                    {"0": said(("call 4242 4242 4242 4242", 0.0)), "1": Transcript()}, 2
                )
                async with change(*given) as altered:
                    yield altered

            late._audio.altered = slow  # type: ignore[assignment, method-assign]

        done = await late.redact(row)
        transcript = await here.database.read(lambda c: transcripts.get(c, "s-1", 1))

    assert done.outcome == ("held" if state == "held" else "in_use")
    assert transcript is not None
    assert "4242 four" in transcript.text


async def test_a_hold_that_comes_while_other_sessions_are_done_keeps_the_audio(
    tmp_path: Path,
) -> None:
    async with before_it_was_wanted(tmp_path) as (here, late):
        page = [row async for row in late.sessions()]
        await here.database.write(lambda c: recordings.update(c, "s-1", held="{}"))

        done = [await late.redact(row) for row in page]

    assert [one.outcome for one in done] == ["held"]
    assert silent(here.folder / "s-1-1.wav") is None


async def test_what_is_on_a_disk_that_is_not_mounted_is_not_told_to_be_redacted(
    tmp_path: Path,
) -> None:
    async with before_it_was_wanted(tmp_path) as (here, late):
        away = here.folder.rename(here.folder.with_name("unmounted"))

        refused = await late.redact(await here.session())
        away.rename(here.folder)
        done = await late.redact(await here.session())

    assert (refused.outcome, refused.cause) == ("failed", f"{here.folder}: is not there")
    assert done.outcome == "redacted"
    assert silent(here.folder / "s-1-1.wav") is not None


async def test_audio_that_nobody_has_transcribed_is_withheld_until_somebody_does(
    tmp_path: Path,
) -> None:
    async with before_it_was_wanted(tmp_path) as (here, late):
        await here.database.write(lambda c: c.execute(sql("DELETE FROM transcripts")))

        done = await late.redact(await here.session())
        again = await late.redact(await here.session())
        withheld = AUDIO.validate_json((await here.session()).audio or "")
        here.completion._redactor = late._redactor
        await here.take(CARD, 2)
        audio = AUDIO.validate_json((await here.session()).audio or "")

    assert (done.outcome, done.withheld, again.outcome) == ("redacted", True, "clean")
    assert (withheld.withheld, audio.withheld, len(audio.redactions)) == (True, False, 2)


async def test_with_the_audio_kept_as_it_is_text_alone_is_redacted_once(tmp_path: Path) -> None:
    async with before_it_was_wanted(tmp_path, cover="keep") as (here, late):
        done = await late.redact(await here.session())
        again = await late.redact(await here.session())

    assert (done.outcome, again.outcome) == ("redacted", "clean")
    assert silent(here.folder / "s-1-1.wav") is None
    assert b"4242 four" not in everything(tmp_path)


async def test_the_command_goes_through_the_sessions_of_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with before_it_was_wanted(tmp_path):
        pass
    (tmp_path / "bridge.db").rename(tmp_path / "siprec-bridge.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ARCHIVE_URL", str(tmp_path / "store"))

    async def run(*arguments: str) -> tuple[int, str]:
        result = await asyncio.to_thread(CliRunner().invoke, app, ("redact", *arguments))
        return result.exit_code, result.output + str(result.exception or "")

    without = await run("--all")
    monkeypatch.setenv("REDACT", "cards")
    vague = await run("s-1", "--all")
    later = await run("--from", f"{START + timedelta(days=1):%Y-%m-%d}")
    shown = await run("--all")
    done = await run(
        "--from", f"{START:%Y-%m-%d}", "--to", f"{START + timedelta(days=1):%Y-%m-%d}", "--yes"
    )
    again = await run("s-1", "--yes", "--json")
    unknown = await run("none")

    assert "REDACT: neither it nor a rule" in without[1]
    assert "name one session" in vague[1]
    assert later == (0, "no sessions; nothing was changed: say --yes\n")
    assert shown[0] == 0
    assert shown[1].endswith("due  2 card, 3.3 s of audio\n1 due; nothing was changed: say --yes\n")
    assert done[0] == 0
    assert done[1].endswith("1 redacted\n")
    assert json.loads(again[1])["outcome"] == "clean"
    assert (unknown[0], "there is no session none" in unknown[1]) == (1, True)
    assert b"4242 four" not in everything(tmp_path)
