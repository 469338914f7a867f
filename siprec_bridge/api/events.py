"""Events by their ids, for consumers that were sent a reference."""

from aiohttp import web
from sqlalchemy import Connection

from siprec_bridge.api.asking import CLIENT, Route
from siprec_bridge.api.seeing import may_see
from siprec_bridge.delivery import envelope
from siprec_bridge.store import Database, Event, outbox


class Events:
    """What `reference` in a message leads to."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def routes(self) -> list[Route]:
        """Its routes."""
        return [Route("GET", "/api/events/{id}/data", self._data, "read")]

    async def _data(self, request: web.Request) -> web.Response:
        """The data of an event, octet by octet what the reference's checksum is of."""
        client, id = request[CLIENT], request.match_info["id"]

        def find(connection: Connection) -> Event | None:
            event = outbox.get(connection, id)
            if event is None or not all(
                may_see(connection, client, one) for one in envelope.sessions_named(event)
            ):
                return None
            return event

        event = await self._database.read(find)
        if event is None:
            raise web.HTTPNotFound(text="there is no such event, or none any more")
        return web.Response(body=event.body.encode(), content_type="application/json")
