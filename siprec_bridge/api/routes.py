"""What can be asked over HTTP. Answers are JSON; errors too: `{"error": …}`."""

import contextlib
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args

import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from sqlalchemy import Connection

from siprec_bridge.access import COOKIE, LOGIN_S, TICKET_S, Client, Gate, Refused, Scope
from siprec_bridge.recording import (
    AudioDeleted,
    Elsewhere,
    InUse,
    NothingToTranscribe,
    NotRecording,
    Orders,
    RecordingService,
    Retention,
    UnderHold,
    UnknownVendor,
    version_of,
)
from siprec_bridge.siprec import PauseOrder, Verdict
from siprec_bridge.store import (
    Backlog,
    Database,
    Found,
    JobRow,
    SessionRow,
    StoreError,
    Waiting,
    jobs,
    ladder,
    recordings,
    search,
)
from siprec_bridge.store import transcripts as transcripts_of
from siprec_bridge.telemetry import Health, Metrics
from siprec_bridge.telemetry.metrics import CONTENT_TYPE as METRICS_TYPE
from siprec_bridge.transcription import Scheduler, Wish

log = structlog.get_logger()

_PAGE = 50
_MODEL = re.compile(r"[\w.:@+-]+(/[\w.:@+-]+)?")  # large-v3, distil-whisper/distil-small.en
_LARGEST_PAGE = 500
_MOST_LOOKED_AT = 5000  # rows for one page of a client that may not see all of them
_JOB_STATES = ("queued", "running", "done", "failed")
_VERDICTS = get_args(Verdict)
_SESSION_STATES = ("recording", "finishing", "finished", "failed")

Model = TypeVar("Model", bound=BaseModel)
Cursor = tuple[datetime, str]
Row = TypeVar("Row", SessionRow, JobRow, Found)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CLIENT: web.RequestKey[Client] = web.RequestKey("client", Client)
_SAFE = ("GET", "HEAD", "OPTIONS")


class Why(BaseModel):
    """Who wants something, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: str | None = Field(None, max_length=200)
    reason: str | None = Field(None, max_length=200)


class Target(Why):
    """What to pause or to resume: the session, or a stream or participant of it."""

    label: str | None = None
    participant: str | None = Field(None, description="the id of one who is to be muted")


class Login(BaseModel):
    """A token, for the page."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: SecretStr = Field(max_length=1000)


