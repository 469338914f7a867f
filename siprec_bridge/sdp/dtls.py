"""DTLS-SRTP in session descriptions: a=fingerprint, a=setup, a=tls-id. RFC 5763, 8122, 8842.

We are the passive side: whoever sends the media sends the first message, and his address need not
be known.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from siprec_bridge.sdp.session import Attribute

# Octets of each hash function, the weakest first. MD5 and MD2 MUST NOT be used. RFC 8122 §5
_HASHES = {"sha-1": 20, "sha-224": 28, "sha-256": 32, "sha-384": 48, "sha-512": 64}
_STRENGTH = {name: place for place, name in enumerate(_HASHES)}
_TLS_ID = re.compile(r"[A-Za-z0-9+/_-]{20,255}")  # RFC 8842 §4
_MOST_FINGERPRINTS = 16


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a certificate is known by. `function`: as RFC 8122 names it, in lower case."""

    function: str
    digest: bytes

    def __str__(self) -> str:
        return f"{self.function} {self.digest.hex(':').upper()}"


@dataclass(frozen=True, slots=True)
class DtlsParameters:
    """What an m-line says of its sender's side of the association."""

    fingerprints: tuple[Fingerprint, ...]
    tls_id: str | None = None


def fingerprint_of(certificate: bytes, function: str = "sha-256") -> Fingerprint:
    """Of a certificate in DER."""
    return Fingerprint(function, hashlib.new(function.replace("-", ""), certificate).digest())


def matches(certificate: bytes, fingerprints: Iterable[Fingerprint]) -> bool:
    """Whether a certificate in DER is one of those named, by the strongest function of them.

    RFC 8122 §5.1: a weaker one must not let in what a stronger one keeps out.
    """
    known = frozenset(fingerprints)
    if not known:
        return False
    function = max((one.function for one in known), key=_STRENGTH.__getitem__)
    return fingerprint_of(certificate, function) in known


def read_dtls(
    media: Iterable[Attribute],
    session: Iterable[Attribute],
    *,
    setups: Sequence[str] = ("active", "actpass"),
) -> DtlsParameters | str:
    """What attributes of an m-line, or else of the session, say; or why it cannot be used.

    `setups`: what the other side may be. By default it can begin, as an offer has to (RFC 5763 §5).
    """
    own, shared = list(media), list(session)

    def values(name: str) -> list[str]:
        found = [value for key, value in own if key == name]
        return found or [value for key, value in shared if key == name]

    stated = values("fingerprint")
    if not stated:
        return "no fingerprint of a certificate"
    known = dict.fromkeys(
        one for text in stated[:_MOST_FINGERPRINTS] if (one := _read_fingerprint(text)) is not None
    )
    if not known:
        return "no fingerprint by a hash function that is supported"
    setup = (values("setup") or ["active"])[0].strip().lower()  # the default: RFC 4145 §4
    if setup not in setups:
        return f"of DTLS, only setup:{' and setup:'.join(setups)} are supported"
    tls_id = (values("tls-id") or [""])[0].strip()
    return DtlsParameters(tuple(known), tls_id if _TLS_ID.fullmatch(tls_id) else None)


def _read_fingerprint(text: str) -> Fingerprint | None:
    function, _, value = text.strip().partition(" ")
    function, octets = function.lower(), value.strip().split(":")
    if function not in _HASHES or len(octets) != _HASHES[function]:
        return None
    if not all(re.fullmatch("[0-9A-Fa-f]{2}", one) for one in octets):
        return None
    return Fingerprint(function, bytes.fromhex("".join(octets)))
