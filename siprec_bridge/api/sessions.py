"""Sessions as they are stored: the list, the search, one with its ladder."""

import json
from dataclasses import asdict
from functools import partial
from typing import Any, get_args

from aiohttp import web
from sqlalchemy import Connection

from siprec_bridge.api.asking import (
    CLIENT,
    PAGE,
    Cursor,
    Route,
    choice_of,
    cursor_of,
    limit_of,
    refuse_others,
    time_of,
)
from siprec_bridge.api.jobs import job_fields
from siprec_bridge.api.playback import custody_of
from siprec_bridge.api.seeing import find_session, visible
from siprec_bridge.siprec import Verdict
from siprec_bridge.store import (
    Database,
    Found,
    JobRow,
    SessionRow,
    jobs,
    ladder,
    recordings,
    search,
)

_VERDICTS = get_args(Verdict)
_STATES = ("recording", "finishing", "finished", "failed")


class Sessions:
    """What is read of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/api/sessions", self._sessions, "read"),
            Route("GET", "/api/search", self._search, "read"),
            Route("GET", "/api/sessions/{id}", self._session, "read"),
            Route("GET", "/api/sessions/{id}/ladder", self._ladder, "read"),
        ]

    async def _sessions(self, request: web.Request) -> web.Response:
        view = request[CLIENT].view

        def page(connection: Connection, limit: int, before: Cursor | None) -> list[SessionRow]:
            return recordings.listing(
                connection,
                limit,
                before=before,
                state=state,
                sip_call_id=call_id,
                assurance=verdict,
                group_id=group_id,
            )

        refuse_others(request, "limit", "before", "state", "call_id", "group", "assurance")
        state = choice_of(request, "state", _STATES)
        call_id, group_id = request.query.get("call_id"), request.query.get("group")
        verdict = choice_of(request, "assurance", _VERDICTS)
        rows, next_ = await self._database.read(
            partial(
                visible,
                page=page,
                seen=lambda _, row: view.sees(row.peer, row.document),
                key=lambda row: (row.started_at, row.id),
                whole=view.whole,
                limit=limit_of(request),
                before=cursor_of(request),
            )
        )
        return web.json_response({"sessions": [session_fields(row) for row in rows], "next": next_})

    async def _search(self, request: web.Request) -> web.Response:
        """Sessions whose latest transcript has what is asked for, and where in it."""
        refuse_others(request, "q", "participant", "from", "to", "limit", "before")
        view = request[CLIENT].view
        since, until = time_of(request, "from"), time_of(request, "to")

        def page(connection: Connection, limit: int, before: Cursor | None) -> list[Found]:
            return search.search(
                connection,
                limit,
                text=request.query.get("q", ""),
                participant=request.query.get("participant", ""),
                since=since,
                until=until,
                before=before,
            )

        found, next_ = await self._database.read(
            partial(
                visible,
                page=page,
                seen=lambda _, one: view.sees(one.session.peer, one.session.document),
                key=lambda one: (one.session.started_at, one.session.id),
                whole=view.whole,
                limit=limit_of(request),
                before=cursor_of(request),
            )
        )
        return web.json_response(
            {
                "sessions": [
                    session_fields(one.session)
                    | {"matches": one.matches, "hits": [asdict(hit) for hit in one.hits]}
                    for one in found
                ],
                "next": next_,
            }
        )

    async def _session(self, request: web.Request) -> web.Response:
        row = await find_session(self._database, request)

        def find(connection: Connection) -> tuple[list[JobRow], dict[str, Any] | None]:
            queued = jobs.listing(connection, limit=PAGE, session_id=row.id)
            return queued, custody_of(connection, row.id)

        queued, custody = await self._database.read(find)
        return web.json_response(
            session_fields(row)
            | {
                "document": json.loads(row.document),
                "audio": json.loads(row.audio) if row.audio else None,
                "archive": custody,
                "jobs": [job_fields(one) for one in queued],
            }
        )

    async def _ladder(self, request: web.Request) -> web.Response:
        row = await find_session(self._database, request)
        messages = await self._database.read(partial(ladder.of_session, session_id=row.id))
        return web.json_response(
            {
                "messages": [
                    {
                        "at": one.at.isoformat(),
                        "sent": one.sent,
                        "peer": one.peer,
                        "text": one.text,
                    }
                    for one in messages
                ]
            }
        )


def session_fields(row: SessionRow) -> dict[str, Any]:
    document = json.loads(row.document)
    return {
        "id": row.id,
        "sip_call_id": row.sip_call_id,
        "group_id": document.get("group_id"),
        "state": row.state,
        "peer": row.peer,
        "started_at": row.started_at.isoformat(),
        "ended_at": row.ended_at.isoformat() if row.ended_at else None,
        "end_cause": row.end_cause,
        "participants": document.get("participants", []),
        "warnings": list(row.warnings),
        "audio_bytes": row.audio_bytes,
        "audio_deleted_at": row.audio_deleted_at.isoformat() if row.audio_deleted_at else None,
        "held": json.loads(row.held) if row.held else None,
        "assurance": document.get("assurance"),
        "node": row.node,
    }
