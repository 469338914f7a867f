"""Calls that were recorded in several sessions: these, and what was said in all of them."""

from functools import partial

from aiohttp import web

from siprec_bridge.api.asking import CLIENT, Route, choice_of
from siprec_bridge.recording import read_group
from siprec_bridge.store import Database, groups
from siprec_bridge.transcription import JoinedConversation


class Groups:
    """Communication session groups, by the id that the SRC gave them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route("GET", "/api/groups/{id}", self._group, "read"),
            Route("GET", "/api/groups/{id}/transcript", self._transcript, "read"),
        ]

    async def _group(self, request: web.Request) -> web.Response:
        found = await self._find(request, with_text=False)
        return _json(found, exclude={"utterances"})

    async def _transcript(self, request: web.Request) -> web.Response:
        found = await self._find(request, with_text=True)
        if all(one.version is None for one in found.sessions):
            raise web.HTTPNotFound(text="there is no transcript yet")
        if choice_of(request, "format", ("json", "text")) == "text":
            return web.Response(text=found.lines + "\n")
        return _json(found)

    async def _find(self, request: web.Request, *, with_text: bool) -> JoinedConversation:
        view = request[CLIENT].view
        try:
            found = await self._database.read(
                partial(
                    read_group,
                    group_id=request.match_info["id"],
                    sees=lambda row: view.sees(row.peer, row.document),
                    with_text=with_text,
                )
            )
        except groups.TooLarge as error:
            raise web.HTTPConflict(text=str(error)) from None
        if found is None:
            raise web.HTTPNotFound(text="there is no such group")
        return found


def _json(found: JoinedConversation, exclude: set[str] | None = None) -> web.Response:
    return web.Response(
        text=found.model_dump_json(exclude=exclude), content_type="application/json"
    )
