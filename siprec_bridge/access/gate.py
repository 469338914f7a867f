"""The gate that every request passes: by token, by the page's login, or by a one-time ticket.

Only tokens can be guessed at, since operators choose them; a source that sends wrong ones is made to
wait. Logins and tickets are ours, random and short-lived, so a stale one is no attempt at anything.
"""

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import structlog

from siprec_bridge.access.source import is_private_name, source_of
from siprec_bridge.access.tokens import (
    EVERYTHING,
    SCOPES,
    Scope,
    Token,
    View,
    digest_of,
    new_secret,
)
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

COOKIE = "siprec_login"
LOGIN_S = 12 * 3600
TICKET_S = 30

_TRIES = 10  # wrong tokens of a source at once
_TRY_AGAIN_S = 6.0  # then one in so many seconds
_SOURCES = 10_000
_MOST_KEPT = 10_000  # logins, and tickets


@dataclass(frozen=True, slots=True)
class Client:
    """Who a request is from, and what it may do. `login`: it came with the page's cookie."""

    name: str
    scopes: frozenset[Scope]
    view: View = EVERYTHING
    digest: bytes = field(default=b"", repr=False)
    login: str | None = field(default=None, repr=False)


ANYONE = Client("anyone", frozenset(SCOPES))


class Refused(Exception):
    """A request is not let in; `status` and `text` are what to answer. RFC 9110 §15.5, RFC 6585."""

    def __init__(self, status: int, reason: str, text: str, retry_after: int = 0) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.text = text
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What goes with the answer."""
        if self.status == 401:
            return {"WWW-Authenticate": 'Bearer realm="siprec-bridge"'}
        return {"Retry-After": str(self.retry_after)} if self.retry_after else {}


@dataclass(slots=True)
class _Kept:
    client: Client
    until: float


class Gate:
    """Lets clients in. Without tokens everybody is let in, with all scopes."""

    def __init__(
        self,
        tokens: Sequence[Token],
        metrics: Metrics,
        *,
        origins: Sequence[str] = (),
        proxies: Sequence[IPv4Network | IPv6Network] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.origins = tuple(one.lower().rstrip("/") for one in origins)
        self._names = {one.partition("://")[2] for one in self.origins}
        self._proxies = tuple(proxies)
        self._tokens = tuple(tokens)
        self._open = not tokens
        self.metrics = metrics
        self._clock = clock
        self._tries: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._logins: OrderedDict[bytes, _Kept] = OrderedDict()
        self._tickets: OrderedDict[bytes, _Kept] = OrderedDict()

    @property
    def open(self) -> bool:
        """Whether no token is needed."""
        return self._open

    def replace(self, tokens: Sequence[Token]) -> None:
        """Take over changed tokens. A gate that asks for tokens never opens; see `knows`."""
        self._tokens = tuple(tokens)

    def source(self, remote: str, forwarded_for: str | None) -> str:
        """The client's address, where a proxy of ours asks for it: `X-Forwarded-For`."""
        return source_of(remote, forwarded_for, self._proxies)

    def client(
        self,
        source: str,
        *,
        authorization: str | None = None,
        cookie: str | None = None,
        ticket: str | None = None,
    ) -> Client:
        """Who this is, by the headers of these names, or the ticket. Raises Refused.

        `source` is the address that the request came from.
        """
        if self._open:
            return ANYONE
        if authorization is not None:
            kind, _, secret = authorization.strip().partition(" ")
            if kind.lower() != "bearer":
                raise self._refused(401, "none", "Authorization: Bearer TOKEN is needed")
            return self.by_token(secret.strip(), source)
        if ticket is not None:
            kept = self._tickets.pop(digest_of(ticket), None)
            if kept is None or kept.until <= self._clock() or not self.knows(kept.client):
                raise self._refused(401, "ticket", "the ticket was used, is too old, or none")
            return kept.client
        client = self._by_login(cookie)
        if client is None:
            raise self._refused(401, "none", "a token is needed")
        return client

    def by_token(self, secret: str, source: str) -> Client:
        """Whose token this is. Raises Refused, also when the source was wrong too often."""
        if self._open:
            return ANYONE
        place, left = self._tries_left(source)
        if left < 1:
            wait = int((1 - left) * _TRY_AGAIN_S) + 1
            raise self._refused(429, "limited", "too many wrong tokens from here", wait)
        digest = digest_of(secret)
        # All of them, each in constant time: how long it takes says nothing.
        found = [one for one in self._tokens if hmac.compare_digest(one.digest, digest)]
        if not found:
            self._count_try(place, left)
            raise self._refused(401, "token", "the token is wrong")
        one = found[0]
        return Client(one.name, one.scopes, one.view, one.digest)

    def require(self, client: Client, scope: Scope) -> None:
        """Raises Refused when a client lacks a scope."""
        if scope not in client.scopes:
            raise self._refused(403, "scope", f"the token lacks the scope {scope}")

    def check_origin(self, origin: str | None, host: str | None, *, needed: bool) -> None:
        """Refuse what a browser sends for a page that is not ours. RFC 6454.

        `needed`: only browsers send this (our cookie), and they say where it is from.
        """
        if origin is None:
            if needed:
                raise self._refused(403, "origin", "an Origin header is needed with the cookie")
        elif not self._ours(origin.lower(), host):
            raise self._refused(403, "origin", "this origin is not allowed: see HTTP_ORIGINS")

    def check_host(self, host: str | None) -> None:
        """Refuse a public name that we do not know, where no token is needed. Raises Refused.

        A stranger's page may have its own name point to us, and is our page then to the browser.
        """
        if self._open and host and not is_private_name(host) and host.lower() not in self._names:
            text = f"no token is needed here, so http://{host} must be named in HTTP_ORIGINS"
            raise self._refused(403, "host", text)

    def _ours(self, origin: str, host: str | None) -> bool:
        # The scheme of our own does not count: a proxy may speak TLS for us.
        mine = bool(host) and origin.partition("://")[2] == str(host).lower()
        return mine or origin in self.origins

    def log_in(self, client: Client) -> str:
        """A secret for a cookie, which stands for this client for `LOGIN_S` seconds."""
        return self._keep(self._logins, client, LOGIN_S, login=True)

    def log_out(self, client: Client) -> None:
        """End a login; one that came with a token has none."""
        if client.login is not None:
            self._logins.pop(bytes.fromhex(client.login), None)

    def ticket(self, client: Client) -> str:
        """A secret that lets this client in once, within `TICKET_S` seconds."""
        return self._keep(self._tickets, client, TICKET_S)

    def knows(self, client: Client) -> bool:
        """Whether a client who was let in would be let in again: its token is there as it was."""
        if self._open:
            return True
        if client.login is not None:
            kept = self._logins.get(bytes.fromhex(client.login))
            if kept is None or kept.until <= self._clock():
                return False
        return any(
            (one.digest, one.scopes, one.view) == (client.digest, client.scopes, client.view)
            for one in self._tokens
        )

    def count_refusal(self, reason: str) -> None:
        """Count one that the gate does not see itself."""
        self.metrics.http_refused_total.labels(reason=reason).inc()

    def _by_login(self, cookie: str | None) -> Client | None:
        secret = _from_cookie(cookie)
        if secret is None:
            return None
        kept = self._logins.get(digest_of(secret))
        return kept.client if kept is not None and self.knows(kept.client) else None

    def _keep(
        self,
        where: OrderedDict[bytes, _Kept],
        client: Client,
        seconds: float,
        *,
        login: bool = False,
    ) -> str:
        now = self._clock()
        while where and (len(where) >= _MOST_KEPT or next(iter(where.values())).until <= now):
            where.popitem(last=False)
        secret = new_secret()
        digest = digest_of(secret)
        if login:
            client = Client(client.name, client.scopes, client.view, client.digest, digest.hex())
        where[digest] = _Kept(client, now + seconds)
        return secret

    def _tries_left(self, source: str) -> tuple[str, float]:
        place = _place(source)
        left, before = self._tries.get(place, (float(_TRIES), self._clock()))
        return place, min(_TRIES, left + (self._clock() - before) / _TRY_AGAIN_S)

    def _count_try(self, place: str, left: float) -> None:
        self._tries.pop(place, None)
        self._tries[place] = (left - 1, self._clock())
        if len(self._tries) > _SOURCES:
            self._tries.popitem(last=False)
        # The first and the last before it has to wait: a stranger must not fill the log.
        if left >= _TRIES:
            log.warning("access.wrong_token", source=place)
        elif left < 2:
            log.warning("access.limited", source=place)

    def _refused(self, status: int, reason: str, text: str, retry_after: int = 0) -> Refused:
        self.count_refusal(reason)
        return Refused(status, reason, text, retry_after)


def _place(source: str) -> str:
    """The address, or the network of one subscriber where that is IPv6."""
    try:
        address = ip_address(source.partition("%")[0])
    except ValueError:
        return source
    mapped = getattr(address, "ipv4_mapped", None)
    if address.version == 4 or mapped is not None:
        return str(mapped or address)
    return str(ip_network((address, 64), strict=False))


def _from_cookie(header: str | None) -> str | None:
    """Ours among a browser's cookies; those of others may be in any form. RFC 6265 §5.4."""
    parts = (part.strip().partition("=") for part in (header or "").split(";"))
    return next((value for name, _, value in parts if name == COOKIE), None)
