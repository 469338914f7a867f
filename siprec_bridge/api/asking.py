"""What a request asks for: its body and its query, checked, and who it comes from."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from siprec_bridge.access import Client, Scope

PAGE = 50
LARGEST_PAGE = 500

Model = TypeVar("Model", bound=BaseModel)
Cursor = tuple[datetime, str]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Set for every request to a route that has a scope.
CLIENT: web.RequestKey[Client] = web.RequestKey("client", Client)


class Route(NamedTuple):
    """A path, what answers there, and the scope that it takes; None: anybody may ask."""

    method: str
    path: str
    handler: Handler
    scope: Scope | None


class Why(BaseModel):
    """Who wants something, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: str | None = Field(None, max_length=200)
    reason: str | None = Field(None, max_length=200)


async def body_of(request: web.Request, model: type[Model]) -> Model:
    """The JSON body. Raises HTTPUnsupportedMediaType, HTTPBadRequest."""
    # No form: a page from elsewhere could have a browser send one.
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="the body must be application/json")
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise web.HTTPBadRequest(text=f"{where or 'body'}: {first['msg']}") from None


def refuse_others(request: web.Request, *names: str) -> None:
    """A parameter that is misspelt must not pass for none: the answer would be everything."""
    if unknown := sorted(set(request.query) - set(names)):
        raise web.HTTPBadRequest(
            text=f"there is no parameter {', '.join(unknown)}; there are: {', '.join(names)}"
        )


def number_of(request: web.Request, name: str) -> int | None:
    """A number from 1; None where there is none. Raises HTTPBadRequest, as all that follow."""
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text[:6]) >= 1 and len(text) <= 6):
        raise web.HTTPBadRequest(text=f"{name} must be a number from 1")
    return int(text)


def limit_of(request: web.Request) -> int:
    """How many rows a page is to have."""
    text = request.query.get("limit", str(PAGE))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:6]) <= LARGEST_PAGE):
        raise web.HTTPBadRequest(text=f"limit must be from 1 to {LARGEST_PAGE}")
    return int(text)


def cursor_of(request: web.Request) -> Cursor | None:
    """After which row a page begins; None: the first one."""
    text = request.query.get("before")
    if text is None:
        return None
    at, _, id = text.partition("~")
    try:
        when = datetime.fromisoformat(at.replace(" ", "+"))
        if when.tzinfo is None or not id:
            raise ValueError
        return when.astimezone(UTC), id
    except (ValueError, OverflowError):
        raise web.HTTPBadRequest(text="before must be the `next` of the page before") from None


def cursor_after(last: Cursor) -> str:
    """What `before` of the following page is."""
    return f"{last[0].isoformat()}~{last[1]}"


def time_of(request: web.Request, name: str) -> datetime | None:
    """A time; one without a zone is in UTC."""
    text = request.query.get(name)
    if not text:
        return None
    try:
        when = datetime.fromisoformat(text.replace(" ", "+"))
        return when.astimezone(UTC) if when.tzinfo is not None else when.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # of the first and last years some are none in UTC
        raise web.HTTPBadRequest(text=f"{name} must be a time such as 2026-05-04T12:00Z") from None


def choice_of(request: web.Request, name: str, allowed: tuple[Any, ...]) -> Any:
    """One of these words, or None."""
    text = request.query.get(name)
    if text is not None and text not in allowed:
        raise web.HTTPBadRequest(text=f"{name} must be one of: {', '.join(allowed)}")
    return text
