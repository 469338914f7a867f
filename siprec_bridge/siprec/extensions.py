"""What vendors add: their own names for the call, in headers and in metadata, under one name each.

Consumers join transcripts to their call records by these; `tenant` and `direction` say whose call it
is and which way it went. Whatever else a vendor puts into the
metadata is kept as it is.
"""

from collections.abc import Mapping, Sequence
from xml.etree.ElementTree import Element, ParseError, fromstring, tostring

from siprec_bridge.sip import Headers, readable

_LONGEST = 512
_MOST_EXTENSIONS = 100
_DRAFTS = ("{urn:ietf:params:xml:ns:recording", "{urn:ietf:params:xml:ns:siprec")

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
    "x-tenant-id": "tenant",
    "x-tenant": "tenant",
    "x-call-direction": "direction",
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
    "serviceproviderid": "tenant",
}

# BroadWorks says by an element's name which way the call went.
_DIRECTIONS = {"origcall": "outbound", "termcall": "inbound"}


def call_ids_of_headers(headers: Headers) -> dict[str, str]:
    """The call's names in the headers of an INVITE; the first one of each kind counts."""
    found: dict[str, str] = {}
    for header, value in headers:
        name = _HEADERS.get(header.lower())
        if name is not None and value.strip():
            found.setdefault(name, readable(value.strip()[:_LONGEST]))
    if "direction" in found:
        found["direction"] = found["direction"].lower()
    return found


def call_ids_of_metadata(by_name: Mapping[str, Sequence[Element]]) -> dict[str, str]:
    """The call's names in vendors' elements, given by their local names in lower case."""
    found: dict[str, str] = {}
    for element_name, name in _ELEMENTS.items():
        for element in by_name.get(element_name, ()):
            if text := (element.text or "").strip():
                found.setdefault(name, text[:_LONGEST])
    for element_name, direction in _DIRECTIONS.items():
        if by_name.get(element_name):
            found.setdefault("direction", direction)
    return found


def is_own(tag: str, namespace: str) -> bool:
    """Whether an element is of the metadata itself, whose root has this namespace.

    All else is a vendor's, and what is in it as well.
    """
    if tag[-13:].lower() == "extensiondata":
        return False
    # Some documents mix the namespaces of several drafts.
    return tag[:1] != "{" or tag.startswith((f"{{{namespace}}}", *_DRAFTS))


def extensions(topmost: Sequence[Element]) -> tuple[str, ...]:
    """Vendors' elements as XML."""
    return tuple(
        tostring(element, encoding="unicode").strip() for element in topmost[:_MOST_EXTENSIONS]
    )


def extension_texts(stored: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What vendors' elements say, from what `extensions` gave: texts by local name."""
    found: dict[str, list[str]] = {}
    for xml in stored:
        try:
            topmost = fromstring(xml)  # noqa: S314  we wrote it ourselves: there is no DTD in it
        except ParseError:
            continue
        for element in topmost.iter():
            if text := (element.text or "").strip():
                found.setdefault(element.tag.rpartition("}")[2], []).append(text)
            for name, value in element.attrib.items():
                found.setdefault(name.rpartition("}")[2], []).append(value)
    return {name: tuple(texts) for name, texts in found.items()}
