"""Header fields: kept as received, found by any of their names, read into types when asked for.

RFC 3261 §7.3 and §20, compact names by §7.3.3.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from siprec_bridge.sip.errors import MalformedMessage

_COMPACT = {
    "a": "accept-contact",
    "b": "referred-by",
    "c": "content-type",
    "e": "content-encoding",
    "f": "from",
    "i": "call-id",
    "j": "reject-contact",
    "k": "supported",
    "l": "content-length",
    "m": "contact",
    "o": "event",
    "r": "refer-to",
    "s": "subject",
    "t": "to",
    "u": "allow-events",
    "v": "via",
    "x": "session-expires",
    "y": "identity",
}


_MAX_PARAMS = 100
_LONGEST_NAME = 64  # of those worth remembering

# Possessive, so that no text can make them try again what they have tried: their time is linear.
_QUOTED = r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)'  # what is not closed reaches to the end
_BRACKETED = r"<[^>]*+(?:>|\Z)"
_PARTS = {one: re.compile(rf'(?:[^"<{one}]++|{_QUOTED}|{_BRACKETED})++', re.DOTALL) for one in ",;"}
_BEFORE_BRACKET = re.compile(rf'(?:[^"<]++|{_QUOTED})*+', re.DOTALL)


def _key(name: str) -> str:
    return _known_key(name) if len(name) <= _LONGEST_NAME else name.lower()


@lru_cache(maxsize=4096)
def _known_key(name: str) -> str:
    lower = name.lower()
    return _COMPACT.get(lower, lower)


class Headers:
    """Header fields in the order of the message; names compare without case and compactness."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self._fields = [(_key(name), name, value) for name, value in fields]

    def get(self, name: str, default: str | None = None) -> str | None:
        """The first field of this name."""
        key = _key(name)
        for found, _, value in self._fields:
            if found == key:
                return value
        return default

    def get_all(self, name: str) -> list[str]:
        """The value of every field of this name, unsplit."""
        key = _key(name)
        return [value for found, _, value in self._fields if found == key]

    def values(self, name: str) -> list[str]:
        """Every value of a list header, whether by commas or by repeated fields."""
        return [part for value in self.get_all(name) for part in split_list(value)]

    def first_value(self, name: str) -> str | None:
        """The first value of a list header; "" where its first field has none."""
        text = self.get(name)
        return split_first(text)[0] if text is not None else None

    def add(self, name: str, value: str) -> None:
        """Append a field."""
        self._fields.append((_key(name), name, value))

    def set(self, name: str, value: str) -> None:
        """Put this value in place of the first field of the name, and drop the others."""
        key = _key(name)
        for position, (found, _, _) in enumerate(self._fields):
            if found == key:
                self._fields[position] = (key, name, value)
                self._fields[position + 1 :] = [
                    one for one in self._fields[position + 1 :] if one[0] != key
                ]
                return
        self.add(name, value)

    def remove(self, name: str) -> None:
        """Drop every field of this name."""
        key = _key(name)
        self._fields = [one for one in self._fields if one[0] != key]

    def replace_first(self, name: str, value: str) -> None:
        """Put this value in place of the first field of the name; the others stay."""
        key = _key(name)
        for position, (found, shown, _) in enumerate(self._fields):
            if found == key:
                self._fields[position] = (key, shown, value)
                return
        self.add(name, value)

    def __contains__(self, name: str) -> bool:
        """Whether a field of this name is there."""
        return self.get(name) is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Names as received, and values."""
        return ((name, value) for _, name, value in self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        """Same fields in the same order."""
        if not isinstance(other, Headers):
            return NotImplemented
        return [(key, value) for key, _, value in self._fields] == [
            (key, value) for key, _, value in other._fields
        ]

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Headers({list(self)!r})"


@dataclass(frozen=True, slots=True)
class CSeq:
    """RFC 3261 §20.16."""

    number: int
    method: str

    def __str__(self) -> str:
        return f"{self.number} {self.method}"


@dataclass(frozen=True, slots=True)
class Via:
    """One hop. `params` by lower-case name; a flag has the value "". RFC 3261 §20.42."""

    transport: str
    host: str
    port: int | None
    params: dict[str, str] = field(default_factory=dict)

    @property
    def branch(self) -> str:
        """The transaction's id at this hop; empty when the hop is older than RFC 3261."""
        return self.params.get("branch", "")


