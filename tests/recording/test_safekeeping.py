"""What becomes of recordings after the call: nothing goes before it is proven to be elsewhere."""

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyrage import x25519
from sqlalchemy import Connection
from typer.testing import CliRunner

from harness.age import recipients_of, secret_key
from siprec_bridge.cli import app
from siprec_bridge.cli.archive import _condition
from siprec_bridge.media import FinishedAudio
from siprec_bridge.media.audio_file import FinishedFile
from siprec_bridge.recording import (
    AudioAway,
    Custodian,
    Keep,
    NotInStore,
    Orders,
    Retention,
    Safekeeping,
    Stores,
    UnderHold,
    fetch,
)
from siprec_bridge.recording.integrity import verify, verify_stored
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import Database, DepositRow, JobRow, SessionRow, deposits, jobs, recordings
from siprec_bridge.store.jobs import JobState
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcription import Wish
from siprec_bridge.vault import (
    Damaged,
    Identities,
    Manifest,
    ObjectError,
    ObjectStore,
    Recipients,
    Sums,
    decrypt_file,
    encrypt_bytes,
    open_store,
    original_name,
)

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Weather:
    """A store before which somebody stands: `trouble` is raised at each put, `spoils` what is put."""

    def __init__(self, store: ObjectStore, root: Path) -> None:
        self._store = store
        self._root = root
        self.place = store.place
        self.trouble: Exception | None = None
        self.spoils = ""  # the end of the names of what is spoilt
        self.puts: list[str] = []
        self.waits: threading.Event | None = None

    def put(self, key: str, source: Path, stop: threading.Event) -> Sums:
        if self.waits is not None:
            self.waits.wait(10)
        if self.trouble is not None:
            raise self.trouble
        self.puts.append(key.rpartition("/")[2])
        sums = self._store.put(key, source, stop)
        if self.spoils and key.endswith(self.spoils):
            path = self._root / key
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        return sums

    def check(self, key: str, sums: Sums, stop: threading.Event) -> None:
        self._store.check(key, sums, stop)

    def proves(self, key: str, sums: Sums) -> bool:
        return self._store.proves(key, sums)

    def size(self, key: str) -> int:
        return self._store.size(key)

    def read(self, key: str, start: int, end: int) -> bytes:
        return self._store.read(key, start, end)

    def delete(self, key: str) -> None:
        if self.trouble is not None:
            raise self.trouble
        self._store.delete(key)


