"""Erasing a person, and taking a session along as one file."""

import asyncio
import json

from aiohttp import web
from pydantic import Field

from siprec_bridge.api.asking import CLIENT, Route, Why, body_of, limit_of
from siprec_bridge.api.seeing import find_session
from siprec_bridge.api.undertakings import Undertakings
from siprec_bridge.recording import Eraser, Identifier, Keys
from siprec_bridge.recording.erasure import as_json
from siprec_bridge.recording.export import gather, zipped
from siprec_bridge.store import Database, erasure


class Request(Why):
    """Whom to erase. Nothing is changed unless `dry_run` is false."""

    participant: str = Field(max_length=500)
    dry_run: bool = True
    whole: bool = Field(False, description="whole sessions with the person, not the person alone")
    delete_encrypted: bool = Field(
        False, description="delete what has the voice where it is encrypted: here is no key for it"
    )


class Erasures:
    """What a data subject may ask for."""

    def __init__(self, database: Database, eraser: Eraser, undertakings: Undertakings) -> None:
        self._database = database
        self._eraser = eraser
        self._undertakings = undertakings

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/api/erasures", self._lines, "erase"),
            Route("POST", "/api/erasures", self._erase, "erase"),
            Route("GET", "/api/sessions/{id}/export", self._export, "read"),
        ]

    async def _erase(self, request: web.Request) -> web.Response:
        self._check_view(request)
        wish = await body_of(request, Request)
        try:
            whom = Identifier.parse(wish.participant)
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"participant: {error}") from None
        if wish.dry_run:
            found = await self._eraser.find(whom)
        else:
            # Cut off by a client that does not wait, it would be done by half.
            found = await self._undertakings.done(
                self._eraser.erase(
                    whom,
                    by=wish.by or request[CLIENT].name,
                    reason=wish.reason,
                    whole=wish.whole,
                    keys=Keys(delete=wish.delete_encrypted),
                    go_on=lambda: not self._undertakings.ending,
                )
            )
        return web.json_response(
            {"dry_run": wish.dry_run, "sessions": [as_json(one) for one in found]}
        )

    async def _lines(self, request: web.Request) -> web.Response:
        self._check_view(request)
        limit = limit_of(request)
        found = await self._database.read(lambda connection: erasure.lines(connection, limit))
        return web.json_response(
            {
                "erasures": [
                    {
                        "at": one.at.isoformat(),
                        "action": one.action,
                        "by": one.actor,
                        "reason": one.reason,
                        "subject": one.subject,
                        "sessions": json.loads(one.detail),
                    }
                    for one in found
                ]
            }
        )

    def _check_view(self, request: web.Request) -> None:
        if not request[CLIENT].view.whole:
            raise web.HTTPForbidden(text="for clients only that may see all sessions")

    async def _export(self, request: web.Request) -> web.StreamResponse:
        row = await find_session(self._database, request)
        parts = await gather(self._database, row.id)
        if parts is None:
            raise web.HTTPNotFound(text="there is no such session")
        answer = web.StreamResponse(
            headers={
                "Content-Type": "application/zip",
                "Content-Disposition": f'attachment; filename="{row.id}.zip"',
            }
        )
        answer.headers["Cache-Control"] = "private, no-cache"  # headers go out before the rest
        await answer.prepare(request)
        if request.method == "HEAD":
            return answer
        pieces = zipped(parts)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            if piece:
                await answer.write(piece)
        await answer.write_eof()
        return answer
