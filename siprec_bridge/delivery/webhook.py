"""The webhook sink: each event POSTed to one URL, signed by the Standard Webhooks scheme.

The body is the CloudEvent that WebSocket listeners get (structured mode of its HTTP binding).
`webhook-id` is the event's id, the same at every try, `webhook-timestamp` that of the try, and
`webhook-signature` has one `v1,` signature for each secret, so that keys can be exchanged.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
import ssl
import time
import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Final, Self

import aiohttp
import structlog
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from yarl import URL

from siprec_bridge import __version__
from siprec_bridge.delivery import envelope
from siprec_bridge.delivery.events import beginnings_of_types
from siprec_bridge.delivery.relay import Declined, Unacceptable, Unreachable
from siprec_bridge.provider import ConfigurationError, parse_duration
from siprec_bridge.store import Event
from siprec_bridge.store.outbox import Recipient, Subscriber
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

ANSWERS: Final = ("2xx", "3xx", "4xx", "5xx", "broken", "timeout", "unreachable")
CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"

_PREFIX = "whsec_"
_KEY_LENGTHS = range(24, 65)  # octets, as the scheme wants
_CONNECT_TIMEOUT_S = 10.0
_LOOK_S = 5.0  # how often files are looked at that may have been renewed
_LONGEST_RETRY_AFTER_S = 86400.0
_MOST_READ = 65536  # octets of an answer's body, which says nothing to us
# About us or our way there, not about the event: somebody corrects it, then it goes through.
_SET_UP_WRONG = (401, 403, 404, 407)
_TRY_AGAIN = (408, 425, 429)


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _beginnings(value: object) -> object:
    """Types as they begin: `transcript.*` may be written too."""
    listed = _listed(value)
    if not isinstance(listed, list | tuple):
        return listed
    return beginnings_of_types([str(one) for one in listed])


def _duration(value: object) -> object:
    return timedelta(seconds=parse_duration(value)) if isinstance(value, str) else value


def _http_url(value: object) -> object:
    try:
        url = URL(str(value))
    except ValueError as error:
        raise ValueError("is not a URL") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("must be https://host/path, or http://")
    return value


Types = Annotated[tuple[str, ...], BeforeValidator(_beginnings), Field(min_length=1)]
Duration = Annotated[timedelta, BeforeValidator(_duration), Field(gt=timedelta(0))]
Url = Annotated[SecretStr, BeforeValidator(_http_url)]  # passwords and tokens stand in URLs


class Hook(BaseModel):
    """One URL that gets events: a table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$", description="the table's name")
    url: Url
    secrets: Annotated[tuple[SecretStr, ...], BeforeValidator(_listed)] = Field(
        (), description="whsec_… each; all of them sign"
    )
    secret_file: Path | None = Field(None, description="file of secrets, one a line, or both")
    types: Types | None = Field(None, description="beginnings of event types; else all")
    ca: Path | None = Field(None, description="PEM file of CAs, instead of the system's")
    client_certificate: Path | None = Field(None, description="PEM file of ours, for mutual TLS")
    client_key: Path | None = Field(None, description="PEM file of its key, if not the same")
    timeout: Duration = Field(timedelta(seconds=15), description="for an answer")
    concurrency: Annotated[int, Field(ge=1, le=64)] = Field(
        8, description="requests at once, each of another session"
    )
    retry_for: Duration = Field(
        timedelta(days=3), description="an event that has failed for so long is parked"
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.client_key is not None and self.client_certificate is None:
            raise ValueError("client_key needs client_certificate")
        secure = URL(self.url.get_secret_value()).scheme == "https"
        if not secure and (self.ca or self.client_certificate):
            raise ValueError("ca and client_certificate need an https:// URL")
        return self

    @property
    def sink(self) -> str:
        """The sink's name in outbox and metrics."""
        return f"webhook:{self.name}"

    @property
    def recipient(self) -> Recipient:
        """Who is to get what, for the outbox."""
        return Subscriber(self.sink, self.types) if self.types is not None else self.sink

    def keys(self) -> tuple[bytes, ...]:
        """The keys that sign. Raises ValueError that names the setting, never the secret."""
        given = [("secrets", one.get_secret_value()) for one in self.secrets]
        if self.secret_file is not None:
            try:
                lines = self.secret_file.read_text(encoding="utf-8").split()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"secret_file {self.secret_file}: {error}") from None
            given += [(f"secret_file {self.secret_file}", line) for line in lines]
        if not given:
            raise ValueError("a secret is needed: secrets or secret_file")
        return tuple(_key(where, text) for where, text in given)

    def tls(self) -> ssl.SSLContext | None:
        """How the server is verified, and who we are to it. Raises ValueError."""
        if URL(self.url.get_secret_value()).scheme != "https":
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"ca {self.ca}: {error.strerror or error}") from None
        if self.client_certificate is not None:
            try:
                # No password is asked for on a terminal that a service has not got.
                context.load_cert_chain(self.client_certificate, self.client_key, lambda: "")
            except (OSError, ssl.SSLError) as error:
                text = f"client_certificate {self.client_certificate}: {error.strerror or error}"
                raise ValueError(text) from None
        return context

    @property
    def files(self) -> tuple[Path, ...]:
        """What may be renewed while we run."""
        named = (self.secret_file, self.ca, self.client_certificate, self.client_key)
        return tuple(one for one in named if one is not None)


