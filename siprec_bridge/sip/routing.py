"""Where answers and our own requests go. RFC 3261 §8.1.2, §12.2.1.1 and §18.2, RFC 3581."""

from dataclasses import replace
from ipaddress import ip_address

from siprec_bridge.sip.dialog import Dialog
from siprec_bridge.sip.errors import MalformedMessage
from siprec_bridge.sip.headers import Via, parse_name_addr, split_first, split_list
from siprec_bridge.sip.message import Request
from siprec_bridge.sip.peer import Peer
from siprec_bridge.sip.uri import is_address, parse_uri


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
    return Peer(peer.transport, host, port, peer.flow, peer.local_host, peer.local_port)


def next_hop(dialog: Dialog) -> tuple[str, int | None] | None:
    """Host and port that requests in a dialog are addressed to. RFC 3261 §8.1.2, §12.2.1.1.

    No port for a name that has none. None where there is none to be read, or where it wants TLS
    that the dialog does not have.
    """
    try:
        route = next(iter(dialog.route_set), None)
        uri = parse_uri(parse_name_addr(route).uri if route else dialog.remote_target)
    except MalformedMessage:
        return None
    wants_tls = uri.scheme == "sips" or uri.params.get("transport", "").lower() == "tls"
    host = uri.params.get("maddr", "").strip("[]") or uri.host  # RFC 3263 §4
    if not host or (wants_tls and dialog.peer.transport != "tls"):
        return None
    if uri.port is None and not is_address(host):
        return host, None
    return host, uri.port or dialog.peer.default_port


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
