"""SIP and tel URIs, as far as a recorder reads them. RFC 3261 §19.1, RFC 3966."""

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import unquote

from siprec_bridge.sip.errors import MalformedMessage
from siprec_bridge.sip.headers import split_host_port, split_params


@dataclass(frozen=True, slots=True)
class Uri:
    """`user` and `host` are unescaped; a tel URI has its number as user and no host."""

    scheme: str
    user: str
    host: str
    port: int | None
    params: dict[str, str]

    @property
    def aor(self) -> str:
        """The address of record: without port, password and parameters."""
        if self.scheme == "tel":
            return f"tel:{self.user}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}:{self.user}@{host}" if self.user else f"{self.scheme}:{host}"


def parse_uri(text: str) -> Uri:
    """Read a sip, sips or tel URI. Raises MalformedMessage."""
    scheme, colon, rest = text.strip().partition(":")
    scheme = scheme.lower()
    if not colon or scheme not in ("sip", "sips", "tel"):
        raise MalformedMessage("not a sip, sips or tel URI")
    if scheme == "tel":
        number, params = split_params(rest)
        return Uri("tel", number, "", None, params)
    userinfo, at, hostpart = rest.partition("?")[0].rpartition("@")
    # A user part may hold ";" and "?"; only what follows the "@" has parameters.
    head, params = split_params(hostpart)
    host, port = split_host_port(head)
    if not host:
        raise MalformedMessage("URI without a host")
    return Uri(scheme, unquote(userinfo.partition(":")[0]) if at else "", host, port, params)


def is_address(host: str) -> bool:
    """Whether a host is an IP address, an IPv6 one without its brackets, and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
