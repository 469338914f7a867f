"""A farm's node against a dispatcher that is a double: what happens on the node's own machine."""

import asyncio
import errno
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from siprec_wrappers.farm import node
from siprec_wrappers.farm.job import Job
from siprec_wrappers.farm.node import _work

JOB = Job(f"audio/{'0' * 64}.wav", "base", None, "transcribe", (), "a" * 32, 2e9, 1.0)


class Dispatcher:
    """Offers one job until it has a result; what nodes send is kept."""

    def __init__(self, *before: web.Response) -> None:
        self.before = list(before)  # its first answers
        self.heard: list[str] = []
        self.done = asyncio.Event()
        self.application = web.Application()
        self.application.add_routes(
            [
                web.post("/v1/work", self.offer),
                web.get("/v1/work/{lease}/audio", self.audio),
                web.route("*", "/v1/work/{lease}/{what}", self.hear),
            ]
        )

    async def offer(self, request: web.Request) -> web.Response:
        if self.before:
            return self.before.pop(0)
        if self.done.is_set():
            await asyncio.sleep(60)
        offer = {"lease": "l", "lease_seconds": 60, "seconds_left": 60, "job": JOB.to_json()}
        return web.json_response(offer)

    async def audio(self, request: web.Request) -> web.Response:
        return web.Response(body=b"RIFF")

    async def hear(self, request: web.Request) -> web.Response:
        self.heard.append(request.match_info["what"])
        if self.heard[-1] == "result":
            self.done.set()
        return web.Response(status=204)


class FullAtFirst:
    """An engine on a machine whose disk is full for the first run."""

    def __init__(self, *, full: bool = True) -> None:
        self.runs = 0 if full else 1

    def transcribe(self, audio: Path, job: Job, stopped: Callable[[], bool]) -> bytes:
        self.runs += 1
        if self.runs == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return b'{"text": ""}'


async def test_a_node_whose_disk_is_full_gives_the_job_back_and_lives_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dispatcher, engine = Dispatcher(), FullAtFirst()
    async with TestServer(dispatcher.application) as server:
        url = str(server.make_url("")).rstrip("/")
        working = asyncio.create_task(_work(url, {}, ssl.create_default_context(), engine))
        async with asyncio.timeout(10):
            await dispatcher.done.wait()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    assert dispatcher.heard == ["release", "result"]
    assert "No space left on device" in caplog.text


async def test_a_node_lives_through_answers_that_are_no_dispatchers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_FIRST_PAUSE_S", 0.01)
    offer = {"lease": "l", "lease_seconds": 60, "seconds_left": 10**400, "job": JOB.to_json()}
    dispatcher = Dispatcher(
        web.Response(status=404, text="<h1>no backend</h1>"),
        web.Response(text='{"lease": "l", ', content_type="application/json"),
        web.Response(text=100_000 * "[", content_type="application/json"),
        web.json_response([]),
        web.json_response(offer),
    )
    async with TestServer(dispatcher.application) as server:
        url = str(server.make_url("")).rstrip("/")
        engine = FullAtFirst(full=False)
        working = asyncio.create_task(_work(url, {}, ssl.create_default_context(), engine))
        async with asyncio.timeout(10):
            await dispatcher.done.wait()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

    assert dispatcher.heard == ["result"]
    assert "no backend" in caplog.text
    assert "an offer that is none" in caplog.text
    assert "a lease that is none" in caplog.text
