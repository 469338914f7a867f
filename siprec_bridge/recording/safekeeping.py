"""What becomes of a session's files after the call: encrypted, taken to a store, deleted here.

Each step is noted before the next one begins and can be repeated, so that a bridge that was killed
goes on where it was. Nothing here is deleted before the store has proven that it has it, nor what a
transcription may want; nothing is given up, however long a store is away.
"""

import asyncio
import contextlib
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy import Connection

from siprec_bridge.media.audio_file import write_atomically
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import (
    Database,
    DepositRow,
    SessionRow,
    StoreError,
    deposits,
    recordings,
)
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcription import address_of
from siprec_bridge.vault import (
    MANIFEST,
    Damaged,
    Interrupted,
    Layout,
    Manifest,
    NotThere,
    ObjectError,
    ObjectStore,
    Recipients,
    manifest_name,
    open_store,
    seal,
    sums_of,
    survey,
)

log = structlog.get_logger()

T = TypeVar("T")

_AT_ONCE = 3  # sessions; each holds about 50 MB while it is sent
_PAUSE_S = 1.0
_MEASURE_S = 10.0
_RENEW_S = 20.0
_FIRST_RETRY_S = 2.0
_LONGEST_RETRY_S = 900.0
_BATCH = 500


class NotInStore(Exception):
    """The session's files are in no store, or cannot be had: says why."""


@dataclass(frozen=True, slots=True)
class Safekeeping:
    """What is to become of the files.

    `store`: where they go; None: they stay here. `recipients`: whose public keys they are encrypted
    to; None: they are not. `keep_local`: after that time in the store they go here; None: never.
    `after_transcription`: nothing leaves the machine before. `plain_for`: after that time files
    are encrypted although nobody has transcribed them; None: never.
    """

    store: ObjectStore | None = None
    recipients: Recipients | None = None
    layout: Layout = Layout("{year}/{month}/{day}/{session}")  # noqa: RUF009  frozen, too
    keep_local: timedelta | None = None
    after_transcription: bool = False
    plain_for: timedelta | None = None

    @property
    def wanted(self) -> bool:
        """Whether sessions are to be entered."""
        return self.store is not None or self.recipients is not None


class Stores:
    """Opens stores by their URL: a session's objects may be in another than new ones go to."""

    def __init__(self, store: ObjectStore | None, options: Mapping[str, object]) -> None:
        self._options = options
        self._open = {store.place: store} if store is not None else {}

    def at(self, place: str) -> ObjectStore:
        """Raises ObjectError."""
        if place not in self._open:
            try:
                self._open[place] = open_store(place, self._options)
            except ConfigurationError as error:
                raise ObjectError(str(error)) from error
        return self._open[place]


