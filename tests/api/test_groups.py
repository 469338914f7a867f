"""Calls in several sessions, over HTTP: what was said in all of them, and who may read it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from siprec_bridge.access import Client, View
from siprec_bridge.api.asking import CLIENT, Handler
from siprec_bridge.api.groups import Groups
from siprec_bridge.store import Database, SessionRow, groups, recordings, transcripts
from siprec_bridge.transcript import Conversation, Utterance

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
GROUP = "7+OTCyoxTmqmqyA/1weDAg=="


class Desk:
    """A database with the routes over it. `view`: what the client may see."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.view = View()
        self.url = ""

    async def add(self, id: str, group: str | None = GROUP, peer: str = "192.0.2.1") -> None:
        row = SessionRow(
            id, f"{id}@pbx", "finished", NOW, f"udp:{peer}:5060", "/f",
            json.dumps({"session_id": id, "group_id": group}), group_id=group,
        )  # fmt: skip
        await self.database.write(partial(recordings.insert, row=row))

    async def transcribe(self, id: str, at: float, text: str, version: int = 1) -> None:
        line = Utterance(
            label="1", start=at, end=at + 1, starts_at=NOW + timedelta(seconds=at),
            ends_at=NOW + timedelta(seconds=at + 1), text=text,
        )  # fmt: skip
        talk = Conversation(
            session_id=id, sip_call_id=f"{id}@pbx", started_at=NOW, ended_at=NOW, duration=9,
            provider="whisper", model="base", utterances=(line,),
        )  # fmt: skip
        save = partial(
            transcripts.save, session_id=id, version=version, job_id=f"{id}.{version}",
            text=text, document=talk.model_dump_json(), at=NOW,
        )  # fmt: skip
        await self.database.write(save)

    async def get(self, path: str = "", group: str = GROUP) -> tuple[int, Any]:
        url = f"{self.url}/api/groups/{quote(group, safe='')}{path}"
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if "json" in answer.content_type else text

    @web.middleware
    async def admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        request[CLIENT] = Client("tester", frozenset(("read",)), self.view)
        return await handler(request)


@asynccontextmanager
async def desk(folder: Path) -> AsyncIterator[Desk]:
    database = Database(f"sqlite:///{folder / 'a.db'}")
    await database.start()
    one = Desk(database)
    app = web.Application(middlewares=[one.admit])
    for route in Groups(database).routes():
        app.router.add_get(route.path, route.handler)
    async with TestServer(app) as server:
        one.url = str(server.make_url("")).rstrip("/")
        yield one
    await database.stop()


async def test_the_latest_transcripts_of_all_sessions_are_one(tmp_path: Path) -> None:
    async with desk(tmp_path) as place:
        for id in ("near", "far"):
            await place.add(id)
        await place.add("other", group="another")
        nothing, _ = await place.get("/transcript")
        await place.transcribe("near", 1.0, "helo")
        half = await place.get("/transcript")
        await place.transcribe("far", 0.5, "good day")
        await place.transcribe("near", 1.0, "hello", version=2)
        _, whole = await place.get("/transcript")
        status, group = await place.get()
        text = await place.get("/transcript?format=text")

    assert nothing == 404
    assert (half[0], half[1]["complete"]) == (200, False)
    assert [one["text"] for one in whole["utterances"]] == ["good day", "hello"]
    assert {one["session_id"]: one["version"] for one in whole["sessions"]} == {
        "near": 2, "far": 1,
    }  # fmt: skip
    assert (status, group["complete"], "utterances" in group) == (200, True, False)
    assert text == (200, "stream 1: good day\nstream 1: hello\n")


async def test_sessions_that_a_client_may_not_see_are_left_out(tmp_path: Path) -> None:
    async with desk(tmp_path) as place:
        for id, peer in (("near", "192.0.2.1"), ("far", "198.51.100.1")):
            await place.add(id, peer=peer)
            await place.transcribe(id, 1.0, f"said at the {id} end")
        place.view = View(peers=(ip_network("192.0.2.0/24"),))
        _, seen = await place.get("/transcript")
        place.view = View(peers=(ip_network("203.0.113.0/24"),))
        unseen, _ = await place.get("/transcript")

    assert [one["text"] for one in seen["utterances"]] == ["said at the near end"]
    assert [one["session_id"] for one in seen["sessions"]] == ["near"]
    assert unseen == 404


async def test_a_group_of_all_calls_joins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "MOST_SESSIONS", 2)
    async with desk(tmp_path) as place:
        for number in range(3):
            await place.add(f"s{number}")
            await place.transcribe(f"s{number}", 1.0, "hello")
        told = await place.database.read(partial(groups.transcribed, group_id=GROUP))
        status, _ = await place.get("/transcript")
        unknown, _ = await place.get(group="none")

    assert (told, status, unknown) == ([], 409, 404)
