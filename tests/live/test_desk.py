"""Which calls are heard live, and what becomes of their lines: no process, no recogniser."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import text as sql

from siprec_bridge.live.control import LiveStream
from siprec_bridge.live.desk import LiveDesk, LiveMode
from siprec_bridge.live.recogniser import Line, Wanted
from siprec_bridge.redaction import Policy
from siprec_bridge.siprec import Presence, SessionDocument, StreamDocument
from siprec_bridge.store import Database, Event, SessionRow, outbox, recordings
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import Participant
from siprec_bridge.transcription import Rules
from siprec_bridge.transcription.rules import Rule, facts_of_call

BEGAN = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
ALICE = Participant(id="p1", name="Alice", aor="sip:alice@example.com")
CAROL = Participant(id="p2", name="Carol", aor="sip:carol@example.com")


def ns(seconds: float) -> int:
    return round((BEGAN.timestamp() + seconds) * 1e9)


def line(
    utterance: int = 0, *, settled: bool = False, start: float = 1.0, text: str = "hi"
) -> Line:
    words = (("hi", ns(start), ns(start + 0.5), 0.9),)
    return Line(utterance, settled, text, ns(start), ns(start + 0.5), "en", "m", words)


@dataclass
class Here:
    """A desk, and what it does to others."""

    desk: LiveDesk
    database: Database
    metrics: Metrics
    row: SessionRow
    passed: list[Event]
    heard: list[str]
    opened: list[LiveStream]
    closed: list[str]

    def document(self, *states: str) -> SessionDocument:
        change = BEGAN + timedelta(seconds=10)
        streams = tuple(
            StreamDocument.model_validate(
                {
                    "index": index, "label": str(index + 1), "state": state, "opened_at": BEGAN,
                    "presences": [
                        Presence(participant_id="p1", since=BEGAN, until=change),
                        Presence(participant_id="p2", since=change),
                    ],
                }
            )
            for index, state in enumerate(states)
        )  # fmt: skip
        return SessionDocument(
            session_id="s1", group_id="g1", participants=(ALICE, CAROL), streams=streams
        )

    async def tell(self, *lines: Line, stream: int = 0, life: int = 1) -> None:
        for one in lines:
            self.desk._take(self.opened[stream].stream_id, life, one)
        while not self.desk._lines.empty():
            await self.desk._tell(self.desk._lines.get_nowait())

    async def stored(self) -> list[dict[str, Any]]:
        events = await self.database.read(partial(outbox.since, seq=0, limit=100))
        return [json.loads(one.body) for one in events]


@asynccontextmanager
async def here(
    folder: Path,
    mode: LiveMode = "on",
    rules: Rules | None = None,
    sinks: tuple[str, ...] = (),
    policy_of: Callable[[SessionDocument, str], Policy] = lambda document, peer: Policy(),
    masked: bool = False,
) -> AsyncIterator[Here]:
    database = Database(f"sqlite:///{folder / 'a.db'}")
    await database.start()
    metrics = Metrics()
    passed: list[Event] = []
    heard: list[str] = []
    row = SessionRow(
        "s1", "call-1", "recording", BEGAN, "udp:192.0.2.1:5060", str(folder / "s1"), "{}"
    )
    await database.write(lambda connection: recordings.insert(connection, row))

    class Listeners:
        async def pass_on(self, event: Event) -> None:
            passed.append(event)

    class Ears:
        async def listen(self, stream_id: str) -> None:
            heard.append(stream_id)

    known = rules or Rules()
    desk = LiveDesk(
        database,
        Ears(),
        Listeners(),
        metrics,
        mode=mode,
        wanted=Wanted("ws://127.0.0.1:1", 5.0),
        choose=lambda document, peer: known.choose(facts_of_call(document, peer)),
        sinks=sinks,
        clock=lambda: BEGAN + timedelta(seconds=2),
        policy_of=policy_of,
        masked=masked,
    )
    opened: list[LiveStream] = []
    closed: list[str] = []
    process_open, process_close = desk.engine.open, desk.engine.close

    def note_open(stream: LiveStream) -> None:
        opened.append(stream)
        process_open(stream)

    def note_close(ids: list[str]) -> None:
        closed.extend(ids)
        process_close(ids)

    desk.engine.open = note_open  # type: ignore[method-assign]
    desk.engine.close = note_close  # type: ignore[method-assign,assignment]
    try:
        yield Here(desk, database, metrics, row, passed, heard, opened, closed)
    finally:
        await database.stop()


async def test_growing_lines_are_passed_on_and_settled_ones_stored_with_who_spoke_then(
    tmp_path: Path,
) -> None:
    async with here(tmp_path) as one:
        one.desk.follow(one.row, one.document("active", "active"))
        await one.tell(line(), line(settled=True), line(1, settled=True, start=12.0), stream=1)
        stored = await one.stored()

    assert [stream.spool.name for stream in one.opened] == ["s1-0.spool", "s1-1.spool"]
    (passed,) = [json.loads(event.body) for event in one.passed]
    assert (passed["settled"], passed["final"], passed["label"]) == (False, False, "2")
    assert [data["participant"]["name"] for data in stored] == ["Alice", "Carol"]
    assert [(data["utterance"], data["start"], data["end"]) for data in stored] == [
        (0, 1.0, 1.5),
        (1, 12.0, 12.5),
    ]
    assert stored[0]["words"] == [{"text": "hi", "start": 1.0, "end": 1.5, "probability": 0.9}]
    assert (stored[0]["sip_call_id"], stored[0]["group_id"]) == ("call-1", "g1")


async def test_utterances_go_on_counting_when_the_process_began_anew(tmp_path: Path) -> None:
    async with here(tmp_path) as one:
        one.desk.follow(one.row, one.document("active"))
        await one.tell(line(0), line(0, settled=True), line(1))
        await one.tell(line(0), line(0, settled=True), life=2)
        stored = await one.stored()

    assert [json.loads(event.body)["utterance"] for event in one.passed] == [0, 1, 2]
    assert [data["utterance"] for data in stored] == [0, 2]
    assert len({event.id for event in one.passed}) == 3


async def test_sinks_get_settled_lines_where_that_is_wanted(tmp_path: Path) -> None:
    async with here(tmp_path, sinks=("amqp",)) as one:
        one.desk.follow(one.row, one.document("active"))
        await one.tell(line(), line(settled=True))
        backlog = await one.database.read(partial(outbox.backlog, sink="amqp"))

    assert backlog.pending == 1


def cards_of_two(document: SessionDocument, peer: str) -> Policy:
    """As a rule whose metadata comes late: cards are taken out once there are two streams."""
    return Policy(frozenset({"cards"}) if len(document.streams) > 1 else frozenset())


async def test_lines_of_a_call_of_which_something_is_taken_out_are_masked_from_when_that_is_known(
    tmp_path: Path,
) -> None:
    async with here(tmp_path, policy_of=cards_of_two, masked=True) as one:
        one.desk.follow(one.row, one.document("active"))
        await one.tell(line(settled=True, text="it is 4111 so"))
        one.desk.follow(one.row, one.document("active", "active"))
        await one.tell(line(1, text="it is 4111"), line(1, settled=True, text="it is 4111 1111"))
        await one.tell(line(2, text="4111"))
        await one.tell(line(2, settled=True, start=3.0, text="1111 1111"), stream=0)
        stored = await one.stored()

    assert [json.loads(event.body)["text"] for event in one.passed] == ["it is"]
    assert [(data["text"], data["words"]) for data in stored][1:] == [
        ("it is [number]", []),
        ("[card]", []),
    ]
    assert stored[0]["text"] == "it is 4111 so"


async def test_a_call_of_which_something_is_taken_out_is_not_heard_from_the_moment_that_is_known(
    tmp_path: Path,
) -> None:
    async with here(tmp_path, policy_of=cards_of_two) as one:
        one.desk.follow(one.row, one.document("active"))
        name = one.opened[0].stream_id
        one.desk._take(name, 1, line(settled=True))
        one.desk.follow(one.row, one.document("active", "active"))
        await one.tell(line(1, settled=True))
        stored = await one.stored()

    assert one.closed == [name]
    assert len(one.opened) == 1
    assert stored == []


async def test_rules_choose_the_calls_and_how_they_are_heard(tmp_path: Path) -> None:
    rules = Rules(
        [
            Rule(name="mine", aor=("sip:alice@*",), live=True, language="de", prompt="Storno"),
            Rule(name="not theirs", peer="192.0.2.0/24", live=False),
        ]
    )
    async with here(tmp_path, "rules", rules) as one:
        one.desk.follow(one.row, SessionDocument(session_id="s1"))
        before = list(one.opened)
        one.desk.follow(one.row, one.document("active"))
    async with here(_new(tmp_path), "on", rules) as two:
        document = two.document("active").model_copy(update={"participants": (), "group_id": None})
        two.desk.follow(two.row, document)

    assert before == []
    (stream,) = one.opened
    assert (stream.wanted.language, stream.wanted.prompt) == ("de", "Storno")
    assert two.opened == []


async def test_streams_that_are_closed_are_let_go_and_one_that_comes_again_is_heard_from_then(
    tmp_path: Path,
) -> None:
    async with here(tmp_path) as one:
        one.desk.follow(one.row, one.document("active", "active"))
        one.desk.follow(one.row, one.document("active", "closed"))
        one.desk.follow(one.row, one.document("paused", "active"))
        one.desk.end("s1", one.document("closed", "closed"))
        await one.tell(line(settled=True), stream=0)
        one.desk._closed(one.opened[0].stream_id)
        await one.tell(line(1, settled=True), stream=0)
        stored = await one.stored()

    names = [stream.stream_id for stream in one.opened]
    assert [name.rpartition(".")[0] for name in names] == ["s1-0", "s1-1", "s1-1"]
    assert [stream.from_now for stream in one.opened] == [False, False, True]
    assert len(set(names)) == 3
    assert one.closed == [names[1], names[0], names[2]]
    assert len(stored) == 1


async def test_nothing_is_stored_of_a_session_that_was_deleted(tmp_path: Path) -> None:
    async with here(tmp_path) as one:
        one.desk.follow(one.row, one.document("active"))
        await one.database.write(lambda connection: connection.execute(sql("DELETE FROM sessions")))
        await one.tell(line(settled=True))
        stored = await one.stored()

    assert stored == []


async def test_what_cannot_be_told_in_time_is_dropped_growing_lines_first(tmp_path: Path) -> None:
    async with here(tmp_path) as one:
        one.desk.follow(one.row, one.document("active"))
        name = one.opened[0].stream_id
        for number in range(600):
            one.desk._take(name, 1, line(number))
        one.desk._take(name, 1, line(600, settled=True))
        dropped = one.metrics.registry.get_sample_value("siprec_live_lines_dropped_total")

    assert dropped == 100
    assert one.desk._lines.qsize() == 501


def _new(folder: Path) -> Path:
    other = folder / "other"
    other.mkdir()
    return other
