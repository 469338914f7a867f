"""Listeners over real WebSockets, events from a real outbox."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from harness.bridge import eventually
from harness.tokens import given
from siprec_bridge.access import Gate, Token
from siprec_bridge.api import Front
from siprec_bridge.delivery import TranscriptSocket, envelope, websocket
from siprec_bridge.delivery.events import TranscriptPartialData
from siprec_bridge.delivery.subscriptions import Frame
from siprec_bridge.delivery.websocket import _Sight
from siprec_bridge.store import Database, Event, SessionRow, outbox, recordings
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import Participant

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
ALICE = Participant(id="p1", name="Alice", aor="sip:alice@example.com")


def event(session: str = "s1", number: int = 0, name: str = "Alice") -> Event:
    group = session.replace("s", "g")
    who = (ALICE.model_copy(update={"name": name}),)
    facts = envelope.SessionFacts(session, f"{session}@pbx", NOW, group, participants=who)
    return envelope.session_updated(facts, number)


def ended(session: str = "s1") -> Event:
    facts = envelope.SessionFacts(session, f"{session}@pbx", NOW)
    return envelope.session_ended(facts, started_at=NOW, cause="bye")


class Newsroom:
    """A socket with its outbox."""

    def __init__(self, database: Database, url: str, gate: Gate, socket: TranscriptSocket) -> None:
        self.database = database
        self.url = url
        self.gate = gate
        self.socket = socket

    def counted(self, name: str, **labels: str) -> float | None:
        return self.gate.metrics.registry.get_sample_value(name, labels)

    async def publish(self, *events: Event) -> None:
        await self.database.write(lambda connection: outbox.append(connection, events, []))


@asynccontextmanager
async def newsroom(
    folder: Path, tokens: tuple[Token, ...] = (), per_client: int = 0
) -> AsyncIterator[Newsroom]:
    database = Database(f"sqlite:///{folder / 'events.db'}")
    await database.start()

    def insert(connection: Any) -> None:
        for id, group in (("s1", "g1"), ("s2", "g2")):
            document = json.dumps({"group_id": group})
            recordings.insert(connection, SessionRow(id, "c", "finished", NOW, "p", "f", document))

    await database.write(insert)
    metrics = Metrics()
    gate = Gate(tokens, metrics, origins=["https://wallboard.example.com"])
    socket = TranscriptSocket(database, metrics, gate, per_client=per_client)
    front = Front(websocket=socket.connection, http=asyncio.Protocol)
    await socket.start(lambda: front.listen("127.0.0.1", 0))
    try:
        url = f"ws://127.0.0.1:{front.address[1]}/ws/transcripts"
        yield Newsroom(database, url, gate, socket)
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
        ("?session=s2", [3, 4]),
        ("?group=g2", [3]),
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


async def test_a_cursor_of_another_database_is_told_and_hides_nothing(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as news:
        await news.publish(event(number=1), event(number=2))
        async with connect(news.url + "?since=3") as listener:
            await hello(listener)
            (error,) = await take(listener, 1)
            with pytest.raises(ConnectionClosed) as closed:
                await listener.recv()
        async with connect(news.url + "?subscribe=later") as listener:
            await hello(listener)
            refused = await say(listener, {"subscribe": {"id": "a"}, "since": 3})
            again = await say(listener, {"subscribe": {"id": "a"}, "since": 0})
            frames = await take(listener, 2)
        # The latest that it knows was deleted: it goes on from there.
        await news.database.write(lambda c: c.exec_driver_sql("DELETE FROM events WHERE seq = 2"))
        async with connect(news.url + "?since=2") as listener:
            await hello(listener)
            await news.publish(event(number=3))
            (frame,) = await take(listener, 1)

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert [one["type"] for one in (error, refused, again)] == [
        "listener.error", "listener.error", "listener.subscribed",
    ]  # fmt: skip
    assert "2 is the latest" in error["error"]
    assert [one["sequence"] for one in (*frames, frame)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("?since=soon", 400, "since must be a sequence number"),
        ("?colour=red", 400, "unknown parameter colour"),
        ("?type=weather.", 400, "no type begins with weather."),
        ("?final=perhaps", 400, "final must be true or false"),
        ("?session=s1&token=x", 400, "unknown parameter token"),
        ("?subscribe=now", 400, "subscribe can be later only"),
        ("?subscribe=later&since=3", 400, "goes with no filter and no since"),
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
    long = "x" * 100_000  # all in all more than what the kernel keeps for it
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    async with newsroom(tmp_path) as news, connect(news.url, max_size=None) as other:
        slow.connect(("127.0.0.1", urlsplit(news.url).port))
        listener = await connect(news.url, sock=slow, max_queue=1, max_size=None)
        await hello(listener)
        await hello(other)

        for number in range(50):
            await news.publish(event(number=number, name=long))
            await take(other, 1)  # never waits for the first one
        frames = await take(listener, 1)
        while frames[-1]["type"] != "listener.lagged":
            frames += await take(listener, 1)
        with pytest.raises(ConnectionClosed) as closed:
            await listener.recv()
        missed = news.counted("siprec_websocket_events_missed_total")

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
            lambda: news.counted("siprec_websocket_listeners") == 0,
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


async def say(listener: ClientConnection, message: object) -> dict[str, Any]:
    """Send it and take the next frame."""
    await listener.send(json.dumps(message))
    return (await take(listener, 1))[0]


async def test_several_subscriptions_share_a_connection_and_events_tell_whose_they_are(
    tmp_path: Path,
) -> None:
    async with newsroom(tmp_path) as news, connect(news.url + "?subscribe=later") as listener:
        await hello(listener)
        await news.publish(event("s1"))  # nobody has asked for it
        first = await say(listener, {"subscribe": {"id": "a", "session": "s1"}})
        both = [{"id": "b", "group": "g2"}, {"id": "ends", "type": "session.ended"}]
        second = await say(listener, {"subscribe": both})
        await news.publish(event("s1", 1), event("s2", 2), ended("s1"), ended("s2"))
        frames = await take(listener, 4)
        third = await say(listener, {"unsubscribe": ["a", "ends"]})
        await news.publish(event("s1", 3), ended("s1"), event("s2", 4))
        (last,) = await take(listener, 1)

    assert first == {"type": "listener.subscribed", "ids": ["a"], "sequence": 1}
    assert (second["ids"], third["type"]) == (["b", "ends"], "listener.unsubscribed")
    assert [(one["sequence"], one["subscriptions"]) for one in frames] == [
        (2, "a"), (3, "b"), (4, "a,ends"), (5, "ends"),
    ]  # fmt: skip
    assert (last["subject"], last["subscriptions"]) == ("s2", "b")
    for frame in [*frames, last]:
        assert envelope.parse(json.dumps(frame)).subscriptions == frame["subscriptions"]


async def test_the_filter_of_the_address_is_a_subscription_too(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as news, connect(news.url + "?session=s1") as listener:
        await hello(listener)
        await news.publish(event("s1"))
        (alone,) = await take(listener, 1)
        await say(listener, {"subscribe": {"id": "a", "session": "s2"}})
        await news.publish(event("s1", 1))
        (named,) = await take(listener, 1)
        await say(listener, {"unsubscribe": "query"})
        await news.publish(event("s1", 2), event("s2", 3))
        (other,) = await take(listener, 1)

    assert "subscriptions" not in alone
    assert (named["subscriptions"], other["subscriptions"]) == ("query", "a")


async def test_a_subscription_may_begin_with_what_was_stored(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as news, connect(news.url + "?subscribe=later") as listener:
        await hello(listener)
        await news.publish(*(event("s1", number) for number in range(700)), ended("s2"))
        wanted = [{"id": "a", "session": "s1"}, {"id": "b", "session": "s2"}]
        reply = await say(listener, {"subscribe": wanted, "since": 100})
        await news.publish(event("s1", 700))
        frames = await take(listener, 602)

    assert reply["type"] == "listener.subscribed"
    assert [one["sequence"] for one in frames] == list(range(101, 703))
    assert [one["subscriptions"] for one in frames[-3:]] == ["a", "b", "a"]


async def test_a_type_that_is_named_a_thousand_times_is_one_type(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as news, connect(news.url) as listener:
        await hello(listener)
        await news.publish(event(), ended())
        await take(listener, 2)
        wanted = {"id": "a", "type": ["session.updated", "session.u"] * 1000}
        taken = await say(listener, {"subscribe": wanted, "since": 0})
        (stored,) = await take(listener, 1)

    assert (taken["type"], stored["type"]) == ("listener.subscribed", "session.updated")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("hello", "Invalid JSON"),
        (b"bytes", "a text frame is needed"),
        ("[]", "Input should be an object"),
        ("{}", "either subscribe or unsubscribe"),
        ('{"subscribe": {"id": "a b"}}', "subscribe.0.id: String should match"),
        ('{"subscribe": {"session": "s1"}}', "subscribe.0.id: Field required"),
        ('{"subscribe": {"id": "a", "colour": "red"}}', "subscribe.0.colour: Extra inputs"),
        ('{"subscribe": {"id": "a", "type": "weather."}}', "subscribe.0.type: no type begins with"),
        ('{"subscribe": {"id": "a", "type": [1]}}', "subscribe.0.type: a type or a list"),
        ('{"subscribe": [{"id": "a"}, {"id": "a"}]}', "two subscriptions have the same id"),
        ('{"subscribe": {"id": "a"}, "since": -1}', "since: Input should be greater"),
        ('{"unsubscribe": "x"}', "there is no subscription x"),
        ('{"unsubscribe": "query", "since": 1}', "since goes with subscribe"),
    ],
)
async def test_a_wrong_message_is_told_what_is_wrong_and_changes_nothing(
    tmp_path: Path, message: str | bytes, reason: str
) -> None:
    async with newsroom(tmp_path) as news, connect(news.url) as listener:
        await hello(listener)
        await listener.send(message)
        (error,) = await take(listener, 1)
        await news.publish(event())
        (frame,) = await take(listener, 1)

    assert error["type"] == "listener.error"
    assert reason in error["error"]
    assert "subscriptions" not in frame


async def test_a_listener_has_only_so_many_subscriptions(tmp_path: Path) -> None:
    many = [{"id": f"a{number}"} for number in range(50)]
    async with newsroom(tmp_path) as news, connect(news.url) as listener:
        await hello(listener)
        refused = await say(listener, {"subscribe": many})
        taken = await say(listener, {"subscribe": many[1:]})

    assert refused["error"] == "subscribe: 50 subscriptions at most"
    assert len(taken["ids"]) == 49


WALL = given("wall", "listen")
GROUP = given("group", "listen", "group=g1")
READER = given("reader", "read")


async def refusal(url: str, **headers: str) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as refused:
        await connect(url, additional_headers=headers)
    answer = refused.value.response
    return answer.status_code, (answer.body or b"").decode().strip()


async def test_listeners_need_a_token_with_their_scope(tmp_path: Path) -> None:
    async with newsroom(tmp_path, (WALL.token, READER.token)) as news:
        without = await refusal(news.url)
        wrong = await refusal(news.url, Authorization="Bearer wrong")
        reader = await refusal(news.url, **READER.headers)
        async with connect(news.url, additional_headers=WALL.headers) as listener:
            await hello(listener)

    assert without == (401, "a token is needed")
    assert wrong == (401, "the token is wrong")
    assert reader == (403, "the token lacks the scope listen")


async def test_a_ticket_opens_one_connection(tmp_path: Path) -> None:
    async with newsroom(tmp_path, (WALL.token,)) as news:
        ticket = news.gate.ticket(news.gate.by_token(WALL.secret, "127.0.0.1"))
        async with connect(f"{news.url}?ticket={ticket}&session=s1") as listener:
            await hello(listener)
            again = await refusal(f"{news.url}?ticket={ticket}")

    assert again == (401, "the ticket was used, is too old, or none")


@pytest.mark.parametrize("tokens", [(), (WALL.token,)], ids=["open", "with tokens"])
async def test_pages_from_elsewhere_cannot_listen(
    tmp_path: Path, tokens: tuple[Token, ...]
) -> None:
    async with newsroom(tmp_path, tokens) as news:
        foreign = await refusal(news.url, Origin="http://evil.example.com", **WALL.headers)
        own = news.url.replace("ws:", "http:").removesuffix("/ws/transcripts")
        for origin in (own, "https://wallboard.example.com"):
            headers = WALL.headers | {"Origin": origin}
            async with connect(news.url, additional_headers=headers) as listener:
                await hello(listener)

    assert foreign == (403, "this origin is not allowed: see HTTP_ORIGINS")


async def test_a_page_with_a_public_name_of_its_own_for_us_hears_nothing(tmp_path: Path) -> None:
    async with newsroom(tmp_path) as news:
        port = urlsplit(news.url).port
        strange = news.url.replace("127.0.0.1", "evil.example.net")
        with pytest.raises(InvalidStatus) as refused:
            await connect(strange, host="127.0.0.1", port=port)

    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("tokens", [(), (WALL.token,)], ids=["by source", "by token"])
async def test_a_client_has_only_so_many_listeners(
    tmp_path: Path, tokens: tuple[Token, ...]
) -> None:
    async with newsroom(tmp_path, tokens, per_client=2) as news:
        first = await connect(news.url, additional_headers=WALL.headers)
        async with connect(news.url, additional_headers=WALL.headers) as second:
            await hello(second)
            third = await refusal(news.url, **WALL.headers)
            counted = news.counted("siprec_http_refused_total", reason="listeners")
        await eventually(
            lambda: news.counted("siprec_websocket_listeners") == 1, "one listener fewer"
        )
        async with connect(news.url, additional_headers=WALL.headers) as fourth:
            await hello(fourth)
        await first.close()

    assert third == (429, "2 listeners of this client are there already")
    assert counted == 1


async def test_a_limited_token_hears_its_own_sessions_live_and_stored(tmp_path: Path) -> None:
    async with newsroom(tmp_path, (WALL.token, GROUP.token)) as news:
        async with (
            connect(news.url, additional_headers=GROUP.headers) as limited,
            connect(news.url, additional_headers=WALL.headers) as whole,
        ):
            await hello(limited)
            await hello(whole)
            # `ended` names neither group nor people: the session itself is what counts.
            await news.publish(event("s2"), event("s1"), ended("s2"), ended("gone"), ended("s1"))
            live = await take(limited, 2)
            everything = await take(whole, 5)
            own = await say(limited, {"subscribe": {"id": "a", "session": "s2"}, "since": 0})
            await news.publish(event("s2", 1), event("s1", 2))
            (after,) = await take(limited, 1)
        async with connect(news.url + "?since=0", additional_headers=GROUP.headers) as late:
            await hello(late)
            stored = await take(late, 3)

    assert [one["sequence"] for one in live] == [2, 5]
    assert len(everything) == 5
    assert own["type"] == "listener.subscribed"
    assert (after["sequence"], after["subscriptions"]) == (7, "query")
    assert [one["sequence"] for one in stored] == [2, 5, 7]


async def test_a_limited_token_hears_of_a_group_only_if_it_may_see_all_of_it(
    tmp_path: Path,
) -> None:
    def transcribed(*sessions: str) -> Event:
        told = [(one, 1) for one in sessions]
        return envelope.group_transcribed(
            "s1", "c", group_id="g1", call_ids={}, sessions=told, at=NOW
        )

    async with newsroom(tmp_path, (GROUP.token,)) as news:
        async with connect(news.url, additional_headers=GROUP.headers) as limited:
            await hello(limited)
            await news.publish(transcribed("s2", "s1"), transcribed("s1"), event("s1"))
            live = await take(limited, 2)
        async with connect(news.url + "?since=0", additional_headers=GROUP.headers) as late:
            await hello(late)
            stored = await take(late, 2)

    assert [one["sequence"] for one in live] == [2, 3]
    assert stored == live


async def test_a_session_that_comes_into_view_is_heard_from_then_on(tmp_path: Path) -> None:
    async with (
        newsroom(tmp_path, (GROUP.token,)) as news,
        connect(news.url, additional_headers=GROUP.headers) as limited,
    ):
        await hello(limited)
        await news.publish(event("s2"))
        await say(limited, {"subscribe": {"id": "past-that", "session": "none"}})
        document = json.dumps({"group_id": "g1"})

        def join(connection: Any) -> None:
            recordings.update(connection, "s2", document=document)
            outbox.append(connection, [event("s2", 1)], [])

        await news.database.write(join)
        (heard,) = await take(limited, 1)

    assert heard["sequence"] == 2


async def test_a_listener_whose_token_is_taken_away_is_told_and_cut_off(tmp_path: Path) -> None:
    async with (
        newsroom(tmp_path, (WALL.token, GROUP.token)) as news,
        connect(news.url, additional_headers=WALL.headers) as wall,
        connect(news.url, additional_headers=GROUP.headers) as group,
    ):
        await hello(wall)
        await hello(group)
        news.gate.replace([GROUP.token])

        await news.socket.recheck()
        with pytest.raises(ConnectionClosed) as closed:
            await wall.recv()
        await news.publish(event("s1"))
        (heard,) = await take(group, 1)

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008
    assert closed.value.rcvd.reason == "the token or login is no longer valid"
    assert heard["subject"] == "s1"


async def test_a_dead_listener_is_noticed_by_its_missing_pong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_PING_S", 1.0)
    monkeypatch.setattr(websocket, "_CLOSE_S", 0.5)
    async with newsroom(tmp_path) as news, connect(news.url) as living:
        await hello(living)
        host, port = news.url.removeprefix("ws://").partition("/")[0].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"GET /ws/transcripts HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await reader.readuntil(b"listener.ready")
        await eventually(
            lambda: news.counted("siprec_websocket_listeners") == 1, "only the living one"
        )
        writer.close()
        await news.publish(event())
        assert (await take(living, 1))[0]["sequence"] == 1


def partial_event(session: str = "s1", text: str = "hel") -> Event:
    data = TranscriptPartialData(
        session_id=session, sip_call_id=f"{session}@pbx", label="1", utterance=0, settled=False,
        start=0.0, end=1.0, starts_at=NOW, ends_at=NOW, text=text,
    )  # fmt: skip
    return envelope.transcript_partial(data, 1)


async def test_what_is_stored_nowhere_is_told_to_who_listens_now_and_moves_no_cursor(
    tmp_path: Path,
) -> None:
    async with newsroom(tmp_path) as news:
        await news.socket.pass_on(partial_event(text="nobody is there"))
        await news.publish(event(number=1))
        async with connect(news.url + "?session=s1") as one, connect(news.url + "?final=1") as two:
            await hello(one)
            await hello(two)
            await news.socket.pass_on(partial_event())
            await news.socket.pass_on(partial_event("s2"))
            await news.publish(event(number=2))
            frames = await take(one, 2)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(two.recv(), 0.2)
        async with connect(news.url + "?since=0") as later:
            await hello(later)
            stored = await take(later, 2)

    told, after = frames
    assert (told["type"], told["sequence"], told["data"]["text"]) == (
        "transcript.partial",
        1,
        "hel",
    )
    assert envelope.parse(json.dumps(told)).id == told["id"]
    assert after["sequence"] == 2
    assert [one["type"] for one in stored] == ["session.updated"] * 2


async def test_what_was_stored_first_is_told_first_also_while_the_tail_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_PAUSE_PER_LISTENER_S", 3600.0)
    monkeypatch.setattr(websocket, "_LONGEST_PAUSE_S", 3600.0)  # as for thousands of listeners
    async with newsroom(tmp_path) as news, connect(news.url) as listener:
        await hello(listener)
        await news.publish(event(number=1))
        first = await take(listener, 1)
        await news.publish(event(number=2))
        await news.socket.pass_on(partial_event())
        after = await take(listener, 2)

    assert [one["sequence"] for one in first + after] == [1, 2, 2]
    assert [one["type"] for one in after] == ["session.updated", "transcript.partial"]


async def test_passing_events_too_are_for_those_only_who_may_see_the_session(
    tmp_path: Path,
) -> None:
    async with (
        newsroom(tmp_path, (GROUP.token,)) as news,
        connect(news.url, additional_headers=GROUP.headers) as listener,
    ):
        await hello(listener)
        await news.socket.pass_on(partial_event("s2"))
        await news.socket.pass_on(partial_event("s1"))
        (frame,) = await take(listener, 1)

    assert frame["subject"] == "s1"


async def test_a_slow_listener_does_without_what_is_stored_nowhere_and_is_not_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "_PASSING", 3)
    async with newsroom(tmp_path) as news, connect(news.url) as listener:
        await hello(listener)
        (one,) = news.socket._listeners
        one.resting = False  # it has something to do
        for _ in range(10):  # at once: nothing is sent meanwhile
            news.socket._hand_on(Frame(partial_event(), passing=True), _Sight({}))
        waiting = one.queue.qsize()
        await news.publish(event())
        frames = await take(listener, 4)

    assert waiting == 3
    assert news.counted("siprec_websocket_passing_dropped_total") == 7
    assert frames[-1]["type"] == "session.updated"


async def test_a_listener_who_came_while_the_database_failed_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    async with newsroom(tmp_path) as news, connect(news.url) as first:
        await hello(first)
        await news.database.write(
            lambda c: c.exec_driver_sql("ALTER TABLE events RENAME TO events_away")
        )
        async with connect(news.url) as second:
            with pytest.raises(ConnectionClosed):
                await second.recv()
        await news.database.write(
            lambda c: c.exec_driver_sql("ALTER TABLE events_away RENAME TO events")
        )
        await news.publish(event())
        (frame,) = await take(first, 1)
        left = news.socket._metrics.registry.get_sample_value("siprec_websocket_listeners")

        assert frame["sequence"] == 1
        assert (left, len(news.socket._listeners)) == (1, 1)
