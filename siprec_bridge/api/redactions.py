"""Taking out of a stored session what the policy of today names."""

from aiohttp import web
from pydantic import Field

from siprec_bridge.api.asking import CLIENT, Route, Why, body_of
from siprec_bridge.api.seeing import find_session
from siprec_bridge.api.undertakings import Undertakings
from siprec_bridge.recording import Keys, LateRedaction, Redressed
from siprec_bridge.recording.late_redaction import as_json
from siprec_bridge.store import Database, SessionRow


class Request(Why):
    """How. Nothing is changed unless `dry_run` is false."""

    dry_run: bool = True
    text_only: bool = Field(False, description="leave the audio as it is")
    delete_encrypted: bool = Field(
        False, description="delete what has it where it is encrypted: here is no key for it"
    )


class Redactions:
    """A session at a time; more at once are the command's."""

    def __init__(self, database: Database, late: LateRedaction, undertakings: Undertakings) -> None:
        self._database = database
        self._late = late
        self._undertakings = undertakings

    def routes(self) -> list[Route]:
        """The routes."""
        return [Route("POST", "/api/sessions/{id}/redaction", self._redact, "erase")]

    async def _redact(self, request: web.Request) -> web.Response:
        row = await find_session(self._database, request)
        wish = await body_of(request, Request)
        # Cut off by a client that does not wait, it would be done by half.
        found = await self._undertakings.done(
            self._done(row, wish, wish.by or request[CLIENT].name)
        )
        return web.json_response({"dry_run": wish.dry_run} | as_json(found))

    async def _done(self, row: SessionRow, wish: Request, by: str) -> Redressed:
        found = await self._late.redact(
            row,
            dry_run=wish.dry_run,
            by=by,
            reason=wish.reason,
            keys=Keys(delete=wish.delete_encrypted),
            text_only=wish.text_only,
        )
        if found.outcome == "redacted":
            await self._late.finish()
        return found
