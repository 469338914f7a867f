"""One person out of what is stored; what others said, and what is under hold, stays."""

import asyncio
import io
import json
import shutil
import sqlite3
import wave
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection

from harness.age import recipients_of, secret_key
from siprec_bridge.delivery import envelope
from siprec_bridge.delivery.events import SessionErased
from siprec_bridge.media import FinishedAudio, FinishedLeg
from siprec_bridge.media.audio_file import AudioFile
from siprec_bridge.recording import (
    Custodian,
    Eraser,
    Identifier,
    Keep,
    Keys,
    NotInStore,
    Retention,
    Safekeeping,
    StoredAudio,
    Stores,
    VconEvents,
    Vcons,
    fetch,
)
from siprec_bridge.recording.alteration import Alteration, Altered
from siprec_bridge.recording.export import gather, zipped
from siprec_bridge.recording.integrity import verify
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.recording.vcons import spoken_of
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.siprec.document import Presence, StreamDocument
from siprec_bridge.store import (
    Database,
    DepositRow,
    Event,
    JobRow,
    SessionRow,
    SipMessage,
    deposits,
    erasure,
    jobs,
    ladder,
    outbox,
    recordings,
    schema,
    search,
    transcripts,
)  # fmt: skip
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import (
    Conversation,
    KeyPress,
    Leg,
    Participant,
    Suppressed,
    Utterance,
    Word,
)  # fmt: skip
from siprec_bridge.vault import (
    Identities,
    Manifest,
    ObjectStore,
    decrypt_file,
    encrypt_bytes,
    open_store,
    original_name,
)

RATE = 8000
START = datetime(2026, 5, 4, 12, tzinfo=UTC)
CAROL = Participant(id="p-carol", name="Carol Quux", aor="sip:carol.quux@example.com")
BOB = Participant(id="p-bob", name="Bob", aor="tel:+49-30-901820")
WHOM = Identifier.parse("sip:Carol.Quux@EXAMPLE.com:5060")
SECRETS = ("zanzibar", "quux", "p-carol")


@dataclass
class Desk:
    """Recorded calls, and who erases people from them."""

    database: Database
    metrics: Metrics
    eraser: Eraser
    folder: Path

    @property
    def store(self) -> ObjectStore:
        return open_store(str(self.folder / "store"))

    async def keep(self, **how: Any) -> DepositRow:
        """What becomes of the files, as a bridge does it that comes by hours later."""
        keeping = Safekeeping(**({"store": self.store} | how))
        for later in (2, 4, 6):
            now = START + timedelta(hours=later)
            await Custodian(
                self.database, self.metrics, keeping, Stores(self.store, {}),
                clock=lambda now=now: now,  # type: ignore[misc]
            ).go_round()  # fmt: skip
        row = await self.database.read(lambda connection: deposits.get(connection, "s-1"))
        assert row is not None
        return row

    async def row(self, id: str) -> SessionRow | None:
        return await self.database.read(lambda connection: recordings.get(connection, id))

    async def events(self) -> list[Event]:
        return await self.database.read(lambda connection: outbox.since(connection, 0, 1000))

    async def pending(self) -> list[Event]:
        at = START + timedelta(days=1)
        found = await self.database.read(lambda c: outbox.pending(c, "amqp", 1000, at))
        return [one.event for one in found]

    async def add(self, id: str, **changes: Any) -> None:
        """A call of Carol, on stream 0, and Bob on stream 1; both on 2, one after the other."""
        folder = self.folder / "recordings" / id
        folder.mkdir(parents=True)
        row = SessionRow(
            id=id, sip_call_id=f"c-{id}", state="finished", started_at=START,
            peer="udp:192.0.2.1:5060", folder=str(folder), document=document(id).model_dump_json(),
            ended_at=START + timedelta(seconds=10), warnings=("odd: Carol Quux", "odd"),
            audio=AUDIO.dump_json(record(folder, id)).decode(),
        )  # fmt: skip
        row = replace(row, **changes)
        talk = conversation(id)
        events = envelope.transcript_events(talk, 1)
        message = SipMessage(START, False, "udp:192.0.2.1:5060", "INVITE from Carol Quux")
        job = JobRow(
            f"{id}.1", id, "whisper", 10.0, START, "done", prompt="Carol Quux",
            stderr_tail="zanzibar",
        )  # fmt: skip

        def store(connection: Connection) -> None:
            recordings.insert(connection, row)
            jobs.insert(connection, job)
            for version in (1, 2):
                transcripts.save(
                    connection,
                    id,
                    version,
                    f"{id}.{version}",
                    talk.text,
                    talk.model_dump_json(),
                    START,
                )
            outbox.append(connection, events, ["amqp"])
            ladder.append(connection, [(id, message)])

        await self.database.write(store)


@asynccontextmanager
async def desk(folder: Path) -> AsyncIterator[Desk]:
    """A desk with one call."""
    metrics = Metrics()
    database = Database(f"sqlite:///{folder / 'bridge.db'}")
    await database.start()

    def now() -> datetime:
        return START + timedelta(hours=1)

    retention = Retention(database, metrics, Keep(), clock=now)
    (folder / "store").mkdir()
    place = open_store(str(folder / "store"))
    audio = StoredAudio(database, Stores(place, {}), clock=now, place=place.place)
    eraser = Eraser(database, metrics, retention, audio, sinks=["amqp"], clock=now)
    here = Desk(database, metrics, eraser, folder)
    await here.add("s-1")
    try:
        yield here
    finally:
        await database.stop()


