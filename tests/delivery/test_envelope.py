"""Events as consumers see them, against the schemas that we publish."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from siprec_bridge.delivery import contract, envelope
from siprec_bridge.delivery.events import PausedStream, Stream
from siprec_bridge.store import Event
from siprec_bridge.transcript import Conversation, Participant, RunFacts, Utterance, Word

DOCS = Path(__file__).parents[2] / "docs"
NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
ALICE = Participant(id="p1", name="Alice", aor="sip:alice@example.com")
STREAM = Stream(label="1", participants=(ALICE,), codec="PCMU")
FACTS = envelope.SessionFacts("s1", "c1", NOW, "g1", {"ucid": "1"}, (ALICE,), (STREAM,))


def conversation() -> Conversation:
    utterance = Utterance(
        label="1", participant=ALICE, start=0.5, end=1.0, text="hi",
        starts_at=NOW, ends_at=NOW + timedelta(seconds=0.5),
        words=(Word(text="hi", start=0.5, end=1.0, probability=0.9),),
    )  # fmt: skip
    return Conversation(
        session_id="s1", sip_call_id="c1", started_at=NOW, ended_at=NOW, duration=1.0,
        utterances=(utterance,), provider="whisper", model="base",
        run=RunFacts(provider="whisper", model="base", status="success"),
    )  # fmt: skip


def every_event() -> list[Event]:
    return [
        envelope.session_started(FACTS),
        envelope.session_updated(FACTS, 1),
        envelope.session_paused(FACTS, 2, [PausedStream(label="1", cause="hold")]),
        envelope.session_resumed(FACTS, 3, ["1"]),
        envelope.session_ended(FACTS, started_at=NOW, cause="bye"),
        *envelope.transcript_events(conversation(), 1),
        envelope.session_vcon(conversation(), 1, {"uuid": "u"}, NOW),
        envelope.transcript_failed(
            "s1", "c1", group_id=None, job_id="s1.1", attempts=5, reason="timeout", at=NOW
        ),
    ]


def test_the_published_documents_are_what_the_code_makes() -> None:
    schema = json.loads((DOCS / "events.schema.json").read_text())
    asyncapi = json.loads((DOCS / "asyncapi.json").read_text())

    assert schema == json.loads(json.dumps(contract.json_schemas())), "run scripts/make-event-docs"
    assert asyncapi == json.loads(json.dumps(contract.asyncapi())), "run scripts/make-event-docs"


@pytest.mark.parametrize("event", every_event(), ids=lambda event: event.type)
def test_every_event_keeps_its_published_schema(event: Event) -> None:
    schema = json.loads((DOCS / "events.schema.json").read_text())[event.type]

    frame = json.loads(envelope.structured(event))

    Draft202012Validator(schema).validate(frame)
    assert envelope.parse(json.dumps(frame)).id == event.id


def test_a_transcript_beyond_the_limit_keeps_its_text_if_it_can_and_says_where_the_rest_is() -> (
    None
):
    whole = envelope.transcript_events(conversation(), 1)[-1]
    schema = json.loads((DOCS / "events.schema.json").read_text())[whole.type]
    large = whole.body.encode()

    some, none = (
        json.loads(envelope.by_reference(whole, limit, "https://b.example.com"))
        for limit in (len(large), 100)
    )

    expected = json.loads(large) | {
        "utterances": [],
        "reference": {
            "url": f"https://b.example.com/api/events/{whole.id}/data",
            "size": len(large),
            "sha256": hashlib.sha256(large).hexdigest(),
            "media_type": "application/json",
        },
    }
    assert some == expected
    assert none == expected | {"text": ""}
    for data in (some, none):
        body = json.dumps(data)
        frame = envelope.structured(replace(whole, body=body))
        Draft202012Validator(schema).validate(json.loads(frame))


def test_a_vcon_that_is_too_large_is_a_reference_to_it() -> None:
    whole = envelope.session_vcon(conversation(), 1, {"uuid": "u" * 500}, NOW)

    told = json.loads(envelope.by_reference(whole, 300, "https://b.example.com"))

    assert told["vcon"] is None
    assert told["reference"]["url"] == f"https://b.example.com/api/events/{whole.id}/data"
    assert told["reference"]["sha256"] == hashlib.sha256(whole.body.encode()).hexdigest()
    assert (told["session_id"], told["version"]) == ("s1", 1)


def test_other_events_are_never_sent_by_reference() -> None:
    started = envelope.session_started(FACTS)

    assert envelope.by_reference(started, 10, "") == started.body


def test_an_event_that_is_built_again_has_the_same_id_and_others_have_not() -> None:
    first, again = every_event(), every_event()

    assert [one.id for one in first] == [one.id for one in again]
    assert len({one.id for one in first}) == len(first)
    other = envelope.transcript_events(conversation(), 2)
    assert {one.id for one in other} & {one.id for one in first} == set()
