"""The steps that a session's files go through after the call: encrypted, sent and proven, deleted here.

Each is noted before the next one begins and can be repeated, so that a bridge that was killed goes on
where it was.
"""

import contextlib
import shutil
import threading
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import Connection

from siprec_bridge.media.audio_file import write_atomically
from siprec_bridge.recording.identifier import is_named_in
from siprec_bridge.recording.off_the_loop import off_the_loop
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.recording.safekeeping import Safekeeping, Stores
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import (
    Database,
    DepositRow,
    SessionRow,
    deposits,
    recordings,
)
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcription import address_of
from siprec_bridge.vault import (
    MANIFEST,
    Interrupted,
    Manifest,
    NotThere,
    ObjectStore,
    manifest_name,
    seal,
    sums_of,
    survey,
)

log = structlog.get_logger()


class Lost(Exception):
    """The deposit is not ours any more."""


class Custody:
    """Takes one step of one session. All raise OSError, StoreError and Lost."""

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        keeping: Safekeeping,
        stores: Stores,
        *,
        clock: Callable[[], datetime],
        node: str | None,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._keeping = keeping
        self._stores = stores
        self._clock = clock
        self._node = node

    async def keep(self, row: DepositRow) -> None:
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

    async def drop(self, row: DepositRow) -> None:
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
            raise Lost

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

    async def delete(self, row: DepositRow) -> None:
        """The manifest first: what is half gone must not look whole."""
        if row.place is not None and row.prefix is not None:
            store = self._stores.at(row.place)
            manifest = Manifest.model_validate_json(row.manifest) if row.manifest else None
            names = [one.kept_name for one in manifest.files] if manifest is not None else []

            def delete_objects(stop: threading.Event) -> None:
                for name in [MANIFEST, *names, *row.stale]:
                    if stop.is_set():
                        raise Interrupted
                    store.delete(f"{row.prefix}/{name}")

            await off_the_loop(delete_objects)
        await self._database.write(partial(deposits.gone, session_id=row.session_id))
        log.info("archive.deleted", at=f"{row.place}/{row.prefix}")

    async def _session(self, row: DepositRow) -> SessionRow:
        found = await self._database.read(partial(recordings.get, session_id=row.session_id))
        if found is None or found.audio_deleted_at is not None:
            await self._database.write(partial(deposits.forget, ids=[row.session_id]))
            raise Lost
        return found

    async def _note(self, row: DepositRow, **fields: object) -> None:
        """Raises Lost: it is another's by now, or is to be deleted."""
        note = partial(deposits.note, row=row, node=self._node, **fields)  # type: ignore[arg-type]
        if not await self._database.write(note):
            raise Lost


def facts_of(session: SessionRow) -> dict[str, str | None]:
    """What a layout may name of a session: no id that names one of its people.

    An object has its name for ever, whatever is erased.
    """
    document = SessionDocument.model_validate_json(session.document)
    ids = {"call_id": session.sip_call_id, "group": document.group_id}
    return {
        "session": session.id,
        **{name: id if id and not is_named_in(id, document) else None for name, id in ids.items()},
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