def document(id: str) -> SessionDocument:
    def stream(index: int, *there: Presence) -> StreamDocument:
        return StreamDocument(
            index=index, label=str(index), state="closed", opened_at=START, presences=there
        )

    half = START + timedelta(seconds=5)
    return SessionDocument(
        session_id=id, participants=(CAROL, BOB), warnings=("odd: Carol Quux", "odd"),
        call_ids={"ucid": "0001", "caller": "carol.quux"},
        extensions=("<x>Carol Quux</x>", "<y>queue 7</y>"),
        streams=(
            stream(0, Presence(participant_id=CAROL.id, since=START)),
            stream(1, Presence(participant_id=BOB.id, since=START)),
            stream(
                2, Presence(participant_id=CAROL.id, since=START, until=half),
                Presence(participant_id=BOB.id, since=half),
            ),
        ),
    )  # fmt: skip


def record(folder: Path, id: str) -> FinishedAudio:
    files, legs = [], []
    for index in (0, 1, 2):
        with AudioFile(folder / f"{id}-{index}.wav", 1, RATE) as file:
            file.write(np.full(10 * RATE, 1000, np.int16))
        files.append(file.finished)
        keys = (KeyPress(key="5", start=1.0, duration=0.1),)
        legs.append(
            FinishedLeg(
                f"{id}-{index}", index, str(index), f"{id}-{index}.wav", START, 10.0, RATE, 1,
                keys=keys,
            )
        )  # fmt: skip
        (folder / f"{id}-{index}.spool").write_bytes(b"voice")
    with AudioFile(folder / f"{id}-stereo.wav", 2, RATE) as both:
        both.write(np.full((10 * RATE, 2), 1000, np.int16))
    return FinishedAudio(
        tuple(legs), stereo=f"{id}-stereo.wav", started_at=START, duration=10.0,
        files=(*files, both.finished),
    )  # fmt: skip


def conversation(id: str) -> Conversation:
    def said(label: str, who: Participant | None, start: float, text: str) -> Utterance:
        words = tuple(Word(text=one, start=start, end=start + 1) for one in text.split())
        at = START + timedelta(seconds=start)
        return Utterance(
            label=label, participant=who, start=start, end=start + 1, starts_at=at, ends_at=at,
            text=text, words=words,
        )  # fmt: skip

    return Conversation(
        session_id=id, sip_call_id=f"c-{id}", started_at=START, ended_at=START, duration=10.0,
        participants=(CAROL, BOB), call_ids={"ucid": "0001", "caller": "carol.quux"},
        legs=tuple(Leg(label=label, participants=who) for label, who in
                   (("0", (CAROL,)), ("1", (BOB,)), ("2", (CAROL, BOB)))),
        utterances=(
            said("0", CAROL, 1, "I am from zanzibar"), said("1", BOB, 2, "lovely weather there"),
            said("2", CAROL, 3, "zanzibar again"), said("2", None, 4, "zanzibar, who knows"),
            said("2", BOB, 7, "it is mine now"),
        ),
        suppressed=(Suppressed(text="zanzibar", start=0, end=1, reason="repeated", label="0"),),
        provider="whisper", model="base",
    )  # fmt: skip


def everything(folder: Path) -> bytes:
    """All octets of the database, its log, and what is beside the audio, in lower case."""
    files = [one for one in folder.rglob("*") if one.is_file() and one.suffix != ".wav"]
    return b"\n".join(one.read_bytes() for one in files).lower()


