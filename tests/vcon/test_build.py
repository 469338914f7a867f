"""What becomes of a call in a vCon, against the draft's rules."""

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.vcons import checked
from siprec_bridge.siprec import (
    Assurance,
    Attendance,
    CommunicationSession,
    Pause,
    Presence,
    SessionDocument,
    StreamDocument,
)
from siprec_bridge.transcript import (
    Conversation,
    KeyPress,
    Leg,
    Participant,
    Utterance,
    Word,
)
from siprec_bridge.vcon import SCHEMA, Call, Recording, Spoken, build, pieces, uuid_of

START = datetime(2026, 5, 4, 12, 0, 0, 250_000, tzinfo=UTC)
ALICE = Participant(id="a", name="Alice", aor="sip:+4930123456@pbx.example.com")
BOB = Participant(id="b", name="Bøb 李", aor="tel:+4940654321")
CAROL = Participant(id="c", name="Carol", aor="sips:carol@example.com")


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def present(id: str, since: float, until: float | None = None) -> Presence:
    return Presence(
        participant_id=id, since=at(since), until=at(until) if until is not None else None
    )


def stream(index: int, label: str, *presences: Presence, pauses: Sequence[Pause] = ()) -> Any:
    return StreamDocument(
        index=index, label=label, state="closed", opened_at=START, closed_at=at(9),
        presences=presences, pauses=tuple(pauses),
    )  # fmt: skip


def leg(label: str, **more: Any) -> Recording:
    given_: dict[str, Any] = {"channels": ((label,),), "duration": 8.5, "started_at": at(0.5)}
    return Recording(f"s-{label}.wav", "audio/x-wav", **(given_ | more))


def said(text: str, label: str, who: Participant | None, start: float, **more: Any) -> Utterance:
    return Utterance(
        label=label, participant=who, start=start, end=start + 1, starts_at=at(start),
        ends_at=at(start + 1), text=text, language="en", **more,
    )  # fmt: skip


def spoken(*utterances: Utterance, version: int = 1, labels: str = "12") -> Spoken:
    return Spoken(
        Conversation(
            session_id="s", sip_call_id="call@src", started_at=START, ended_at=at(9), duration=9,
            legs=tuple(Leg(label=label) for label in labels), utterances=utterances,
            language="en", provider="whisper", model="large-v3",
        ),
        version,
        at(20),
    )  # fmt: skip


def call(document: SessionDocument | None = None, **more: Any) -> Call:
    document = document or SessionDocument(
        session_id="s",
        participants=(ALICE, BOB),
        streams=(stream(0, "1", present("a", 0, 9)), stream(1, "2", present("b", 1, 9))),
    )
    given_ = {"recordings": (leg("1"), leg("2"))} | more
    return Call(document, "call@src", START, at(9), "bye", **given_)


def made(call: Call) -> dict[str, Any]:
    return checked(b"".join(pieces(build(call))))


def events(dialog: dict[str, Any]) -> list[tuple[str, int, str]]:
    return [
        (one["event"], one["party"], one["time"].removeprefix("2026-05-04T12:00:"))
        for one in dialog.get("party_history", [])
    ]


def test_a_call_of_two_is_a_set_of_their_recordings_and_a_transcript_of_both() -> None:
    hello = said("hello", "1", ALICE, 1, words=(
        Word(text="hello", start=1, end=2, probability=0.9),
        Word(text="there", start=1, end=2, probability=0.8),
    ))  # fmt: skip
    hi = said("hi ü", "2", BOB, 3, avg_logprob=-0.105)

    vcon = made(call(spoken=spoken(hello, hi)))

    assert (vcon["created_at"], vcon["updated_at"]) == (
        "2026-05-04T12:00:00.250000Z", "2026-05-04T12:00:20.250000Z",
    )  # fmt: skip
    assert vcon["subject"] == "Call of Alice and Bøb 李"
    alice, bob, unknown, recorder = vcon["parties"]
    assert alice == {
        "tel": "tel:+4930123456", "sip": "sip:+4930123456@pbx.example.com",
        "name": "Alice", "validation": "none", "uuid": "a",
    }  # fmt: skip
    assert bob == {
        "tel": "tel:+4940654321", "name": "Bøb 李", "validation": "none", "uuid": "b",
    }  # fmt: skip
    assert (unknown, recorder["type"]) == ({}, "bot")
    first, second, whole = vcon["dialog"]
    assert (whole["type"], whole["recordings"], whole["duration"]) == ("recording-set", [0, 1], 9)
    assert (whole["parties"], first["parties"], second["parties"]) == ([0, 1], [0], [1])
    assert {one["originator"] for one in vcon["dialog"]} == {2}  # SIPREC does not tell who it was
    assert (first["start"], first["duration"], first["recording_set"]) == (
        "2026-05-04T12:00:00.750000Z", 8.5, 2,
    )  # fmt: skip
    assert (first["filename"], first["mediatype"]) == ("s-1.wav", "audio/x-wav")
    assert events(first) == [("join", 0, "00.250000Z"), ("drop", 0, "09.250000Z")]
    (analysis,) = vcon["analysis"]
    assert (analysis["vendor"], analysis["product"], analysis["schema"]) == (
        "whisper", "large-v3", SCHEMA,
    )  # fmt: skip
    assert (analysis["dialog"], analysis["encoding"]) == ([0, 1], "json")
    body = analysis["body"]
    assert (body["version"], body["text"]) == (1, "hello\nhi ü")
    assert [(one["party"], one["dialog"], one["confidence"]) for one in body["utterances"]] == [
        (0, 0, 0.85), (1, 1, 0.9),
    ]  # fmt: skip


