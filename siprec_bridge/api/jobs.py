"""Transcription jobs, and how much waits before the recognisers."""

from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any

from aiohttp import web
from sqlalchemy import Connection

from siprec_bridge.api.asking import (
    CLIENT,
    Cursor,
    Route,
    choice_of,
    cursor_of,
    limit_of,
    refuse_others,
)
from siprec_bridge.api.seeing import may_see, visible
from siprec_bridge.store import Backlog, Database, JobRow, Waiting, jobs
from siprec_bridge.transcription import Scheduler

_STATES = ("queued", "running", "done", "failed", "off")


class Jobs:
    """The jobs of all sessions."""

    def __init__(self, database: Database, scheduler: Scheduler) -> None:
        self._database = database
        self._scheduler = scheduler

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/api/backlog", self._backlog, "read"),
            Route("GET", "/api/jobs", self._jobs, "read"),
            Route("POST", "/api/jobs/{id}/retry", self._retry, "operate"),
        ]

    async def _jobs(self, request: web.Request) -> web.Response:
        client = request[CLIENT]
        refuse_others(request, "limit", "before", "state")
        state = choice_of(request, "state", _STATES)

        def page(connection: Connection, limit: int, before: Cursor | None) -> list[JobRow]:
            return jobs.listing(connection, limit, before=before, state=state)

        rows, next_ = await self._database.read(
            partial(
                visible,
                page=page,
                seen=lambda connection, row: may_see(connection, client, row.session_id),
                key=lambda row: (row.created_at, row.id),
                whole=client.view.whole,
                limit=limit_of(request),
                before=cursor_of(request),
            )
        )
        places: dict[str, Waiting] = {}
        if any(row.state == "queued" for row in rows):
            places = await self._database.read(jobs.places)
        speed = self._scheduler.speed(len(places))
        shown = [job_fields(row) | _place(row, places, speed) for row in rows]
        return web.json_response({"jobs": shown, "next": next_})

    async def _backlog(self, request: web.Request) -> web.Response:
        if not request[CLIENT].view.whole:
            raise web.HTTPForbidden(text="for clients only that may see all sessions")

        def find(connection: Connection) -> tuple[Backlog, dict[str, tuple[int, float]]]:
            return jobs.backlog(connection), jobs.waiting(connection)

        backlog, waiting = await self._database.read(find)
        eta = self._scheduler.eta(backlog)
        return web.json_response(
            {
                "jobs": backlog.jobs,
                "audio_seconds": round(backlog.audio_seconds, 3),
                "failed": backlog.failed,
                "eta_seconds": round(eta, 1) if eta is not None else None,
                "vendors": [
                    asdict(one)
                    | {
                        "waiting": waiting.get(one.name, (0, 0.0))[0],
                        "waiting_audio_seconds": round(waiting.get(one.name, (0, 0.0))[1], 3),
                    }
                    for one in self._scheduler.vendors()
                ],
            }
        )

    async def _retry(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        client = request[CLIENT]

        def find(connection: Connection) -> JobRow | None:
            row = jobs.get(connection, id)
            return row if row and may_see(connection, client, row.session_id) else None

        row = await self._database.read(find)
        if row is None:
            raise web.HTTPNotFound(text="there is no such job")
        if not await self._database.write(partial(jobs.retry, job_id=id)):
            raise web.HTTPConflict(text=f"the job is {row.state}, not failed")
        self._scheduler.wake()
        return web.json_response({"queued": id}, status=202)


def job_fields(row: JobRow) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in JobRow.__slots__}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def _place(row: JobRow, places: dict[str, Waiting], speed: float | None) -> dict[str, Any]:
    """Where a queued job stands, and in how many seconds it should be done."""
    place = places.get(row.id)
    if place is None:
        return {"position": None, "eta_seconds": None}
    ahead = place.audio_before + row.audio_seconds
    return {
        "position": place.position,
        "eta_seconds": round(ahead / speed, 1) if speed is not None else None,
    }