@dataclass(frozen=True, slots=True)
class NameAddr:
    """A From, To, Contact, Route and the like. `display` without its quotes. RFC 3261 §20.10."""

    uri: str
    display: str = ""
    params: dict[str, str] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """The dialog tag; empty when there is none."""
        return self.params.get("tag", "")


def split_list(text: str, separator: str = ",", *, most: int | None = None) -> list[str]:
    """Split at separators outside of quotes and angle brackets; empty parts are left out.

    Stops after `most` parts.
    """
    parts: Iterable[str]
    if '"' in text or "<" in text:
        parts = (found[0] for found in _PARTS[separator].finditer(text))
    else:
        parts = text.split(separator)  # most are like this, and it is much faster
    return list(islice(filter(None, map(str.strip, parts)), most))


def split_first(text: str) -> tuple[str, str]:
    """The first value of a list, and the others with the comma ahead of them."""
    for found in _PARTS[","].finditer(text):
        if first := found[0].strip():
            return first, text[found.end() :]
    return "", ""


def split_params(text: str) -> tuple[str, dict[str, str]]:
    """The value before the first semicolon, and the parameters by lower-case name, unquoted.

    Raises MalformedMessage for more parameters than anybody needs.
    """
    head, *rest = split_list(text, ";", most=_MAX_PARAMS + 2) or [""]
    if text.lstrip().startswith(";"):
        head, rest = "", [head, *rest]
    if len(rest) > _MAX_PARAMS:
        raise MalformedMessage("too many parameters")
    params: dict[str, str] = {}
    for part in rest:
        name, _, value = part.partition("=")
        params.setdefault(name.strip().lower(), unquote(value))
    return head, params


def unquote(text: str) -> str:
    """The text without surrounding quotes and their escapes."""
    text = text.strip()
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    return "\\".join(part.replace("\\", "") for part in text[1:-1].split("\\\\"))


def readable(text: str) -> str:
    """Text for people and stores: octets of the wire that are no UTF-8 are read as Latin-1."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("latin-1")
    return text


def parse_cseq(text: str) -> CSeq:
    """Raises MalformedMessage."""
    number, method = (*text.split(maxsplit=1), "", "")[:2]
    if not (number.isascii() and number.isdecimal() and len(number) <= 10 and method.strip()):
        raise MalformedMessage("bad CSeq")
    if int(number) >= 1 << 32:
        raise MalformedMessage("bad CSeq")
    return CSeq(int(number), method.strip())


def parse_via(text: str) -> Via:
    """Raises MalformedMessage."""
    head, params = split_params(text)
    protocol, _, sent_by = " ".join(head.replace("\t", " ").split()).rpartition(" ")
    name, version, transport = (*(part.strip() for part in protocol.split("/")), "", "", "")[:3]
    if name.upper() != "SIP" or version != "2.0" or not transport or not sent_by:
        raise MalformedMessage("bad Via")
    host, port = split_host_port(sent_by)
    if not host:
        raise MalformedMessage("bad Via")
    return Via(transport.upper(), host, port, params)


def parse_name_addr(text: str) -> NameAddr:
    """Raises MalformedMessage."""
    text = text.strip()
    display, bracket, rest = _before_bracket(text)
    if bracket:
        uri, closed, tail = rest.partition(">")
        if not closed:
            raise MalformedMessage("address without its closing bracket")
        return NameAddr(uri.strip(), unquote(display), split_params(tail)[1])
    uri, params = split_params(text)  # without brackets, the parameters are the header's
    if ":" not in uri:
        raise MalformedMessage("address without a URI")
    return NameAddr(uri, "", params)


def split_host_port(text: str) -> tuple[str, int | None]:
    """Host (an IPv6 one without its brackets) and port. Raises MalformedMessage for a bad port."""
    text = text.strip()
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":").strip()
    else:
        host, _, port = text.partition(":")
        host, port = host.strip(), port.strip()
    if not port:
        return host, None
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 65536):
        raise MalformedMessage("bad port")
    return host, int(port)


def _before_bracket(text: str) -> tuple[str, bool, str]:
    """Split at the first "<" that is outside of quotes."""
    found = _BEFORE_BRACKET.match(text)
    end = found.end() if found is not None else 0
    return text[:end], end < len(text), text[end + 1 :]
