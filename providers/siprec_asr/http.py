"""What the HTTP fronts share: login, errors as JSON, reading a body with a limit."""

import hmac
import math
import socket
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import BodyPartReader, StreamReader, web
from aiohttp.typedefs import Middleware

from siprec_asr.errors import Cancelled, Refused

log = structlog.get_logger()

# For probes and scrapers, which carry no token.
_OPEN = ("/health", "/ready", "/metrics")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def over_unix_socket(request: web.Request) -> bool:
    """Whether the peer came by the Unix socket, whose file mode has let it in."""
    connection = request.transport.get_extra_info("socket") if request.transport else None
    return connection is not None and connection.family == socket.AF_UNIX


def login(token: str | None) -> Middleware:
    """A middleware that asks TCP peers for the bearer token."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if token is not None and request.path not in _OPEN and not over_unix_socket(request):
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            # In bytes: compare_digest refuses text that is not ASCII. Headers may be no UTF-8.
            octets = given.strip().encode("utf-8", "surrogateescape")
            same = hmac.compare_digest(octets, token.encode())
            if scheme.lower() != "bearer" or not same:
                log.warning("http.unauthorized", path=request.path, peer=request.remote)
                raise Refused(401, "unauthorized", "a bearer token is needed (ASR_TOKEN)")
        return await handler(request)

    return middleware


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer Refused in the form of OpenAI's API, which the other clients read as well."""
    try:
        return await handler(request)
    except Refused as refused:
        log.info(
            "http.refused", path=request.path, status=refused.status, code=refused.code,
            cause=refused.message,
        )  # fmt: skip
        return _answer(refused)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _answer(Refused(error.status, "http", error.text or error.reason))
    except Cancelled:
        return _answer(Refused(503, "stopping", "the server is stopping", retry_after=10))
    except ConnectionError:  # the client went away while its request was read
        raise
    except Exception:
        # One request's fault must not take the connection's other requests with it.
        log.exception("http.failed", path=request.path)
        return _answer(Refused(500, "internal", "the server failed; its log tells how"))


def _answer(refused: Refused) -> web.Response:
    headers = {}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(refused.retry_after))
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    kind = "invalid_request_error" if refused.status < 500 else "server_error"
    body = {"error": {"message": refused.message, "type": kind, "code": refused.code}}
    return web.json_response(body, status=refused.status, headers=headers)


async def read_limited(part: StreamReader | BodyPartReader, limit: int) -> bytes:
    """All of a body or a part. Raises Refused (413) when it has more octets than `limit`."""
    octets = bytearray()
    while True:
        chunk = (
            await part.read_chunk(1 << 18)
            if isinstance(part, BodyPartReader)
            else await part.readany()
        )
        if not chunk:
            return bytes(octets)
        octets += chunk
        if len(octets) > limit:
            raise Refused(413, "too_large", f"more than {limit} octets (ASR_MAX_UPLOAD)")
