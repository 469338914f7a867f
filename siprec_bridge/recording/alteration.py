"""Finished audio changed after the fact, wherever it lies: here, in the archive, or encrypted.

From the archive it is fetched first; what is encrypted is opened with a key that only the caller
has, in a folder that is seen by nobody, and encrypted again to those for whom it was. What the
store has is replaced by the custodian, proven as ever, once the new state is committed.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal

import structlog
from sqlalchemy import Connection

from siprec_bridge.media import FinishedAudio, write_atomically
from siprec_bridge.recording.fetching import alone, bring
from siprec_bridge.recording.off_the_loop import off_the_loop, to_its_end
from siprec_bridge.recording.orders import AUDIO
from siprec_bridge.recording.retention import InUse, UnderHold
from siprec_bridge.recording.safekeeping import Stores
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import (
    Database,
    DepositRow,
    SessionRow,
    StoreError,
    deposits,
    recordings,
    retention,
)
from siprec_bridge.store.rewind import shorten_leases
from siprec_bridge.vault import (
    Identities,
    KeptFile,
    LockedError,
    Manifest,
    Recipients,
    decrypt_file,
    manifest_name,
    originals,
    seal,
)

log = structlog.get_logger()

Treatment = Literal["silenced", "sealed_again", "deleted"]
Change = Callable[[Path], FinishedAudio | None]

_ROOM = ".altering"


@dataclass(frozen=True, slots=True)
class Keys:
    """What may be done with audio that is encrypted.

    `identities` open it; without them what has the voice may be deleted (`delete`), or nothing is done.
    """

    identities: Identities | None = None
    delete: bool = False


@dataclass(frozen=True, slots=True)
class Alteration:
    """What is to become of a session's files.

    `change` is given a folder with the plain files, and returns what they are then; it can be
    repeated. `labels`: streams that go as a whole where files can only be deleted. Unless it is
    `needed`, what is encrypted or in the archive alone stays as it is; `originals` of transcripts
    are kept, or nobody here can tell what is in them.
    """

    change: Change
    labels: frozenset[str]
    needed: bool
    originals: bool


@dataclass(frozen=True, slots=True)
class Altered:
    """What the audio is now; `note` says so in a transaction, and raises InUse if it is another's.

    `audio`: None, there is none, or it stays as it was. `replaces`: the store that is to forget
    what it has, as soon as `note` is committed and the custodian comes by.
    """

    audio: FinishedAudio | None
    treatment: Treatment | None
    note: Callable[[Connection], None]
    replaces: str | None = None


def marks_of(treatment: Treatment | None, replaces: str | None) -> list[str]:
    """What an audit says of a session besides, whose audio became this: see Altered."""
    marks = [f"audio_{treatment}"] if treatment in ("sealed_again", "deleted") else []
    return marks + ["archive_replaced"] * (replaces is not None)


class StoredAudio:
    """Changes it. `place`: of the store to which new files go; None: to none."""

    def __init__(
        self,
        database: Database,
        stores: Stores,
        *,
        clock: Callable[[], datetime],
        place: str | None = None,
    ) -> None:
        self._database = database
        self._stores = stores
        self._clock = clock
        self._place = place

    @asynccontextmanager
    async def altered(
        self, row: SessionRow, wish: Alteration, keys: Keys
    ) -> AsyncIterator[Altered]:
        """Change a session's files; what is yielded is to be committed before this ends.

        `row` is what the caller made up its mind by. Raises InUse, also when it is not that any
        more, UnderHold; OSError, StoreError, and ValueError: nobody here can change them.
        """
        if row.audio_deleted_at is not None:
            yield Altered(None, None, lambda _: None)
            return
        async with alone(self._database, row.id, self._clock) as (taken, runner):
            # Somebody else may have changed it before we had it to ourselves: his checksums stand there.
            now = await self._database.read(partial(recordings.get, session_id=row.id))
            if now is None or not same(now, row):
                raise InUse
            if now.held is not None:
                raise UnderHold
            if taken.lent:
                yield await self._lent(row, runner, wish)
            else:
                async with self._kept(row, taken, runner, wish, keys) as found:
                    yield found

    async def _lent(self, row: SessionRow, runner: str, wish: Alteration) -> Altered:
        audio = await to_its_end(partial(_here, row, wish.change))

        def note(connection: Connection) -> None:
            if not deposits.given_back(connection, row.id, runner, self._clock()):
                raise InUse

        return Altered(audio, "silenced" if audio is not None else None, note)

    @asynccontextmanager
    async def _kept(
        self,
        row: SessionRow,
        kept: DepositRow,
        runner: str,
        wish: Alteration,
        keys: Keys,
    ) -> AsyncIterator[Altered]:
        folder = Path(row.folder)
        manifest = Manifest.model_validate_json(kept.manifest) if kept.manifest else None
        sealed = manifest is not None and kept.plain_gone_at is not None
        away = kept.local_gone_at is not None
        unread = not wish.originals and manifest is not None and bool(_originals_of(manifest))
        if (sealed or away) and not (wish.needed or unread):
            yield Altered(None, None, lambda _: None)
            return
        if sealed and wish.needed and keys.identities is None and not keys.delete:
            raise ValueError(
                "the audio is encrypted: give a key of its recipients (--identity), or let files "
                "that have it be deleted (--delete-encrypted)"
            )
        if kept.place is not None and kept.place != self._place:
            raise ValueError(
                f"the archive has it at {kept.place}, which is not ARCHIVE_URL: it cannot be "
                "replaced there; name that store, or delete the session"
            )
        offered = False
        try:
            if away:
                await self._fetch(kept, folder, manifest)
            if manifest is None or not sealed:
                audio = await to_its_end(partial(_here, row, wish.change))
                note = self._note(row, kept, runner, None)
                found = Altered(audio, "silenced" if audio is not None else None, note)
            elif keys.identities is not None and wish.needed:
                audio, left = await to_its_end(
                    partial(
                        _sealed_again, folder, manifest, keys.identities, wish.change, self._clock()
                    )
                )
                note = self._note(row, kept, runner, left)
                found = Altered(audio, "sealed_again", note)
            else:
                audio, left = await to_its_end(
                    partial(_deleted, row, manifest, wish, self._clock())
                )
                note = self._note(row, kept, runner, left)
                found = Altered(audio, "deleted" if wish.needed else None, note)
            offered = True
            yield replace(found, replaces=kept.place)
        except BaseException as error:
            # A commit that failed or was cancelled may have been made: then the files are all there is.
            in_doubt = offered and isinstance(error, StoreError | asyncio.CancelledError)
            if away and not in_doubt:  # nobody counts on what is here
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise

    async def _fetch(self, kept: DepositRow, folder: Path, manifest: Manifest | None) -> None:
        if kept.place is None or kept.stored_at is None or manifest is None:
            raise ValueError("the archive does not have all of the audio")
        store = self._stores.at(kept.place)
        await off_the_loop(partial(bring, store, kept.prefix, folder, folder, manifest))

    def _note(
        self, row: SessionRow, kept: DepositRow, runner: str, left: Manifest | None
    ) -> Callable[[Connection], None]:
        def note(connection: Connection) -> None:
            now = self._clock()
            noted = deposits.altered(
                connection,
                kept,
                runner,
                now,
                left.model_dump_json() if left is not None else None,
                left.octets if left is not None else None,
            )
            if not noted:
                raise InUse
            if left is not None and not left.files:
                retention.note_audio_deleted(connection, [row.id], now)
            else:
                deposits.remeasure(connection, row.id, None)

        return note


def same(one: SessionRow, other: SessionRow) -> bool:
    """Whether a session is still what somebody has seen of it before."""
    return (one.document, one.audio, one.audio_deleted_at) == (
        other.document,
        other.audio,
        other.audio_deleted_at,
    )


async def clear_up(
    database: Database, *, clock: Callable[[], datetime], node: str | None, shared: bool
) -> None:
    """Delete what changes that were killed have left: audio in the clear, and copies from the archive.

    Their leases tell of them. Whoever asks for the change once more begins anew. Raises StoreError.
    """
    await database.write(partial(shorten_leases, now=clock()))
    over = partial(
        deposits.cut_off, runners=f"{deposits.DELETING}%", now=clock(), node=None, shared=True
    )
    for id in await database.read(over):  # a later round deletes them; nobody has to wait for that
        await database.write(partial(deposits.give_up, session_id=id, now=clock()))
    runner = deposits.ALTERING + secrets.token_hex(4)
    find = partial(
        deposits.cut_off, runners=f"{deposits.ALTERING}%", now=clock(), node=node, shared=shared
    )
    for id in await database.read(find):
        take = partial(deposits.take, session_id=id, runner=runner, now=clock())
        kept = await database.write(take)
        row = await database.read(partial(recordings.get, session_id=id))
        if kept is None or row is None:
            continue
        folder = Path(row.folder)
        away = kept.local_gone_at is not None and kept.dropping is None
        try:
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(shutil.rmtree, folder if away else folder / _ROOM)
        except OSError as error:  # its lease stays, and tells of it the next time
            log.error("archive.change_cut_off", session_id=id, cause=str(error))
            continue
        log.warning("archive.change_cut_off", session_id=id, effect="nothing, until asked again")
        await database.write(partial(deposits.release, node=runner, session_id=id))


def _here(row: SessionRow, change: Change) -> FinishedAudio | None:
    folder = Path(row.folder)
    if folder.is_dir():
        return change(folder)
    if row.audio is not None and AUDIO.validate_json(row.audio).legs:
        # A disk that is not mounted, perhaps: with it all would come back that is to go.
        raise FileNotFoundError(f"{folder}: is not there")
    return None


def _sealed_again(
    folder: Path, manifest: Manifest, identities: Identities, change: Change, now: datetime
) -> tuple[FinishedAudio | None, Manifest]:
    """Decrypt, change, encrypt, and put in the place of what was here; the plain files go.

    Raises OSError, ValueError.
    """
    room = folder / _ROOM
    shutil.rmtree(room, ignore_errors=True)  # of one that was killed
    room.mkdir(mode=0o700)
    try:
        for one in manifest.files:
            kept = folder / one.kept_name
            # Gone: an earlier try was cut off after this. What is sealed proves itself.
            if kept.exists() and one.name != one.kept_name:
                decrypt_file(kept, room / one.name, identities)
        for original in originals(folder):
            os.link(original, room / original.name)
        audio = change(room)
        noted = {one.name: one.sha256 for one in audio.files} if audio is not None else {}
        files = seal(room, noted, Recipients(manifest.recipients), threading.Event())
        left = manifest.model_copy(update={"files": files, "made_at": now})
        for one in files:
            (room / one.kept_name).replace(folder / one.kept_name)
        _leave(folder, manifest, left)
    except LockedError as error:
        raise ValueError(f"the key does not open it: {error}") from error
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return audio, left


def _deleted(
    row: SessionRow, manifest: Manifest, wish: Alteration, now: datetime
) -> tuple[FinishedAudio | None, Manifest]:
    """Delete what has these streams' voices, and what nobody here can look into. Raises OSError."""
    folder, labels = Path(row.folder), wish.labels
    document = SessionDocument.model_validate_json(row.document)
    audio = AUDIO.validate_json(row.audio) if row.audio else None
    streams = tuple(
        f"{row.id}-{stream.index}." for stream in document.streams if stream.label in labels
    )
    gone = set() if wish.originals else {one.name for one in _originals_of(manifest)}
    if wish.needed:
        gone.add(f"{row.id}.audio.json")  # has the keys that were pressed
        gone |= {one.name for one in manifest.files if streams and one.name.startswith(streams)}
    if audio is not None:
        theirs = [leg for leg in audio.legs if leg.label in labels]
        gone |= {leg.file for leg in theirs}
        if audio.stereo is not None and theirs:
            gone.add(audio.stereo)
        audio = replace(
            audio,
            legs=tuple(leg for leg in audio.legs if leg.label not in labels),
            stereo=None if audio.stereo in gone else audio.stereo,
            identical=tuple(pair for pair in audio.identical if not labels & set(pair)),
            files=tuple(one for one in audio.files if one.name not in gone),
        )
    files = tuple(one for one in manifest.files if one.name not in gone)
    if audio is not None and not audio.legs:
        files = ()  # nothing that anybody could hear is left
    left = manifest.model_copy(update={"files": files, "made_at": now})
    _leave(folder, manifest, left)
    return audio, left


def _leave(folder: Path, before: Manifest, left: Manifest) -> None:
    """Delete what is not kept any more, and write down what is; durable."""
    names = {one.kept_name for one in left.files}
    for one in before.files:
        for name in {one.name, one.kept_name} - names:
            (folder / name).unlink(missing_ok=True)
    for original in originals(folder):
        if original.name not in names:
            original.unlink(missing_ok=True)
    write_atomically(folder / manifest_name(left.session), left.model_dump_json(indent=1).encode())


def _originals_of(manifest: Manifest) -> list[KeptFile]:
    return [one for one in manifest.files if one.name == one.kept_name]
