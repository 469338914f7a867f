"""rs-metadata: who takes part and who sends on which stream. RFC 7865, and the drafts before it.

Elements are known by their local names, since namespaces differ from vendor to vendor. An
attribute or element may bear its draft's name: `id` for `participant_id`, `<send><id>` for
`<participantstreamassoc><send>`, `<aor>` for `nameID@aor`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal
from xml.etree.ElementTree import Element, ParseError, fromstring

from siprec_bridge.siprec.extensions import call_ids_of_metadata, extensions, is_own

MAX_BYTES = 1 << 20
_MAX_TAGS = 3000  # opening and closing ones: nearly two hundred participants
_MAX_DEPTH = 100
_LONGEST_NAME = 64  # of those worth remembering
_DECLARED = re.compile(rb"<\?xml\b[^>]{0,100}?\bencoding\s*=\s*[\"']([A-Za-z0-9._-]{1,40})[\"']")
_ENCODINGS = {
    "utf-8": "utf-8", "utf8": "utf-8", "us-ascii": "utf-8", "ascii": "utf-8", "utf-16": "utf-16",
    "iso-8859-1": "latin-1", "latin1": "latin-1", "iso-8859-15": "iso-8859-15",
    "windows-1252": "cp1252",
}  # fmt: skip


class MalformedMetadata(Exception):
    """Bytes that are no recording metadata."""


# A request for a complete document. RFC 7866 §9.2.
SNAPSHOT_REQUEST_TYPE = "application/rs-metadata-request"
SNAPSHOT_REQUEST = (
    b'<?xml version="1.0" encoding="UTF-8"?>\r\n'
    b'<requestsnapshot xmlns="urn:ietf:params:xml:ns:recording:1">'
    b'<requestreason xml:lang="en">metadata is incomplete here</requestreason>'
    b"</requestsnapshot>\r\n"
)


@dataclass(frozen=True, slots=True)
class ParticipantData:
    """RFC 7865 §6.5. `aor` and `name` of the first nameID; empty where there is none.

    `language`: the tag of the language that the name is written in.
    """

    id: str
    aor: str = ""
    name: str = ""
    language: str = ""


@dataclass(frozen=True, slots=True)
class StreamData:
    """RFC 7865 §6.7: `label` is the a=label of its m-line."""

    id: str
    label: str = ""
    session_id: str = ""
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class SessionData:
    """A communication session. RFC 7865 §6.3. The times are the SRC's."""

    id: str
    sip_session_ids: tuple[str, ...] = ()
    group_id: str = ""
    reason: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Attendance:
    """A participant in a communication session, by the SRC's clock. RFC 7865 §6.6.

    `over`: he has left, whether or not it can be read when. `session_id` may be empty.
    """

    participant_id: str
    session_id: str
    since: datetime | None = None
    until: datetime | None = None
    over: bool = False


@dataclass(frozen=True, slots=True)
class Association:
    """What a participant sends and receives, by stream id. RFC 7865 §6.8."""

    participant_id: str
    sends: tuple[str, ...] = ()
    receives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metadata:
    """One metadata document. Partial: what it does not mention stays as it was."""

    mode: Literal["complete", "partial"] = "complete"
    namespace: str = ""
    groups: tuple[str, ...] = ()
    sessions: tuple[SessionData, ...] = ()
    participants: tuple[ParticipantData, ...] = ()
    streams: tuple[StreamData, ...] = ()
    associations: tuple[Association, ...] = ()
    attendances: tuple[Attendance, ...] = ()
    call_ids: Mapping[str, str] = field(default_factory=dict)  # vendors' names for the call
    extensions: tuple[str, ...] = ()  # vendors' elements, as XML