class Api:
    """The routes over a store, the running calls and jobs; `gate` says who may use them.

    `open_metrics`: no token is needed for them. `secure`: we are reached over TLS.
    """

    def __init__(
        self,
        database: Database,
        metrics: Metrics,
        health: Health,
        calls: RecordingService,
        retention: Retention,
        gate: Gate,
        orders: Orders,
        scheduler: Scheduler,
        *,
        open_metrics: bool = False,
        secure: bool = False,
    ) -> None:
        self._database = database
        self._metrics = metrics
        self._health = health
        self._calls = calls
        self._retention = retention
        self._gate = gate
        self._orders = orders
        self._scheduler = scheduler
        self._open_metrics = open_metrics
        self._secure = secure
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

    def routes(self) -> list[tuple[str, str, Handler, Scope | None]]:
        """Method, path, handler, and the scope that it takes; None: anybody may ask."""
        return [
            ("GET", "/", self._page, None),
            ("GET", "/health/live", self._live, None),
            ("GET", "/health/ready", self._ready, None),
            ("GET", "/metrics", self._render_metrics, None if self._open_metrics else "metrics"),
            ("GET", "/api/login", self._who, None),
            ("POST", "/api/login", self._log_in, None),
            ("DELETE", "/api/login", self._log_out, None),
            ("POST", "/api/tickets", self._ticket, "listen"),
            ("GET", "/api/sessions", self._sessions, "read"),
            ("GET", "/api/sessions/{id}", self._session, "read"),
            ("DELETE", "/api/sessions/{id}", self._delete, "operate"),
            ("PUT", "/api/sessions/{id}/hold", self._hold, "operate"),
            ("DELETE", "/api/sessions/{id}/hold", self._release, "operate"),
            ("GET", "/api/sessions/{id}/transcript", self._transcript, "read"),
            ("GET", "/api/sessions/{id}/transcriptions", self._versions, "read"),
            ("POST", "/api/sessions/{id}/transcriptions", self._transcribe, "operate"),
            ("GET", "/api/sessions/{id}/ladder", self._ladder, "read"),
            ("GET", "/api/sessions/{id}/audio/{name}", self._audio, "read"),
            ("POST", "/api/sessions/{id}/pause", self._pause, "operate"),
            ("POST", "/api/sessions/{id}/resume", self._resume, "operate"),
            ("GET", "/api/search", self._search, "read"),
            ("GET", "/api/backlog", self._backlog, "read"),
            ("GET", "/api/jobs", self._jobs, "read"),
            ("POST", "/api/jobs/{id}/retry", self._retry, "operate"),
        ]

    def application(self) -> web.Application:
        """All routes."""
        app = web.Application(middlewares=[_errors_as_json], client_max_size=1 << 16)
        for method, path, handler, scope in self.routes():
            admitted = self._admitting(handler, scope)
            if method == "GET":
                app.router.add_get(path, admitted)
            else:
                app.router.add_route(method, path, admitted)
        return app

    def _admitting(self, handler: Handler, scope: Scope | None) -> Handler:
        """The handler for those who have this scope."""

        async def admitted(request: web.Request) -> web.StreamResponse:
            if scope is not None:
                client = self._client(request)
                self._gate.require(client, scope)
                request[_CLIENT] = client
                if scope == "operate":
                    log.info(
                        "api.operated", client=client.name, method=request.method, path=request.path
                    )
            elif request.method not in _SAFE:
                self._check_origin(request, needed=False)
            answer = await handler(request)
            # Nothing on the way may keep what the next one is not to see.
            answer.headers.setdefault("Cache-Control", "private, no-cache")
            return answer

        return admitted

    def _client(self, request: web.Request) -> Client:
        """Raises Refused."""
        cookie = request.headers.get("Cookie")
        client = self._gate.client(
            request.remote or "",
            authorization=request.headers.get("Authorization"),
            cookie=cookie,
        )
        if request.method not in _SAFE:
            self._check_origin(request, needed=client.login is not None)
        return client

    def _check_origin(self, request: web.Request, *, needed: bool) -> None:
        """A page from elsewhere can have a browser send requests, with our cookie or without."""
        self._gate.check_origin(
            request.headers.get("Origin"), request.headers.get("Host"), needed=needed
        )

    async def _page(self, _: web.Request) -> web.Response:
        page = files("siprec_bridge.api").joinpath("page/index.html").read_text("utf-8")
        return web.Response(
            text=page,
            content_type="text/html",
            headers={
                "Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline'; "
                "script-src 'unsafe-inline'; connect-src 'self' ws: wss:; "
                "form-action 'self'; frame-ancestors 'none'"
            },
        )

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        """For anybody whether; why not, for those who come with any token."""
        try:
            self._client(request)
            known = True
        except Refused as refused:
            if refused.reason != "none":
                raise
            known = False
        report = await self._health.report()
        facts = {name: cause or "ok" for name, cause in report.facts.items()}
        return web.json_response(
            {"ready": report.ready} | ({"facts": facts} if known else {}),
            status=200 if report.ready else 503,
        )

    async def _render_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": METRICS_TYPE})

    async def _who(self, request: web.Request) -> web.Response:
        client = self._client(request)
        return web.json_response(
            {
                "client": client.name,
                "scopes": sorted(client.scopes),
                "restricted": not client.view.whole,
                "open": self._gate.open,
            }
        )

    async def _log_in(self, request: web.Request) -> web.Response:
        """A cookie in place of the token: the page's audio and socket cannot send headers."""
        login = await _body(request, Login)
        client = self._gate.by_token(login.token.get_secret_value(), request.remote or "")
        answer = web.json_response({"client": client.name, "scopes": sorted(client.scopes)})
        answer.set_cookie(
            COOKIE,
            self._gate.log_in(client),
            max_age=LOGIN_S,
            httponly=True,
            samesite="Strict",
            # A browser says how it reached us, also through a proxy that speaks TLS for us.
            secure=self._secure or request.headers.get("Origin", "").startswith("https:"),
        )
        log.info("access.logged_in", client=client.name, source=request.remote)
        return answer

    async def _log_out(self, request: web.Request) -> web.Response:
        with contextlib.suppress(Refused):
            self._gate.log_out(self._client(request))
        answer = web.Response(status=204)
        answer.del_cookie(COOKIE, httponly=True, samesite="Strict", secure=self._secure)
        return answer

    async def _ticket(self, request: web.Request) -> web.Response:
        ticket = self._gate.ticket(request[_CLIENT])
        return web.json_response({"ticket": ticket, "expires_in": TICKET_S}, status=201)

    async def _sessions(self, request: web.Request) -> web.Response:
        view = request[_CLIENT].view

        def page(connection: Connection, limit: int, before: Cursor | None) -> list[SessionRow]:
            return recordings.listing(
                connection,
                limit,
                before=before,
                state=state,
                sip_call_id=call_id,
                assurance=verdict,
            )

        state = _choice(request, "state", _SESSION_STATES)
        call_id = request.query.get("call_id")
        verdict = _choice(request, "assurance", _VERDICTS)
        rows, next_ = await self._database.read(
            partial(
                _visible,
                page=page,
                seen=lambda _, row: view.sees(row.peer, row.document),
                key=lambda row: (row.started_at, row.id),
                whole=view.whole,
                limit=_limit(request),
                before=_cursor(request),
            )
        )
        return web.json_response(
            {"sessions": [_session_summary(row) for row in rows], "next": next_}
        )

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
        await self._check_view(request)
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
        version = _number(request, "version")
        found = await self._database.read(
            partial(transcripts_of.get, session_id=row.id, version=version)
        )
        if found is None:
            which = "transcript yet" if version is None else f"version {version} of the transcript"
            raise web.HTTPNotFound(text=f"there is no {which}")
        if request.query.get("format") == "text":
            return web.Response(text=found.text + "\n")
        return web.Response(text=found.document, content_type="application/json")

    async def _search(self, request: web.Request) -> web.Response:
        """Sessions whose latest transcript has what is asked for, and where in it."""
        view = request[_CLIENT].view
        since, until = _time(request, "from"), _time(request, "to")

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
                _visible,
                page=page,
                seen=lambda _, one: view.sees(one.session.peer, one.session.document),
                key=lambda one: (one.session.started_at, one.session.id),
                whole=view.whole,
                limit=_limit(request),
                before=_cursor(request),
            )
        )
        return web.json_response(
            {
                "sessions": [
                    _session_summary(one.session)
                    | {"matches": one.matches, "hits": [asdict(hit) for hit in one.hits]}
                    for one in found
                ],
                "next": next_,
            }
        )

    async def _versions(self, request: web.Request) -> web.Response:
        row = await self._find(request)

        def find(connection: Connection) -> tuple[list[JobRow], dict[int, datetime]]:
            queued = jobs.listing(connection, _LARGEST_PAGE, session_id=row.id)
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
                        "job": _job(by_version[version]) if version in by_version else None,
                    }
                    for version in sorted({*stored, *by_version})
                ]
            }
        )

    async def _transcribe(self, request: web.Request) -> web.Response:
        wish = await _body(request, Wish)
        if wish.model is not None and not _MODEL.fullmatch(wish.model):
            # A file of the server is the operator's business: rules and the command may name one.
            raise web.HTTPBadRequest(text="model: a name is needed, no path")
        session_id = request.match_info["id"]
        await self._check_view(request)
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
        path = Path(row.folder) / name
        if row.node != self._database.node and not path.exists():
            raise web.HTTPNotFound(text=f"the audio is on node {row.node}")
        return web.FileResponse(path, headers={"Content-Type": kind})

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
        await self._check_view(request)
        try:
            paused = await act(session_id, order)
        except NotRecording:
            row = await self._find(request)
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

    async def _jobs(self, request: web.Request) -> web.Response:
        client = request[_CLIENT]
        state = _choice(request, "state", _JOB_STATES)

        def page(connection: Connection, limit: int, before: Cursor | None) -> list[JobRow]:
            return jobs.listing(connection, limit, before=before, state=state)

        rows, next_ = await self._database.read(
            partial(
                _visible,
                page=page,
                seen=lambda connection, row: _may_see(connection, client, row.session_id),
                key=lambda row: (row.created_at, row.id),
                whole=client.view.whole,
                limit=_limit(request),
                before=_cursor(request),
            )
        )
        places: dict[str, Waiting] = {}
        if any(row.state == "queued" for row in rows):
            places = await self._database.read(jobs.places)
        speed = self._scheduler.speed(len(places))
        shown = [_job(row) | _place(row, places, speed) for row in rows]
        return web.json_response({"jobs": shown, "next": next_})

    async def _backlog(self, request: web.Request) -> web.Response:
        if not request[_CLIENT].view.whole:
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
        client = request[_CLIENT]

        def find(connection: Connection) -> JobRow | None:
            row = jobs.get(connection, id)
            return row if row and _may_see(connection, client, row.session_id) else None

        row = await self._database.read(find)
        if row is None:
            raise web.HTTPNotFound(text="there is no such job")
        if not await self._database.write(partial(jobs.retry, job_id=id)):
            raise web.HTTPConflict(text=f"the job is {row.state}, not failed")
        self._scheduler.wake()
        return web.json_response({"queued": id}, status=202)

    async def _find(self, request: web.Request) -> SessionRow:
        """The session, for those who may see it; for others there is none."""
        row = await self._database.read(
            partial(recordings.get, session_id=request.match_info["id"])
        )
        if row is None or not request[_CLIENT].view.sees(row.peer, row.document):
            raise web.HTTPNotFound(text="there is no such session")
        return row

    async def _check_view(self, request: web.Request) -> None:
        # Whoever may see all must be able to pause a call also while the database does not answer.
        if not request[_CLIENT].view.whole:
            await self._find(request)


