"""Documents and events without one person: what goes, and what others have there that stays."""

from typing import Any

import pytest

from siprec_bridge.recording.scrub import Scrub, mentions_of
from siprec_bridge.transcript import Participant

CAROL = Participant(
    id="p-1", name="Carol Quux", aor="sip:carol@example.com", name_language="nl"
).model_dump()
BOB = Participant(id="p-2", name="Bob", aor="sip:bob@example.com").model_dump()
GONE = Participant(id="erased-1").model_dump()
# Carol is alone on stream 0, Bob on 1; both were on 2.
SCRUB = Scrub(
    ids={"p-1": "erased-1"},
    labels=frozenset({"0", "2"}),
    alone=frozenset({"0"}),
    mentions=mentions_of([CAROL], "carol"),
    groups={"g-carol": "g-9"},
)


def said(label: str, who: dict[str, Any] | None, text: str) -> dict[str, Any]:
    return {"label": label, "participant": who, "text": text}


@pytest.mark.parametrize(
    ("label", "who", "theirs"),
    [
        ("0", CAROL, True),
        ("0", BOB, True),  # whoever it is taken for, nobody else was there
        ("0", None, True),
        ("2", CAROL, True),
        ("2", BOB, False),
        ("2", None, True),  # it may have been
        ("1", CAROL, True),
        ("1", BOB, False),
        ("1", None, False),
    ],
)
def test_whose_words_they_are(label: str, who: dict[str, Any] | None, theirs: bool) -> None:
    one = said(label, who, "hello")

    assert SCRUB.is_theirs(one) == theirs
    for kind in ("transcript.segment", "transcript.partial"):
        assert SCRUB.event(kind, one) == (None if theirs else one)


def test_a_conversation_loses_the_person_s_words_and_its_text_is_made_anew() -> None:
    before = {
        "participants": [CAROL, BOB],
        "group_id": "g-carol",
        "text": "my card\nhello Carol\nmaybe me",
        "utterances": [
            said("0", CAROL, "my card"), said("2", BOB, "hello Carol"), said("2", None, "maybe me"),
        ],
        "suppressed": [{"label": "2", "text": "a"}, {"label": "1", "text": "b"}],
        "legs": [
            {"label": "0", "participants": [CAROL], "keys": [{"key": "5"}]},
            {"label": "1", "participants": [BOB], "keys": [{"key": "6"}]},
        ],
        "run": {"stderr_tail": "my card", "model": "base"},
    }  # fmt: skip

    assert SCRUB.event("transcript.final", before) == {
        "participants": [GONE, BOB],
        "group_id": "g-9",
        "text": "hello Carol",  # what others said of the person is theirs
        "utterances": [said("2", BOB, "hello Carol")],
        "suppressed": [{"label": "1", "text": "b"}],
        "legs": [
            {"label": "0", "participants": [GONE], "keys": []},
            {"label": "1", "participants": [BOB], "keys": [{"key": "6"}]},
        ],
        "run": {"stderr_tail": "", "model": "base"},
    }


def test_a_session_names_the_person_no_more_and_keeps_all_else() -> None:
    before = {
        "session_id": "s-1",
        "group_id": "g-other",
        "communication_sessions": ["cs-Carol Quux", "cs-7"],
        "sip_session_ids": ["ab;remote=sip:carol@example.com", "cd"],
        "described_sessions": [
            {"id": "CAROL QUUX", "sip_session_ids": ["p-1x", "ef"]}, {"id": "7", "sip_session_ids": []},
        ],
        "participants": [CAROL, BOB],
        "streams": [{"label": "0", "presences": [{"participant_id": "p-1", "until": None}]}],
        "call_ids": {"ucid": "1", "caller": "sip:carol@example.com"},
        "extensions": ["<x>carol quux</x>", "<y/>"],
        "warnings": ["odd", "odd: Carol Quux"],
        "pauses": [
            {"by": "carol", "reason": "Carol Quux wants it", "detail": "by p-1", "label": "1"},
            {"by": "ops", "reason": "payment", "detail": "card", "label": "1"},
            {"by": None, "reason": None, "detail": None, "label": "1"},
        ],
    }  # fmt: skip

    assert SCRUB.document(before) == {
        "session_id": "s-1",
        "group_id": "g-other",
        "communication_sessions": ["cs-7"],
        "sip_session_ids": ["cd"],
        "described_sessions": [
            {"id": "", "sip_session_ids": ["ef"]}, {"id": "7", "sip_session_ids": []},
        ],
        "participants": [GONE, BOB],
        "streams": [{"label": "0", "presences": [{"participant_id": "erased-1", "until": None}]}],
        "call_ids": {"ucid": "1"},
        "extensions": ["<y/>"],
        "warnings": ["odd"],
        "pauses": [
            {"by": "", "reason": "", "detail": "", "label": "1"},
            {"by": "ops", "reason": "payment", "detail": "card", "label": "1"},
            {"by": None, "reason": None, "detail": None, "label": "1"},
        ],
    }  # fmt: skip


def test_a_conversation_without_its_text_gets_none() -> None:
    assert SCRUB.document({"utterances": [said("1", BOB, "b")]}) == {
        "utterances": [said("1", BOB, "b")]
    }


def test_a_vcon_goes_as_a_whole() -> None:
    assert SCRUB.event("session.vcon", {"vcon": {}, "participants": [BOB]}) is None


def test_texts_too_short_to_be_looked_for_name_nobody() -> None:
    assert mentions_of([{"id": "ab", "name": None, "aor": "tel:1"}, {"id": "Abc"}], "7") == {
        "tel:1", "abc",
    }  # fmt: skip
