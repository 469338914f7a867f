"""The wyoming package's own client, and what no client should send."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from harness.asr import PatientLoader, Running, serving

SAID = "Good morning how can I help you"


@pytest.fixture
async def server(tmp_path: Path, models_dir: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path, models_dir, preload="tiny", beam_size="1") as running:
        yield running


async def ask(client: AsyncClient, *events: Event) -> Event:
    for event in events:
        await client.write_event(event)
    async with asyncio.timeout(20):
        answer = await client.read_event()
    assert answer is not None
    return answer


def speech(length_s: float = 1.0, rate: int = 16000, channels: int = 1) -> list[Event]:
    chunk = bytes(2 * channels * (rate // 10))
    chunks = [AudioChunk(rate, 2, channels, chunk).event() for _ in range(round(length_s * 10))]
    return [
        AudioStart(rate, 2, channels).event(),
        *chunks,
        AudioStop().event(),
    ]


async def raw(server: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = server.wyoming.removeprefix("tcp://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def test_it_describes_its_models(server: Running) -> None:
    async with AsyncClient.from_uri(server.wyoming) as client:
        info = Info.from_event(await ask(client, Describe().event()))
        pong = Pong.from_event(await ask(client, Ping("hello").event()))

    (program,) = info.asr
    assert program.installed
    assert [model.name for model in program.models] == ["tiny", "tuned"]
    assert "de" in program.models[0].languages
    assert pong.text == "hello"


async def test_it_transcribes_one_thing_after_another_on_one_connection(server: Running) -> None:
    async with AsyncClient.from_uri(server.wyoming) as client:
        first = await ask(client, Transcribe(language="en").event(), *speech())
        second = await ask(client, Transcribe(name="tuned").event(), *speech(2, 48000, 2))
        third = await ask(client, *speech())

    assert [Transcript.from_event(one).text for one in (first, second, third)] == [
        SAID, "We call from Fine Tuning", SAID,
    ]  # fmt: skip
    metrics = server.server.metrics.registry
    labels = {"front": "wyoming", "status": "200"}
    assert metrics.get_sample_value("siprec_asr_requests_total", labels) == 3


async def test_an_unknown_model_is_an_error_and_the_connection_goes_on(server: Running) -> None:
    async with AsyncClient.from_uri(server.wyoming) as client:
        error = Error.from_event(await ask(client, Transcribe(name="gpt").event(), *speech()))
        heard = Transcript.from_event(await ask(client, *speech()))

    assert (error.code, "'gpt'" in error.text) == ("unknown_model", True)
    assert heard.text == SAID


async def test_no_audio_is_an_empty_transcript(server: Running) -> None:
    async with AsyncClient.from_uri(server.wyoming) as client:
        heard = Transcript.from_event(await ask(client, *speech(0)))

    assert heard.text == ""


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"[]\n",
        b'{"type": "ping", "data_length": -1}\n',
        b'{"type": "audio-chunk", "payload_length": 99999999999}\n',
        b'{"type": "audio-start", "data": {"rate": 1, "width": 2, "channels": 1}}\n',
        b'{"type": "audio-chunk"}\n',
        b'{"type": "transcribe", "data": 5}\n',
        b"[" * 60000 + b"\n",
    ],
)
async def test_what_is_no_event_is_answered_with_an_error_and_the_end(
    server: Running, octets: bytes
) -> None:
    reader, writer = await raw(server)
    writer.write(octets)

    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()

    head, _, rest = answer.partition(b"\n")
    assert json.loads(head)["type"] == "error"
    assert json.loads(rest)["code"] == "bad_event"
    async with AsyncClient.from_uri(server.wyoming) as client:
        await ask(client, Describe().event())


async def test_a_line_without_end_is_not_read_to_its_end(server: Running) -> None:
    reader, writer = await raw(server)
    with contextlib.suppress(ConnectionError):  # closed while we were still sending
        async with asyncio.timeout(10):
            writer.write(b"x" * 10_000_000)
            await reader.read()
    writer.close()

    async with AsyncClient.from_uri(server.wyoming) as client:
        await ask(client, Describe().event())


async def test_who_leaves_frees_the_worker(tmp_path: Path) -> None:
    loader = PatientLoader()
    async with serving(tmp_path, loader=loader, model="base") as server:
        async with AsyncClient.from_uri(server.wyoming) as client:
            for event in speech():
                await client.write_event(event)
            engine = await asyncio.to_thread(loader.first)

        assert await asyncio.to_thread(engine.cancelled.wait, 10)


async def test_an_event_that_comes_early_waits_its_turn(tmp_path: Path) -> None:
    loader = PatientLoader()
    async with (
        serving(tmp_path, loader=loader, model="base") as server,
        AsyncClient.from_uri(server.wyoming) as client,
    ):
        for event in [*speech(), Ping("early").event()]:
            await client.write_event(event)
        (await asyncio.to_thread(loader.first)).let_go.set()

        answers = [await ask(client), await ask(client)]

    assert [one.type for one in answers] == ["transcript", "pong"]


async def test_more_connections_than_allowed_are_told_so(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, loader=PatientLoader(), model="base", max_streams="1") as server,
        AsyncClient.from_uri(server.wyoming) as first,
    ):
        await ask(first, Ping().event())
        async with AsyncClient.from_uri(server.wyoming) as second:
            error = Error.from_event(await ask(second))

    assert error.code == "too_many_streams"


async def test_an_error_of_ours_is_told_and_the_connection_goes_on(tmp_path: Path) -> None:
    loader = PatientLoader()
    loader.failure, loader.answers_at_once = KeyError("somebody's name"), True
    async with (
        serving(tmp_path, loader=loader, model="base") as server,
        AsyncClient.from_uri(server.wyoming) as client,
    ):
        error = Error.from_event(await ask(client, *speech()))
        loader.failure = None
        heard = Transcript.from_event(await ask(client, *speech()))

    assert (error.code, "name" in error.text) == ("internal", False)
    assert heard.text == "base"
