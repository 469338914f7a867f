"""SRTP keys in session descriptions: a=crypto lines, read and written. RFC 4568, RFC 7714 §14.2.

Keys are kept out of every repr. Which suites can be done is for the caller to say.
"""

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from siprec_bridge.sdp.codecs import number

# Octets of master key and salt together. RFC 4568 §6.2, RFC 7714 §12.
SUITES = {
    "AES_CM_128_HMAC_SHA1_80": 30,
    "AES_CM_128_HMAC_SHA1_32": 30,
    "AEAD_AES_128_GCM": 28,
    "AEAD_AES_256_GCM": 44,
}
_NAME = re.compile(r"[A-Za-z0-9_]{1,48}")
_LIFETIME = re.compile(r"2\^\d{1,2}|\d{1,20}")
_LONGEST_MKI = 128  # octets. RFC 4568 §6.1


class Secret(str):
    """Text whose repr, as in a traceback or a dataclass, does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@dataclass(frozen=True, slots=True)
class Crypto:
    """An a=crypto line that can be used. `key`: master key and salt of whoever wrote it."""

    tag: str
    suite: str
    key: bytes = field(repr=False)
    mki_length: int = 0  # octets of the key's name that each packet carries


@dataclass(frozen=True, slots=True)
class StreamKeys:
    """What decrypts a stream's packets (`remote`), and what encrypts ours to it (`local`)."""

    suite: str
    remote: bytes = field(repr=False)
    local: bytes = field(repr=False)
    mki_length: int = 0


def choose(lines: Iterable[str], suites: Iterable[str]) -> Crypto | str:
    """The first line that can be used, which its sender likes best; else why the first cannot.

    RFC 4568 §5.1.1 and §5.1.2.
    """
    known = frozenset(suites)
    reason = ""
    for line in lines:
        found = read_crypto(line)
        if isinstance(found, Crypto) and found.suite in known:
            return found
        if not reason:
            reason = found if isinstance(found, str) else _unknown(found.suite)
    return reason or "no crypto line"


def read_crypto(value: str) -> Crypto | str:
    """A crypto attribute's value, or why it cannot be used; a reason never holds the key."""
    tag, suite, keys, *params = [*value.split(), "", "", ""]
    if number(tag, 1_000_000_000) is None:
        return "a crypto line without a tag"
    if suite not in SUITES:
        return _unknown(suite)
    for param in params:
        name = param.partition("=")[0].upper()
        # A hint for the replay window's size, and what may be ignored (§6.3.7). All else changes
        # what the packets look like and MUST be refused by who cannot do it: KDR, UNENCRYPTED_SRTP,
        # UNENCRYPTED_SRTCP, UNAUTHENTICATED_SRTP, FEC_ORDER, FEC_KEY.
        if name and name != "WSH" and not name.startswith("-"):
            shown = name if _NAME.fullmatch(name) else "of an unknown kind"
            return f"crypto session parameter {shown} is not supported"
    if ";" in keys:
        return "several keys in one crypto line are not supported"
    method, _, info = keys.partition(":")
    if method.lower() != "inline":
        return "a crypto line without an inline key"
    text, *more = info.split("|")
    mki = more.pop() if more and ":" in more[-1] else ""
    if len(more) > 1 or not all(_LIFETIME.fullmatch(one) for one in more):
        return "a crypto line whose lifetime cannot be read"
    mki_length = 0
    if mki:
        name, _, length = mki.partition(":")
        mki_length = number(length, _LONGEST_MKI + 1) or 0
        if not mki_length or not (name.isascii() and name.isdecimal()):
            return "a crypto line whose MKI cannot be read"
    try:  # some leave the padding out
        key = base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True)
    except ValueError:
        return "a crypto line whose key cannot be read"
    if len(key) != SUITES[suite]:
        return f"a crypto line whose key is not of {SUITES[suite]} octets"
    return Crypto(tag, suite, key, mki_length)


def write_crypto(tag: str, suite: str, key: bytes) -> Secret:
    """A crypto attribute's value."""
    return Secret(f"{tag} {suite} inline:{base64.b64encode(key).decode()}")


def _unknown(suite: str) -> str:
    shown = suite if _NAME.fullmatch(suite) else "of an unknown kind"
    return f"crypto suite {shown} is not supported"
