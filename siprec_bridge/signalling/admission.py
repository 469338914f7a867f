"""Who may talk to us, by source address and by certificate.

A scanner that gets no answer looks elsewhere.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

from siprec_bridge.sip import MalformedMessage, parse_uri

Network = IPv4Network | IPv6Network


class Admission:
    """An allow-list; empty, it lets everyone in. `forbid`: the others get a 403, else silence.

    `names`: a TLS peer's certificate must be for one of these domains; "*.example.com" stands for
    any one label ahead of it.
    """

    def __init__(
        self,
        allowed: Sequence[Network] = (),
        *,
        forbid: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        self.forbid = forbid
        self._allowed = tuple(allowed)
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._known = lru_cache(maxsize=4096)(self._look_up)

    def admits(self, host: str) -> bool:
        """Whether a source, an IP literal, may talk to us."""
        return not self._allowed or self._known(host)

    def admits_certificate(self, domains: Sequence[str]) -> bool:
        """Whether a TLS peer may talk to us whose verified certificate is for these domains."""
        return not self._names or any(
            one in self._names or f"*.{one.partition('.')[2]}" in self._names for one in domains
        )

    def _look_up(self, host: str) -> bool:
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)  # an IPv4 peer of an IPv6 socket
        return any(
            one in network
            for network in self._allowed
            for one in (address, mapped)
            if one is not None and one.version == network.version
        )


def domains_of(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The SIP domains that a certificate, as `ssl` reads it, is for, in lower case.

    Those of its sip URIs without a user and its DNS names; the common name only where it has no
    alternative names at all. A name with a wildcard is the identity of no domain. RFC 5922 §7.
    """
    if not certificate:
        return ()
    found = []
    for kind, value in certificate.get("subjectAltName", ()):
        if kind == "DNS":
            found.append(value)
        elif kind == "URI":
            found.append(_domain(value))
    if "subjectAltName" not in certificate:
        subject = [pair for part in certificate.get("subject", ()) for pair in part]
        found = [value for kind, value in subject if kind == "commonName"]
    names = (one.lower().rstrip(".") for one in found)
    return tuple(dict.fromkeys(one for one in names if one and "*" not in one))


def _domain(uri: str) -> str:
    """A sip URI with a user is that user's, and no domain's."""
    try:
        read = parse_uri(uri)
    except MalformedMessage:
        return ""
    return read.host if read.scheme == "sip" and "@" not in uri else ""
