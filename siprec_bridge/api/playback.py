"""A session's audio, from this disk or from the store that has it."""

import asyncio
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from aiohttp import web
from sqlalchemy import Connection

from siprec_bridge.api.asking import Route
from siprec_bridge.api.seeing import find_session
from siprec_bridge.recording import Stores, off_the_loop
from siprec_bridge.store import Database, DepositRow, SessionRow, deposits
from siprec_bridge.vault import Manifest, NotThere, ObjectError, ObjectStore

log = structlog.get_logger()

_AUDIO_TYPES = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".opus": "audio/ogg; codecs=opus",  # RFC 7845 §9
    ".age": "application/octet-stream",
}
_CHUNK: Final = 1 << 20  # octets that are fetched from a store at once
_ENCRYPTED = (
    "the audio is encrypted: only those who hold a key of its recipients can read it "
    "(siprec-bridge recordings decrypt)"
)


class Playback:
    """Files of sessions, also in parts."""

    def __init__(self, database: Database, stores: Stores) -> None:
        self._database = database
        self._stores = stores

    def routes(self) -> list[Route]:
        """The routes."""
        return [Route("GET", "/api/sessions/{id}/audio/{name}", self._audio, "read")]

    async def _audio(self, request: web.Request) -> web.StreamResponse:
        row = await find_session(self._database, request)
        if row.audio_deleted_at is not None:
            raise web.HTTPGone(text=f"the audio was deleted at {row.audio_deleted_at.isoformat()}")
        if row.audio and json.loads(row.audio).get("withheld"):
            raise web.HTTPConflict(text="the audio is not redacted, or not yet")
        name = request.match_info["name"]
        kept = await self._database.read(partial(deposits.get, session_id=row.id))
        manifest = Manifest.model_validate_json(kept.manifest) if kept and kept.manifest else None
        wanted = _wanted(row, manifest, name)
        path = Path(row.folder) / name
        headers = {"Content-Type": _AUDIO_TYPES[Path(name).suffix]}
        if await asyncio.to_thread(path.is_file):
            return web.FileResponse(path, headers=headers)
        # A name that is only that of what was encrypted cannot be had from anywhere.
        if kept is not None and manifest is not None and wanted != name:
            raise web.HTTPConflict(text=_ENCRYPTED)
        if kept is not None and kept.stored_at is not None:
            return await self._from_store(request, kept, name, headers)
        if row.node != self._database.node:
            raise web.HTTPNotFound(text=f"the audio is on node {row.node}")
        raise web.HTTPNotFound(text="the file is not there any more")

    async def _from_store(
        self, request: web.Request, kept: DepositRow, name: str, headers: dict[str, str]
    ) -> web.StreamResponse:
        key = f"{kept.prefix}/{name}"
        try:
            store = self._stores.at(kept.place or "")
            size = await off_the_loop(lambda _: store.size(key))
        except NotThere:
            raise web.HTTPNotFound(text="the archive has this file no more") from None
        except ObjectError as error:
            log.error("api.archive_failed", session_id=kept.session_id, cause=str(error))
            raise web.HTTPServiceUnavailable(text="the archive does not answer") from None
        part = _part(request, size)
        answer = web.StreamResponse(
            status=200 if part is None else 206, headers=headers | {"Accept-Ranges": "bytes"}
        )
        start, end = part if part is not None else (0, size)
        if part is not None:
            answer.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        answer.content_length = end - start
        await answer.prepare(request)
        if request.method != "HEAD":
            await _copy(store, key, start, end, answer)
        return answer


async def _copy(
    store: ObjectStore, key: str, start: int, end: int, answer: web.StreamResponse
) -> None:
    while start < end:
        try:
            data = await off_the_loop(partial(_chunk, store, key, start, end))
        except ObjectError as error:
            data, cause = b"", str(error)
        else:
            cause = "it is shorter than it said"
        if not data:
            # The status is sent: a connection that ends early is all that can be told.
            log.error("api.archive_failed", key=key, cause=cause)
            answer.force_close()
            raise ConnectionResetError(cause)
        await answer.write(data)
        start += len(data)
    await answer.write_eof()


def _chunk(store: ObjectStore, key: str, start: int, end: int, _: threading.Event) -> bytes:
    return store.read(key, start, min(start + _CHUNK, end))


def _wanted(row: SessionRow, manifest: Manifest | None, name: str) -> str:
    """The name under which the file is kept. Only names that we wrote can be asked for."""
    audio = json.loads(row.audio) if row.audio else {"legs": [], "stereo": None}
    known = [leg["file"] for leg in audio["legs"]] + [audio["stereo"]]
    found = manifest.find(name) if manifest is not None else None
    if found is not None and found.name in known:
        return found.kept_name
    if name not in known:
        raise web.HTTPNotFound(text="there is no such file")
    return name


def _part(request: web.Request, size: int) -> tuple[int, int] | None:
    """Start and end of what is asked for; None: all of it. RFC 9110 §14."""
    try:
        wanted = request.http_range
    except ValueError:
        return None  # what cannot be read is ignored
    if wanted.start is None and wanted.stop is None:
        return None
    start, end, _ = wanted.indices(size)
    if start >= end:
        raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{size}"})
    return start, end


def custody_of(connection: Connection, session_id: str) -> dict[str, Any] | None:
    """What became of a session's files, for the API."""
    row = deposits.get(connection, session_id)
    if row is None:
        return None
    return {
        "state": row.state,
        "place": f"{row.place}/{row.prefix}" if row.place is not None else None,
        "stored_at": row.stored_at.isoformat() if row.stored_at is not None else None,
        "encrypted": row.sealed_at is not None,
        "readable_here": row.plain_gone_at is None,
        "here": row.local_gone_at is None,
        "tries": row.attempts,
        "reason": row.reason,
    }
