"""Which vendor, model, language, prompt and priority a call gets: the operator's rules. Pure but for `load`.

Rules are looked through from the top, for each field by itself: the first one that matches the call
and names the field decides on it.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from siprec_bridge.provider import ConfigurationError
from siprec_bridge.redaction import Kind, parse_kinds
from siprec_bridge.siprec import SessionDocument, extension_texts
from siprec_bridge.store.jobs import Priority

_LONGEST_PROMPT = 2000


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _not_an_option(value: object) -> object:
    """It becomes an argument of a command line, where a dash begins an option and NUL ends it."""
    if isinstance(value, str) and value.startswith("-"):
        raise ValueError("must not begin with a dash")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not have NUL in it")
    return value


Globs = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]
Networks = Annotated[
    tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_listed), Field(min_length=1)
]


class Wish(BaseModel):
    """What is to be used; None leaves it to who comes next: other rules, then the provider."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vendor: str | None = Field(None, min_length=1, max_length=100)
    model: Annotated[str | None, BeforeValidator(_not_an_option)] = Field(
        None, min_length=1, max_length=500
    )
    language: str | None = Field(
        None, pattern=r"^[A-Za-z]{2,20}(-[A-Za-z]{2,8})?$", description="a code, a name, or auto"
    )
    prompt: Annotated[str | None, BeforeValidator(_not_an_option)] = Field(
        None, min_length=1, max_length=_LONGEST_PROMPT
    )
    priority: Priority | None = None


def _kinds(value: object) -> object:
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(sorted(parse_kinds(value)))
    return value


class Ruling(Wish):
    """What rules decide, which nobody else may ask for."""

    redact: Annotated[tuple[Kind, ...] | None, BeforeValidator(_kinds)] = Field(
        None, description="kinds to take out of what was said; off: none"
    )
    live: bool | None = Field(None, description="whether its lines are told while the call is on")


FIELDS: Final = tuple(Ruling.model_fields)


class Rule(Ruling):
    """Conditions, all of which must hold, and what is used then. Globs know *, ? and [ab]."""

    name: str | None = None
    aor: Globs | None = Field(None, description="of a participant; case does not count")
    participant: Globs | None = Field(None, description="name or id of one; case does not count")
    label: Globs | None = Field(
        None, description="only participants of these streams are looked at"
    )
    peer: Networks | None = Field(None, description="addresses and networks of SRCs")
    group: Globs | None = Field(None, description="id of the communication session group")
    call_ids: dict[str, Globs] = Field({}, description="vendors' names for the call, such as ucid")
    metadata: dict[str, Globs] = Field({}, description="texts of vendors' elements, by name")

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if all(getattr(self, name) is None for name in FIELDS):
            raise ValueError(f"it names none of {', '.join(FIELDS)}")
        return self

    def matches(self, call: "CallFacts") -> bool:
        """Whether all of its conditions hold."""
        people = [one for one in call.people if _is_one(self.label, [one.label])]
        return (
            (self.label is None or bool(people))
            and (self.aor is None or any(_is_one(self.aor, one.aors) for one in people))
            and (
                self.participant is None
                or any(_is_one(self.participant, one.names) for one in people)
            )
            and (self.peer is None or _is_within(call.peer, self.peer))
            and (self.group is None or _is_one(self.group, [call.group_id or ""]))
            and _all_match(self.call_ids, {name: [one] for name, one in call.call_ids.items()})
            and _all_match(self.metadata, call.metadata)
        )


@dataclass(frozen=True, slots=True)
class Person:
    """A participant as rules see one; `label` of each stream that carried his voice, or ""."""

    label: str
    aors: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CallFacts:
    """What rules may ask of a call. `peer`: the SRC's address."""

    peer: str = ""
    people: tuple[Person, ...] = ()
    group_id: str | None = None
    call_ids: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """What rules make of a call, and for each field that they decided on, by which rule."""

    wish: Ruling
    because: Mapping[str, str]


