"""Tokens as an operator configures them, a line each, and what sessions one may see.

    wallboard sha256:9f86… read,listen participant=sip:*@sales.example.com peer=192.0.2.0/24

Of a token we know its SHA-256 alone. That is enough for 256 random bits, which nobody finds by
trying: what makes passwords' hashes slow would only be paid by every request.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final, Literal, cast, get_args

Scope = Literal["read", "listen", "operate", "erase", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True)
class View:
    """Which sessions may be seen: of a kind that is given one must fit, and of each kind given.

    `groups` are ids, `participants` AoRs (both may have `*`), `peers` networks that SIP came from.
    """

    groups: tuple[str, ...] = ()
    participants: tuple[str, ...] = ()
    peers: tuple[IPv4Network | IPv6Network, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether every session may be seen."""
        return not (self.groups or self.participants or self.peers)

    def sees(self, peer: str, document: str) -> bool:
        """Whether a session may be seen: `peer` and `document` are those of its row."""
        if self.whole:
            return True
        if self.peers and not self._from_peer(peer):
            return False
        known = json.loads(document)
        if self.groups and not _fits(self.groups, [known.get("group_id")]):
            return False
        people = [one.get("aor") for one in known.get("participants", ())]
        return not self.participants or _fits(self.participants, people)

    def _from_peer(self, peer: str) -> bool:
        try:
            address = ip_address(peer.partition(":")[2].rpartition(":")[0].partition("%")[0])
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(one.version == address.version and address in one for one in self.peers)


EVERYTHING: Final = View()


@dataclass(frozen=True, slots=True)
class Token:
    """A configured token; `digest` is the SHA-256 of its text."""

    name: str
    digest: bytes = field(repr=False)
    scopes: frozenset[Scope]
    view: View = EVERYTHING


def new_secret() -> str:
    """256 random bits, in a form that the log's mask and scanners of source code know."""
    return f"siprec_{secrets.token_urlsafe(32)}"


def digest_of(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


def read_tokens(text: str) -> tuple[Token, ...]:
    """Read tokens, one a line or several by semicolons; `#` begins a comment.

    Raises ValueError with what is wrong, which never repeats a hash or what stands in its place.
    """
    lines = [line.partition("#")[0] for line in text.splitlines()]
    parts = [part for line in lines for part in line.split(";") if part.strip()]
    tokens = tuple(_read(part.split()) for part in parts)
    if not tokens:
        raise ValueError("no token is named")
    names = [one.name for one in tokens]
    if len(set(names)) < len(names):
        raise ValueError("two tokens have the same name")
    if len({one.digest for one in tokens}) < len(tokens):
        raise ValueError("two tokens are the same")
    return tokens


def _read(words: Sequence[str]) -> Token:
    if len(words) < 3:
        raise ValueError("NAME sha256:HASH SCOPE[,SCOPE] [group=… participant=… peer=…] is needed")
    name, hashed, scopes, *limits = words
    if not _NAME.fullmatch(name):
        raise ValueError("a token's name has letters, digits and _ . @ - only, 64 at most")
    found = _HASH.fullmatch(hashed)
    if found is None:
        raise ValueError(f"{name}: sha256: and 64 hexadecimal digits are needed")
    wanted = [one for one in scopes.split(",") if one]
    for one in wanted:
        if one not in SCOPES:
            raise ValueError(f"{name}: {one} is no scope; there are: {', '.join(SCOPES)}")
    if not wanted:
        raise ValueError(f"{name}: a scope is needed: {', '.join(SCOPES)}")
    granted = frozenset(cast(list[Scope], wanted))
    return Token(name, bytes.fromhex(found[1]), granted, _view(name, limits))


def _view(name: str, limits: Sequence[str]) -> View:
    given: dict[str, list[str]] = {"group": [], "participant": [], "peer": []}
    for limit in limits:
        kind, _, value = limit.partition("=")
        if kind not in given or not value:
            raise ValueError(
                f"{name}: {limit}: group=ID, participant=AOR or peer=NETWORK is needed"
            )
        given[kind].append(value)
    try:
        peers = tuple(ip_network(one) for one in given["peer"])
    except ValueError as error:
        raise ValueError(f"{name}: {error}; write 192.0.2.10 or 198.51.100.0/24") from error
    return View(tuple(given["group"]), tuple(given["participant"]), peers)


def _fits(patterns: Sequence[str], values: Iterable[str | None]) -> bool:
    return any(
        _pattern(one).fullmatch(value.lower()) for value in values if value for one in patterns
    )


@lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str]:
    # `*` only: brackets, which glob patterns have too, are those of IPv6 addresses.
    return re.compile(".*".join(map(re.escape, text.lower().split("*"))), re.S)
