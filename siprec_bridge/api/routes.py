"""What can be asked over HTTP. Answers are JSON; errors too: `{"error": …}`."""

from collections.abc import Sequence
from itertools import chain

import structlog
from aiohttp import web

from siprec_bridge.access import Gate, Refused
from siprec_bridge.api.admission import Admission
from siprec_bridge.api.asking import Handler, Route
from siprec_bridge.api.custody import Custody
from siprec_bridge.api.deliveries import Deliveries
from siprec_bridge.api.erasures import Erasures
from siprec_bridge.api.events import Events
from siprec_bridge.api.groups import Groups
from siprec_bridge.api.jobs import Jobs
from siprec_bridge.api.logins import Logins
from siprec_bridge.api.pausing import Pausing
from siprec_bridge.api.playback import Playback
from siprec_bridge.api.redactions import Redactions
from siprec_bridge.api.sessions import Sessions
from siprec_bridge.api.status import Status
from siprec_bridge.api.transcriptions import Transcriptions
from siprec_bridge.api.undertakings import Undertakings
from siprec_bridge.api.vcons import SessionVcons
from siprec_bridge.delivery import Relay
from siprec_bridge.recording import (
    Eraser,
    LateRedaction,
    Orders,
    RecordingService,
    Retention,
    Stores,
)
from siprec_bridge.store import Database, StoreError
from siprec_bridge.telemetry import Health, Metrics
from siprec_bridge.transcription import Scheduler
from siprec_bridge.vcon import Signer

log = structlog.get_logger()


class Api:
    """The routes over a store, the running calls and jobs; `gate` says who may use them.

    `open_metrics`: no token is needed for them. `secure`: we are reached over TLS. `public_url`:
    where we are reached, if that is known; `vcon_inline_max`: octets of audio in a vCon; `vcon_signer` signs them.
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
        eraser: Eraser,
        late: LateRedaction,
        stores: Stores,
        relays: Sequence[Relay] = (),
        *,
        open_metrics: bool = False,
        secure: bool = False,
        public_url: str | None = None,
        vcon_inline_max: int = 100_000_000,
        vcon_signer: Signer | None = None,
    ) -> None:
        self._admission = Admission(gate)
        self._undertakings = Undertakings()
        self._rooms = (
            Status(metrics, health, self._admission, open_metrics=open_metrics),
            Logins(gate, self._admission, secure=secure),
            Sessions(database),
            Groups(database),
            Playback(database, stores),
            SessionVcons(
                database,
                public_url=public_url,
                inline_max=vcon_inline_max,
                signer=vcon_signer,
            ),
            Custody(database, retention),
            Erasures(database, eraser, self._undertakings),
            Redactions(database, late, self._undertakings),
            Pausing(database, calls),
            Transcriptions(database, orders, scheduler),
            Jobs(database, scheduler),
            Deliveries(database, relays),
            Events(database),
        )
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Get ready to serve connections: see `connection`."""
        self._runner = web.AppRunner(
            self.application(), access_log=None, shutdown_timeout=2.0, keepalive_timeout=30.0
        )
        await self._runner.setup()

    async def stop(self, patience: float = 10.0) -> None:
        """Close all connections, and wait so many seconds for what goes on without them."""
        self._undertakings.ending = True
        if self._runner is not None:
            await self._runner.cleanup()
        await self._undertakings.stop(patience)

    def connection(self) -> web.RequestHandler:
        """An asyncio protocol for one accepted connection."""
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        return server()

    def routes(self) -> list[Route]:
        """All routes."""
        return list(chain.from_iterable(room.routes() for room in self._rooms))

    def application(self) -> web.Application:
        """All routes, each for those who have its scope."""
        app = web.Application(middlewares=[_errors_as_json], client_max_size=1 << 16)
        for route in self.routes():
            admitted = self._admission.admitting(route)
            if route.method == "GET":
                app.router.add_get(route.path, admitted)
            else:
                app.router.add_route(route.method, route.path, admitted)
        return app


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        headers = {
            name: error.headers[name]
            for name in ("Allow", "Content-Range")
            if name in error.headers
        }
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
