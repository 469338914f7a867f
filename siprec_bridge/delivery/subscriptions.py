"""What a WebSocket listener wants to hear, by the query of its address and by messages.

{"subscribe": {"id": "a", "group": "g1", "type": "transcript.", "final": true}, "since": 120}
{"subscribe": [{"id": "a", …}, {"id": "b", …}]}
{"unsubscribe": "a"}
"""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode

from siprec_bridge.delivery import envelope
from siprec_bridge.delivery.events import EVENT_MODELS
from siprec_bridge.store import Event

OF_THE_QUERY: Final = "query"  # id of what the address itself asks for
_PARAMETERS = (
    "session", "group", "call_id", "call_uuid", "type", "participant", "final", "since",
    "subscribe", "ticket",
)  # fmt: skip


class Frame:
    """An event on its way to listeners: its text and data are made once for all of them.

    `passing`: it is stored nowhere; its sequence is that of the stored event before it.
    """

    def __init__(self, event: Event, *, passing: bool = False) -> None:
        self.event = event
        self.passing = passing

    @cached_property
    def text(self) -> str:
        """What is sent."""
        return envelope.structured(self.event)

    @cached_property
    def data(self) -> Mapping[str, Any]:
        """The event's data, to filter by."""
        value = json.loads(self.event.body)
        return value if isinstance(value, dict) else {}

    def named(self, subscriptions: str) -> str:
        """What is sent to a listener, who may have to know which of his subscriptions it is for."""
        if not subscriptions:
            return self.text
        return f'{self.text[:-1]}, "subscriptions": "{subscriptions}"}}'

    def octets(self, subscriptions: str) -> bytes:
        """The WebSocket frame with that."""
        text = self.named(subscriptions).encode()
        return WebSocketFrame(Opcode.TEXT, text).serialize(mask=False)


def _one_or_more(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


def _types(value: object) -> object:
    """Beginnings of types, several by commas; `transcript.*` is `transcript.`."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(one, str) for one in parts):
        raise ValueError("a type or a list of types is needed")
    kinds = [one.strip().removesuffix("*") for one in parts if one.strip()]
    for kind in kinds:
        if not any(known.startswith(kind) for known in EVENT_MODELS):
            raise ValueError(f"no type begins with {kind}")
    return tuple(kinds)


class Subscription(BaseModel):
    """What to pass on; what is not given may be anything."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="the listener's own name for it")
    session: str | None = Field(None, description="session id")
    group: str | None = Field(None, description="communication session group")
    call_id: str | None = Field(None, description="SIP Call-ID")
    call_uuid: str | None = Field(None, description="any one of these three")
    participant: str | None = Field(None, description="id, name or AoR")
    type: Annotated[tuple[str, ...], BeforeValidator(_types)] = Field(
        (), description="beginnings of types, several by commas"
    )
    final: bool = Field(False, description="only what will not change any more")

    def wants(self, frame: Frame) -> bool:
        """Whether the event passes."""
        event = frame.event
        if self.type and not event.type.startswith(self.type):
            return False
        if self.session is not None and self.session != event.session_id:
            return False
        if self.group is not None and frame.data.get("group_id") != self.group:
            return False
        if self.call_id is not None and frame.data.get("sip_call_id") != self.call_id:
            return False
        if self.call_uuid is not None and self.call_uuid not in (
            event.session_id,
            frame.data.get("sip_call_id"),
            frame.data.get("group_id"),
        ):
            return False
        if self.final and frame.data.get("final") is not True:
            return False
        return self.participant is None or self.participant in _names(frame.data)


class Message(BaseModel):
    """What a listener may say. `since`: stored events after it first, for what is subscribed here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subscribe: Annotated[tuple[Subscription, ...], BeforeValidator(_one_or_more)] = ()
    unsubscribe: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ()
    since: int | None = Field(None, ge=0, lt=10**18)

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if bool(self.subscribe) == bool(self.unsubscribe):
            raise ValueError("either subscribe or unsubscribe is needed")
        if self.since is not None and not self.subscribe:
            raise ValueError("since goes with subscribe")
        if len({one.id for one in self.subscribe}) < len(self.subscribe):
            raise ValueError("two subscriptions have the same id")
        return self


def parse_message(text: str | bytes) -> Message:
    """Read what a listener says. Raises ValueError with what is wrong."""
    if isinstance(text, bytes):
        raise ValueError("a text frame is needed")
    try:
        return Message.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(_cause(error)) from None


class Query(BaseModel):
    """What an address asks for. `first` is None with `subscribe=later`: messages will tell."""

    model_config = ConfigDict(frozen=True)

    first: Subscription | None
    since: int | None = None
    ticket: str | None = Field(None, repr=False)


def parse_query(target: str) -> Query:
    """Read a request target's query. Raises ValueError with what is wrong."""
    query = parse_qs(urlsplit(target).query, keep_blank_values=False, max_num_fields=20)
    unknown = [name for name in query if name not in _PARAMETERS]
    if unknown:
        raise ValueError(f"unknown parameter {unknown[0]}; there are: {', '.join(_PARAMETERS)}")
    single = {name: values[-1] for name, values in query.items()}
    since, ticket = single.pop("since", None), single.pop("ticket", None)
    if since is not None and not (since.isascii() and since.isdecimal() and len(since) < 19):
        raise ValueError("since must be a sequence number")
    final = single.get("final", "false").lower()
    if final not in ("true", "false", "1", "0"):
        raise ValueError("final must be true or false")
    later = single.pop("subscribe", None)
    if later is not None:
        if later != "later":
            raise ValueError("subscribe can be later only: messages tell to what")
        if single or since is not None:
            raise ValueError("subscribe=later goes with no filter and no since")
        return Query(first=None, ticket=ticket)
    wanted: dict[str, Any] = single | {"id": OF_THE_QUERY, "final": final in ("true", "1")}
    if "type" in query:
        wanted["type"] = ",".join(query["type"])
    try:
        first = Subscription.model_validate(wanted)
    except ValidationError as error:
        raise ValueError(_cause(error)) from None
    return Query(first=first, since=int(since) if since is not None else None, ticket=ticket)


def _cause(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def _names(data: Mapping[str, Any]) -> set[object]:
    """Every id, name and AoR of the participants in an event's data."""
    people = [data.get("participant"), *(data.get("participants") or ())]
    return {
        value
        for one in people
        if isinstance(one, dict)
        for value in (one.get("id"), one.get("name"), one.get("aor"))
        if value
    }
