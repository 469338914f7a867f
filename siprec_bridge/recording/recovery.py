"""After a crash: what was being recorded or archived is finished from what lies on disk."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog

from siprec_bridge.recording.archive import Archive, until_taken
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import Database, SessionRow, jobs, recordings

log = structlog.get_logger()


async def left_behind(database: Database) -> list[SessionRow]:
    """What this node did not finish when it died; its runs of the recogniser are queued again.

    Sessions of other nodes are left to them: one that cannot reach the database may well be recording.
    To be called before the first new call is taken.
    """
    running = await database.write(partial(jobs.requeue_running, node=database.node))
    if running:
        log.warning("recovery.runs_queued_again", jobs=running)
    return await database.read(partial(recordings.unfinished, node=database.node))


async def recover(
    rows: Sequence[SessionRow], archive: Archive, clock: Callable[[], datetime]
) -> None:
    """Finish these sessions, side by side: one that cannot be finished holds up no other."""

    async def alone(row: SessionRow) -> None:
        structlog.contextvars.bind_contextvars(session_id=row.id, sip_call_id=row.sip_call_id)
        try:
            await _recover_one(row, archive, clock)
        except Exception:  # by our fault: it is tried again at the next start
            log.exception("recovery.failed")

    async with asyncio.TaskGroup() as sessions:
        for row in rows:
            sessions.create_task(alone(row))


async def _recover_one(row: SessionRow, archive: Archive, clock: Callable[[], datetime]) -> None:
    written = partial(_last_written, Path(row.folder))
    document = SessionDocument.model_validate_json(row.document)
    try:
        last = await until_taken(lambda: asyncio.to_thread(written))
    except LookupError:
        if row.state != "failed":
            log.error("recovery.audio_missing", folder=row.folder)
            await archive.give_up(row, row.ended_at or clock(), document)
        return
    log.warning("recovery.session", state=row.state)
    at = row.ended_at or last or clock()
    await archive.end(row, "bridge_restarted", max(at, row.started_at), document)


def _last_written(folder: Path) -> datetime | None:
    """When audio last arrived: the bridge could not note the end of a call that it died in.

    Raises LookupError where there is no such folder, OSError where the disk does not say.
    """
    try:
        times = [one.stat().st_mtime for one in folder.iterdir() if one.suffix == ".spool"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LookupError(folder) from error
    return datetime.fromtimestamp(max(times), UTC) if times else None
