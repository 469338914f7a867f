"""A call in several sessions: one conversation in order of time."""

from datetime import UTC, datetime, timedelta

from siprec_bridge.transcript import Conversation, Participant, Utterance, Word
from siprec_bridge.transcription import JoinedSession, join

START = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
ADA, BOB = Participant(id="nearend", name="Ada", aor="sip:200@x"), Participant(id="farend")


def session(id: str, begun: float, *, version: int | None = 1, over: bool = True) -> JoinedSession:
    at = START + timedelta(seconds=begun)
    return JoinedSession(
        session_id=id, sip_call_id=f"{id}@pbx", state="finished" if over else "recording",
        started_at=at, ended_at=at + timedelta(seconds=30) if over else None, version=version,
        participants=(Participant(id="nearend", aor="sip:200@x"), BOB) if id == "b" else (ADA, BOB),
    )  # fmt: skip


def talk(id: str, begun: float, *lines: tuple[float, str]) -> Conversation:
    """A conversation whose lines begin at these seconds of it and last one each."""
    at = START + timedelta(seconds=begun)
    return Conversation(
        session_id=id, sip_call_id=f"{id}@pbx", started_at=at, ended_at=at, duration=30,
        provider="whisper", model="base",
        utterances=tuple(
            Utterance(
                label="1", participant=ADA if id == "a" else BOB, start=start, end=start + 1,
                starts_at=at + timedelta(seconds=start), ends_at=at + timedelta(seconds=start + 1),
                text=text, words=(Word(text=text, start=start, end=start + 1),),
            )
            for start, text in lines
        ),
    )  # fmt: skip


def test_both_parties_lines_come_in_order_of_time_on_one_clock() -> None:
    said = {
        "a": talk("a", 0.0, (1.0, "hello"), (5.0, "bye")),
        "b": talk("b", 0.25, (2.0, "good day"), (5.5, "bye then")),
    }

    joined = join("g", [session("a", 0.0), session("b", 0.25)], said)

    assert [(one.session_id, one.start, one.text) for one in joined.utterances] == [
        ("a", 1.0, "hello"), ("b", 2.25, "good day"), ("a", 5.0, "bye"), ("b", 5.75, "bye then"),
    ]  # fmt: skip
    assert [one.words[0].start for one in joined.utterances] == [1.0, 2.25, 5.0, 5.75]
    assert [one.text for one in joined.utterances] == ["hello", "good day", "bye", "bye then"]
    assert (joined.started_at, joined.ended_at) == (START, START + timedelta(seconds=30.25))
    assert joined.participants == (ADA, BOB)
    assert joined.complete


def test_what_is_still_missing_is_told() -> None:
    sessions = [session("a", 0.0), session("b", 1.0, version=None, over=False)]

    joined = join("g", sessions, {"a": talk("a", 0.0, (1.0, "hello"))})

    assert (joined.complete, joined.ended_at) == (False, None)
    assert [one.version for one in joined.sessions] == [1, None]
    assert [one.text for one in joined.utterances] == ["hello"]