def _visible(
    connection: Connection,
    *,
    page: Callable[[Connection, int, Cursor | None], list[Row]],
    seen: Callable[[Connection, Row], bool],
    key: Callable[[Row], Cursor],
    whole: bool,
    limit: int,
    before: Cursor | None,
) -> tuple[list[Row], str | None]:
    """The rows that may be seen, and where the next page begins.

    There may be fewer than `limit`, even none, before the last page: one request does not look
    through years of what a client may not see.
    """
    if whole:
        rows = page(connection, limit, before)
        return rows, _next(key(rows[-1])) if rows else None
    found: list[Row] = []
    for _ in range(_MOST_LOOKED_AT // _LARGEST_PAGE):
        rows = page(connection, _LARGEST_PAGE, before)
        for row in rows:
            before = key(row)
            if seen(connection, row):
                found.append(row)
                if len(found) == limit:
                    return found, _next(before)
        if len(rows) < _LARGEST_PAGE:
            return found, None
    return found, _next(before) if before is not None else None


def _may_see(connection: Connection, client: Client, session_id: str) -> bool:
    if client.view.whole:
        return True
    row = recordings.get(connection, session_id)
    return row is not None and client.view.sees(row.peer, row.document)


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
    except Refused as refused:
        return web.json_response(
            {"error": refused.text}, status=refused.status, headers=refused.headers
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
        "node": row.node,
    }


def _job(row: JobRow) -> dict[str, Any]:
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


def _number(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text[:6]) >= 1 and len(text) <= 6):
        raise web.HTTPBadRequest(text=f"{name} must be a number from 1")
    return int(text)


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", str(_PAGE))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:6]) <= _LARGEST_PAGE):
        raise web.HTTPBadRequest(text=f"limit must be from 1 to {_LARGEST_PAGE}")
    return int(text)


def _cursor(request: web.Request) -> Cursor | None:
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


def _time(request: web.Request, name: str) -> datetime | None:
    text = request.query.get(name)
    if not text:
        return None
    try:
        when = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        raise web.HTTPBadRequest(text=f"{name} must be a time such as 2026-05-04T12:00Z") from None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def _next(last: Cursor) -> str:
    """What `before` of the following page is."""
    return f"{last[0].isoformat()}~{last[1]}"


def _choice(request: web.Request, name: str, allowed: tuple[Any, ...]) -> Any:
    text = request.query.get(name)
    if text is not None and text not in allowed:
        raise web.HTTPBadRequest(text=f"{name} must be one of: {', '.join(allowed)}")
    return text