@dataclass
class House:
    """A database with recordings, a store for them, and a clock that is turned by hand."""

    folder: Path
    database: Database
    store: Weather
    metrics: Metrics = field(default_factory=Metrics)
    now: datetime = NOW

    async def record(self, id: str = "s1", job: JobState = "done") -> Path:
        """A finished session; returns its folder."""
        folder = self.folder / "recordings" / id
        folder.mkdir(parents=True)
        audio = f"the voice of {id}".encode() * 500
        files = {
            f"{id}-0.wav": audio,
            f"{id}-stereo.wav": audio * 2,
            f"{id}-0.spool": b"packets",
            f"{id}.audio.json": b"{}",
        }
        for name, data in files.items():
            (folder / name).write_bytes(data)
        noted = tuple(
            FinishedFile(name, len(data), hashlib.sha256(data).hexdigest())
            for name, data in files.items()
            if name.endswith(".wav")
        )
        row = SessionRow(
            id, f"{id}@pbx", "finished", NOW, "udp:192.0.2.1:5060", str(folder),
            SessionDocument(session_id=id).model_dump_json(), ended_at=NOW,
            audio=AUDIO.dump_json(FinishedAudio((), files=noted)).decode(),
        )  # fmt: skip
        made = JobRow(f"{id}.1", id, "whisper", 1.0, NOW, job)

        def store(connection: Connection) -> None:
            recordings.insert(connection, row)
            jobs.insert(connection, made)
            deposits.add(connection, id, None, NOW)

        await self.database.write(store)
        return folder

    async def go_round(self, *, passed: timedelta = timedelta(0), **keeping: object) -> None:
        """All that is due after this time, as a bridge would do it that was just started."""
        self.now += passed
        await self.database.write(partial(deposits.release, node=None))
        chosen = Safekeeping(**({"store": self.store} | keeping))  # type: ignore[arg-type]
        await Custodian(
            self.database, self.metrics, chosen, self.stores, clock=lambda: self.now
        ).go_round()

    @property
    def stores(self) -> Stores:
        return Stores(self.store, {})

    def retention(self, keep: Keep | None = None) -> Retention:
        return Retention(self.database, self.metrics, keep or Keep(), clock=lambda: self.now)

    async def deposit(self, id: str = "s1") -> DepositRow:
        row = await self.database.read(partial(deposits.get, session_id=id))
        assert row is not None
        return row

    async def session(self, id: str = "s1") -> SessionRow:
        row = await self.database.read(partial(recordings.get, session_id=id))
        assert row is not None
        return row

    async def end_job(self, id: str = "s1", state: JobState = "done") -> None:
        def end(connection: Connection) -> None:
            connection.exec_driver_sql(
                f"UPDATE jobs SET state = '{state}' WHERE session_id = '{id}'"
            )

        await self.database.write(end)

    async def change(self, audio: FinishedAudio, id: str = "s1") -> None:
        """Note other files than there were, as redaction and erasure do."""

        def note(connection: Connection) -> None:
            recordings.update(connection, id, audio=AUDIO.dump_json(audio).decode())
            deposits.changed(connection, id, self.now)

        await self.database.write(note)

    def stored(self) -> dict[str, bytes]:
        """What is in the store."""
        root = self.folder / "store"
        return {
            str(one.relative_to(root)): one.read_bytes() for one in root.rglob("*") if one.is_file()
        }

    def count(self, series: str) -> float:
        """The value of a series."""
        for line in self.metrics.render().decode().splitlines():
            if line.startswith(f"siprec_{series} "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no series {series}")


@asynccontextmanager
async def house(folder: Path) -> AsyncIterator[House]:
    (folder / "store").mkdir()
    database = Database(f"sqlite:///{folder / 'a.db'}")
    await database.start()
    store = Weather(open_store(str(folder / "store")), folder / "store")
    try:
        yield House(folder, database, store)
    finally:
        await database.stop()


def names(folder: Path) -> set[str]:
    """Of the files in a folder, with what each ends in."""
    return {one.name for one in folder.iterdir()} if folder.exists() else set()


PLAIN = {"s1-0.wav", "s1-stereo.wav", "s1-0.spool", "s1.audio.json"}
SEALED = {f"{name}.age" for name in PLAIN}


async def test_all_files_are_stored_with_the_manifest_last_and_stay_here(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        folder = await here.record()

        await here.go_round()

        stored = here.stored()
        manifest = Manifest.model_validate_json(stored.pop("2026/05/04/s1/manifest.json"))
        assert here.store.puts[-1] == "manifest.json"
        assert stored == {f"2026/05/04/s1/{name}": (folder / name).read_bytes() for name in PLAIN}
        assert {one.name: one.sha256 for one in manifest.files} == {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in PLAIN
        }
        assert (manifest.session, manifest.sip_call_id, manifest.recipients) == ("s1", "s1@pbx", ())
        row = await here.deposit()
        assert (row.state, row.stored_at, row.local_gone_at) == ("done", NOW, None)
        sent = sum(len(data) for data in here.stored().values())
        assert here.count("archive_uploaded_bytes_total") == sent
        assert here.count('archive_tries_total{result="done",what="keep"}') == 1
        assert here.count('archive_pending{what="keep"}') == 0


async def test_what_was_recorded_before_anybody_wanted_it_is_stored_too(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        await here.record()
        await here.database.write(lambda connection: deposits.forget(connection, ["s1"]))

        await here.go_round()

        assert "2026/05/04/s1/manifest.json" in here.stored()


async def test_a_store_that_is_away_is_tried_for_days_and_then_has_everything(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as here:
        await here.record()
        here.store.trouble = ObjectError("store: connection refused")
        waits = []
        for _ in range(12):
            await here.go_round(keep_local=HOUR)
            row = await here.deposit()
            waits.append((row.not_before - here.now).total_seconds())
            here.now = row.not_before
        await here.go_round(passed=timedelta(days=3), keep_local=HOUR)
        row = await here.deposit()
        assert (row.reason, row.attempts) == ("store: connection refused", 13)
        assert waits[:4] == [2, 4, 8, 16]
        assert max(waits) == 900
        assert here.count("archive_failing") == 1
        assert here.count('archive_pending{what="keep"}') == 1
        assert here.count("archive_pending_bytes") > 15_000
        assert here.count("archive_oldest_age_seconds") > 3 * 24 * 3600
        assert here.count('archive_tries_total{result="failed",what="keep"}') == 13
        assert names(tmp_path / "recordings" / "s1") >= PLAIN

        here.store.trouble = None
        await here.go_round(passed=HOUR, keep_local=HOUR)

        assert (await here.deposit()).reason is None
        assert len(here.stored()) == 5
        assert here.count("archive_failing") == 0
        assert here.count("archive_oldest_age_seconds") == 0


async def test_a_store_that_is_away_is_asked_by_one_session_alone_and_not_at_once(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as here:
        for number in range(8):
            await here.record(f"s{number}")
        keeper = Custodian(
            here.database, here.metrics, Safekeeping(here.store), here.stores,
            clock=lambda: here.now,
        )  # fmt: skip
        here.store.trouble = ObjectError("store: connection refused")
        tries = []
        for seconds in (0, 1, 10, 1, 60):
            here.now += timedelta(seconds=seconds)
            await keeper.go_round()
            tries.append(here.count('archive_tries_total{result="failed",what="keep"}'))

        here.store.trouble = None
        here.now += timedelta(minutes=2)
        await keeper.go_round()

        assert tries == [3, 3, 4, 4, 5]
        assert here.count('archive_tries_total{result="done",what="keep"}') == 8
        assert len([name for name in here.stored() if name.endswith("manifest.json")]) == 8


async def test_no_more_than_a_few_are_sent_at_once(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        for number in range(8):
            await here.record(f"s{number}")
        here.store.waits = threading.Event()
        keeper = Custodian(
            here.database, here.metrics, Safekeeping(here.store), here.stores,
            clock=lambda: here.now,
        )  # fmt: skip

        for _ in range(3):
            await keeper._begin()
        at_once = len(keeper._tasks)
        here.store.waits.set()
        await keeper.go_round()

        assert at_once == 3
        assert len([name for name in here.stored() if name.endswith("manifest.json")]) == 8


async def test_an_upload_that_arrives_damaged_is_noticed_and_repeated(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        await here.record()
        here.store.spoils = "stereo.wav"

        await here.go_round(keep_local=timedelta(seconds=1))

        row = await here.deposit()
        assert row.state == "pending"
        assert row.reason == (
            "2026/05/04/s1/s1-stereo.wav: the store has other content than it was given"
        )
        assert "2026/05/04/s1/manifest.json" not in here.stored()
        here.store.spoils = ""
        await here.go_round(passed=HOUR)
        assert verify_stored(await here.session(), await here.deposit(), here.store).troubles == ()


async def test_a_local_file_that_was_changed_is_not_stored_as_if_it_were_sound(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as here:
        folder = await here.record()
        (folder / "s1-0.wav").write_bytes(b"forged")

        await here.go_round()

        assert (await here.deposit()).reason == (
            "s1-0.wav: its content was changed since it was finished"
        )
        assert here.stored() == {}


@pytest.mark.parametrize("job", ["queued", "running", "failed"])
async def test_local_audio_stays_until_it_is_transcribed(tmp_path: Path, job: JobState) -> None:
    async with house(tmp_path) as here:
        folder = await here.record(job=job)
        key = str(x25519.Identity.generate().to_public())
        keeping: dict[str, Any] = {"keep_local": HOUR, "recipients": Recipients((key,))}

        await here.go_round(**keeping)
        await here.go_round(passed=30 * 24 * HOUR, **keeping)

        assert names(folder) >= PLAIN
        assert {Path(one).name for one in here.stored()} == SEALED | {"manifest.json"}
        await here.end_job()
        await here.go_round(**keeping)
        assert names(folder) == set()
        assert len(here.stored()) == 5


async def test_local_files_go_when_their_time_is_over_and_can_be_had_back(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        folder = await here.record()
        was = {name: (folder / name).read_bytes() for name in PLAIN}
        await here.go_round(keep_local=HOUR)
        await here.go_round(passed=HOUR / 2, keep_local=HOUR)
        assert names(folder) >= PLAIN

        await here.go_round(passed=HOUR, keep_local=HOUR)

        row, session = await here.deposit(), await here.session()
        assert (row.state, row.local_gone_at, folder.exists()) == ("done", here.now, False)
        assert session.audio_bytes == 0
        assert verify(session, row).unsaid == "it is in the archive only: --stored"
        orders = Orders("whisper", ("whisper",))
        with pytest.raises(AudioAway, match="siprec-bridge archive fetch s1"):
            await orders.again(here.database, "s1", Wish(), NOW)
        back = partial(fetch, here.database, here.stores, "s1", clock=lambda: here.now)
        await back(out=tmp_path / "copy")
        await back(keep_local=HOUR)
        for place in (folder, tmp_path / "copy"):
            assert {name: (place / name).read_bytes() for name in PLAIN} == was
        await orders.again(here.database, "s1", Wish(), NOW)
        await here.go_round(passed=2 * HOUR, keep_local=HOUR)
        assert names(folder) >= PLAIN  # the new job may want it
        await here.end_job()
        await here.go_round(keep_local=HOUR)
        assert not folder.exists()


async def test_what_the_store_has_lost_meanwhile_is_not_deleted_here_but_stored_again(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as here:
        folder = await here.record()
        await here.go_round(keep_local=HOUR)
        (tmp_path / "store/2026/05/04/s1/s1-0.wav").unlink()

        await here.go_round(passed=HOUR, keep_local=HOUR)

        assert names(folder) >= PLAIN
        assert len(here.stored()) == 5
        assert (await here.deposit()).stored_at == here.now


async def test_encrypted_recordings_can_be_read_by_their_recipients_and_not_by_us(
    tmp_path: Path,
) -> None:
    key = secret_key(tmp_path)
    recipients = recipients_of(key)
    async with house(tmp_path) as here:
        folder = await here.record(job="running")
        was = {name: (folder / name).read_bytes() for name in PLAIN}

        # Without a store nothing is encrypted before it has been transcribed.
        await here.go_round(store=None, recipients=recipients)
        assert names(folder) == PLAIN
        await here.end_job()
        await here.go_round(store=None, recipients=recipients)

        assert names(folder) == SEALED | {"s1.manifest.json"}
        row, session = await here.deposit(), await here.session()
        manifest = Manifest.model_validate_json((folder / "s1.manifest.json").read_bytes())
        assert row.manifest == manifest.model_dump_json()
        assert (row.state, row.plain_gone_at, row.place) == ("done", here.now, None)
        found = verify(session, row)
        assert (found.files, found.troubles) == (4, ())
        for one in manifest.files:
            decrypt_file(folder / one.kept_name, tmp_path / one.name, Identities(key))
            assert (tmp_path / one.name).read_bytes() == was[one.name]
            assert hashlib.sha256(was[one.name]).hexdigest() == one.sha256
        with pytest.raises(AudioAway, match="encrypted"):
            await Orders("whisper", ("whisper",)).again(here.database, "s1", Wish(), NOW)
        (folder / "s1-0.wav.age").write_bytes(b"forged")
        assert "s1-0.wav.age" in verify(session, row).troubles[0]


async def test_originals_go_where_the_other_files_go_and_are_opened_by_the_same_command(
    tmp_path: Path,
) -> None:
    key = secret_key(tmp_path)
    recipients = recipients_of(key)
    async with house(tmp_path) as here:
        folder = await here.record()
        original = folder / original_name("s1", 1)
        encrypt_bytes(b'{"text": "4111"}', original, recipients)
        await here.go_round(recipients=recipients)
        row, session = await here.deposit(), await here.session()
        found = verify(session, row)
        sent = set(here.store.puts)
        orders = ["recordings", "decrypt", "--identity", str(key), str(folder), "--out"]
        opened = CliRunner().invoke(app, [*orders, str(tmp_path / "out")])
        encrypt_bytes(b"{}", original, recipients)
        forged = CliRunner().invoke(app, [*orders, str(tmp_path / "other")])
        await here.go_round(recipients=recipients, keep_local=HOUR, passed=2 * HOUR)

    assert names(folder) >= SEALED | {original.name}
    assert (found.files, found.troubles) == (5, ())
    assert original.name in sent
    assert opened.exit_code == 0, opened.output
    assert opened.output.count("as recorded") == 5
    assert (tmp_path / "out" / "s1-1.original.json").read_bytes() == b'{"text": "4111"}'
    assert (forged.exit_code, "s1-1.original.json: is not what was" in forged.output) == (1, True)


async def test_plain_files_go_after_their_time_even_if_nobody_has_transcribed_them(
    tmp_path: Path,
) -> None:
    recipients = Recipients((str(x25519.Identity.generate().to_public()),))
    keeping: dict[str, Any] = {"recipients": recipients, "plain_for": HOUR, "keep_local": 2 * HOUR}
    async with house(tmp_path) as here:
        folder = await here.record(job="queued")
        await here.go_round(**keeping)
        assert names(folder) >= PLAIN

        await here.go_round(passed=1.5 * HOUR, **keeping)

        assert names(folder) == SEALED | {"s1.manifest.json"}
        await here.go_round(passed=HOUR, **keeping)
        assert not folder.exists()


async def test_without_encryption_that_time_deletes_nothing_that_waits_for_its_transcription(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as here:
        folder = await here.record(job="queued")

        await here.go_round(plain_for=HOUR, keep_local=HOUR)
        await here.go_round(plain_for=HOUR, keep_local=HOUR, passed=9 * HOUR)

        assert names(folder) >= PLAIN


async def test_killed_between_encrypting_and_deleting_it_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipients = Recipients((str(x25519.Identity.generate().to_public()),))
    keeping: dict[str, Any] = {"store": None, "recipients": recipients}
    async with house(tmp_path) as here:
        folder = await here.record()
        (folder / "s1-0.wav.age").write_bytes(b"half of what an earlier try wro")
        (folder / ".s1-stereo.wav.age.part").write_bytes(b"half")
        unlink = Path.unlink

        def dies(path: Path, missing_ok: bool = False) -> None:
            if path.name == "s1-stereo.wav":
                raise asyncio.CancelledError  # as when we are told to stop
            unlink(path, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", dies)
            with pytest.raises(asyncio.CancelledError):
                await here.go_round(**keeping)
        half = names(folder)
        row = await here.deposit()
        assert half & PLAIN
        assert half >= SEALED
        assert (row.dropping, row.plain_gone_at) == ("plain", here.now)

        await here.go_round(**keeping)

        assert names(folder) - {".s1-stereo.wav.age.part"} == SEALED | {"s1.manifest.json"}
        row = await here.deposit()
        assert (row.state, row.dropping) == ("done", None)
        assert verify(await here.session(), row).troubles == ()


async def test_deleting_a_session_deletes_its_objects_when_the_store_is_back(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as here:
        await here.record("s1")
        await here.record("s2")
        await here.go_round()
        here.store.trouble = ObjectError("away")

        assert await here.retention().delete("s1")
        await here.go_round()
        assert len(here.stored()) == 10
        assert here.count('archive_pending{what="delete"}') == 1
        here.store.trouble = None
        await here.go_round(passed=HOUR)

        assert {Path(one).parent.name for one in here.stored()} == {"s2"}
        assert await here.database.read(partial(deposits.get, session_id="s1")) is None
        assert here.count('archive_tries_total{result="done",what="delete"}') == 1


async def test_what_is_held_stays_in_the_store_too_whatever_its_age(tmp_path: Path) -> None:
    keep = Keep(audio=HOUR, sessions=2 * HOUR)
    async with house(tmp_path) as here:
        await here.record("held")
        await here.record("old")
        held = json.dumps({"by": "court"})
        await here.database.write(partial(recordings.update, session_id="held", held=held))
        await here.go_round(keep_local=HOUR)

        await here.go_round(keep_local=HOUR, passed=90 * 24 * HOUR)
        await here.retention(keep).go_round()
        with pytest.raises(UnderHold):
            await here.retention().delete("held")
        await here.go_round(keep_local=HOUR)

        assert {Path(one).parent.name for one in here.stored()} == {"held"}
        await here.database.write(partial(recordings.update, session_id="held", held=None))
        await here.retention(Keep(audio=HOUR)).go_round()
        await here.go_round(keep_local=HOUR)
        assert here.stored() == {}
        assert (await here.session("held")).audio_deleted_at is not None


async def test_for_want_of_room_only_what_is_here_goes_and_nothing_that_is_not_stored_yet(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as here:
        for id in ("s1", "s2"):
            await here.record(id)
        await here.go_round()
        await here.record("s3")
        here.store.trouble = ObjectError("away")

        await here.retention(Keep(audio_size=1)).go_round()
        here.store.trouble = None
        room = [(tmp_path / "recordings" / id).exists() for id in ("s1", "s2", "s3")]
        await here.go_round()

        assert room == [True, True, True]  # until the custodian has looked that they are stored
        assert names(tmp_path / "recordings") == {"s3"}
        assert {Path(one).parent.name for one in here.stored()} == {"s1", "s2", "s3"}
        assert (await here.session("s1")).audio_deleted_at is None


async def test_a_session_that_is_deleted_while_it_is_sent_leaves_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        await here.record()
        here.store.waits = threading.Event()
        sending = asyncio.create_task(here.go_round())
        async with asyncio.timeout(10):
            while (await here.deposit()).manifest is None:  # noqa: ASYNC110  a thread makes it
                await asyncio.sleep(0.01)

        assert await here.retention().delete("s1")
        here.store.waits.set()
        await sending
        await here.go_round()

        assert here.stored() == {}
        assert not (tmp_path / "recordings" / "s1").exists()
        assert await here.database.read(partial(deposits.get, session_id="s1")) is None


async def test_taken_there_anew_what_is_no_more_goes_and_what_was_changed_is_replaced(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as here:
        folder = await here.record()
        await here.go_round()
        (folder / "s1-0.spool").unlink()
        (folder / "s1.audio.json").write_bytes(b'{"redacted": true}')

        tried = await here.database.write(partial(deposits.again, now=here.now, session_id="s1"))
        await here.go_round()

        stored = {Path(one).name: data for one, data in here.stored().items()}
        assert tried == 1
        assert set(stored) == PLAIN - {"s1-0.spool"} | {"manifest.json"}
        assert stored["s1.audio.json"] == b'{"redacted": true}'


async def test_what_is_encrypted_can_be_taken_to_another_store_as_it_is(tmp_path: Path) -> None:
    recipients = Recipients((str(x25519.Identity.generate().to_public()),))
    async with house(tmp_path) as here:
        folder = await here.record()
        await here.go_round(store=None, recipients=recipients)
        sealed = {name: (folder / name).read_bytes() for name in SEALED}

        tried = await here.database.write(partial(deposits.again, now=here.now, session_id="s1"))
        await here.go_round(recipients=recipients)

        stored = {Path(one).name: data for one, data in here.stored().items()}
        assert tried == 1
        assert stored.pop("manifest.json") == (folder / "s1.manifest.json").read_bytes()
        assert stored == sealed


async def test_a_mistake_of_ours_costs_one_sessions_try_and_no_others(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        await here.record("s1")
        await here.record("s2")
        await here.database.write(
            partial(recordings.update, session_id="s1", audio="no audio document")
        )

        await here.go_round()

        assert {Path(one).parent.name for one in here.stored()} == {"s2"}
        assert (await here.deposit("s1")).attempts == 1


async def test_nothing_leaves_the_machine_before_its_transcription_where_that_is_wanted(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as here:
        await here.record(job="running")

        await here.go_round(after_transcription=True)
        before = here.stored()
        await here.end_job()
        await here.go_round(after_transcription=True)

        assert before == {}
        assert len(here.stored()) == 5


async def test_a_copy_that_is_not_what_was_stored_does_not_come_back(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        folder = await here.record()
        back = partial(fetch, here.database, here.stores, clock=lambda: here.now)
        with pytest.raises(NotInStore, match="was not archived"):
            await back("s1")
        with pytest.raises(LookupError):
            await back("nobody")
        await here.go_round(keep_local=HOUR)
        with pytest.raises(NotInStore, match="are in"):
            await back("s1")
        await here.go_round(keep_local=HOUR, passed=HOUR)
        (tmp_path / "store/2026/05/04/s1/s1-0.wav").write_bytes(b"forged")

        with pytest.raises((Damaged, OSError), match=r"s1-0\.wav"):
            await back("s1")

        assert not (folder / "s1-0.wav").exists()
        assert (await here.deposit()).local_gone_at is not None
        session, row = await here.session(), await here.deposit()
        assert "s1-0.wav: 6 octets" in verify_stored(session, row, here.store).troubles[0]


async def test_audio_that_is_still_to_be_redacted_goes_nowhere_before_it_is(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as here:
        await here.record()
        audio = AUDIO.validate_json((await here.session()).audio or "")
        await here.change(replace(audio, withheld=True, redact=("card",)))

        await here.go_round()
        kept_back = here.stored(), await here.deposit()
        await here.change(audio)
        await here.go_round()

        assert kept_back[0] == {}
        assert _condition(kept_back[1]) == kept_back[1].reason  # as `archive list` shows it
        assert (kept_back[1].state, str(kept_back[1].reason)[:9]) == ("done", "withheld:")
        assert "2026/05/04/s1/manifest.json" in here.stored()
        assert (await here.deposit()).reason is None


async def test_files_that_were_changed_take_the_place_of_what_a_store_had(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        folder = await here.record()
        await here.go_round()
        audio = AUDIO.validate_json((await here.session()).audio or "")
        (folder / "s1-0.spool").unlink()
        silent = bytes((folder / "s1-0.wav").stat().st_size)
        (folder / "s1-0.wav").write_bytes(silent)
        noted = [
            replace(one, sha256=hashlib.sha256(silent).hexdigest())
            if one.name == "s1-0.wav"
            else one
            for one in audio.files
        ]

        await here.change(replace(audio, files=tuple(noted)))
        await here.go_round()

        stored = here.stored()
        assert stored["2026/05/04/s1/s1-0.wav"] == silent
        assert "2026/05/04/s1/s1-0.spool" not in stored
        assert (await here.deposit()).stored_at == here.now