def test_who_is_transferred_away_and_who_comes_instead_stand_in_the_streams_history() -> None:
    document = SessionDocument(
        session_id="s",
        participants=(ALICE, BOB, CAROL),
        streams=(
            stream(0, "1", present("a", 0)),
            stream(1, "2", present("b", 0, 4), present("c", 4, 9)),
        ),
    )

    vcon = made(
        call(document, spoken=spoken(said("one moment", "2", BOB, 2), said("yes", "2", CAROL, 5)))
    )

    assert vcon["dialog"][1]["parties"] == [1, 2]
    assert events(vcon["dialog"][1]) == [
        ("join", 1, "00.250000Z"), ("drop", 1, "04.250000Z"),
        ("join", 2, "04.250000Z"), ("drop", 2, "09.250000Z"),
    ]  # fmt: skip
    assert [one["party"] for one in vcon["analysis"][0]["body"]["utterances"]] == [1, 2]


def test_holds_and_mutes_are_events_of_parties_and_what_an_operator_paused_is_not() -> None:
    pauses = [
        Pause(cause="hold", since=at(2), until=at(3)),
        Pause(cause="mute", since=at(4), until=at(5), participant_id="c"),
        Pause(cause="operator", since=at(6), until=at(7), by="agent 7"),
        Pause(cause="hold", since=at(8)),
    ]
    document = SessionDocument(
        session_id="s",
        participants=(ALICE, BOB, CAROL),
        streams=(stream(0, "1", present("b", 0, 7.5), present("c", 1), pauses=pauses),),
    )

    vcon = made(call(document, recordings=(leg("1"),)))

    assert [one[:2] for one in events(vcon["dialog"][0])] == [
        ("join", 1), ("join", 2), ("hold", 1), ("hold", 2), ("unhold", 1), ("unhold", 2),
        ("mute", 2), ("unmute", 2), ("drop", 1), ("hold", 2),
    ]  # fmt: skip
    session = vcon["attachments"][0]["body"]
    assert [one["by"] for one in session["streams"][0]["pauses"] if "by" in one] == ["agent 7"]


def test_a_stream_of_nobody_known_has_a_party_without_anything() -> None:
    document = SessionDocument(session_id="s", streams=(stream(0, "1"), stream(1, "2")))

    vcon = made(call(document, spoken=spoken(said("hm", "2", None, 1))))

    assert vcon["parties"][:3] == [{}, {}, {}]
    assert [one["parties"] for one in vcon["dialog"]] == [[0], [1], [0, 1]]
    assert vcon["analysis"][0]["body"]["utterances"][0]["party"] == 1
    assert "subject" not in vcon


def test_the_stereo_file_names_who_is_on_each_side() -> None:
    document = SessionDocument(
        session_id="s",
        participants=(ALICE, BOB, CAROL),
        streams=(
            stream(0, "1", present("a", 0)),
            stream(1, "2", present("b", 0)),
            stream(2, "3", present("c", 0)),
        ),
    )

    three = made(call(document, recordings=(leg("x", channels=(("1", "3"), ("2", "3"))),)))
    alone = made(call(document, recordings=(leg("x", channels=(("1",), ())),)))

    assert [one["parties"] for one in three["dialog"]] == [[[0, 2], [1, 2]]]
    assert [one["parties"] for one in alone["dialog"]] == [[0, None]]
    # What happened on the others, of which there is no recording, is told of the whole call.
    assert [one[1] for one in events(alone["dialog"][0])] == [0, 1, 2]