def _key(where: str, text: str) -> bytes:
    try:
        key = base64.b64decode(text.strip().removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.strip().startswith(_PREFIX) or len(key) not in _KEY_LENGTHS:
        raise ValueError(f"{where}: whsec_ and the base64 of 24 to 64 octets is needed")
    return key


def load_hooks(path: Path | None) -> tuple[Hook, ...]:
    """Read a table for each webhook from a TOML file; no file, no webhooks.

    Raises ConfigurationError that names the file, the webhook and what is wrong with it.
    """
    if path is None:
        return ()
    setting = f"WEBHOOKS={path}"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(setting, f"cannot be read: {error}") from error
    hooks: list[Hook] = []
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigurationError(setting, f"{name} is no table: [name], then url = …")
        try:
            hook = Hook.model_validate(table | {"name": name})
            hook.keys()
            hook.tls()
        except ValidationError as error:
            raise ConfigurationError(setting, f"{name}: {_first(error)}") from None
        except ValueError as error:
            raise ConfigurationError(setting, f"{name}: {error}") from None
        hooks.append(hook)
    return tuple(hooks)


def _first(error: ValidationError) -> str:
    """What is wrong, without the value: it may be a secret."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        what = f"there is no such field (there are {', '.join(Hook.model_fields)})"
    return f"{where}: {what}" if where else what


def signature(keys: Sequence[bytes], id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: `v1,` and the base64 of an HMAC-SHA256, for each key."""
    signed = f"{id}.{timestamp}.".encode() + body
    digests = (hmac.digest(key, signed, hashlib.sha256) for key in keys)
    return " ".join(f"v1,{base64.b64encode(one).decode()}" for one in digests)


class WebhookSink:
    """One URL. `publish` returns once it has answered 2xx; redirects are not followed."""

    def __init__(
        self, hook: Hook, metrics: Metrics, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.hook = hook
        self.name = hook.sink
        self._url = URL(hook.url.get_secret_value())
        self._metrics = metrics
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._keys: tuple[bytes, ...] = ()
        self._stamps: list[tuple[int, int, int]] = []
        self._looked_at = float("-inf")
        self._taking_over = asyncio.Lock()
        for answer in ANSWERS:
            metrics.webhook_answers_total.labels(sink=self.name, answer=answer)
        metrics.webhook_seconds.labels(sink=self.name)

    @property
    def address(self) -> str:
        """Where it goes, without what may be a secret: path, query, password."""
        return str(self._url.origin())

    async def connect(self) -> None:
        """Take over secrets and certificates that are new. Raises Unreachable without any.

        Connections are made as they are needed.
        """
        async with self._taking_over:
            now = asyncio.get_running_loop().time()
            if self._session is not None and now - self._looked_at < _LOOK_S:
                return
            self._looked_at = now
            stamps = await asyncio.to_thread(self._look)
            if self._session is not None and stamps == self._stamps:
                return
            try:
                keys = await asyncio.to_thread(self.hook.keys)
                tls = await asyncio.to_thread(self.hook.tls)
            except ValueError as error:
                if self._session is None:
                    raise Unreachable(str(error)) from error
                if stamps != self._stamps:
                    log.error("webhook.not_reloaded", sink=self.name, cause=str(error))
                self._stamps = stamps
                return
            replaced, self._session = self._session, self._open(tls)
            self._keys, self._stamps = keys, stamps
            if replaced is not None:
                log.info("webhook.reloaded", sink=self.name, secrets=len(keys))
                # What is under way by the old one is tried again under the same id.
                await replaced.close()

    async def publish(self, event: Event) -> None:
        """POST an event and wait for the answer.

        Raises Unreachable (nobody is there, or asks us to wait), Declined (it failed, or somebody
        has to correct something), Unacceptable (it will never take this event).
        """
        body = envelope.structured(event).encode()
        try:
            status, retry_after = await self._post(event.id, body)
        except aiohttp.ConnectionTimeoutError as error:
            self._count("unreachable")
            raise Unreachable(f"no connection within {_CONNECT_TIMEOUT_S:g} s") from error
        except TimeoutError as error:
            # It may have arrived: it is sent again, and its id tells the consumer.
            self._count("timeout")
            seconds = self.hook.timeout.total_seconds()
            raise Declined(f"no answer within {seconds:g} s") from error
        except aiohttp.ClientConnectorError as error:
            self._count("unreachable")
            raise Unreachable(_cause(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            self._count("broken")
            raise Declined(f"the connection broke: {_cause(error)}") from error
        self._count(f"{status // 100}xx")
        _judge(status, retry_after)

    async def knock(self) -> int:
        """The status of the answer to OPTIONS, which delivers nothing. Raises Unreachable."""
        await self.connect()
        assert self._session is not None
        try:
            async with self._session.options(self._url, allow_redirects=False) as answer:
                return answer.status
        except TimeoutError as error:
            raise Unreachable(
                f"no answer within {self.hook.timeout.total_seconds():g} s"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(_cause(error)) from error

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _post(self, id: str, body: bytes) -> tuple[int, float]:
        """Status and Retry-After in seconds. Raises aiohttp's errors, TimeoutError."""
        for last in (False, True):
            session = self._session
            if session is None:
                raise Unreachable("not open")
            timestamp = int(self._clock())
            headers = {
                "webhook-id": id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": signature(self._keys, id, timestamp, body),
            }
            try:
                with self._metrics.webhook_seconds.labels(sink=self.name).time():
                    async with session.post(
                        self._url, data=body, headers=headers, allow_redirects=False
                    ) as answer:
                        await _read_away(answer)
                        return answer.status, self._seconds(answer.headers.get("Retry-After"))
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # As likely as not it closed a connection that had been idle, as we were sending.
                if last:
                    raise
        raise AssertionError("it has returned or raised")

    def _seconds(self, retry_after: str | None) -> float:
        """RFC 9110 §10.2.3: seconds, or a date; 0 for what is neither."""
        text = (retry_after or "").strip()
        if re.fullmatch(r"[0-9]{1,9}", text):
            seconds = float(text)
        else:
            try:
                at = parsedate_to_datetime(text)
            except (ValueError, OverflowError):
                return 0.0
            if at.tzinfo is None:
                at = at.replace(tzinfo=UTC)
            seconds = (at - datetime.fromtimestamp(self._clock(), UTC)).total_seconds()
        return min(max(0.0, seconds), _LONGEST_RETRY_AFTER_S)

    def _open(self, tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                # The relay bounds what is under way: nothing waits here while its time runs.
                limit=0,
                ssl=tls if tls is not None else True,
            ),
            timeout=aiohttp.ClientTimeout(
                total=self.hook.timeout.total_seconds(), sock_connect=_CONNECT_TIMEOUT_S
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": CONTENT_TYPE, "User-Agent": f"siprec-bridge/{__version__}"},
        )

    def _look(self) -> list[tuple[int, int, int]]:
        stamps: list[tuple[int, int, int]] = []
        for path in self.hook.files:
            try:
                found = path.stat()
            except OSError:
                stamps.append((0, 0, 0))
            else:
                stamps.append((found.st_mtime_ns, found.st_ino, found.st_size))
        return stamps

    def _count(self, answer: str) -> None:
        self._metrics.webhook_answers_total.labels(sink=self.name, answer=answer).inc()


def _judge(status: int, retry_after_s: float) -> None:
    """What an answer means. Raises as `WebhookSink.publish` does, unless it is 2xx."""
    if 200 <= status < 300:
        return
    told = f"answered {status}{_phrase(status)}"
    if status == 429 or (retry_after_s and (status in _TRY_AGAIN or status >= 500)):
        wait = f", to be asked again in {retry_after_s:g} s" if retry_after_s else ""
        raise Unreachable(told + wait, retry_after_s)
    if status in _TRY_AGAIN or status >= 500:
        raise Declined(told)
    if 300 <= status < 400:
        raise Declined(f"{told}: redirects are not followed, correct the url")
    if status in _SET_UP_WRONG:
        raise Declined(told)
    raise Unacceptable(told)


def _phrase(status: int) -> str:
    # Not the server's own words: what is in them, nobody knows.
    try:
        return f" {HTTPStatus(status).phrase}"
    except ValueError:
        return ""


async def _read_away(answer: aiohttp.ClientResponse) -> None:
    """Read an answer's body, so that the connection can be used again; a long one closes it."""
    octets = 0
    try:
        async for chunk in answer.content.iter_any():
            octets += len(chunk)
            if octets > _MOST_READ:
                answer.close()
                return
    except (aiohttp.ClientError, OSError):  # TimeoutError too: its status has been said
        answer.close()


def _cause(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not good: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error.host}:{error.port}: {error.os_error.strerror or error.os_error}"
    return " ".join(str(error).split()) or type(error).__name__
