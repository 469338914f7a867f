"""What can be asked over HTTP. Answers are JSON; errors too: `{"error": …}`."""

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from siprec_bridge.recording import InUse, NotRecording, RecordingService, Retention, UnderHold
from siprec_bridge.siprec import PauseOrder, Verdict
from siprec_bridge.store import Database, JobRow, SessionRow, StoreError, jobs, ladder, recordings
from siprec_bridge.store import transcripts as transcripts_of
from siprec_bridge.telemetry import Health, Metrics
from siprec_bridge.telemetry.metrics import CONTENT_TYPE as METRICS_TYPE

log = structlog.get_logger()

_PAGE = 50
_LARGEST_PAGE = 500
_JOB_STATES = ("queued", "running", "done", "failed")
_VERDICTS = get_args(Verdict)
_SESSION_STATES = ("recording", "finishing", "finished", "failed")

Model = TypeVar("Model", bound=BaseModel)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Why(BaseModel):
    """Who wants something, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: str | None = Field(None, max_length=200)
    reason: str | None = Field(None, max_length=200)


class Target(Why):
    """What to pause or to resume: the session, or a stream or participant of it."""

    label: str | None = None
    participant: str | None = Field(None, description="the id of one who is to be muted")


class Api:
    """The routes over a store and the running calls.

    `on_retry` is called when a job was queued again.
    """

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        health: Health,
        calls: RecordingService,
        retention: Retention,
        *,
        on_retry: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._health = health
        self._calls = calls
        self._retention = retention
        self._on_retry = on_retry
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Get ready to serve connections: see `connection`."""
        self._runner = web.AppRunner(
            self.application(), access_log=None, shutdown_timeout=2.0, keepalive_timeout=30.0
        )
        await self._runner.setup()

    async def stop(self) -> None:
        """Close all connections."""
        if self._runner is not None:
            await self._runner.cleanup()

    def connection(self) -> web.RequestHandler:
        """An asyncio protocol for one accepted connection."""
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        return server()

    def application(self) -> web.Application:
        """All routes."""
        app = web.Application(middlewares=[_errors_as_json], client_max_size=1 << 16)
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/health/live", self._live),
                web.get("/health/ready", self._ready),
                web.get("/metrics", self._render_metrics),
                web.get("/api/sessions", self._sessions),
                web.get("/api/sessions/{id}", self._session),
                web.delete("/api/sessions/{id}", self._delete),
                web.put("/api/sessions/{id}/hold", self._hold),
                web.delete("/api/sessions/{id}/hold", self._release),
                web.get("/api/sessions/{id}/transcript", self._transcript),
                web.get("/api/sessions/{id}/ladder", self._ladder),
                web.get("/api/sessions/{id}/audio/{name}", self._audio),
                web.post("/api/sessions/{id}/pause", self._pause),
                web.post("/api/sessions/{id}/resume", self._resume),
                web.get("/api/jobs", self._jobs),
                web.post("/api/jobs/{id}/retry", self._retry),
            ]
        )
        return app

    async def _page(self, _: web.Request) -> web.Response:
        page = files("siprec_bridge.api").joinpath("page/index.html").read_text("utf-8")
        return web.Response(
            text=page,
            content_type="text/html",
            headers={
                "Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline'; "
                "script-src 'unsafe-inline'; connect-src 'self' ws: wss:"
            },
        )

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, _: web.Request) -> web.Response:
        report = await self._health.report()
        return web.json_response(
            {"ready": report.ready, "facts": {name: cause or "ok" for name, cause in
                                              report.facts.items()}},
            status=200 if report.ready else 503,
        )  # fmt: skip

    async def _render_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": METRICS_TYPE})

    async def _sessions(self, request: web.Request) -> web.Response:
        state = _choice(request, "state", _SESSION_STATES)
        rows = await self._database.read(
            partial(
                recordings.listing,
                limit=_limit(request),
                before=_cursor(request),
                state=state,
                sip_call_id=request.query.get("call_id"),
                assurance=_choice(request, "assurance", _VERDICTS),
            )
        )
        return web.json_response({"sessions": [_session_summary(row) for row in rows],
                                  "next": _next([(row.started_at, row.id) for row in rows])})  # fmt: skip

    async def _session(self, request: web.Request) -> web.Response:
        row = await self._find(request)
        queued = await self._database.read(partial(jobs.listing, limit=_PAGE, session_id=row.id))
        return web.json_response(
            _session_summary(row)
            | {
                "document": json.loads(row.document),
                "audio": json.loads(row.audio) if row.audio else None,
                "jobs": [_job(one) for one in queued],
            }
        )

    async def _delete(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        try:
            if not await self._retention.delete(id):
                raise web.HTTPNotFound(text="there is no such session")
        except UnderHold:
            raise web.HTTPConflict(text="the session is under hold") from None
        except InUse:
            raise web.HTTPConflict(text="the session is being recorded or transcribed") from None
        except OSError as error:
            log.error("api.not_deleted", session_id=id, cause=str(error))
            raise web.HTTPInternalServerError(text="the files could not be deleted") from None
        return web.Response(status=204)

    async def _hold(self, request: web.Request) -> web.Response:
        row = await self._find(request)
        why = await _body(request, Why)
        note = why.model_dump() | {"at": datetime.now(UTC).isoformat()}
        await self._set_hold(row, json.dumps(note))
        log.info("session.held", session_id=row.id, by=why.by, reason=why.reason)
        return web.json_response({"held": note})

    async def _release(self, request: web.Request) -> web.Response:
        row = await self._find(request)
        await self._set_hold(row, None)
        log.info("session.released", session_id=row.id)
        return web.json_response({"held": None})

    async def _set_hold(self, row: SessionRow, held: str | None) -> None:
        if not await self._database.write(partial(recordings.update, session_id=row.id, held=held)):
            raise web.HTTPNotFound(text="there is no such session")

    async def _transcript(self, request: web.Request) -> web.Response:
        row = await self._find(request)
        found = await self._database.read(partial(transcripts_of.get, session_id=row.id))
        if found is None:
            raise web.HTTPNotFound(text="there is no transcript yet")
        if request.query.get("format") == "text":
            return web.Response(text=found.text + "\n")
        return web.Response(text=found.document, content_type="application/json")

    async def _ladder(self, request: web.Request) -> web.Response:
        row = await self._find(request)
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

    async def _audio(self, request: web.Request) -> web.FileResponse:
        row = await self._find(request)
        if row.audio_deleted_at is not None:
            raise web.HTTPGone(text=f"the audio was deleted at {row.audio_deleted_at.isoformat()}")
        name = request.match_info["name"]
        audio = json.loads(row.audio) if row.audio else {"legs": [], "stereo": None}
        # Only names that we wrote ourselves: nothing else of the folder can be asked for.
        known = [leg["file"] for leg in audio["legs"]] + [audio["stereo"]]
        if name not in known:
            raise web.HTTPNotFound(text="there is no such file")
        kind = "audio/flac" if name.endswith(".flac") else "audio/wav"
        return web.FileResponse(Path(row.folder) / name, headers={"Content-Type": kind})

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
        try:
            paused = await act(session_id, order)
        except NotRecording:
            row = await self._find(request)
            raise web.HTTPConflict(text=f"the session is {row.state}, not recording") from None
        except LookupError as error:
            raise web.HTTPUnprocessableEntity(text=str(error.args[0])) from None
        except OSError as error:
            log.error("api.media_failed", session_id=session_id, cause=str(error))
            raise web.HTTPServiceUnavailable(text="not confirmed: no media worker") from None
        return web.json_response({"paused": paused})

    async def _jobs(self, request: web.Request) -> web.Response:
        rows = await self._database.read(
            partial(
                jobs.listing,
                limit=_limit(request),
                before=_cursor(request),
                state=_choice(request, "state", _JOB_STATES),
            )
        )
        return web.json_response({"jobs": [_job(row) for row in rows],
                                  "next": _next([(row.created_at, row.id) for row in rows])})  # fmt: skip

    async def _retry(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        row = await self._database.read(partial(jobs.get, job_id=id))
        if row is None:
            raise web.HTTPNotFound(text="there is no such job")
        if not await self._database.write(partial(jobs.retry, job_id=id)):
            raise web.HTTPConflict(text=f"the job is {row.state}, not failed")
        self._on_retry()
        return web.json_response({"queued": id}, status=202)

    async def _find(self, request: web.Request) -> SessionRow:
        row = await self._database.read(
            partial(recordings.get, session_id=request.match_info["id"])
        )
        if row is None:
            raise web.HTTPNotFound(text="there is no such session")
        return row


async def _order(request: web.Request) -> PauseOrder:
    target = await _body(request, Target)
    try:
        return PauseOrder(target.label, target.participant, target.by, target.reason)
    except ValueError as error:
        raise web.HTTPBadRequest(text=str(error)) from None


async def _body(request: web.Request, model: type[Model]) -> Model:
    # No form: a page from elsewhere could have a browser send one.
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="the body must be application/json")
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise web.HTTPBadRequest(text=f"{where or 'body'}: {first['msg']}") from None


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        headers = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        return web.json_response(
            {"error": error.text or error.reason}, status=error.status, headers=headers
        )
    except StoreError as error:
        log.error("api.store_failed", path=request.path, cause=str(error))
        return web.json_response({"error": "the database does not answer"}, status=503)


def _session_summary(row: SessionRow) -> dict[str, Any]:
    document = json.loads(row.document)
    return {
        "id": row.id,
        "sip_call_id": row.sip_call_id,
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
    }


def _job(row: JobRow) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in JobRow.__slots__}
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(_PAGE))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:6]) <= _LARGEST_PAGE):
        raise web.HTTPBadRequest(text=f"limit must be from 1 to {_LARGEST_PAGE}")
    return int(text)


def _cursor(request: web.Request) -> tuple[datetime, str] | None:
    text = request.query.get("before")
    if text is None:
        return None
    at, _, id = text.partition("~")
    try:
        when = datetime.fromisoformat(at.replace(" ", "+"))
        if when.tzinfo is None or not id:
            raise ValueError
    except ValueError:
        raise web.HTTPBadRequest(text="before must be the `next` of the page before") from None
    return when, id


def _next(keys: list[tuple[datetime, str]]) -> str | None:
    """What `before` of the following page is."""
    return f"{keys[-1][0].isoformat()}~{keys[-1][1]}" if keys else None


def _choice(request: web.Request, name: str, allowed: tuple[Any, ...]) -> Any:
    text = request.query.get(name)
    if text is not None and text not in allowed:
        raise web.HTTPBadRequest(text=f"{name} must be one of: {', '.join(allowed)}")
    return text