def test_keys_are_events_of_who_pressed_them() -> None:
    keys = (("2", KeyPress(key="*", start=1.0, duration=0.1)),)

    vcon = made(call(recordings=(leg("1"), leg("2", keys=keys))))

    pressed = [one for one in vcon["dialog"][1]["party_history"] if "button" in one]
    assert [(one["event"], one["party"], one["button"]) for one in pressed] == [
        ("keydown", 1, "*"), ("keyup", 1, "*"),
    ]  # fmt: skip
    assert pressed[0]["time"] == "2026-05-04T12:00:01.750000Z"


def test_what_siprec_knows_beyond_the_draft_is_attached_by_the_recorder() -> None:
    document = SessionDocument(
        session_id="s",
        group_id="g1",
        call_ids={"ucid": "42"},
        participants=(ALICE, BOB),
        streams=(stream(0, "1", present("a", 0)), stream(1, "2", present("b", 0))),
        described_sessions=(
            CommunicationSession(
                id="cs", reason="quality",
                participants=(Attendance(participant_id="a", since=START, until=at(8)),),
            ),
        ),
        extensions=("<x:agent xmlns:x='urn:x'>7</x:agent>",),
        assurance=Assurance(verdict="complete"),
    )  # fmt: skip

    vcon = made(call(document))

    session, assurance, vendor = vcon["attachments"]
    assert {one["party"] for one in vcon["attachments"]} == {len(vcon["parties"]) - 1}
    assert session["body"]["sip_call_id"] == "call@src"
    assert session["body"]["group_id"] == "g1"
    assert session["body"]["call_ids"] == {"ucid": "42"}
    assert session["body"]["described_sessions"][0]["reason"] == "quality"
    assert "participants" not in session["body"]  # they are the parties
    assert assurance["body"]["verdict"] == "complete"
    assert (vendor["mediatype"], vendor["encoding"]) == ("application/xml", "none")
    assert vendor["body"] == document.extensions[0]
    assert events(vcon["dialog"][2]) == [("join", 0, "00.250000Z"), ("drop", 0, "08.250000Z")]


@pytest.mark.parametrize(
    ("texts", "session_id"),
    [
        (["AB" * 16 + ";remote=" + "cd" * 16], {"local": "ab" * 16, "remote": "cd" * 16}),
        (["ab" * 16 + " ; logme ; remote=" + "cd" * 16], {"local": "ab" * 16, "remote": "cd" * 16}),
        (["ab" * 16], {"local": "ab" * 16, "remote": "0" * 32}),
        (["ab" * 16, "cd" * 16], None),
        (["a session"], None),
        ([], None),
    ],
)
def test_one_sip_session_id_is_the_calls(texts: list[str], session_id: object) -> None:
    document = SessionDocument(session_id="s", sip_session_ids=tuple(texts))

    one, more = made(call(document, recordings=(leg("1"),))), made(call(document))

    assert one["dialog"][0].get("session_id") == session_id
    assert more["dialog"][2].get("session_id") == session_id


@pytest.mark.parametrize(
    ("aor", "party"),
    [
        ("sip:alice@example.com", {"sip": "sip:alice@example.com"}),
        ("sip:+49 30-1@gw", {"name": "sip:+49 30-1@gw", "validation": "none"}),
        ("sip:+4930-1@gw", {"sip": "sip:+4930-1@gw", "tel": "tel:+4930-1"}),
        ("sip:1000@gw", {"sip": "sip:1000@gw"}),
        ("tel:+1", {"tel": "tel:+1"}),
        ("tel:", {"name": "tel:", "validation": "none"}),
        ("mailto:a@b.example", {"mailto": "mailto:a@b.example"}),
        ("extension 12", {"name": "extension 12", "validation": "none"}),
        ("", {}),
        (None, {}),
    ],
)
def test_an_address_stands_where_the_draft_has_its_kind(
    aor: str | None, party: dict[str, str]
) -> None:
    document = SessionDocument(session_id="s", participants=(Participant(id="p", aor=aor),))

    assert made(call(document))["parties"][0] == party | {"uuid": "p"}


