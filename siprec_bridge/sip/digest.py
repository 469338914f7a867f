"""Digest authentication of requests: the challenge, and whether an answer to it is right.

RFC 3261 §22, RFC 7616, RFC 8760. Nonces carry their time and our seal, so nothing is remembered
between the challenge and its answer; of those that were answered rightly, what was used is.
"""

import hashlib
import hmac
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from siprec_bridge.sip.headers import split_list, unquote
from siprec_bridge.sip.message import Request
from siprec_bridge.sip.nonces import NonceCounts

_MAX_FIELDS = 50
_COUNT = re.compile("[0-9A-Fa-f]{1,8}")
_ALGORITHMS: dict[str, Callable[[bytes], "hashlib._Hash"]] = {
    "SHA-256": hashlib.sha256,  # the stronger one first: RFC 8760 §2.3
    "MD5": hashlib.md5,
}


class Verdict(Enum):
    """What an Authorization header is worth."""

    GOOD = auto()
    STALE = auto()  # right, but for a nonce that is old, used already or not ours: ask again
    BAD = auto()  # none there, or a wrong one


@dataclass(frozen=True, slots=True)
class DigestAuthority:
    """One realm and its users. `secret` seals nonces; `lifetime` of a nonce in seconds.

    `algorithms` in the order in which they are offered: old clients look at the first one only.
    """

    realm: str
    passwords: Mapping[str, str]
    secret: bytes
    lifetime: float = 300.0
    algorithms: tuple[str, ...] = tuple(_ALGORITHMS)
    _numbers: Iterator[int] = field(default_factory=itertools.count, init=False, repr=False)
    _used: NonceCounts = field(default_factory=NonceCounts, init=False, repr=False)

    def challenges(self, now: float, *, stale: bool = False) -> list[str]:
        """The values of the WWW-Authenticate headers, one for each algorithm."""
        nonce = self._nonce(now)
        mark = ", stale=true" if stale else ""
        return [
            f'Digest realm="{self.realm}", nonce="{nonce}", algorithm={name}, qop="auth"{mark}'
            for name in self.algorithms
        ]

    def verify(self, request: Request, now: float) -> Verdict:
        """Check a request's Authorization, which is good once.

        Takes the same time for known and unknown users.
        """
        for value in request.headers.get_all("Authorization"):
            scheme, _, rest = value.strip().partition(" ")
            if scheme.lower() != "digest":
                continue
            fields = _fields(rest)
            if fields.get("realm") == self.realm:
                return self._verify(request, fields, now)
        return Verdict.BAD

    def _verify(self, request: Request, fields: Mapping[str, str], now: float) -> Verdict:
        name = fields.get("algorithm", "MD5").upper()
        algorithm = _ALGORITHMS.get(name)
        user = fields.get("username", "")
        if algorithm is None or name not in self.algorithms:
            return Verdict.BAD

        def digest(text: str) -> str:
            return algorithm(text.encode("utf-8", "surrogateescape")).hexdigest()

        password = self.passwords.get(user)
        first = digest(f"{user}:{self.realm}:{password or ''}")
        # The URI is the client's: some SRCs write another one than the Request-URI.
        second = digest(f"{request.method}:{fields.get('uri', '')}")
        nonce, count = fields.get("nonce", ""), "1"
        if fields.get("qop", "").lower() == "auth":
            count = fields.get("nc", "")
            middle = f"{nonce}:{count}:{fields.get('cnonce', '')}:auth"
        else:  # a client of before RFC 2617 does not count
            middle = nonce
        expected = digest(f"{first}:{middle}:{second}")
        given = fields.get("response", "").lower()
        right = hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogateescape"))
        issued = self._issued(nonce)
        if password is None or not right or _COUNT.fullmatch(count) is None:
            return Verdict.BAD
        # Also one of before a restart: a client that is told nothing takes its password for wrong.
        if issued is None or not 0 <= now - issued <= self.lifetime:
            return Verdict.STALE
        oldest = now - self.lifetime
        first_use = self._used.take(nonce, issued, int(count, 16), oldest=oldest)
        return Verdict.GOOD if first_use else Verdict.STALE

    def _nonce(self, now: float) -> str:
        time = f"{now:.3f}/{next(self._numbers)}"  # two that ask at once must not share one
        return f"{time}-{self._seal(time)}"

    def _issued(self, nonce: str) -> float | None:
        """When we issued a nonce; None: somebody else did."""
        time, _, seal = nonce.partition("-")
        sealed = self._seal(time)
        if not hmac.compare_digest(sealed.encode(), seal.encode("utf-8", "surrogateescape")):
            return None
        return float(time.partition("/")[0])

    def _seal(self, time: str) -> str:
        data = f"{self.realm}:{time}".encode("utf-8", "surrogateescape")
        return hmac.new(self.secret, data, hashlib.sha256).hexdigest()[:32]


def answer_challenge(
    challenge: str, *, method: str, uri: str, user: str, password: str, cnonce: str
) -> str | None:
    """The Authorization value for a WWW-Authenticate; None for one that we cannot answer."""
    scheme, _, rest = challenge.strip().partition(" ")
    fields = _fields(rest)
    name = fields.get("algorithm", "MD5").upper()
    algorithm = _ALGORITHMS.get(name)
    if scheme.lower() != "digest" or algorithm is None:
        return None

    def digest(text: str) -> str:
        return algorithm(text.encode()).hexdigest()

    realm, nonce = fields.get("realm", ""), fields.get("nonce", "")
    first, second = digest(f"{user}:{realm}:{password}"), digest(f"{method}:{uri}")
    offered = {one.strip().lower() for one in fields.get("qop", "").split(",")}
    shared = f'Digest username="{user}", realm="{realm}", nonce="{nonce}", uri="{uri}"'
    if "auth" in offered:
        response = digest(f"{first}:{nonce}:00000001:{cnonce}:auth:{second}")
        shared += f', qop=auth, nc=00000001, cnonce="{cnonce}"'
    else:
        response = digest(f"{first}:{nonce}:{second}")
    return f'{shared}, response="{response}", algorithm={name}'


def _fields(text: str) -> dict[str, str]:
    """The comma-separated fields of a challenge or its answer, by lower-case name, unquoted."""
    fields: dict[str, str] = {}
    for part in split_list(text, most=_MAX_FIELDS):
        name, _, value = part.partition("=")
        fields.setdefault(name.strip().lower(), unquote(value))
    return fields
