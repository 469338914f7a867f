"""What each sink has not got: how much waits, what was given up and why; sent again, or dropped."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Self

import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Connection

from siprec_bridge.api.asking import CLIENT, Route, body_of, limit_of, refuse_others
from siprec_bridge.delivery import Relay
from siprec_bridge.store import Database, SinkBacklog, outbox
from siprec_bridge.store.outbox import FailingEvent, ParkedEvent

log = structlog.get_logger()


# PostgreSQL has no NUL in a text.
_Text = Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$")]


class Which(BaseModel):
    """Parked events of a sink: one by its id, those of a reason, or all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: _Text | None = Field(None, min_length=1)
    reason: _Text = Field("", description="a part of the reason")
    all: bool = False

    @model_validator(mode="after")
    def _is_one_choice(self) -> Self:
        if [self.id is not None, bool(self.reason), self.all].count(True) != 1:
            raise ValueError("say id, reason or all: true")
        return self


class Dropped(Which):
    """Events that are given up for good, by whom and why."""

    pending: bool = Field(False, description="true: also what waits and was not given up")
    by: _Text | None = None
    why: _Text = Field(min_length=1)


class Deliveries:
    """The outbox, for operators. `relays`: the sinks that this bridge delivers to."""

    def __init__(self, database: Database, relays: Sequence[Relay]) -> None:
        self._database = database
        self._relays = {relay.name: relay for relay in relays}

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/api/deliveries", self._sinks, "read"),
            Route("GET", "/api/deliveries/{sink}/parked", self._parked, "read"),
            Route("POST", "/api/deliveries/{sink}/resend", self._resend, "operate"),
            Route("POST", "/api/deliveries/{sink}/drop", self._drop, "operate"),
        ]

    async def _sinks(self, request: web.Request) -> web.Response:
        _check_whole(request)

        def find(connection: Connection) -> dict[str, tuple[SinkBacklog, FailingEvent | None]]:
            return {
                name: (outbox.backlog(connection, name), outbox.failing(connection, name))
                for name in sorted({*self._relays, *outbox.sinks(connection)})
            }

        found = await self._database.read(find)
        now = datetime.now(UTC)
        return web.json_response(
            {
                "sinks": [
                    {
                        "name": name,
                        "configured": name in self._relays,
                        "pending": one.pending,
                        "parked": one.parked,
                        "oldest_seconds": round((now - one.oldest_at).total_seconds(), 3)
                        if one.oldest_at is not None
                        else None,
                        "trouble": self._relays[name].trouble if name in self._relays else None,
                        "failing": asdict(failing)
                        | {"failing_since": failing.failing_since.isoformat()}
                        if failing is not None
                        else None,
                    }
                    for name, (one, failing) in found.items()
                ]
            }
        )

    async def _parked(self, request: web.Request) -> web.Response:
        refuse_others(request, "reason", "limit", "after")
        sink = await self._known(request)
        limit = limit_of(request)
        found = await self._database.read(
            partial(
                outbox.parked,
                sink=sink,
                limit=limit,
                after=_after(request),
                reason=request.query.get("reason", "").replace("\0", ""),
            )
        )
        next_ = found[-1].event.seq if len(found) == limit else None
        return web.json_response({"parked": [parked_fields(one) for one in found], "next": next_})

    async def _resend(self, request: web.Request) -> web.Response:
        sink = await self._known(request)
        which = await body_of(request, Which)
        count = await self._database.write(
            partial(outbox.resend, sink=sink, event_id=which.id, reason=which.reason)
        )
        if which.id is not None and not count:
            raise web.HTTPNotFound(text="there is no such parked event")
        log.info(
            "delivery.resent", sink=sink, count=count, client=request[CLIENT].name,
            id=which.id, of_reason=which.reason or None,
        )  # fmt: skip
        return web.json_response({"resent": count}, status=202)

    async def _drop(self, request: web.Request) -> web.Response:
        sink = await self._known(request)
        which = await body_of(request, Dropped)
        client = request[CLIENT].name
        by = f"{which.by} ({client})" if which.by else client
        count = await self._database.write(
            partial(
                outbox.drop,
                sink=sink,
                note=f"dropped by {by}: {which.why}",
                event_id=which.id,
                reason=which.reason,
                pending=which.pending,
            )
        )
        if which.id is not None and not count:
            raise web.HTTPNotFound(text="there is no such parked event")
        log.warning(
            "delivery.dropped", sink=sink, count=count, client=client, by=which.by, why=which.why,
            id=which.id, of_reason=which.reason or None, pending_too=which.pending,
        )  # fmt: skip
        return web.json_response({"dropped": count})

    async def _known(self, request: web.Request) -> str:
        """The sink that is named, for those who may see all that it gets."""
        _check_whole(request)
        name = request.match_info["sink"]  # a nonsense one is compared, not looked for
        if name not in self._relays and name not in await self._database.read(outbox.sinks):
            raise web.HTTPNotFound(text="there is no such sink")
        return name


def parked_fields(one: ParkedEvent) -> dict[str, Any]:
    """A parked event as JSON, without what it says."""
    event = one.event
    return {
        "id": event.id,
        "type": event.type,
        "session_id": event.session_id,
        "sequence": event.seq,
        "at": event.at.isoformat(),
        "attempts": one.attempts,
        "failing_since": one.failing_since.isoformat() if one.failing_since else None,
        "reason": one.reason,
    }


def _check_whole(request: web.Request) -> None:
    if not request[CLIENT].view.whole:
        raise web.HTTPForbidden(text="for clients only that may see all sessions")


def _after(request: web.Request) -> int:
    text = request.query.get("after", "0")
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise web.HTTPBadRequest(text="after must be the `next` of the page before")
    return int(text)
