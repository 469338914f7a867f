"""Who gets to a route: the gate asked with what a request carried."""

import structlog
from aiohttp import web

from siprec_bridge.access import Client, Gate
from siprec_bridge.api.asking import CLIENT, Handler, Route

log = structlog.get_logger()

_SAFE = ("GET", "HEAD", "OPTIONS")


class Admission:
    """Lets requests through to the routes' handlers."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def admitting(self, route: Route) -> Handler:
        """The route's handler, for those who have its scope."""
        scope = route.scope

        async def admitted(request: web.Request) -> web.StreamResponse:
            if scope is not None:
                if scope != "metrics":
                    self._gate.check_host(request.headers.get("Host"))
                client = self.client(request)
                self._gate.require(client, scope)
                request[CLIENT] = client
                if scope in ("operate", "erase"):
                    log.info(
                        "api.operated", client=client.name, method=request.method, path=request.path
                    )
            elif request.method not in _SAFE:
                self._check_origin(request, needed=False)
            answer = await route.handler(request)
            # Nothing on the way may keep what the next one is not to see.
            answer.headers.setdefault("Cache-Control", "private, no-cache")
            return answer

        return admitted

    def client(self, request: web.Request) -> Client:
        """Who asks. Raises Refused."""
        cookie = request.headers.get("Cookie")
        client = self._gate.client(
            self.source(request),
            authorization=request.headers.get("Authorization"),
            cookie=cookie,
        )
        if request.method not in _SAFE:
            self._check_origin(request, needed=client.login is not None)
        return client

    def source(self, request: web.Request) -> str:
        """The client's address."""
        return self._gate.source(request.remote or "", request.headers.get("X-Forwarded-For"))

    def _check_origin(self, request: web.Request, *, needed: bool) -> None:
        """A page from elsewhere can have a browser send requests, with our cookie or without."""
        self._gate.check_origin(
            request.headers.get("Origin"), request.headers.get("Host"), needed=needed
        )
