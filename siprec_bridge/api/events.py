"""Events by their ids, for consumers that were sent a reference."""

from functools import partial

from aiohttp import web

from siprec_bridge.api.asking import CLIENT, Route
from siprec_bridge.api.seeing import may_see
from siprec_bridge.store import Database, outbox


class Events:
    """What `reference` in a message leads to."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def routes(self) -> list[Route]:
        """Its routes."""
        return [Route("GET", "/api/events/{id}/data", self._data, "read")]

    async def _data(self, request: web.Request) -> web.Response:
        """The data of an event, octet by octet what the reference's checksum is of."""
        event = await self._database.read(partial(outbox.get, event_id=request.match_info["id"]))
        if event is None or not await self._database.read(
            partial(may_see, client=request[CLIENT], session_id=event.session_id)
        ):
            raise web.HTTPNotFound(text="there is no such event, or none any more")
        return web.Response(body=event.body.encode(), content_type="application/json")
