"""What the headers of an INVITE say of a call, for forks that send no metadata.

Most name the parties in From and To. A Cisco phone's built-in bridge sends two INVITEs for one
call, one with each party's voice, and says in the From URI's parameters which one this is:
`x-nearend` or `x-farend`, with `x-refci` the same in both.
"""

from dataclasses import dataclass, field

from siprec_bridge.sip import MalformedMessage, NameAddr, Request, parse_uri, readable
from siprec_bridge.siprec.body import METADATA_TYPES
from siprec_bridge.siprec.extensions import call_ids_of_headers
from siprec_bridge.transcript import Participant

NEAR_END, FAR_END = "nearend", "farend"


@dataclass(frozen=True, slots=True)
class Fork:
    """A call by its headers. `speaker`: who is heard on its first stream, if that is known.

    `group_id` joins the recording sessions of one call. `streams`: how many to offer when the
    INVITE leaves the offer to us.
    """

    participants: tuple[Participant, ...] = ()
    speaker: str | None = None
    group_id: str | None = None
    call_ids: dict[str, str] = field(default_factory=dict)
    streams: int = 2


def read_fork(invite: Request) -> Fork:
    """Read an INVITE's headers."""
    call_ids = call_ids_of_headers(invite.headers)
    params = _uri_params(invite.from_)
    leg = next((one for one in (NEAR_END, FAR_END) if f"x-{one}" in params), None)
    if leg is not None:
        return _built_in_bridge(leg, params, invite.from_, call_ids)
    parties = tuple(
        Participant(id=role, name=readable(one.display) or None, aor=readable(_aor(one)))
        for role, one in (("from", invite.from_), ("to", invite.to))
    )
    return Fork(parties, call_ids=call_ids, streams=2 if is_siprec(invite) else 1)


def is_siprec(invite: Request) -> bool:
    """Whether an INVITE is that of a SIPREC client, by any of the signs of one.

    RFC 7866 §6.1.1: `Require: siprec` and `+sip.src` in Contact. Some clients send neither, but
    metadata.
    """
    if any(one.lower() == "siprec" for one in invite.headers.values("Require")):
        return True
    if "+sip.src" in (invite.headers.get("Contact") or "").lower():
        return True
    body = invite.body.lower()
    return any(kind.encode() in body for kind in METADATA_TYPES) or (
        (invite.content_type or "").partition(";")[0].strip().lower() in METADATA_TYPES
    )


def _built_in_bridge(
    leg: str, params: dict[str, str], phone: NameAddr, call_ids: dict[str, str]
) -> Fork:
    host = _host(phone)
    near, far = params.get("x-nearendaddr", ""), params.get("x-farendaddr", "")
    parties = (
        Participant(id=NEAR_END, name=readable(phone.display) or None, aor=_as_uri(near, host)),
        Participant(id=FAR_END, aor=_as_uri(far, host)),
    )
    # A reference is unique within its cluster only.
    reference, cluster = params.get("x-refci", ""), params.get("x-nearendclusterid", "")
    named = {
        "cisco_refci": reference,
        "cisco_farend_refci": params.get("x-farendrefci", ""),
        "cisco_cluster": cluster,
        "cisco_nearend_device": params.get("x-nearenddevice", ""),
    }
    return Fork(
        parties,
        speaker=leg,
        group_id=readable(f"cisco-{cluster}-{reference}") if reference else None,
        call_ids=call_ids | {name: readable(value) for name, value in named.items() if value},
        streams=1,
    )


def _uri_params(address: NameAddr) -> dict[str, str]:
    try:
        return parse_uri(address.uri).params
    except MalformedMessage:
        return {}


def _host(address: NameAddr) -> str:
    try:
        return parse_uri(address.uri).host
    except MalformedMessage:
        return ""


def _as_uri(number: str, host: str) -> str | None:
    return readable(f"sip:{number}@{host}") if number else None


def _aor(address: NameAddr) -> str:
    try:
        return parse_uri(address.uri).aor
    except MalformedMessage:
        return address.uri
