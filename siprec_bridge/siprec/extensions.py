"""What vendors add: their own names for the call, in headers and in metadata, under one name each.

Consumers join transcripts to their call records by these. Whatever else a vendor puts into the
metadata is kept as it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from xml.etree.ElementTree import Element, tostring

from siprec_bridge.sip import Headers, readable

_LONGEST = 512
_MOST_EXTENSIONS = 100

# Header (lower case) to name. Session-ID is RFC 7989, User-to-User RFC 7433.
_HEADERS = {
    "cisco-guid": "cisco_guid",
    "cisco-gucid": "cisco_gucid",
    "session-id": "session_id",
    "user-to-user": "user_to_user",
    "x-ucid": "ucid",
    "x-avaya-ucid": "ucid",
    "x-genesys-calluuid": "genesys_call_uuid",
    "x-genesys-call-uuid": "genesys_call_uuid",
    "x-broadworks-correlation-info": "broadworks_correlation",
    "x-acme-call-id": "acme_call_id",
    "x-ringcentral-session-id": "ringcentral_session_id",
}

# Local name of an element (lower case) to name.
_ELEMENTS = {
    "ucid": "ucid",
    "gucid": "cisco_gucid",
    "callid": "call_id",
    "sipcallid": "sip_call_id",
    "exttrackingid": "tracking_id",
    "genesysuuid": "genesys_call_uuid",
    "calluuid": "genesys_call_uuid",
    "ingress-call-id": "sip_call_id",
}


def call_ids_of_headers(headers: Headers) -> dict[str, str]:
    """The call's names in the headers of an INVITE; the first one of each kind counts."""
    found: dict[str, str] = {}
    for header, value in headers:
        name = _HEADERS.get(header.lower())
        if name is not None and value.strip():
            found.setdefault(name, readable(value.strip()[:_LONGEST]))
    return found


def call_ids_of_metadata(by_name: Mapping[str, Sequence[Element]]) -> dict[str, str]:
    """The call's names in vendors' elements, given by their local names in lower case."""
    found: dict[str, str] = {}
    for element_name, name in _ELEMENTS.items():
        for element in by_name.get(element_name, ()):
            if text := (element.text or "").strip():
                found.setdefault(name, text[:_LONGEST])
    return found


def extensions(root: Element, namespace: str) -> tuple[str, ...]:
    """The topmost elements that are not of the metadata's own namespace, as XML."""
    return tuple(
        tostring(element, encoding="unicode").strip()
        for _, element in zip(range(_MOST_EXTENSIONS), _foreign(root, namespace), strict=False)
    )


def _foreign(root: Element, namespace: str) -> Iterator[Element]:
    own = f"{{{namespace}}}" if namespace else ""
    waiting = list(root)[::-1]
    while waiting:
        element = waiting.pop()
        tag = str(element.tag)
        foreign = not tag.startswith(own) or (not own and tag.startswith("{"))
        if foreign or tag[-13:].lower() == "extensiondata":
            yield element
        else:
            waiting += list(element)[::-1]