def parse_metadata(xml: bytes) -> Metadata:
    """Read a document. Raises MalformedMetadata, and nothing else, for any bytes.

    DTDs and entities are refused; the time it takes grows with the size alone.
    """
    if len(xml) > MAX_BYTES:
        raise MalformedMetadata(f"more than {MAX_BYTES} bytes")
    text = _decode(xml)
    if text.count("<") > _MAX_TAGS:
        raise MalformedMetadata(f"more than {_MAX_TAGS} tags")
    # Without a DTD there are no entities to expand or to fetch: nothing that could do harm is left.
    if "<!DOCTYPE" in text:
        raise MalformedMetadata("not well-formed: a DTD is forbidden")
    try:
        root = fromstring(text)  # noqa: S314
    except (ParseError, ValueError, LookupError) as error:
        raise MalformedMetadata(f"not well-formed: {' '.join(str(error).split())}") from error
    namespace = str(root.tag).rpartition("}")[0].removeprefix("{")
    if _local(root.tag) not in ("recording", "recording_metadata", "recording-metadata"):
        raise MalformedMetadata("the document is no recording")
    return _read(root, namespace)


def _decode(xml: bytes) -> str:
    """The document as text: whoever looks for a DTD must see what the parser sees."""
    if xml.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    else:
        # Some SRCs put blank lines ahead of the XML declaration, which XML forbids.
        xml = xml.strip(b" \t\r\n\0\xef\xbb\xbf")
        declared = _DECLARED.match(xml)
        encoding = declared[1].decode().lower() if declared is not None else "utf-8"
    try:
        text = xml.decode(_ENCODINGS[encoding]).strip(" \t\r\n\0\ufeff")
    except (KeyError, UnicodeDecodeError) as error:
        raise MalformedMetadata(f"not well-formed: it is no {encoding}") from error
    # Some send more than the document, such as what was in their buffer.
    return text[: text.rfind(">") + 1]


def _read(root: Element, namespace: str) -> Metadata:
    found = _elements(root, namespace)
    by_name = found.own
    mode = next((_text(one) for one in by_name.get("datamode", ())), "complete").lower()
    participants: list[ParticipantData] = []
    associations: dict[str, _Associated] = {}
    for element in by_name.get("participant", ()):
        one = _participant(element)
        if one is None:
            continue
        participants.append(one)
        _associate(associations, one.id, element)
    for element in by_name.get("participantstreamassoc", ()):
        participant = _attribute(element, "participant_id", "participant")
        if participant:
            _associate(associations, participant, element)
    groups = (_attribute(one, "group_id", "id") for one in by_name.get("group", ()))
    return Metadata(
        mode="partial" if mode == "partial" else "complete",
        namespace=namespace,
        groups=tuple(filter(None, groups)),
        sessions=tuple(filter(None, map(_session, by_name.get("session", ())))),
        participants=tuple(participants),
        streams=tuple(filter(None, map(_stream, by_name.get("stream", ())))),
        associations=tuple(
            Association(id, tuple(one.sends), tuple(one.receives))
            for id, one in associations.items()
        ),
        call_ids=call_ids_of_metadata(found.everywhere),
        attendances=_attendances(by_name.get("participantsessionassoc", ())),
        extensions=extensions(found.foreign),
    )


@dataclass(slots=True)
class _Elements:
    """Elements by their local names: the metadata's own, and all; vendors' topmost ones."""

    own: dict[str, list[Element]] = field(default_factory=dict)
    everywhere: dict[str, list[Element]] = field(default_factory=dict)
    foreign: list[Element] = field(default_factory=list)


def _elements(root: Element, namespace: str) -> _Elements:
    """All elements, in one pass: what is nested deeply must not cost more."""
    found = _Elements()
    tags: dict[str, tuple[str, bool]] = {}  # there are few, and each is on many elements
    waiting = [(root, 1, True)]
    while waiting:
        element, depth, own = waiting.pop()
        if depth > _MAX_DEPTH:
            raise MalformedMetadata(f"more than {_MAX_DEPTH} levels")
        tag = str(element.tag)
        if tag not in tags:
            tags[tag] = _local(tag), is_own(tag, namespace)
        name, is_known = tags[tag]
        found.everywhere.setdefault(name, []).append(element)
        if own and is_known:
            found.own.setdefault(name, []).append(element)
        elif own:
            found.foreign.append(element)
            own = False
        if len(element):
            waiting += [(one, depth + 1, own) for one in reversed(element)]
    return found