class Custodian:
    """Does it, a few sessions at a time. `node`: who we are; `shared`: all nodes have all files."""

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        keeping: Safekeeping,
        stores: Stores,
        *,
        clock: Callable[[], datetime],
        node: str | None = None,
        shared: bool = False,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._keeping = keeping
        self._stores = stores
        self._clock = clock
        self._node = node
        self._shared = shared or node is None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failures = 0  # of stores, in a row
        self._resume_at: datetime | None = None

    async def run(self) -> None:
        """Go on until cancelled; what cannot be done now is tried again."""
        # What we were at when we died is ours again; that of others has leases that end.
        await self._until_stored(partial(deposits.release, node=self._node))
        measured = renewed = asyncio.get_running_loop().time() - _MEASURE_S
        entered = not self._keeping.wanted
        try:
            while True:
                now = asyncio.get_running_loop().time()
                try:
                    if not entered:
                        entered = await self._enter_older()
                    if now - measured >= _MEASURE_S:
                        await self._measure()
                        measured = now
                    if self._tasks and now - renewed >= _RENEW_S:
                        await self._renew()
                        renewed = now
                    await self._begin()
                except StoreError as error:
                    log.error("archive.database_failed", cause=str(error))
                await self._wait()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def go_round(self) -> None:
        """Do all that is due now, once. Raises StoreError."""
        if self._keeping.wanted:
            while not await self._enter_older():
                pass
        while True:
            await self._begin()
            if not self._tasks:
                break
            await asyncio.gather(*self._tasks.values())
            self._tasks.clear()
        await self._measure()

    async def _until_stored(self, work: Callable[[Connection], object]) -> None:
        while True:
            try:
                await self._database.write(work)
                return
            except StoreError as error:
                log.error("archive.database_failed", cause=str(error))
            await asyncio.sleep(_FIRST_RETRY_S)

    async def _wait(self) -> None:
        if self._tasks:
            await asyncio.wait(
                self._tasks.values(), timeout=_PAUSE_S, return_when=asyncio.FIRST_COMPLETED
            )
            for session_id in [one for one, task in self._tasks.items() if task.done()]:
                del self._tasks[session_id]
            if self._failures:
                await asyncio.sleep(_PAUSE_S)
        else:
            await asyncio.sleep(_PAUSE_S)

    async def _enter_older(self) -> bool:
        """Recordings that were finished before anybody wanted this; True: that was all."""
        found = await self._database.read(partial(deposits.older, limit=_BATCH))
        now = self._clock()

        def enter(connection: Connection) -> None:
            for session_id, node in found:
                deposits.add(connection, session_id, node, now)

        if found:
            await self._database.write(enter)
        return not found

    async def _measure(self) -> None:
        found = await self._database.read(deposits.backlog)
        metrics, now = self._metrics, self._clock()
        metrics.archive_pending.labels(what="keep").set(found.pending)
        metrics.archive_pending.labels(what="delete").set(found.deleting)
        metrics.archive_pending_bytes.set(found.octets)
        metrics.archive_failing.set(found.failing)
        age = (now - found.oldest_at).total_seconds() if found.oldest_at is not None else 0.0
        metrics.archive_oldest_age_seconds.set(max(0.0, age))

    async def _renew(self) -> None:
        ids = list(self._tasks)
        ours = await self._database.write(
            partial(deposits.renew, ids=ids, now=self._clock(), node=self._node)
        )
        for session_id in set(ids) - ours:
            log.warning("archive.lease_lost", session_id=session_id)
            self._tasks[session_id].cancel()

    async def _begin(self) -> None:
        """Start what is due; while a store fails, one session alone, to see whether it still does."""
        now = self._clock()
        room = _AT_ONCE - len(self._tasks)
        if self._failures:
            if self._tasks or (self._resume_at is not None and now < self._resume_at):
                return
            room = 1
        if room <= 0:
            return
        keeping = self._keeping
        rows = await self._database.write(
            partial(
                deposits.claim,
                limit=room,
                now=now,
                node=self._node,
                shared=self._shared,
                # Nothing is encrypted ahead of its transcription for the disk alone.
                early=keeping.store is not None and not keeping.after_transcription,
                plain_before=now - keeping.plain_for if keeping.plain_for is not None else None,
                but=self._tasks.keys(),
            )
        )
        for row in rows:
            self._tasks[row.session_id] = asyncio.create_task(
                self._work(row), name=f"archive {row.session_id}"
            )

    async def _work(self, row: DepositRow) -> None:
        structlog.contextvars.bind_contextvars(session_id=row.session_id)
        what = {"pending": "keep", "kept": "drop"}.get(row.state, "delete")
        try:
            match row.state:
                case "deleting":
                    await self._delete(row)
                case "pending":
                    await self._keep(row)
                case _:
                    await self._drop(row)
        except (OSError, StoreError, LookupError) as error:
            await self._put_off(row, what, error)
        except _Lost:
            pass
        except Exception as error:  # our own mistake: it costs this session's try, and no other's
            log.exception("archive.fault", what=what)
            await self._put_off(row, what, error)
        else:
            self._metrics.archive_tries_total.labels(what=what, result="done").inc()
            self._failures = 0
        finally:
            with contextlib.suppress(StoreError):  # then the lease ends by itself
                await self._database.write(
                    partial(deposits.release, node=self._node, session_id=row.session_id)
                )

    async def _put_off(self, row: DepositRow, what: str, error: Exception) -> None:
        """For as long as it has failed already, in doublings; whatever is the matter, we go on."""
        now, attempts = self._clock(), row.attempts + 1
        delay = min(_FIRST_RETRY_S * 2 ** min(row.attempts, 20), _LONGEST_RETRY_S)
        cause = " ".join(str(error).split()) or type(error).__name__
        self._metrics.archive_tries_total.labels(what=what, result="failed").inc()
        if isinstance(error, ObjectError) and not isinstance(error, Damaged):
            self._failures += 1
            pause = min(_FIRST_RETRY_S * 2 ** min(self._failures - 1, 20), 60.0)
            self._resume_at = now + timedelta(seconds=pause)
        log.error("archive.failed", what=what, cause=cause, tries=attempts, again_in_s=delay)
        with contextlib.suppress(StoreError):
            await self._database.write(
                partial(
                    deposits.note,
                    row=row,
                    node=self._node,
                    attempts=attempts,
                    reason=cause,
                    not_before=now + timedelta(seconds=delay),
                )
            )

    async def _keep(self, row: DepositRow) -> None:
        """Encrypt, send, prove."""
        session = await self._session(row)
        keeping, store = self._keeping, self._keeping.store
        if AUDIO.validate_json(session.audio or "{}").withheld:
            await self._leave_withheld(row)
            return
        manifest = Manifest.model_validate_json(row.manifest) if row.manifest else None
        prefix = row.prefix
        if manifest is None:
            manifest = await self._make_manifest(session)
            # What is sent anew goes where it was, whatever the layout is by now: over the old.
            prefix = prefix or keeping.layout.key(session.started_at, facts_of(session))
            await self._note(
                row,
                manifest=manifest.model_dump_json(),
                octets=manifest.octets,
                sealed_at=self._clock() if manifest.recipients else None,
                prefix=prefix,
                # Before the first octet is sent: from now on there may be objects to delete.
                place=store.place if store is not None else row.place,
            )
        elif store is not None and row.place != store.place:
            prefix = prefix or keeping.layout.key(session.started_at, facts_of(session))
            await self._note(row, place=store.place, prefix=prefix)
        now = self._clock()
        if not manifest.files:  # no stream brought anything
            await self._note(row, state="done", attempts=0, reason=None)
            return
        if store is None:
            if manifest.recipients:
                await self._note(row, state="kept", not_before=now, attempts=0, reason=None)
            else:
                await self._note(row, state="done", attempts=0, reason=None)
            return
        assert prefix is not None
        again = row.attempts > 0
        sent = await off_the_loop(
            partial(_send, store, prefix, manifest, Path(session.folder), row.stale, again)
        )
        self._metrics.archive_uploaded_bytes_total.inc(sent)
        now = self._clock()
        later = now + keeping.keep_local if keeping.keep_local is not None else None
        due = now if manifest.recipients else later
        await self._note(
            row,
            state="kept" if due is not None else "done",
            not_before=due or now,
            stored_at=now,
            attempts=0,
            reason=None,
            stale=(),
        )
        log.info(
            "archive.stored",
            sip_call_id=session.sip_call_id,
            at=f"{store.place}/{prefix}",
            files=len(manifest.files),
            octets=manifest.octets,
            encrypted=bool(manifest.recipients),
        )

    async def _leave_withheld(self, row: DepositRow) -> None:
        """What is to be taken out of the audio is still in it: it goes nowhere before that is done.

        Whoever takes it out enters the session anew; see `deposits.changed`.
        """
        reason = "withheld: what is to be taken out of the audio is still in it"
        log.warning("archive.withheld", cause=reason)
        await self._note(row, state="done", attempts=0, reason=reason)

    async def _make_manifest(self, session: SessionRow) -> Manifest:
        folder, recipients = Path(session.folder), self._keeping.recipients
        audio = AUDIO.validate_json(session.audio or "{}")
        noted = {one.name: one.sha256 for one in audio.files}

        def make(stop: threading.Event) -> Manifest:
            if recipients is None:
                files = survey(folder, noted, stop)
            else:
                files = seal(folder, noted, recipients, stop)
            manifest = Manifest(
                session=session.id,
                sip_call_id=session.sip_call_id,
                started_at=session.started_at,
                made_at=self._clock(),
                recipients=recipients.keys if recipients is not None else (),
                files=files,
            )
            if files:
                _write(folder / manifest_name(session.id), manifest)
            return manifest

        return await off_the_loop(make)

    async def _drop(self, row: DepositRow) -> None:
        """Delete the plain files that were encrypted, or all that are here."""
        session = await self._session(row)
        manifest = Manifest.model_validate_json(row.manifest or "")
        folder, now = Path(session.folder), self._clock()
        dropping = row.dropping
        keep_local = self._keeping.keep_local
        if dropping is None and manifest.recipients and row.plain_gone_at is None:
            dropping = "plain"
        elif dropping is None:
            if row.stored_at is None or keep_local is None:
                await self._note(row, state="done")
                return
            if now < row.stored_at + keep_local:  # it was shorter when this was noted
                await self._note(row, not_before=row.stored_at + keep_local)
                return
            dropping = "local"
        if dropping == "plain":
            # Said first, then done: whoever orders a transcription from now on is refused.
            await self._note(row, dropping="plain", plain_gone_at=row.plain_gone_at or now)
            await off_the_loop(lambda _: _delete_plain(folder, manifest))
            log.info("archive.encrypted", sip_call_id=session.sip_call_id)
            octets = None
        else:
            lost = await self._lost_in_store(row, manifest)
            if lost is not None:
                log.error("archive.lost_in_store", cause=lost, effect="it is sent again")
                await self._note(
                    row, state="pending", not_before=now, dropping=None, stored_at=None,
                    local_gone_at=None, reason=lost,
                )  # fmt: skip
                return
            await self._note(row, dropping="local", local_gone_at=row.local_gone_at or now)
            await off_the_loop(lambda _: _delete_folder(folder))
            log.info("archive.local_deleted", sip_call_id=session.sip_call_id)
            octets = 0
        later = None
        if dropping == "plain" and row.stored_at is not None and keep_local is not None:
            later = max(now, row.stored_at + keep_local)

        def finish(connection: Connection) -> bool:
            deposits.remeasure(connection, row.session_id, octets)
            return deposits.note(
                connection,
                row,
                self._node,
                state="kept" if later is not None else "done",
                not_before=later or now,
                dropping=None,
                attempts=0,
                reason=None,
            )

        if not await self._database.write(finish):
            raise _Lost

    async def _lost_in_store(self, row: DepositRow, manifest: Manifest) -> str | None:
        """What the store has no more, long after it had it; None: nothing. Raises ObjectError."""
        assert row.place is not None
        store = self._stores.at(row.place)

        def look(stop: threading.Event) -> str | None:
            try:
                store.size(f"{row.prefix}/{MANIFEST}")
                for one in manifest.files:
                    if store.size(f"{row.prefix}/{one.kept_name}") != one.kept_size:
                        return f"{one.kept_name}: has another size"
            except NotThere as error:
                return str(error)
            return None

        return await off_the_loop(look)

    async def _delete(self, row: DepositRow) -> None:
        """The manifest first: what is half gone must not look whole."""
        if row.place is not None and row.prefix is not None:
            store = self._stores.at(row.place)
            manifest = Manifest.model_validate_json(row.manifest) if row.manifest else None
            names = [one.kept_name for one in manifest.files] if manifest is not None else []

            def delete(stop: threading.Event) -> None:
                for name in [MANIFEST, *names, *row.stale]:
                    if stop.is_set():
                        raise Interrupted
                    store.delete(f"{row.prefix}/{name}")

            await off_the_loop(delete)
        await self._database.write(partial(deposits.gone, session_id=row.session_id))
        log.info("archive.deleted", at=f"{row.place}/{row.prefix}")

    async def _session(self, row: DepositRow) -> SessionRow:
        found = await self._database.read(partial(recordings.get, session_id=row.session_id))
        if found is None or found.audio_deleted_at is not None:
            await self._database.write(partial(deposits.forget, ids=[row.session_id]))
            raise _Lost
        return found

    async def _note(self, row: DepositRow, **fields: object) -> None:
        """Raises _Lost: it is another's by now, or is to be deleted."""
        note = partial(deposits.note, row=row, node=self._node, **fields)  # type: ignore[arg-type]
        if not await self._database.write(note):
            raise _Lost


