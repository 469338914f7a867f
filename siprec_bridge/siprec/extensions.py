"""What vendors add: their own names for the call, in headers and in metadata, under one name each.

Consumers join transcripts to their call records by these. Whatever else a vendor puts into the
metadata is kept as it is.
"""

from collections.abc import Iterator
from functools import lru_cache
from xml.etree.ElementTree import Element, tostring

from siprec_bridge.sip import Headers, readable

_LONGEST = 512
_MOST_EXTENSIONS = 100
_DRAFTS = ("urn:ietf:params:xml:ns:recording", "urn:ietf:params:xml:ns:siprec")

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


def call_ids_of_metadata(root: Element) -> dict[str, str]:
    """The call's names in vendors' elements, wherever they stand."""
    found: dict[str, str] = {}
    for element in root.iter():
        name = _ELEMENTS.get(_local(element.tag))
        if name is not None and (text := (element.text or "").strip()):
            found.setdefault(name, text[:_LONGEST])
    return found


def is_own(element: Element, root: Element) -> bool:
    """Whether an element is of the metadata itself, and not of a vendor's data in it."""
    if _local(element.tag) == "extensiondata":
        return False
    namespace = _namespace(element)
    # Some documents mix the namespaces of several drafts.
    return namespace in ("", _namespace(root)) or namespace.startswith(_DRAFTS)


def extensions(root: Element) -> tuple[str, ...]:
    """The topmost elements that are not of the metadata itself, as XML."""
    return tuple(
        tostring(element, encoding="unicode").strip()
        for _, element in zip(range(_MOST_EXTENSIONS), _foreign(root), strict=False)
    )


def _foreign(root: Element) -> Iterator[Element]:
    waiting = list(root)[::-1]
    while waiting:
        element = waiting.pop()
        if is_own(element, root):
            waiting += list(element)[::-1]
        else:
            yield element


def _namespace(element: Element) -> str:
    return str(element.tag).rpartition("}")[0].removeprefix("{")


@lru_cache(maxsize=1024)
def _local(tag: object) -> str:
    return str(tag).rpartition("}")[2].lower()
