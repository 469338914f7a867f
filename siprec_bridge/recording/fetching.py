"""A session's files back from the store, whole and proven."""

import contextlib
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from siprec_bridge.recording.leases import renewed
from siprec_bridge.recording.off_the_loop import off_the_loop
from siprec_bridge.recording.retention import InUse
from siprec_bridge.recording.safekeeping import NotInStore, Stores
from siprec_bridge.store import Database, DepositRow, SessionRow, StoreError, deposits, recordings
from siprec_bridge.vault import (
    Damaged,
    Interrupted,
    KeptFile,
    Manifest,
    ObjectStore,
    manifest_name,
)

_CHUNK = 1 << 22


@asynccontextmanager
async def alone(
    database: Database, session_id: str, clock: Callable[[], datetime]
) -> AsyncIterator[tuple[DepositRow, str]]:
    """Have a session's files to ourselves, as a runner: nobody sends, changes or deletes them meanwhile.

    Whether anybody keeps them or not: see `deposits.lend`. Raises InUse, StoreError.
    """
    runner = deposits.ALTERING + secrets.token_hex(4)
    lend = partial(deposits.lend, session_id=session_id, runner=runner, now=clock())
    row = await database.write(lend)
    if row is None:
        raise InUse
    try:
        async with renewed(database, [session_id], runner, clock):
            yield row, runner
    finally:
        with contextlib.suppress(StoreError):  # then the lease ends by itself
            await database.write(partial(deposits.release, node=runner, session_id=session_id))


async def fetch(
    database: Database,
    stores: Stores,
    session_id: str,
    *,
    out: Path | None = None,
    keep_local: timedelta | None = None,
    clock: Callable[[], datetime],
    node: str | None = None,
) -> list[Path]:
    """Bring a session's files to `out`, or back to where they were recorded, for `keep_local`.

    They come as they are kept, encrypted perhaps. `node`: who we are; None: we have all nodes'
    files. Returns them. Raises LookupError (no such session), NotInStore, OSError, StoreError.
    """

    def find(connection: Connection) -> tuple[SessionRow | None, DepositRow | None]:
        return recordings.get(connection, session_id), deposits.get(connection, session_id)

    session, kept = await database.read(find)
    if session is None:
        raise LookupError(f"there is no session {session_id}")
    if kept is None or kept.manifest is None or kept.state == "deleting":
        raise NotInStore(f"{session_id} was not archived")
    if out is None and node is not None and session.node not in (None, node):
        raise NotInStore(f"its place is on node {session.node}: fetch it there, or say --out")
    manifest = Manifest.model_validate_json(kept.manifest)
    here = Path(session.folder)
    if kept.local_gone_at is None and kept.dropping is None:
        if out is None:
            raise NotInStore(f"the files of {session_id} are in {here}")
        store = None
    elif kept.stored_at is None or kept.place is None:
        raise NotInStore(f"{session_id} is not in the archive yet")
    else:
        store = stores.at(kept.place)
    folder = out or here
    work = partial(bring, store, kept.prefix, here, folder, manifest)
    if out is not None:
        return await off_the_loop(work)
    try:
        async with alone(database, session_id, clock) as (taken, _):
            if (taken.manifest, taken.local_gone_at) != (kept.manifest, kept.local_gone_at):
                raise InUse  # a moment ago
            made = await off_the_loop(work)
            until = clock() + keep_local if keep_local is not None else None
            back = partial(deposits.brought_back, session_id=session_id, not_before=until)
            if not await database.write(back):
                shutil.rmtree(here, ignore_errors=True)
                raise NotInStore(f"{session_id} is being deleted")
    except InUse:
        raise NotInStore(f"somebody works at the files of {session_id}: ask again") from None
    await database.write(partial(deposits.remeasure, session_id=session_id, octets=None))
    return made


def bring(
    store: ObjectStore | None,
    prefix: str | None,
    here: Path,
    folder: Path,
    manifest: Manifest,
    stop: threading.Event,
) -> list[Path]:
    """Bring files as they are kept to `folder`: from a store, or from `here`; each is proven.

    Raises OSError, Interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for one in manifest.files:
        target = folder / one.kept_name
        part = folder / f".{one.kept_name}.part"
        try:
            if store is None:
                shutil.copyfile(here / one.kept_name, part)
            else:
                _download(store, f"{prefix}/{one.kept_name}", part, one, stop)
            _prove(part, one)
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        made.append(target)
    listed = folder / manifest_name(manifest.session)
    listed.write_bytes(manifest.model_dump_json(indent=1).encode())
    return made


def _download(
    store: ObjectStore, key: str, part: Path, one: KeptFile, stop: threading.Event
) -> None:
    with part.open("wb") as file:
        for start in range(0, one.kept_size, _CHUNK):
            if stop.is_set():
                raise Interrupted
            file.write(store.read(key, start, min(start + _CHUNK, one.kept_size)))
        file.flush()
        os.fsync(file.fileno())


def _prove(part: Path, one: KeptFile) -> None:
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != one.kept_sha256:
        raise Damaged(f"{one.kept_name}: is not what was archived")
