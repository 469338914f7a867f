"""How long a session stays: holds, and deletion before its time."""

import json
from datetime import UTC, datetime
from functools import partial

import structlog
from aiohttp import web

from siprec_bridge.api.asking import Route, Why, body_of
from siprec_bridge.api.seeing import check_view, find_session
from siprec_bridge.recording import Elsewhere, InUse, Retention, UnderHold
from siprec_bridge.store import Database, SessionRow, retention

log = structlog.get_logger()


class Custody:
    """What decides over a session's end besides its age."""

    def __init__(self, database: Database, retention: Retention) -> None:
        self._database = database
        self._retention = retention

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("DELETE", "/api/sessions/{id}", self._delete, "operate"),
            Route("PUT", "/api/sessions/{id}/hold", self._hold, "operate"),
            Route("DELETE", "/api/sessions/{id}/hold", self._release, "operate"),
        ]

    async def _delete(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        await check_view(self._database, request)
        try:
            if not await self._retention.delete(id):
                raise web.HTTPNotFound(text="there is no such session")
        except UnderHold:
            raise web.HTTPConflict(text="the session is under hold") from None
        except Elsewhere as error:
            raise web.HTTPConflict(text=f"the audio is on node {error}: delete it there") from None
        except InUse:
            raise web.HTTPConflict(text="the session is being recorded or transcribed") from None
        except OSError as error:
            log.error("api.not_deleted", session_id=id, cause=str(error))
            raise web.HTTPInternalServerError(text="the files could not be deleted") from None
        return web.Response(status=204)

    async def _hold(self, request: web.Request) -> web.Response:
        row = await find_session(self._database, request)
        why = await body_of(request, Why)
        note = why.model_dump() | {"at": datetime.now(UTC).isoformat()}
        await self._set_hold(row, json.dumps(note))
        log.info("session.held", session_id=row.id, by=why.by, reason=why.reason)
        return web.json_response({"held": note})

    async def _release(self, request: web.Request) -> web.Response:
        row = await find_session(self._database, request)
        await self._set_hold(row, None)
        log.info("session.released", session_id=row.id)
        return web.json_response({"held": None})

    async def _set_hold(self, row: SessionRow, held: str | None) -> None:
        hold = partial(retention.hold, session_id=row.id, held=held, now=datetime.now(UTC))
        try:
            if not await self._database.write(hold):
                raise web.HTTPNotFound(text="there is no such session")
        except retention.Going:
            text = "too late: its files are being deleted or changed; ask again"
            raise web.HTTPConflict(text=text) from None
