"""A session's documents and events without one of its people. Pure: JSON values in, JSON values out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_SHORTEST = 3  # letters of a name that is looked for in free text


@dataclass(frozen=True)
class Scrub:
    """`ids`: the person's, and what stands in their place. `labels`: streams with the person's voice.

    `mentions`: texts in lower case by which the person is known; `alone`: labels of nobody else.
    `groups`: ids of groups that name the person, and what stands in their place.
    """

    ids: Mapping[str, str]
    labels: frozenset[str]
    alone: frozenset[str]
    mentions: frozenset[str] = field(default_factory=frozenset)
    groups: Mapping[str, str] = field(default_factory=dict)

    def is_theirs(self, utterance: Mapping[str, Any]) -> bool:
        """Whether the person said it, or may have: on their stream, by nobody known."""
        who = utterance.get("participant")
        label = utterance.get("label")
        if label in self.alone:
            return True
        if isinstance(who, dict):
            return who.get("id") in self.ids
        return label in self.labels

    def event(self, kind: str, data: dict[str, Any]) -> dict[str, Any] | None:
        """An event's data without the person; None: it was the person's alone."""
        if kind in ("transcript.segment", "transcript.partial") and self.is_theirs(data):
            return None
        if kind == "session.vcon":
            return None  # made of what is cleaned elsewhere; a new one is to be had at any time
        return self.document(data)

    def document(self, value: dict[str, Any]) -> dict[str, Any]:
        """A session's or a conversation's document, or the data of an event, without the person."""
        cleaned: dict[str, Any] = self._clean(value)
        if "utterances" in value and "text" in value:
            cleaned["text"] = text_of(cleaned)
        return cleaned

    def names(self, text: str) -> bool:
        """Whether a text names the person."""
        low = text.lower()
        return any(one in low for one in self.mentions)

    def _clean(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._clean(one) for one in value]
        if not isinstance(value, dict):
            return value
        if value.get("id") in self.ids and ("aor" in value or "name" in value):
            return dict.fromkeys(value) | {"id": self.ids[value["id"]]}
        cleaned: dict[str, Any] = {}
        for name, one in value.items():
            match name:
                case "utterances" if isinstance(one, list):
                    kept = [said for said in one if not self.is_theirs(said)]
                    cleaned[name] = self._clean(kept)
                case "suppressed" if isinstance(one, list):
                    cleaned[name] = [text for text in one if text.get("label") not in self.labels]
                case "keys" if value.get("label") in self.labels:
                    cleaned[name] = []
                case "participant_id" if one in self.ids:
                    cleaned[name] = self.ids[one]
                case "group_id" if one in self.groups:
                    cleaned[name] = self.groups[one]
                case "id" if "sip_session_ids" in value and self.names(str(one)):
                    cleaned[name] = ""
                case "warnings" | "extensions" | "communication_sessions" | "sip_session_ids" if (
                    isinstance(one, list)
                ):
                    cleaned[name] = [text for text in one if not self.names(str(text))]
                case "call_ids" if isinstance(one, dict):
                    cleaned[name] = {k: v for k, v in one.items() if not self.names(str(v))}
                case "detail" | "by" | "reason" if isinstance(one, str) and self.names(one):
                    cleaned[name] = ""
                case "stderr_tail":
                    cleaned[name] = ""
                case _:
                    cleaned[name] = self._clean(one)
        return cleaned


def text_of(document: Mapping[str, Any]) -> str:
    """What is said in a conversation's document, a line each."""
    return "\n".join(str(one.get("text", "")) for one in document.get("utterances", ()))


def mentions_of(people: Sequence[Mapping[str, Any]], user: str) -> frozenset[str]:
    """Texts that name these participants; `user` is the number or the part before the @."""
    texts = {user}
    for one in people:
        texts |= {str(one.get(name) or "") for name in ("id", "name", "aor")}
    return frozenset(text.lower() for text in texts if len(text) >= _SHORTEST)
