"""Bridges that share a PostgreSQL: what one records, all tell of, and what one leaves, another does."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bridge import eventually, listening, of_type, running_bridge, start_bridge
from harness.calls import call, finals, tones
from harness.postgresql import Postgresql
from harness.recognisers import calls, recogniser
from harness.rtp import tone
from siprec_bridge.caller import CallPlan, Leg, parse_target, place_call


@pytest.fixture
def own_server() -> Iterator[Postgresql]:
    """A server that the test may kill."""
    server = Postgresql()
    try:
        server.start()
        yield server
    finally:
        server.remove()


async def test_listeners_of_any_node_hear_all_in_one_order(
    tmp_path: Path, postgresql: Postgresql
) -> None:
    url = postgresql.new_database()
    setting = {"DATABASE_URL": url, "WHISPER_BINARY_PATH": str(recogniser(tmp_path, "speaks"))}
    async with (
        running_bridge(tmp_path / "a", **setting) as a,
        running_bridge(tmp_path / "b", **setting) as b,
        listening(a) as at_a,
        listening(b) as at_b,
    ):
        await asyncio.gather(*(call(one, legs=tones(0.2)) for one in (a, b, a, b)))
        await finals(a, at_a, 4)
        await finals(b, at_b, 4)
        async with listening(b, "?since=0") as again:
            await finals(b, again, 4)
        # Wherever a call came in, everyone finds it.
        _, found = await b.get("/api/search?q=hello")
        sessions = json.loads(found)["sessions"]
        nodes = {one["node"] for one in sessions}
        elsewhere = next(
            one for one in sessions if one["node"] == (tmp_path / "a/node-id").read_text().strip()
        )
        _, detail = await b.get(f"/api/sessions/{elsewhere['id']}")
        file = json.loads(detail)["audio"]["stereo"]
        (tmp_path / "a/recordings").rename(tmp_path / "a/on-its-own-disk")
        away = await b.get(f"/api/sessions/{elsewhere['id']}/audio/{file}")

    assert at_a == at_b == again
    assert [one["sequence"] for one in at_a] == sorted({one["sequence"] for one in at_a})
    assert len({one["id"] for one in at_a}) == len(at_a) == 4 * 5
    assert (len(sessions), len(nodes)) == (4, 2)
    assert away[0] == 404
    assert elsewhere["node"] in away[1]


async def test_the_jobs_of_a_node_that_was_killed_are_done_by_another(
    tmp_path: Path, postgresql: Postgresql
) -> None:
    url = postgresql.new_database()
    hangs = recogniser(tmp_path, "hangs")
    shared = {
        "DATABASE_URL": url,
        "RECORDING_DIR": str(tmp_path / "shared"),
        "RECORDINGS_SHARED": "true",
    }
    a = await start_bridge(tmp_path / "a", WHISPER_BINARY_PATH=str(hangs), **shared)
    await call(a, legs=tones(0.2))
    await eventually(lambda: bool(calls(hangs)), "a run", a)
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        running_bridge(tmp_path / "b", WHISPER_BINARY_PATH=speaks, **shared) as b,
        listening(b, "?since=0") as events,
    ):
        await a.kill()
        # Its lease holds: nobody knows yet that it is dead.
        await asyncio.sleep(1.0)
        assert of_type(events, "transcript.final") == []
        name = url.rpartition("/")[2]
        postgresql.sql("UPDATE jobs SET lease_until = now() - interval '1 s'", name)

        (final,) = await finals(b, events)
        async with running_bridge(tmp_path / "a", WHISPER_BINARY_PATH=speaks, **shared) as again:
            _, text = await again.get("/api/jobs?limit=10")

    assert [one["text"] for one in final["data"]["utterances"]] == ["hello there", "hello there"]
    assert len(of_type(events, "transcript.final")) == 1
    assert [(one["state"], one["attempts"]) for one in json.loads(text)["jobs"]] == [("done", 2)]


async def test_a_server_killed_in_mid_call_and_in_mid_transcription_costs_nothing(
    tmp_path: Path, own_server: Postgresql
) -> None:
    slow = recogniser(tmp_path, "speaks")
    async with (
        running_bridge(
            tmp_path / "data",
            DATABASE_URL=own_server.new_database(),
            WHISPER_BINARY_PATH=str(slow),
        ) as bridge,
        listening(bridge) as events,
    ):
        host, port = bridge.udp
        legs = [
            Leg("Alice", "sip:alice@example.com", tone(440, 4.0)),
            Leg("Bob", "sip:bob@example.com", tone(1000, 4.0)),
        ]
        talking = asyncio.create_task(
            place_call(CallPlan(parse_target(f"{host}:{port}"), legs, rate=2.0))
        )
        await eventually(lambda: bool(of_type(events, "session.started")), "a call", bridge)
        await asyncio.to_thread(own_server.kill9)
        report = await talking  # it ends while nothing can be noted
        assert report.ok, report
        ready, _ = await bridge.get("/health/ready")
        await asyncio.to_thread(own_server.start)

        (final,) = await finals(bridge, events)
        await call(bridge, legs=tones(0.2))
        await asyncio.to_thread(own_server.kill9)
        await asyncio.to_thread(own_server.start)
        await finals(bridge, events, 2)
        _, text = await bridge.get("/api/sessions")

    assert ready == 503
    assert [one["assurance"]["verdict"] for one in json.loads(text)["sessions"]] == ["complete"] * 2
    assert {leg["duration"] for leg in final["data"]["legs"]} == {4.0}
    ids = [one["id"] for one in events]
    assert len(ids) == len(set(ids))
