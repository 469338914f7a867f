"""Whom to call and who talks, as written on the command line."""

import socket
from dataclasses import dataclass

from siprec_bridge.caller.audio import CallError
from siprec_bridge.sip import MalformedMessage, parse_name_addr, parse_uri


@dataclass(frozen=True, slots=True)
class Target:
    """A recording server: the URI to dial, and the address and transport that it stands for."""

    uri: str
    transport: str
    host: str
    port: int
    name: str = ""  # what its certificate must be for


def parse_target(text: str, transport: str | None = None) -> Target:
    """Read `sip:host:port;transport=tcp`, `host:port` or `host`. Raises CallError.

    `transport` (udp, tcp, tls) outranks the one in the URI; sips means tls.
    """
    uri = text if text.lower().startswith(("sip:", "sips:")) else f"sip:{text}"
    try:
        parsed = parse_uri(uri)
    except MalformedMessage as error:
        raise CallError(f"{text}: {error.reason}") from error
    usual = "tls" if parsed.scheme == "sips" else "udp"
    chosen = (transport or parsed.params.get("transport") or usual).lower()
    if chosen not in ("udp", "tcp", "tls"):
        raise CallError(f"{text}: the transport is udp, tcp or tls")
    port = parsed.port or (5061 if chosen == "tls" else 5060)
    try:
        found = socket.getaddrinfo(
            parsed.host,
            port,
            type=socket.SOCK_DGRAM if chosen == "udp" else socket.SOCK_STREAM,
        )
    except OSError as error:
        raise CallError(f"{parsed.host}: {error.strerror}") from error
    return Target(uri, chosen, str(found[0][4][0]), port, parsed.host)


def parse_participant(text: str) -> tuple[str, str]:
    """Name and AoR of `Alice <sip:alice@example.com>` or a bare URI. Raises CallError."""
    try:
        address = parse_name_addr(text)
        aor = parse_uri(address.uri).aor
    except MalformedMessage as error:
        raise CallError(f"{text}: write it as 'Alice <sip:alice@example.com>'") from error
    return address.display.strip() or parse_uri(address.uri).user or aor, aor
