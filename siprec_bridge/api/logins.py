"""Logins of the page, and tickets for listeners."""

import contextlib

import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from siprec_bridge.access import COOKIE, LOGIN_S, TICKET_S, Gate, Refused
from siprec_bridge.api.admission import Admission
from siprec_bridge.api.asking import CLIENT, Route, body_of

log = structlog.get_logger()


class Login(BaseModel):
    """A token, for the page."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: SecretStr = Field(max_length=1000)


class Logins:
    """A login is a cookie in place of a token. `secure`: we are reached over TLS."""

    def __init__(self, gate: Gate, admission: Admission, *, secure: bool) -> None:
        self._gate = gate
        self._admission = admission
        self._secure = secure

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/api/login", self._who, None),
            Route("POST", "/api/login", self._log_in, None),
            Route("DELETE", "/api/login", self._log_out, None),
            Route("POST", "/api/tickets", self._ticket, "listen"),
        ]

    async def _who(self, request: web.Request) -> web.Response:
        client = self._admission.client(request)
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
        login = await body_of(request, Login)
        client = self._gate.by_token(
            login.token.get_secret_value(), self._admission.source(request)
        )
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
        log.info("access.logged_in", client=client.name, source=self._admission.source(request))
        return answer

    async def _log_out(self, request: web.Request) -> web.Response:
        with contextlib.suppress(Refused):
            self._gate.log_out(self._admission.client(request))
        answer = web.Response(status=204)
        answer.del_cookie(COOKIE, httponly=True, samesite="Strict", secure=self._secure)
        return answer

    async def _ticket(self, request: web.Request) -> web.Response:
        ticket = self._gate.ticket(request[CLIENT])
        return web.json_response({"ticket": ticket, "expires_in": TICKET_S}, status=201)
