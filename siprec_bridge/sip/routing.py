"""Where answers and our own requests go. RFC 3261 §8.1.2, §12.2.1.1 and §18.2, RFC 3581."""

from dataclasses import dataclass, replace
from ipaddress import ip_address

from siprec_bridge.sip.dialog import Dialog
from siprec_bridge.sip.errors import MalformedMessage
from siprec_bridge.sip.headers import Via, parse_name_addr, split_first, split_list
from siprec_bridge.sip.message import Request
from siprec_bridge.sip.peer import Peer, default_port
from siprec_bridge.sip.uri import Uri, is_address, parse_uri


def note_source(request: Request, peer: Peer) -> Peer:
    """Write `received` and `rport` into the top Via; returns where answers go.

    RFC 3261 §18.2.1 and §18.2.2, RFC 3581 §4.
    """
    via = request.via
    first, others = split_first(request.headers.get("Via") or "")
    marks = ""
    if "rport" in via.params:
        parts = [
            f"rport={peer.port}" if part.partition("=")[0].strip().lower() == "rport" else part
            for part in split_list(first, ";")
        ]
        first = ";".join(parts)
    if (via.host != peer.host or "rport" in via.params) and "received" not in via.params:
        marks = f";received={peer.host}"
    request.headers.replace_first("Via", first + marks + others)
    params = {**via.params, "rport": str(peer.port)} if "rport" in via.params else via.params
    params = {**params, "received": peer.host} if marks else params
    request.__dict__["via"] = Via(via.transport, via.host, via.port, params)
    if peer.reliable:
        return replace(peer, elsewhere=(peer.host, via.port or peer.default_port))
    if "rport" in via.params:
        return peer
    port = via.port or peer.default_port
    host = peer.host
    if "maddr" in via.params:
        host = _address(via.params["maddr"], like=host)
    return replace(peer, host=host, port=port)


@dataclass(frozen=True, slots=True)
class Hop:
    """Where a request is addressed to. No port: the name tells its servers."""

    transport: str
    host: str
    port: int | None


def next_hop(dialog: Dialog) -> Hop | None:
    """Where requests in a dialog are addressed to. RFC 3261 §8.1.2, §12.2.1.1 and §19.1.5.

    None where that cannot be read.
    """
    try:
        route = next(iter(dialog.route_set), None)
        uri = parse_uri(parse_name_addr(route).uri if route else dialog.remote_target)
    except MalformedMessage:
        return None
    host = uri.params.get("maddr", "").strip("[]") or uri.host  # RFC 3263 §4
    if not host:
        return None
    transport = _transport(uri, dialog.peer.transport)
    if uri.port is None and not is_address(host):
        return Hop(transport, host, None)
    return Hop(transport, host, uri.port or default_port(transport))


def _transport(uri: Uri, ours: str) -> str:
    """What a URI asks for, if we know it; else the dialog's own, and TLS for what is over TLS."""
    if ours == "tls" or uri.scheme == "sips":
        return "tls"
    stated = uri.params.get("transport", "").lower()
    return stated if stated in ("udp", "tcp", "tls") else ours


def here(peer: Peer) -> Peer:
    """The peer for an answer that is not worth a new connection."""
    return replace(peer, elsewhere=None)


def _address(maddr: str, *, like: str) -> str:
    """The address of a maddr, or else `like`: we look no names up, nor change the family."""
    try:
        found, known = ip_address(maddr.strip("[]")), ip_address(like)
    except ValueError:
        return like
    return str(found) if found.version == known.version and "%" not in str(found) else like
