"""Pause, resume and mute of a call that is being recorded."""

from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from pydantic import Field

from siprec_bridge.api.asking import Route, Why, body_of
from siprec_bridge.api.seeing import check_view, find_session
from siprec_bridge.recording import NotRecording, RecordingService
from siprec_bridge.siprec import PauseOrder
from siprec_bridge.store import Database

log = structlog.get_logger()


class Target(Why):
    """What to pause or to resume: the session, or a stream or participant of it."""

    label: str | None = None
    participant: str | None = Field(None, description="the id of one who is to be muted")


class Pausing:
    """What is asked of the running calls."""

    def __init__(self, database: Database, calls: RecordingService) -> None:
        self._database = database
        self._calls = calls

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("POST", "/api/sessions/{id}/pause", self._pause, "operate"),
            Route("POST", "/api/sessions/{id}/resume", self._resume, "operate"),
        ]

    async def _pause(self, request: web.Request) -> web.Response:
        return await self._instruct(request, self._calls.pause)

    async def _resume(self, request: web.Request) -> web.Response:
        return await self._instruct(request, self._calls.resume)

    async def _instruct(
        self, request: web.Request, act: Callable[[str, PauseOrder], Awaitable[tuple[str, ...]]]
    ) -> web.Response:
        """Answered once it holds: what is said from now on is not, or is, recorded."""
        order = await _order(request)
        session_id = request.match_info["id"]
        await check_view(self._database, request)
        try:
            paused = await act(session_id, order)
        except NotRecording:
            row = await find_session(self._database, request)
            where = (
                f" by node {row.node}, not here" if row.state == "recording" and row.node else ""
            )
            raise web.HTTPConflict(
                text=f"the session is {row.state}{where or ', not recording'}"
            ) from None
        except LookupError as error:
            raise web.HTTPUnprocessableEntity(text=str(error.args[0])) from None
        except OSError as error:
            log.error("api.media_failed", session_id=session_id, cause=str(error))
            raise web.HTTPServiceUnavailable(text="not confirmed: no media worker") from None
        return web.json_response({"paused": paused})


async def _order(request: web.Request) -> PauseOrder:
    target = await body_of(request, Target)
    try:
        return PauseOrder(target.label, target.participant, target.by, target.reason)
    except ValueError as error:
        raise web.HTTPBadRequest(text=str(error)) from None
