"""Transcripts, and their further versions on request."""

import asyncio
import re
from datetime import UTC, datetime
from functools import partial

import structlog
from aiohttp import web
from sqlalchemy import Connection

from siprec_bridge.api.asking import LARGEST_PAGE, Route, body_of, choice_of, number_of
from siprec_bridge.api.jobs import job_fields
from siprec_bridge.api.seeing import check_view, find_session
from siprec_bridge.recording import (
    AudioDeleted,
    NothingToTranscribe,
    Orders,
    UnknownVendor,
    version_of,
)
from siprec_bridge.store import Database, JobRow, jobs
from siprec_bridge.store import transcripts as transcripts_of
from siprec_bridge.transcript import Conversation
from siprec_bridge.transcription import Scheduler, Wish

log = structlog.get_logger()

_MODEL = re.compile(r"[\w.:@+-]+(/[\w.:@+-]+)?")  # large-v3, distil-whisper/distil-small.en


class Transcriptions:
    """A session's transcripts."""

    def __init__(self, database: Database, orders: Orders, scheduler: Scheduler) -> None:
        self._database = database
        self._orders = orders
        self._scheduler = scheduler

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/api/sessions/{id}/transcript", self._transcript, "read"),
            Route("GET", "/api/sessions/{id}/transcriptions", self._versions, "read"),
            Route("POST", "/api/sessions/{id}/transcriptions", self._transcribe, "operate"),
        ]

    async def _transcript(self, request: web.Request) -> web.Response:
        row = await find_session(self._database, request)
        version = number_of(request, "version")
        found = await self._database.read(
            partial(transcripts_of.get, session_id=row.id, version=version)
        )
        if found is None:
            which = "transcript yet" if version is None else f"version {version} of the transcript"
            raise web.HTTPNotFound(text=f"there is no {which}")
        if choice_of(request, "format", ("json", "text")) == "text":
            read = Conversation.model_validate_json
            talk = await asyncio.to_thread(read, found.document)  # hours of it take a second
            return web.Response(text=talk.lines + "\n")
        return web.Response(text=found.document, content_type="application/json")

    async def _versions(self, request: web.Request) -> web.Response:
        row = await find_session(self._database, request)

        def find(connection: Connection) -> tuple[list[JobRow], dict[int, datetime]]:
            queued = jobs.listing(connection, LARGEST_PAGE, session_id=row.id)
            return queued, transcripts_of.versions(connection, row.id)

        queued, stored = await self._database.read(find)
        by_version = {version_of(job): job for job in queued}
        default = max(stored, default=None)
        return web.json_response(
            {
                "transcriptions": [
                    {
                        "version": version,
                        "default": version == default,
                        "created_at": stored[version].isoformat() if version in stored else None,
                        "job": job_fields(by_version[version]) if version in by_version else None,
                    }
                    for version in sorted({*stored, *by_version})
                ]
            }
        )

    async def _transcribe(self, request: web.Request) -> web.Response:
        wish = await body_of(request, Wish)
        if wish.model is not None and not _MODEL.fullmatch(wish.model):
            # A file of the server is the operator's business: rules and the command may name one.
            raise web.HTTPBadRequest(text="model: a name is needed, no path")
        session_id = request.match_info["id"]
        await check_view(self._database, request)
        try:
            job = await self._orders.again(self._database, session_id, wish, datetime.now(UTC))
        except LookupError:
            raise web.HTTPNotFound(text="there is no such session") from None
        except AudioDeleted as error:
            raise web.HTTPGone(text=str(error)) from None
        except NothingToTranscribe as error:
            raise web.HTTPConflict(text=str(error)) from None
        except UnknownVendor as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        log.info("session.transcribed_again", session_id=session_id, job=job.id)
        self._scheduler.wake()
        return web.json_response({"job": job.id, "version": version_of(job)}, status=202)