def loud(path: Path, channel: int = 0) -> list[int]:
    """The seconds that are not silent."""
    with path.open("rb") as raw, wave.open(raw) as file:
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        audio = data.reshape(-1, file.getnchannels())[:, channel]
    return [n for n in range(10) if audio[n * RATE + RATE // 2] != 0]


@contextmanager
def rows_refused(folder: Path) -> Iterator[None]:
    """The database has no room for what comes after the audio."""
    with closing(sqlite3.connect(folder / "bridge.db")) as other:
        other.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON transcripts "
            "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
        yield
        other.execute("DROP TRIGGER full")


async def test_a_person_is_gone_and_what_others_said_stays(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        assert all(one.encode() in everything(tmp_path) for one in SECRETS)

        (found,) = await here.eraser.erase(WHOM, by="dpo", reason="Art. 17, 2026-31")

        while_running = everything(tmp_path)
        transcript = await here.database.read(lambda c: transcripts.get(c, "s-1", 1))
        by_word = await here.database.read(lambda c: search.search(c, 9, text="zanzibar"))
        by_name = await here.database.read(lambda c: search.search(c, 9, participant="Quux"))
        others = await here.database.read(lambda c: search.search(c, 9, text="lovely weather"))
        messages = await here.database.read(lambda c: ladder.of_session(c, "s-1"))
    afterwards = everything(tmp_path)

    assert (found.outcome, found.labels, found.utterances) == ("erased", ("0", "2"), 3)
    assert found.audio_seconds == 20.0
    for content in (while_running, afterwards):
        left = [one for one in SECRETS if one.encode() in content]
        # The event tells consumers which participant it is about, by the id that they know.
        assert left == ["p-carol"]
        assert content.count(b"p-carol") <= 2
    assert transcript is not None
    assert transcript.text == "lovely weather there\nit is mine now"
    assert (by_word, by_name, len(others), messages) == ([], [], 1, [])
    talk = Conversation.model_validate_json(transcript.document)
    assert talk.participants == (Participant(id="erased-1"), BOB)
    assert talk.call_ids == {"ucid": "0001"}
    assert talk.suppressed == ()


async def test_the_voice_is_gone_from_its_file_and_its_side_and_the_checksums_fit(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:
        row = await here.row("s-1")
        assert row is not None
        folder = Path(row.folder)
        # Nobody here can take one person out of it.
        (folder / original_name("s-1", 1)).write_bytes(b"age-encryption.org/v1")
        await here.eraser.erase(WHOM, by=None, reason=None)
        row = await here.row("s-1")

    assert row is not None
    assert not (folder / original_name("s-1", 1)).exists()
    assert loud(folder / "s-1-0.wav") == []
    assert loud(folder / "s-1-1.wav") == list(range(10))
    assert loud(folder / "s-1-2.wav") == [7, 8, 9]  # Bob's, but for two seconds around the change
    assert loud(folder / "s-1-stereo.wav", 0) == []
    assert verify(row).troubles == ()
    assert [one.name for one in folder.glob("*.spool")] == ["s-1-1.spool"]
    assert AUDIO.validate_json(row.audio or "").legs[0].keys == ()
    document = SessionDocument.model_validate_json(row.document)
    assert document.extensions == ("<y>queue 7</y>",)
    assert (document.warnings, row.warnings) == (("odd",), ("odd",))
    assert document.streams[2].presences[0].participant_id == "erased-1"


async def test_where_the_audio_was_deleted_long_ago_the_words_go_all_the_same(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:
        await here.add("s-2", audio_deleted_at=START)
        row = await here.row("s-2")
        assert row is not None
        shutil.rmtree(row.folder)

        found = await here.eraser.erase(WHOM, by=None, reason=None)

    assert sorted((one.session_id, one.outcome, one.audio_seconds) for one in found) == [
        ("s-1", "erased", 20.0), ("s-2", "erased", 0.0),
    ]  # fmt: skip
    assert not any(one.encode() in everything(tmp_path) for one in ("zanzibar", "quux"))


async def test_what_was_not_delivered_yet_is_delivered_without_the_person(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        before = await here.pending()
        await here.eraser.erase(WHOM, by=None, reason=None)
        after = await here.pending()

    assert [one.type for one in before] == 5 * ["transcript.segment"] + ["transcript.final"]
    assert [one.type for one in after] == [
        "transcript.segment", "transcript.segment", "transcript.final", "session.erased",
    ]  # fmt: skip
    assert after[2].id == before[5].id
    final = json.loads(after[2].body)
    assert final["text"] == "lovely weather there\nit is mine now"
    assert "zanzibar" not in "".join(one.body for one in after)
    told = envelope.parse(envelope.structured(after[-1]))
    assert isinstance(told, SessionErased)
    assert (told.data.participant_ids, told.data.labels, told.data.whole) == (
        ("p-carol",), ("0", "2"), False,
    )  # fmt: skip


async def test_a_hold_an_open_job_and_a_running_call_keep_a_session_as_it_is(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:
        await here.add("s-held", held='{"by": "court"}')
        await here.add("s-busy")
        await here.database.write(
            lambda c: jobs.insert(c, JobRow("s-busy.3", "s-busy", "whisper", 10.0, START))
        )
        await here.add("s-live", state="recording")

        done = await here.eraser.erase(WHOM, by="dpo", reason=None)
        (line,) = await here.database.read(lambda c: erasure.lines(c, 9))
        held = await here.database.read(lambda c: transcripts.get(c, "s-held"))

    assert {one.session_id: one.outcome for one in done} == {
        "s-1": "erased", "s-held": "held", "s-busy": "in_use", "s-live": "in_use",
    }  # fmt: skip
    assert held is not None
    assert "zanzibar" in held.text
    assert loud(tmp_path / "recordings" / "s-held" / "s-held-0.wav") == list(range(10))
    assert json.loads(line.detail) == {
        "erased": ["s-1"], "held": ["s-held"], "in_use": ["s-busy", "s-live"],
    }  # fmt: skip


async def test_a_dry_run_tells_what_would_go_and_changes_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        before = everything(tmp_path)
        (found,) = await here.eraser.find(WHOM)
        nobody = await here.eraser.find(Identifier.parse("sip:dave@example.com"))

    assert (found.outcome, found.utterances, nobody) == ("due", 3, [])
    assert before.count(b"zanzibar") == everything(tmp_path).count(b"zanzibar")


async def test_whole_sessions_go_with_all_their_events_and_consumers_are_told(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:
        (found,) = await here.eraser.erase(WHOM, by=None, reason=None, whole=True)
        row, events = await here.row("s-1"), await here.pending()

    assert (found.outcome, row) == ("erased", None)
    assert [(one.type, json.loads(one.body)["whole"]) for one in events] == [
        ("session.erased", True)
    ]
    assert not (tmp_path / "recordings" / "s-1").exists()
    assert b"zanzibar" not in everything(tmp_path)


async def test_the_audit_outlives_the_session_and_names_nobody(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await here.eraser.erase(WHOM, by="dpo", reason="Art. 17", whole=True)
        (line,) = await here.database.read(lambda c: erasure.lines(c, 9))
        moved = here.metrics.registry.get_sample_value("siprec_erasures_total", {"what": "session"})

    assert (line.actor, line.reason, line.action) == ("dpo", "Art. 17", "erase_sessions")
    assert "carol" not in line.subject
    salt = bytes.fromhex(line.subject.split(":")[1])
    assert WHOM.hashed(salt) == line.subject
    assert Identifier.parse("sip:dave@example.com").hashed(salt) != line.subject
    assert moved == 1


async def test_asked_again_after_being_cut_off_between_audio_and_rows_it_comes_to_the_same(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:
        with rows_refused(tmp_path):
            (cut_off,) = await here.eraser.erase(WHOM, by=None, reason=None)
        (found,) = await here.eraser.erase(WHOM, by=None, reason=None)
        after = await here.row("s-1")

    assert (cut_off.outcome, cut_off.cause, found.outcome) == ("failed", "disk full", "erased")
    assert after is not None
    assert verify(after).troubles == ()


@pytest.mark.parametrize(
    ("asked", "aor", "same"),
    [
        ("tel:+4930901820", "tel:+49-30-901820", True),
        ("+49 30 901820", "sip:+4930901820@pbx.example.com;user=phone", True),
        ("tel:+4930901820", "sip:004930901820@pbx", True),
        ("tel:+4930901820", "tel:+4930901821", False),
        ("tel:+4930901820", "sip:alice@example.com", False),
        ("sip:alice@example.com", "sips:ALICE@example.com:5061;transport=tls", True),
        ("sip:alice@example.com", "sip:alice@example.org", False),
        ("sip:alice@example.com", None, False),
    ],
)
def test_a_person_is_known_by_the_address_however_it_is_written(
    asked: str, aor: str | None, same: bool
) -> None:
    assert Identifier.parse(asked).matches(aor) is same


@pytest.mark.parametrize("text", ["", "alice", "sip:alice", "sip:@host", "tel:", "tel:12", "x:y@z"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="needed"):
        Identifier.parse(text)


async def test_numbers_are_found_whatever_signs_the_metadata_put_between(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        (found,) = await here.eraser.find(Identifier.parse("+4930901820"))

    assert (found.participant_ids, found.labels) == (("p-bob",), ("1", "2"))


async def test_a_session_is_exported_as_one_file(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        parts = await gather(here.database, "s-1")
        assert parts is not None
        (tmp_path / "recordings" / "s-1" / "s-1-2.wav").unlink()
        data = b"".join(zipped(parts))
        nothing = await gather(here.database, "none")
        events = await here.events()

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        names = sorted(name.removeprefix("s-1/") for name in archive.namelist())
        lines = archive.read("s-1/events.jsonl").decode().splitlines()
        audio = archive.read("s-1/s-1-stereo.wav")
        left_out = json.loads(archive.read("s-1/left-out.json"))
        ladder_ = json.loads(archive.read("s-1/ladder.json"))
    assert nothing is None
    assert names == [
        "document.json", "events.jsonl", "jobs.json", "ladder.json", "left-out.json",
        "s-1-0.wav", "s-1-1.wav", "s-1-stereo.wav", "session.json", "transcript-1.json",
        "transcript-1.txt", "transcript-2.json", "transcript-2.txt",
    ]  # fmt: skip
    assert [envelope.parse(line).id for line in lines] == [one.id for one in events]
    assert audio == (tmp_path / "recordings" / "s-1" / "s-1-stereo.wav").read_bytes()
    assert list(left_out) == ["s-1-2.wav"]
    assert len(ladder_) == 1


async def test_the_index_keeps_no_word_of_what_was_erased(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await here.eraser.erase(WHOM, by=None, reason=None)
    with closing(sqlite3.connect(tmp_path / "bridge.db")) as connection:
        connection.execute(
            "CREATE VIRTUAL TABLE temp.terms USING fts5vocab(main, passages_fts, 'row')"
        )
        terms = {term for (term,) in connection.execute("SELECT term FROM terms")}

    assert "lovely" in terms
    assert not {"zanzibar", "quux"} & terms


async def test_a_large_index_is_compacted_a_little_at_a_time(tmp_path: Path) -> None:
    waits: list[str] = []
    async with desk(tmp_path) as here:
        await here.add("s-2")
        for part in range(6):

            def store(connection: Connection, part: int = part) -> None:
                for one in range(400):
                    letters = f"{part}{one}".translate(str.maketrans("0123456789", "abcdefghij"))
                    words = [f"{'gone' if part == 3 else 'kept'}{letters}", letters * 20]
                    id = "s-2" if part == 3 else "s-1"
                    row = {"session_id": id, "started_at": START, "words": words, "who": ()}
                    connection.execute(schema.passages.insert().values(row))

            await here.database.write(store)
        gone = schema.passages.delete().where(schema.passages.c.session_id == "s-2")
        await here.database.write(lambda c: c.execute(gone))

        compacting = asyncio.create_task(erasure.compact_index(here.database, pages=1))
        while not compacting.done():
            # As calls are written down meanwhile: each gets its turn.
            await here.database.write(lambda c: waits.append("a turn"))
        await compacting
    with closing(sqlite3.connect(tmp_path / "bridge.db")) as connection:
        connection.execute(
            "CREATE VIRTUAL TABLE temp.terms USING fts5vocab(main, passages_fts, 'row')"
        )
        terms = {term for (term,) in connection.execute("SELECT term FROM terms")}

    assert len(waits) > 5
    assert len([one for one in terms if one.startswith("kept")]) == 5 * 400
    assert not [one for one in terms if one.startswith("gone")]


@pytest.mark.parametrize(
    ("where", "outcome", "cause"),
    [
        ({"runner": "-"}, "in_use", None),
        ({"stored_at": START}, "erased", None),
        (
            {"stored_at": START, "place": "s3://of/before"}, "failed",
            "the archive has it at s3://of/before, which is not ARCHIVE_URL: it cannot be replaced "
            "there; name that store, or delete the session",
        ),
        ({"local_gone_at": START}, "failed", "the archive does not have all of the audio"),
    ],
    ids=["under way", "stored and here", "in another store", "nowhere"],
)  # fmt: skip
async def test_a_recording_that_was_archived_is_erased_there_too_or_not_at_all(
    tmp_path: Path, where: dict[str, object], outcome: str, cause: str | None
) -> None:
    async with desk(tmp_path) as here:

        def archive(connection: Connection) -> None:
            deposits.add(connection, "s-1", None, START)
            manifest = Manifest(session="s-1", sip_call_id="c-s-1", started_at=START, made_at=START)
            values = {"state": "done", "manifest": manifest.model_dump_json()} | where
            connection.execute(schema.deposits.update().values(**values))

        await here.database.write(archive)

        (found,) = await here.eraser.erase(WHOM, by="dpo", reason=None)
        kept = await here.database.read(lambda c: deposits.get(c, "s-1"))

        assert (found.outcome, found.cause) == (outcome, cause)
        assert kept is not None
        if outcome == "erased":  # sent anew
            assert (kept.state, kept.stored_at) == ("pending", None)
        else:
            assert kept.state == "done"
            row = await here.row("s-1")
            assert row is not None
            assert "Carol" in row.document


async def test_a_folder_of_the_archive_that_has_the_name_in_its_own_is_told_of(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:

        def archive(connection: Connection) -> None:
            deposits.add(connection, "s-1", None, START)
            manifest = Manifest(session="s-1", sip_call_id="c-s-1", started_at=START, made_at=START)
            connection.execute(
                schema.deposits.update().values(
                    state="done", manifest=manifest.model_dump_json(), stored_at=START,
                    place=here.store.place, prefix="2026/carol.quux@example.com_7/s-1",
                )
            )  # fmt: skip

        await here.database.write(archive)

        (found,) = await here.eraser.erase(WHOM, by="dpo", reason=None)
        (line,) = await here.database.read(lambda c: erasure.lines(c, 9))

        store = here.store.place

    assert found.named_in == f"{store}/2026/carol.quux@example.com_7/s-1"
    assert json.loads(line.detail)["named_in_archive"] == ["s-1"]


async def test_what_is_in_the_archive_alone_is_silenced_there(tmp_path: Path) -> None:
    hour = timedelta(hours=1)
    async with desk(tmp_path) as here:
        row = await here.row("s-1")
        assert row is not None
        before = await here.keep(keep_local=hour)
        assert before.local_gone_at is not None

        (found,) = await here.eraser.erase(WHOM, by="dpo", reason=None)
        (line,) = await here.database.read(lambda c: erasure.lines(c, 9))
        after = await here.keep(keep_local=hour)
        await fetch(
            here.database, Stores(here.store, {}), "s-1", out=tmp_path / "out", clock=lambda: START
        )
        stored = here.store.place

    assert (found.outcome, found.treatment, found.replaces) == ("erased", "silenced", stored)
    assert json.loads(line.detail) == {"archive_replaced": ["s-1"], "erased": ["s-1"]}
    assert (after.state, after.stale, after.prefix) == ("done", (), before.prefix)
    assert after.local_gone_at is not None
    assert not Path(row.folder).exists()
    assert loud(tmp_path / "out" / "s-1-0.wav") == []
    assert loud(tmp_path / "out" / "s-1-1.wav") == list(range(10))
    assert loud(tmp_path / "out" / "s-1-stereo.wav", 0) == []
    names = {one.name for one in (tmp_path / "store").rglob("*") if one.is_file()}
    assert [one for one in names if "spool" in one] == ["s-1-1.spool"]


async def test_what_cannot_be_fetched_is_told_and_nothing_of_it_is_left_here(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:
        row = await here.row("s-1")
        assert row is not None
        await here.keep(keep_local=timedelta(hours=1))
        (tmp_path / "store" / "2026" / "05" / "04" / "s-1" / "s-1-1.wav").unlink()

        (found,) = await here.eraser.erase(WHOM, by="dpo", reason=None)
        kept = await here.database.read(lambda c: deposits.get(c, "s-1"))

    assert (found.outcome, found.treatment) == ("failed", None)
    assert "s-1-1.wav: is not there" in (found.cause or "")
    assert not Path(row.folder).exists()
    assert kept is not None
    assert (kept.runner, kept.state) == (None, "done")


async def test_cancelled_while_it_is_committed_nothing_of_the_audio_is_lost(
    tmp_path: Path,
) -> None:
    hour = timedelta(hours=1)
    wish = Alteration(lambda folder: None, frozenset({"0"}), needed=True, originals=True)
    async with desk(tmp_path) as here:
        row = await here.row("s-1")
        assert row is not None
        await here.keep(keep_local=hour)

        async def alter() -> None:
            async with here.eraser._audio.altered(row, wish, Keys()) as altered:
                await here.database.write(altered.note)
                raise asyncio.CancelledError  # of the write, whose commit nobody could stop

        with pytest.raises(asyncio.CancelledError):
            await alter()
        after = await here.keep(keep_local=hour)
        await fetch(
            here.database, Stores(here.store, {}), "s-1", out=tmp_path / "out", clock=lambda: START
        )

    assert after.local_gone_at is not None
    assert loud(tmp_path / "out" / "s-1-1.wav") == list(range(10))


async def test_cancelled_while_it_is_fetched_nothing_of_it_is_left_here(tmp_path: Path) -> None:
    def cut_off(folder: Path) -> None:
        raise asyncio.CancelledError

    wish = Alteration(cut_off, frozenset({"0"}), needed=True, originals=True)
    async with desk(tmp_path) as here:
        row = await here.row("s-1")
        assert row is not None
        await here.keep(keep_local=timedelta(hours=1))

        with pytest.raises(asyncio.CancelledError):
            async with here.eraser._audio.altered(row, wish, Keys()):
                pass

    assert not Path(row.folder).exists()


async def test_a_hold_that_comes_while_other_sessions_are_done_keeps_the_audio(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:
        await here.add("s-2")
        change = here.eraser._audio.altered

        @asynccontextmanager
        async def while_others_are_done(*given: Any) -> AsyncIterator[Altered]:
            hold = partial(recordings.update, session_id="s-2", held="{}")
            await here.database.write(hold)
            async with change(*given) as altered:
                yield altered

        here.eraser._audio.altered = while_others_are_done  # type: ignore[assignment, method-assign]

        done = await here.eraser.erase(WHOM, by=None, reason=None)

    assert [one.outcome for one in done] == ["erased", "held"]
    assert loud(tmp_path / "recordings" / "s-2" / "s-2-0.wav") == list(range(10))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return secret_key(tmp_path)


@pytest.mark.parametrize("away", [False, True], ids=["here", "in the archive alone"])
async def test_with_the_key_encrypted_audio_is_silenced_and_encrypted_again(
    tmp_path: Path, key: Path, away: bool
) -> None:
    opened, out = tmp_path / "opened", tmp_path / "out"
    opened.mkdir()
    how: dict[str, Any] = {"recipients": recipients_of(key)}
    if away:
        how["keep_local"] = timedelta(hours=1)
    async with desk(tmp_path) as here:
        row = await here.row("s-1")
        assert row is not None
        folder = Path(row.folder)
        encrypt_bytes(b"Carol: zanzibar", folder / original_name("s-1", 1), how["recipients"])
        before = await here.keep(**how)
        assert (before.plain_gone_at is not None, before.local_gone_at is not None) == (True, away)

        (found,) = await here.eraser.erase(WHOM, by=None, reason=None, keys=Keys(Identities(key)))
        (line,) = await here.database.read(lambda c: erasure.lines(c, 9))
        between = sorted(one.name for one in folder.iterdir())
        after = await here.keep(**how)
        row = await here.row("s-1")
        await fetch(here.database, Stores(here.store, {}), "s-1", out=out, clock=lambda: START)

    assert (found.outcome, found.treatment) == ("erased", "sealed_again")
    assert json.loads(line.detail)["audio_sealed_again"] == ["s-1"]
    # Nothing in the clear, and nothing of which the person could not be taken out.
    assert between == [
        "s-1-0.wav.age", "s-1-1.spool.age", "s-1-1.wav.age", "s-1-2.wav.age",
        "s-1-stereo.wav.age", "s-1.audio.json.age", "s-1.manifest.json",
    ]  # fmt: skip
    assert after.state == "done"
    assert (after.plain_gone_at is not None, after.local_gone_at is not None) == (True, away)
    in_store = {one.name for one in (tmp_path / "store").rglob("*") if one.is_file()}
    assert in_store == {*between, "manifest.json"} - {"s-1.manifest.json"}
    assert row is not None
    noted = {one.name: one.sha256 for one in AUDIO.validate_json(row.audio or "").files}
    for one in out.glob("*.age"):
        passed = decrypt_file(one, opened / one.name.removesuffix(".age"), Identities(key))
        assert passed.plain_sha256 == noted.get(one.name.removesuffix(".age"), passed.plain_sha256)
    assert loud(opened / "s-1-0.wav") == []
    assert loud(opened / "s-1-1.wav") == list(range(10))
    assert json.loads((opened / "s-1.audio.json").read_text())["legs"][0]["keys"] == []


async def test_cut_off_before_the_rows_were_changed_the_same_request_does_the_rest(
    tmp_path: Path, key: Path
) -> None:
    keys = Keys(Identities(key))
    async with desk(tmp_path) as here:
        await here.keep(recipients=recipients_of(key))
        row = await here.row("s-1")
        assert row is not None
        (Path(row.folder) / ".altering").mkdir()  # of one that was killed
        (Path(row.folder) / ".altering" / "s-1-0.wav").write_bytes(b"zanzibar")
        with rows_refused(tmp_path):
            (cut_off,) = await here.eraser.erase(WHOM, by=None, reason=None, keys=keys)

        (found,) = await here.eraser.erase(WHOM, by=None, reason=None, keys=keys)
        kept = await here.keep(recipients=recipients_of(key))
        row = await here.row("s-1")

    assert (cut_off.outcome, cut_off.cause) == ("failed", "disk full")
    assert (found.outcome, found.treatment, kept.state) == ("erased", "sealed_again", "done")
    assert row is not None
    assert verify(row, kept).troubles == ()
    assert not (Path(row.folder) / ".altering").exists()


async def test_what_is_fetched_meanwhile_does_not_take_the_place_of_what_was_silenced(
    tmp_path: Path,
) -> None:
    hour = timedelta(hours=1)
    wish = Alteration(lambda folder: None, frozenset({"0"}), needed=True, originals=True)
    async with desk(tmp_path) as here:
        row = await here.row("s-1")
        assert row is not None
        await here.keep(keep_local=hour)
        stores = Stores(here.store, {})

        async with here.eraser._audio.altered(row, wish, Keys()):
            silenced = Path(row.folder) / "s-1-0.wav"
            silenced.write_bytes(b"silence")
            with pytest.raises(NotInStore, match="somebody works at the files of s-1"):
                await fetch(here.database, stores, "s-1", clock=lambda: START)
            assert silenced.read_bytes() == b"silence"
        back = await fetch(here.database, stores, "s-1", clock=lambda: START)
        kept = await here.database.read(lambda c: deposits.get(c, "s-1"))

    assert {one.parent for one in back} == {Path(row.folder)}
    assert kept is not None
    assert (kept.local_gone_at, kept.runner) == (None, None)


@pytest.mark.parametrize("away", [False, True], ids=["here", "in the archive alone"])
async def test_what_one_that_was_killed_had_opened_is_gone_when_the_bridge_is_back(
    tmp_path: Path, key: Path, away: bool
) -> None:
    how: dict[str, Any] = {"recipients": recipients_of(key)}
    if away:
        how["keep_local"] = timedelta(hours=1)
    async with desk(tmp_path) as here:
        row = await here.row("s-1")
        assert row is not None
        folder = Path(row.folder)
        await here.keep(**how)
        kept_here = {one.name for one in folder.glob("*")}
        at = START + timedelta(hours=7)
        await here.database.write(lambda c: deposits.take(c, "s-1", "altering-1", at))
        (folder / ".altering").mkdir(parents=True)
        (folder / ".altering" / "s-1-0.wav").write_bytes(b"zanzibar")

        async def bridge(clock: datetime) -> str | None:
            custodian = Custodian(
                here.database, here.metrics, Safekeeping(store=here.store, **how),
                Stores(here.store, {}), clock=lambda: clock,
            )  # fmt: skip
            running = asyncio.create_task(custodian.run())
            await asyncio.wait([running], timeout=0.3)
            running.cancel()
            await asyncio.wait([running])
            kept = await here.database.read(lambda c: deposits.get(c, "s-1"))
            return kept.runner if kept is not None else None

        assert await bridge(at) == "altering-1"  # it may be alive
        assert (folder / ".altering").exists()
        assert await bridge(at + timedelta(minutes=2)) is None

    assert {one.name for one in folder.glob("*")} == kept_here
    assert folder.exists() == (not away)


async def test_without_the_key_nothing_is_done_to_encrypted_audio_but_what_is_chosen(
    tmp_path: Path, key: Path
) -> None:
    async with desk(tmp_path) as here:
        row = await here.row("s-1")
        assert row is not None
        folder = Path(row.folder)
        await here.keep(recipients=recipients_of(key))
        other = secret_key(tmp_path, "other.key")
        before = {one.name: one.read_bytes() for one in folder.iterdir()}

        (due,) = await here.eraser.find(WHOM)
        (untouched,) = await here.eraser.erase(WHOM, by=None, reason=None)
        (wrong,) = await here.eraser.erase(WHOM, by=None, reason=None, keys=Keys(Identities(other)))
        assert {one.name: one.read_bytes() for one in folder.iterdir()} == before
        (found,) = await here.eraser.erase(WHOM, by=None, reason=None, keys=Keys(delete=True))
        line, *_ = await here.database.read(lambda c: erasure.lines(c, 9))
        kept = await here.keep(recipients=recipients_of(key))
        row = await here.row("s-1")

    assert (due.kept, due.outcome) == ("encrypted", "due")
    assert untouched.outcome == wrong.outcome == "failed"
    assert "the audio is encrypted: give a key" in (untouched.cause or "")
    assert "the key does not open it" in (wrong.cause or "")
    assert (found.outcome, found.treatment) == ("erased", "deleted")
    assert json.loads(line.detail)["audio_deleted"] == ["s-1"]
    left = {"s-1-1.wav.age", "s-1-1.spool.age"}
    assert {one.name for one in folder.iterdir()} == {*left, "s-1.manifest.json"}
    in_store = {one.name for one in (tmp_path / "store").rglob("*") if one.is_file()}
    assert in_store == {*left, "manifest.json"}
    assert row is not None
    audio = AUDIO.validate_json(row.audio or "")
    assert ([leg.label for leg in audio.legs], audio.stereo) == (["1"], None)
    assert verify(row, kept).troubles == ()
    assert Vcons(files="stereo").of(row, None).as_json()


async def test_where_all_streams_have_the_voice_all_of_the_encrypted_audio_goes(
    tmp_path: Path, key: Path
) -> None:
    async with desk(tmp_path) as here:
        row = await here.row("s-1")
        assert row is not None
        alone = document("s-1").model_copy(
            update={
                "streams": tuple(
                    one.model_copy(
                        update={"presences": (Presence(participant_id=CAROL.id, since=START),)}
                    )
                    for one in document("s-1").streams
                )
            }
        )
        await here.database.write(
            lambda c: recordings.update(c, "s-1", document=alone.model_dump_json())
        )
        await here.keep(recipients=recipients_of(key))

        (found,) = await here.eraser.erase(WHOM, by=None, reason=None, keys=Keys(delete=True))
        after = await here.row("s-1")
        await Custodian(
            here.database, here.metrics, Safekeeping(store=here.store), Stores(here.store, {}),
            clock=lambda: START + timedelta(hours=9),
        ).go_round()  # fmt: skip
        kept = await here.database.read(lambda c: deposits.get(c, "s-1"))

    assert found.outcome == "erased"
    assert after is not None
    assert after.audio_deleted_at is not None
    assert kept is None
    assert not [one for one in (tmp_path / "store").rglob("*") if one.is_file()]
    assert not [one for one in Path(row.folder).glob("*.age")]


async def test_a_vcon_that_tells_of_the_person_goes_and_a_new_one_does_not(tmp_path: Path) -> None:
    async def vcon_of(here: Desk) -> Event:
        row = await here.row("s-1")
        spoken = await here.database.read(lambda c: transcripts.get(c, "s-1"))
        assert row is not None
        assert spoken is not None
        return await VconEvents(Vcons()).event(row, spoken_of(spoken))

    async with desk(tmp_path) as here:
        before = await vcon_of(here)
        await here.database.write(lambda c: outbox.append(c, [before], ["amqp"]))
        await here.eraser.erase(WHOM, by=None, reason=None)
        kinds = {one.type for one in await here.events()}
        after = await vcon_of(here)
        left = [one for one in SECRETS if one.encode() in everything(tmp_path)]

    assert "session.vcon" not in kinds
    assert left == ["p-carol"]  # in the event that tells of the erasure
    assert "Quux" in before.body
    assert not [one for one in SECRETS if one in after.body]


async def test_cut_off_between_two_sessions_the_audit_says_what_was_done_and_what_is_due(
    tmp_path: Path,
) -> None:
    async with desk(tmp_path) as here:
        await here.add("s-2")
        change = here.eraser._audio.altered

        @asynccontextmanager
        async def cut_off_at_the_second(row: SessionRow, *given: Any) -> AsyncIterator[Altered]:
            if row.id == "s-2":
                raise asyncio.CancelledError
            async with change(row, *given) as altered:
                yield altered

        here.eraser._audio.altered = cut_off_at_the_second  # type: ignore[method-assign,assignment]
        with pytest.raises(asyncio.CancelledError):
            await here.eraser.erase(WHOM, by="dpo", reason=None)
        (line,) = await here.database.read(lambda c: erasure.lines(c, 9))

    assert json.loads(line.detail) == {"due": ["s-2"], "erased": ["s-1"]}


async def test_told_to_end_it_leaves_the_rest_due(tmp_path: Path) -> None:
    async with desk(tmp_path) as here:
        await here.add("s-2")
        may = iter([True, False])

        found = await here.eraser.erase(WHOM, by=None, reason=None, go_on=lambda: next(may))
        (line,) = await here.database.read(lambda c: erasure.lines(c, 9))

    assert [one.outcome for one in found] == ["erased", "due"]
    assert json.loads(line.detail) == {"due": ["s-2"], "erased": ["s-1"]}
