"""Listeners over real WebSockets, events from a real outbox."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from harness.bridge import eventually
from siprec_bridge.api import Front
from siprec_bridge.delivery import TranscriptSocket, envelope, websocket
from siprec_bridge.store import Database, Event, SessionRow, outbox, recordings
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import Participant

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
ALICE = Participant(id="p1", name="Alice", aor="sip:alice@example.com")


def event(session: str = "s1", number: int = 0) -> Event:
    facts = envelope.SessionFacts(session, f"{session}@pbx", NOW, participants=(ALICE,))
    return envelope.session_updated(facts, number)


def ended(session: str = "s1") -> Event:
    facts = envelope.SessionFacts(session, f"{session}@pbx", NOW)
    return envelope.session_ended(facts, started_at=NOW, cause="bye")


class Newsroom:
    """A socket with its outbox."""

    def __init__(self, database: Database, url: str, metrics: Metrics) -> None:
        self.database = database
        self.url = url
        self.metrics = metrics

    async def publish(self, *events: Event) -> None:
        await self.database.write(lambda connection: outbox.append(connection, events, []))


@asynccontextmanager
async def newsroom(folder: Path) -> AsyncIterator[Newsroom]:
    database = Database(f"sqlite:///{folder / 'events.db'}")
    await database.start()

    def insert(connection: Any) -> None:
        for id in ("s1", "s2"):
            recordings.insert(connection, SessionRow(id, "c", "finished", NOW, "p", "f", "{}"))

    await database.write(insert)
    metrics = Metrics()
    socket = TranscriptSocket(database, metrics)
    front = Front(websocket=socket.connection, http=asyncio.Protocol)
    await socket.start(lambda: front.listen("127.0.0.1", 0))
    try:
        yield Newsroom(database, f"ws://127.0.0.1:{front.address[1]}/ws/transcripts", metrics)
    finally:
        await socket.stop()
        await database.stop()


async def hello(listener: ClientConnection) -> int:
    frame = json.loads(await listener.recv())
    assert frame["type"] == "listener.ready"
    return int(frame["sequence"])


async def take(listener: ClientConnection, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(10):
        return [json.loads(await listener.recv()) for _ in range(count)]


async def test_each_event_is_a_frame_of_its_own_in_order(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as news, connect(news.url) as listener:
        assert await hello(listener) == 0
        await news.publish(event(number=1), event(number=2))
        await news.publish(ended())

        frames = await take(listener, 3)

    assert [one["sequence"] for one in frames] == [1, 2, 3]
    assert [one["type"] for one in frames] == ["session.updated"] * 2 + ["session.ended"]
    for frame in frames:
        assert envelope.parse(json.dumps(frame)).id == frame["id"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [1, 2, 3, 4]),
        ("?call_uuid=s2", [3, 4]),
        ("?call_uuid=s2@pbx", [3, 4]),
        ("?call_id=s1@pbx", [1, 2]),
        ("?type=session.ended", [2, 4]),
        ("?type=session.*,transcript.", [1, 2, 3, 4]),
        ("?participant=Alice", [1, 3]),
        ("?participant=sip:alice@example.com&call_uuid=s1", [1]),
        ("?final=true", []),
    ],
)
async def test_filters_hold_for_live_and_for_stored_events(
    tmp_path: Path, query: str, expected: list[int]
) -> None:
    async with newsroom(tmp_path) as news:
        async with connect(news.url + query) as live:
            await hello(live)
            await news.publish(event("s1"), ended("s1"), event("s2"), ended("s2"))
            heard = await take(live, len(expected))
        since = ("&" if query else "?") + "since=0"
        async with connect(news.url + query + since) as late:
            await hello(late)
            stored = await take(late, len(expected))

    assert [one["sequence"] for one in heard] == expected
    assert stored == heard


async def test_resuming_leaves_nothing_out_and_repeats_nothing(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as news:
        await news.publish(*(event(number=number) for number in range(1200)))
        async with connect(news.url + "?since=150") as listener:
            await news.publish(*(event(number=number) for number in range(1200, 1300)))
            await hello(listener)
            frames = await take(listener, 1150)

    assert [one["sequence"] for one in frames] == list(range(151, 1301))


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("?since=soon", 400, "since must be a sequence number"),
        ("?colour=red", 400, "unknown parameter colour"),
        ("?type=weather.", 400, "no type begins with weather."),
        ("?final=perhaps", 400, "final must be true or false"),
        ("/else", 404, "there is only /ws/transcripts"),
    ],
)
async def test_a_wrong_request_is_told_what_is_wrong(
    tmp_path: Path, path: str, status: int, reason: str
) -> None:
    async with newsroom(tmp_path) as news:
        with pytest.raises(InvalidStatus) as refusal:
            await connect(news.url + path)

    assert refusal.value.response.status_code == status
    assert reason in refusal.value.response.body.decode()


async def test_a_listener_that_does_not_read_is_told_what_it_missed_and_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_QUEUE", 5)
    async with newsroom(tmp_path) as news, connect(news.url) as listener:
        await hello(listener)

        # All in one commit: the listener's task cannot send in between.
        await news.publish(*(event(number=number) for number in range(50)))
        frames = await take(listener, 1)
        while frames[-1]["type"] != "listener.lagged":
            frames += await take(listener, 1)
        with pytest.raises(ConnectionClosed) as closed:
            await listener.recv()
        missed = news.metrics.registry.get_sample_value("siprec_websocket_events_missed_total")

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1013
    last = frames.pop()
    assert last["type"] == "listener.lagged"
    assert last["missed"] == 50 - len(frames) == missed
    assert last["sequence"] == frames[-1]["sequence"]


async def test_a_listener_that_leaves_is_forgotten(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as news:
        async with connect(news.url) as listener:
            await hello(listener)

        await eventually(
            lambda: news.metrics.registry.get_sample_value("siprec_websocket_listeners") == 0,
            "an empty room",
        )


async def test_listeners_are_told_when_the_bridge_goes_away(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as news:
        listener = await connect(news.url)
        await hello(listener)

    with pytest.raises(ConnectionClosed) as closed:
        await listener.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