def test_deleted_audio_leaves_its_dialogs_without_a_file() -> None:
    vcon = made(call(audio_deleted_at=at(3600)))

    assert [set(one) & {"filename", "mediatype", "url", "body"} for one in vcon["dialog"]] == [
        set(), set(), set(),
    ]  # fmt: skip
    assert vcon["dialog"][0]["duration"] == 8.5
    assert vcon["attachments"][0]["body"]["audio_deleted_at"] == at(3600).isoformat()
    assert vcon["updated_at"] == "2026-05-04T13:00:00.250000Z"


def test_what_was_redacted_says_so() -> None:
    assert made(call(redaction="card numbers"))["redacted"] == {"type": "card numbers"}
    assert "redacted" not in made(call())


def test_a_session_has_one_uuid_for_ever_that_tells_its_time() -> None:
    first, again = made(call()), made(call(spoken=spoken(said("hi", "1", ALICE, 1), version=2)))
    other = uuid_of("t", START)

    assert first["uuid"] == again["uuid"]
    assert (other.version, other.variant) == (8, "specified in RFC 4122")
    assert str(other) != first["uuid"]
    assert other.int >> 80 == int(START.timestamp() * 1000)


@given(st.lists(st.binary(max_size=50)), st.lists(st.binary(max_size=9)))
def test_files_come_along_however_they_are_cut_into_pieces(
    one: list[bytes], other: list[bytes]
) -> None:
    both = call(recordings=(leg("1", inline=True), leg("2", inline=True)))

    vcon = checked(b"".join(pieces(build(both), {0: one, 1: other})))

    for dialog, octets in zip(vcon["dialog"][:2], (one, other), strict=True):
        padding = "=" * (-len(dialog["body"]) % 4)
        assert base64.urlsafe_b64decode(dialog["body"] + padding) == b"".join(octets)


_IDS = st.sampled_from(["p", "q", "r", "né"])
_LABELS = st.sampled_from(["1", "2", "l'\"\\ü"])
_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
_TIMES = st.floats(-10, 20, allow_nan=False).map(at)
_MAYBE = st.none() | _TIMES
_PARTICIPANTS = st.builds(
    Participant, id=_IDS, name=st.none() | _TEXT,
    aor=st.none() | _TEXT | _TEXT.map("sip:{}@h".format) | _TEXT.map("tel:{}".format),
)  # fmt: skip
_STREAMS = st.builds(
    StreamDocument, index=st.integers(0, 9), label=_LABELS, state=st.just("closed"),
    opened_at=_TIMES,
    presences=st.lists(st.builds(Presence, participant_id=_IDS, since=_TIMES, until=_MAYBE)),
    pauses=st.lists(
        st.builds(
            Pause, cause=st.sampled_from(["hold", "operator", "mute"]), since=_TIMES,
            until=_MAYBE, participant_id=st.none() | _IDS,
        )
    ),
)  # fmt: skip
_DOCUMENTS = st.builds(
    SessionDocument, session_id=_TEXT, participants=st.lists(_PARTICIPANTS, max_size=4),
    streams=st.lists(_STREAMS, max_size=3), sip_session_ids=st.lists(_TEXT, max_size=2),
    extensions=st.lists(_TEXT, max_size=2),
)  # fmt: skip
_RECORDINGS = st.builds(
    Recording, file=_TEXT, media_type=st.just("audio/flac"), started_at=_TIMES,
    duration=st.floats(0, 1e5),
    channels=st.lists(_LABELS, min_size=1, max_size=3).map(lambda all: (tuple(all),))
    | st.tuples(st.lists(_LABELS).map(tuple), st.lists(_LABELS).map(tuple)),
    keys=st.just(()),
)  # fmt: skip
_UTTERANCES = st.builds(
    said, text=_TEXT, label=_LABELS, who=st.none() | _PARTICIPANTS, start=st.floats(0, 99)
)


@settings(max_examples=50)
@given(
    _DOCUMENTS,
    st.lists(_RECORDINGS, max_size=3).map(tuple),
    st.lists(_UTTERANCES, max_size=3),
    st.booleans(),
)
def test_whatever_a_call_was_like_its_container_keeps_the_draft(
    document: SessionDocument,
    recordings: tuple[Recording, ...],
    utterances: list[Utterance],
    transcribed: bool,
) -> None:
    words = spoken(*utterances) if transcribed else None
    given_ = call(document, recordings=recordings, spoken=words)

    vcon = made(given_)

    assert [one["uuid"] for one in vcon["parties"] if "uuid" in one] == [
        one.id for one in document.participants
    ]
    assert len(vcon["dialog"]) == len(recordings) + (len(recordings) != 1)
    assert ("analysis" in vcon) == transcribed
    assert json.dumps(vcon) == json.dumps(made(given_))