class _Lost(Exception):
    """The deposit is not ours any more."""


def facts_of(session: SessionRow) -> dict[str, str | None]:
    """What a layout may name of a session."""
    document = SessionDocument.model_validate_json(session.document)
    return {
        "session": session.id,
        "call_id": session.sip_call_id,
        "group": document.group_id,
        "tenant": document.call_ids.get("tenant"),
        "peer": address_of(session.peer) or session.peer,
        "node": session.node,
    }


def _send(
    store: ObjectStore,
    prefix: str,
    manifest: Manifest,
    folder: Path,
    stale: tuple[str, ...],
    again: bool,
    stop: threading.Event,
) -> int:
    """All files, each proven, then the manifest; returns how many octets were sent.

    Raises OSError, Interrupted.
    """
    sent = 0
    for one in manifest.files:
        key, path = f"{prefix}/{one.kept_name}", folder / one.kept_name
        # What an earlier try has brought there is not sent once more, where the store can tell.
        if again and store.proves(key, sums_of(path, stop)):
            continue
        sums = store.put(key, path, stop)
        if sums.sha256 != one.kept_sha256:
            raise OSError(f"{one.kept_name}: its content was changed since it was listed")
        store.check(key, sums, stop)
        sent += sums.size
    names = {one.kept_name for one in manifest.files}
    for name in stale:
        if name not in names:
            store.delete(f"{prefix}/{name}")
    listed = folder / manifest_name(manifest.session)
    if not listed.exists():
        _write(listed, manifest)
    sums = store.put(f"{prefix}/{MANIFEST}", listed, stop)
    store.check(f"{prefix}/{MANIFEST}", sums, stop)
    return sent + sums.size


def _write(path: Path, manifest: Manifest) -> None:
    write_atomically(path, manifest.model_dump_json(indent=1).encode())


def _delete_plain(folder: Path, manifest: Manifest) -> None:
    """Only what the manifest names, and only where its encrypted form is there."""
    for one in manifest.files:
        if (folder / one.kept_name).stat().st_size != one.kept_size:
            raise OSError(f"{one.kept_name}: has another size than it was given")
    for one in manifest.files:
        if one.name != one.kept_name:
            (folder / one.name).unlink(missing_ok=True)


def _delete_folder(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


async def off_the_loop(work: Callable[[threading.Event], T]) -> T:
    """Run blocking work, which is told to stop when we are cancelled.

    In a thread of its own that nobody waits for: a store that hangs must not hold up our end.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    stop = threading.Event()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = work(stop)
        except BaseException as caught:  # noqa: BLE001  it is raised again, in the loop
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="archive", daemon=True).start()
    try:
        return await future
    except asyncio.CancelledError:
        stop.set()
        raise