UNRULED: Final = Choice(Ruling(), {})  # of a call where there are no rules


class Rules:
    """The operator's rules, in order."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self._rules = tuple(rules)

    @property
    def redact(self) -> frozenset[Kind]:
        """All that any rule has taken out of its calls."""
        return frozenset(kind for one in self._rules for kind in one.redact or ())

    def __len__(self) -> int:
        return len(self._rules)

    def choose(self, call: CallFacts) -> Choice:
        """The first matching rule of each field decides."""
        values: dict[str, object] = {}
        because: dict[str, str] = {}
        for number, rule in enumerate(self._rules, 1):
            missing = [
                name for name in FIELDS if name not in values and getattr(rule, name) is not None
            ]
            if missing and rule.matches(call):
                values |= {name: getattr(rule, name) for name in missing}
                because |= dict.fromkeys(missing, rule.name or f"rule {number}")
        return Choice(Ruling.model_validate(values), because)


def load_rules(path: Path | None, vendors: Sequence[str]) -> Rules:
    """Read `[[rule]]` tables from a TOML file; no file, no rules.

    Raises ConfigurationError that names the file, the rule and what is wrong with it.
    """
    if path is None:
        return Rules()
    setting = f"TRANSCRIPTION_RULES={path}"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(setting, f"cannot be read: {error}") from error
    given = table.pop("rule", [])
    if table or not isinstance(given, list):
        found = ", ".join(table) or "rule, which is no list"
        raise ConfigurationError(setting, f"only [[rule]] tables are known, not {found}")
    rules: list[Rule] = []
    for number, one in enumerate(given, 1):
        named = one.get("name") if isinstance(one, dict) else None
        which = f"rule {number}" + (f" ({named})" if named else "")
        try:
            rule = Rule.model_validate(one)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"] if part != "tuple")
            what = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                what = f"there is no such field (there are {', '.join(Rule.model_fields)})"
            text = ": ".join(filter(None, (which, where, what)))
            raise ConfigurationError(setting, text) from error
        if rule.vendor is not None and rule.vendor not in vendors:
            reason = f"{rule.vendor} is not among SUPPORTED_VENDORS={','.join(vendors)}"
            raise ConfigurationError(setting, f"{which}: vendor: {reason}")
        rules.append(rule)
    return Rules(rules)


def facts_of_call(document: SessionDocument, peer: str) -> CallFacts:
    """What is known of a session, for its rules. `peer` as stored: transport:address:port."""
    people = [
        Person(stream.label, (one.aor or "",), tuple(filter(None, (one.name, one.id))))
        for stream in document.streams
        for one in document.on_stream(stream.label)
    ]
    ids = {one.id for stream in document.streams for one in document.on_stream(stream.label)}
    people += [
        Person("", (one.aor or "",), tuple(filter(None, (one.name, one.id))))
        for one in document.participants
        if one.id not in ids
    ]
    return CallFacts(
        peer=address_of(peer),
        people=tuple(people),
        group_id=document.group_id,
        call_ids=document.call_ids,
        metadata=extension_texts(document.extensions),
    )


def address_of(peer: str) -> str:
    """The address in transport:address:port."""
    return peer.partition(":")[2].rpartition(":")[0].strip("[]")


def _is_one(globs: Sequence[str] | None, texts: Sequence[str]) -> bool:
    return globs is None or any(
        fnmatchcase(text.casefold(), glob.casefold()) for text in texts for glob in globs
    )


def _all_match(wanted: Mapping[str, Sequence[str]], there: Mapping[str, Sequence[str]]) -> bool:
    found = {re.sub(r"[-_]", "", name).casefold(): texts for name, texts in there.items()}
    return all(
        _is_one(globs, found.get(re.sub(r"[-_]", "", name).casefold(), ()))
        for name, globs in wanted.items()
    )


def _is_within(address: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return any((mapped or parsed) in network for network in networks)
