"""Whom a request is about, and where else an address stands: in ids that an SRC has made of it."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from siprec_bridge.recording.group_names import number_stands_in, stands_in
from siprec_bridge.recording.scrub import mentions_of
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.transcript import Participant

_NUMBER = re.compile(r"\+?[\d\s().-]*\d[\d\s().-]*")
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}


@dataclass(frozen=True, slots=True)
class Identifier:
    """Whom a request is about: an address of record, in the form in which they are compared."""

    user: str
    host: str | None = None  # None: a telephone number, at whatever host

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read sip:user@host, sips:…, tel:number or +number. Raises ValueError."""
        scheme, colon, rest = text.strip().partition(":")
        if not colon:
            scheme, rest = "tel", text.strip()
        scheme = scheme.lower()
        rest = rest.partition(";")[0].partition("?")[0]
        if scheme in ("sip", "sips"):
            user, at, host = rest.rpartition("@")
            if not (user and at and host):
                raise ValueError(f"{scheme}:user@host is needed")
            return cls(user.lower(), _host(host))
        if scheme == "tel" and _NUMBER.fullmatch(rest) and len(_digits(rest)) >= 3:
            return cls(_digits(rest))
        raise ValueError("sip:user@host, tel:+number or +number is needed")

    def matches(self, aor: str | None) -> bool:
        """Whether this is the address of that person."""
        try:
            other = Identifier.parse(aor or "")
        except ValueError:
            return False
        if self.host is None or other.host is None:
            numbers = [_digits(one.user) for one in (self, other) if _NUMBER.fullmatch(one.user)]
            return len(numbers) == 2 and numbers[0] == numbers[1]
        return self == other

    def names(self, group: str, people: Sequence[Participant] = ()) -> bool:
        """Whether a group's id is made of this address, or of what else names these people with it."""
        low = group.lower()
        if self.host is None and number_stands_in(self.user, low):
            return True
        if self.host is not None and stands_in(f"{self.user}@{self.host}", low):
            return True
        known = [one.model_dump() for one in people]
        return any(stands_in(one, low) for one in (mentions_of(known, self.user) if people else ()))

    @property
    def pattern(self) -> str:
        """LIKE: what documents that name them have, perhaps with signs between digits."""
        if self.host is None:
            return "%" + "%".join(self.user.lstrip("0")) + "%"
        return (
            "%"
            + re.sub(r"([\\%_])", r"\\\1", json.dumps(self.user, ensure_ascii=False)[1:-1])
            + "%"
        )

    def hashed(self, salt: bytes) -> str:
        """What an audit keeps: to tell whether it was them, for who knows the address."""
        text = f"{self.user}@{self.host or ''}".encode()
        return f"scrypt:{salt.hex()}:{hashlib.scrypt(text, salt=salt, **_SCRYPT).hex()}"


def is_named_in(text: str, document: SessionDocument) -> bool:
    """Whether an id is made of the address, name or id of a participant, as `Identifier.names` has it."""
    for one in document.participants:
        try:
            whom = Identifier.parse(one.aor or "")
        except ValueError:
            continue
        if whom.names(text, [one]):
            return True
    return False


def _digits(text: str) -> str:
    """A number's digits; 00 in front is +."""
    digits = re.sub(r"\D", "", text)
    return digits.removeprefix("00")


def _host(text: str) -> str:
    """Without a port."""
    return re.sub(r":\d+$", "", text.lower())