def _participant(element: Element) -> ParticipantData | None:
    id = _attribute(element, "participant_id", "id")
    if not id:
        return None
    for name_id in _find(element, "nameid"):
        for name in _find(name_id, "name"):
            language = _attribute(name, "lang")
            return ParticipantData(id, _attribute(name_id, "aor"), _text(name), language)
        return ParticipantData(id, _attribute(name_id, "aor"))
    return ParticipantData(id, _first(element, "aor"), _first(element, "name"))


def _stream(element: Element) -> StreamData | None:
    id = _attribute(element, "stream_id", "id")
    if not id:
        return None
    return StreamData(
        id,
        _first(element, "label"),
        _attribute(element, "session_id", "session"),
        _first(element, "content-type"),
    )


def _session(element: Element) -> SessionData | None:
    id = _attribute(element, "session_id", "id")
    if not id:
        return None
    texts: dict[str, str] = {}
    for one in element:
        texts.setdefault(_local(one.tag), _text(one))
    return SessionData(
        id,
        tuple(filter(None, (_text(one) for one in _find(element, "sipsessionid")))),
        texts.get("group-ref") or _attribute(element, "group", "group_id"),
        texts.get("reason", ""),
        _time(texts.get("start-time")),
        _time(texts.get("stop-time")),
    )


@dataclass(slots=True)
class _Associated:
    """An association that grows: streams in order, each once."""

    sends: dict[str, None] = field(default_factory=dict)
    receives: dict[str, None] = field(default_factory=dict)


def _associate(known: dict[str, _Associated], participant: str, element: Element) -> None:
    stated = [(name, one) for one in element if (name := _local(one.tag)) in ("send", "recv")]
    if not stated and "assoc" not in _local(element.tag):
        return
    associated = known.setdefault(participant, _Associated())
    if "assoc" in _local(element.tag) and _is_over(element):
        return
    for name, one in stated:
        ids = [_text(id) for id in one if _local(id.tag) == "id"] or [_text(one)]
        streams = associated.sends if name == "send" else associated.receives
        streams |= dict.fromkeys(filter(None, ids))


def _attendances(elements: Iterable[Element]) -> tuple[Attendance, ...]:
    """Who is or was in which session; of several associations of the two the last one counts."""
    found: dict[tuple[str, str], Attendance] = {}
    for element in elements:
        participant = _attribute(element, "participant_id", "participant")
        session = _attribute(element, "session_id", "session")
        found[participant, session] = Attendance(
            participant,
            session,
            _time(_first(element, "associate-time")),
            _time(_first(element, "disassociate-time")),
            _is_over(element),
        )
    return tuple(found.values())


def _is_over(association: Element) -> bool:
    return any(_text(one) for one in _find(association, "disassociate-time"))


def _time(text: str | None) -> datetime | None:
    """RFC 7865 §6.9: a time of RFC 3339, with its zone; without one it is taken for UTC.

    None for anything else, and for the year 1, which some SRCs write for "not yet".
    """
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return time if time.year > 1 else None


def _find(element: Element, name: str) -> Iterator[Element]:
    """Children by local name, without case."""
    return (one for one in element if _local(one.tag) == name)


def _first(element: Element, name: str) -> str:
    return next((_text(one) for one in _find(element, name)), "")


def _local(tag: object) -> str:
    """An element's name in lower case, without namespace or an undeclared prefix."""
    text = str(tag)
    return _known_local(text) if len(text) <= _LONGEST_NAME else _known_local.__wrapped__(text)


@lru_cache(maxsize=1024)
def _known_local(tag: str) -> str:
    return tag.rpartition("}")[2].rpartition(":")[2].lower()


def _attribute(element: Element, *names: str) -> str:
    for name in names:
        if (plain := element.get(name)) is not None:
            return plain.strip()
        for key, value in element.attrib.items():
            if key.rpartition("}")[2].lower() == name:
                return value.strip()
    return ""


def _text(element: Element) -> str:
    return " ".join((element.text or "").split())
