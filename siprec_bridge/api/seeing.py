"""Which sessions a client may see: for others there are none."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from aiohttp import web
from sqlalchemy import Connection

from siprec_bridge.access import Client
from siprec_bridge.api.asking import CLIENT, LARGEST_PAGE, Cursor, cursor_after
from siprec_bridge.store import Database, Found, JobRow, SessionRow, recordings

_NO_ID = "0"  # before all ids
_MOST_LOOKED_AT = 5000  # rows for one page of a client that may not see all of them

Row = TypeVar("Row", SessionRow, JobRow, Found)


async def find_session(database: Database, request: web.Request) -> SessionRow:
    """The session of the path. Raises HTTPNotFound, also where the client may not see it."""
    row = await database.read(partial(recordings.get, session_id=request.match_info["id"]))
    if row is None or not request[CLIENT].view.sees(row.peer, row.document):
        raise web.HTTPNotFound(text="there is no such session")
    return row


async def check_view(database: Database, request: web.Request) -> None:
    """Raises HTTPNotFound where the client may not see the session of the path."""
    # Whoever may see all must be able to pause a call also while the database does not answer.
    if not request[CLIENT].view.whole:
        await find_session(database, request)


def may_see(connection: Connection, client: Client, session_id: str) -> bool:
    """Whether the client may see this session; there must be one if it may not see all."""
    if client.view.whole:
        return True
    row = recordings.get(connection, session_id)
    return row is not None and client.view.sees(row.peer, row.document)


def visible(
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
        return rows, cursor_after(key(rows[-1])) if rows else None
    found: list[Row] = []
    for _ in range(_MOST_LOOKED_AT // LARGEST_PAGE):
        rows = page(connection, LARGEST_PAGE, before)
        for row in rows:
            before = key(row)
            if seen(connection, row):
                found.append(row)
                if len(found) == limit:
                    return found, cursor_after(before)
        if len(rows) < LARGEST_PAGE:
            return found, None
    if before is None:
        return found, None
    # What was looked at last may be another's, whose id is nobody's business: from here on the
    # moment alone is said, once all of that moment were looked at.
    moment = before[0]
    while rows := page(connection, LARGEST_PAGE, before):
        of_it = [row for row in rows if key(row)[0] == moment]
        found += [row for row in of_it if seen(connection, row)]
        if len(of_it) < len(rows):
            break
        before = key(rows[-1])
    return found, cursor_after((moment, _NO_ID))
