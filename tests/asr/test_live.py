"""Cutting a stream into utterances, and the WebSocket that does it for clients."""

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from harness.asr import PatientLoader, Running, serving
from siprec_asr.audio import Pcm, read_audio
from siprec_asr.live import Piece, Stretches, Utterances, silero_speech
from siprec_bridge import caller

SAMPLE = Path(caller.__file__).parent / "sample"


def loud(pcm: Pcm) -> Stretches:
    """Speech is what is not zero."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (pcm != 0).astype(np.int8), [0]])))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def sound(*parts: float) -> Pcm:
    """Seconds of speech and, negative, of silence."""
    pieces = [np.full(round(abs(one) * 16000), 1000 if one > 0 else 0, np.int16) for one in parts]
    return np.concatenate(pieces)


def steps(pcm: Pcm, step_s: float = 1.0) -> Iterator[tuple[Pcm, bool]]:
    step = round(step_s * 16000)
    for at in range(0, len(pcm), step):
        yield pcm[at : at + step], at + step >= len(pcm)


def finals(pcm: Pcm, step_s: float = 1.0) -> list[Piece]:
    utterances = Utterances(loud)
    pieces = [
        piece for part, last in steps(pcm, step_s) for piece in utterances.cut(part, last=last)
    ]
    return [piece for piece in pieces if piece.final]


def test_a_pause_ends_an_utterance_and_times_are_the_streams() -> None:
    call = sound(-2, 3, -1, 2, -0.2, 1, -2)

    first, second = finals(call)

    assert (first.utterance, second.utterance) == (0, 1)
    assert first.start == pytest.approx(1.7)
    assert len(first.pcm) / 16000 == pytest.approx(3.6)
    assert second.start == pytest.approx(5.7)
    assert len(second.pcm) / 16000 == pytest.approx(3.8)


def test_what_is_being_said_grows_until_it_is_final() -> None:
    utterances = Utterances(loud)
    pieces = [
        one for part, last in steps(sound(-1, 3.5, -2)) for one in utterances.cut(part, last=last)
    ]

    assert [piece.final for piece in pieces] == [False, False, False, False, True]
    assert all(len(one.pcm) < len(other.pcm) for one, other in pairwise(pieces[:4]))


@pytest.mark.parametrize("step_s", [0.5, 1.0, 7.0, 100.0])
def test_long_speech_is_cut_in_pauses_and_no_second_of_it_is_lost(step_s: float) -> None:
    talk = [15.0, -0.3] * 4 + [40.0, -1.0]

    pieces = finals(sound(*talk), step_s)

    assert sum(np.count_nonzero(piece.pcm) for piece in pieces) == 100 * 16000
    assert all(len(piece.pcm) <= 28.7 * 16000 for piece in pieces)


def test_the_end_of_the_stream_is_the_end_of_the_utterance() -> None:
    (only,) = finals(sound(-0.5, 1))

    assert len(only.pcm) == 1.3 * 16000


def test_hours_of_silence_are_not_kept() -> None:
    utterances = Utterances(loud)
    for _ in range(100):
        assert utterances.cut(sound(-60)) == []

    (piece,) = utterances.cut(sound(-0.5, 1), last=True)

    assert piece.start == pytest.approx(6000.2)
    assert len(utterances._pcm) == 0


async def stream(server: Running, pcm: Pcm, **start: Any) -> list[dict[str, Any]]:
    """Send PCM in frames of 20 ms as fast as it goes; all that comes back."""
    async with (
        aiohttp.ClientSession(server.url) as session,
        session.ws_connect("/v1/stream") as socket,
    ):
        await socket.send_json({"type": "start"} | start)
        octets = pcm.astype("<i2").tobytes()
        for at in range(0, len(octets), 641):  # odd, so that samples are torn
            await socket.send_bytes(octets[at : at + 641])
        await socket.send_json({"type": "stop"})
        async with asyncio.timeout(40):
            return [json.loads(message.data) async for message in socket]


async def test_what_is_being_said_is_told_before_it_has_ended(tmp_path: Path) -> None:
    loader = PatientLoader()
    loader.answers_at_once = True
    alice = read_audio(SAMPLE / "alice.wav", longest_s=60)
    async with (
        serving(tmp_path, loader=loader, model="base") as server,
        aiohttp.ClientSession(server.url) as session,
        session.ws_connect("/v1/stream") as socket,
    ):
        await socket.send_json({"type": "start"})
        assert (await socket.receive_json())["type"] == "ready"
        await socket.send_bytes(alice[: 16000 * 2].tobytes())
        partial = await socket.receive_json(timeout=10)
        await socket.send_json({"type": "stop"})
        final = await socket.receive_json(timeout=10)
        end = await socket.receive_json(timeout=10)

    assert (partial["type"], partial["utterance"], partial["text"]) == ("partial", 0, "base")
    assert (final["type"], final["utterance"], final["text"]) == ("final", 0, "base")
    assert partial["start"] == final["start"]
    assert end == {"type": "end", "audio_seconds": 2.0}


async def test_real_speech_comes_back_as_text(tmp_path: Path, models_dir: Path) -> None:
    alice = read_audio(SAMPLE / "alice.wav", longest_s=60)
    async with serving(tmp_path, models_dir, workers="2", stream_step="2s") as server:
        messages = await stream(server, alice[::2], sample_rate=8000, model="standin")
        active = server.server.metrics.registry.get_sample_value("siprec_asr_streams_active")

    ready = {"type": "ready", "model": "standin", "sample_rate": 8000, "step": 2.0}
    assert messages[0] == ready
    finals = [one for one in messages if one["type"] == "final"]
    heard = " ".join(one["text"] for one in finals)
    assert "question" in heard
    assert "before the end of the week" in heard
    assert [one["utterance"] for one in finals] == sorted({one["utterance"] for one in finals})
    assert finals[0]["start"] == pytest.approx(0.5, abs=0.4)
    assert finals[0]["words"][0]["start"] >= finals[0]["start"]
    assert messages[-1]["type"] == "end"
    assert messages[-1]["audio_seconds"] == pytest.approx(len(alice) / 16000, abs=0.05)
    assert active == 0


async def test_who_asks_is_told_how_much_was_heard(tmp_path: Path) -> None:
    loader = PatientLoader()
    loader.answers_at_once = True
    async with serving(tmp_path, loader=loader, model="base") as server:
        messages = await stream(server, sound(-2.5), progress=True)

    told = [one["audio_seconds"] for one in messages if one["type"] == "progress"]
    assert told == sorted(told)
    assert told[-1] == 2.5


async def test_whisper_hears_a_stream_too(tmp_path: Path, models_dir: Path) -> None:
    alice = read_audio(SAMPLE / "alice.wav", longest_s=60)
    async with serving(tmp_path, models_dir, beam_size="1") as server:
        messages = await stream(server, alice, partial=False)

    texts = [(one["type"], one["text"]) for one in messages[1:-1]]
    assert texts
    assert set(texts) == {("final", "Good morning how can I help you")}


@pytest.mark.parametrize(
    ("start", "code"),
    [
        ({"sample_rate": 5}, "bad_request"),
        ({"codec": "opus"}, "bad_request"),
        ({"type": "hello"}, "bad_request"),
        ({"model": "gpt"}, "unknown_model"),
    ],
)
async def test_a_wrong_start_is_told_and_closed(
    tmp_path: Path, models_dir: Path, start: dict[str, Any], code: str
) -> None:
    async with serving(tmp_path, models_dir) as server:
        messages = await stream(server, sound(0.1), **start)

    assert (messages[-1]["type"], messages[-1]["code"]) == ("error", code)


async def test_who_leaves_frees_worker_and_model(tmp_path: Path) -> None:
    loader = PatientLoader()
    alice = read_audio(SAMPLE / "alice.wav", longest_s=60)
    async with (
        serving(tmp_path, loader=loader, model="base") as server,
        aiohttp.ClientSession(server.url) as session,
    ):
        socket = await session.ws_connect("/v1/stream")
        await socket.send_json({"type": "start"})
        assert (await socket.receive_json())["type"] == "ready"
        await socket.send_bytes(alice[: 16000 * 3].tobytes())
        engine = await asyncio.to_thread(loader.first)
        (held,) = server.server.cache.loaded()
        assert held.owners[0].startswith("websocket")

        await socket.close()

        assert await asyncio.to_thread(engine.cancelled.wait, 10)
        async with asyncio.timeout(10):
            while server.server.cache.loaded()[0].owners:  # noqa: ASYNC110 - a thread lets it go
                await asyncio.sleep(0.01)


async def test_an_error_of_ours_ends_the_stream_with_a_word(tmp_path: Path) -> None:
    loader = PatientLoader()
    loader.failure = KeyError("somebody's name")
    async with serving(tmp_path, loader=loader, model="base") as server:
        (only,) = await stream(server, sound(0.1))

    assert only == {"type": "error", "code": "internal", "message": "the server failed"}


async def test_who_talks_faster_than_we_hear_is_held_back(tmp_path: Path) -> None:
    loader = PatientLoader()
    alice = read_audio(SAMPLE / "alice.wav", longest_s=60)
    async with (
        serving(tmp_path, loader=loader, model="base") as server,
        aiohttp.ClientSession(server.url) as session,
        session.ws_connect("/v1/stream") as socket,
    ):
        await socket.send_json({"type": "start"})
        await socket.receive_json(timeout=10)

        async def talk() -> None:
            for _ in range(100):  # 23 minutes, 45 MB
                await socket.send_bytes(alice.tobytes())

        talking = asyncio.ensure_future(talk())
        engine = await asyncio.to_thread(loader.first)
        done, _ = await asyncio.wait({talking}, timeout=1.0)
        assert not done

        engine.let_go.set()
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)


@pytest.mark.slow  # as long as a client may not answer pings elsewhere
async def test_who_is_held_back_for_long_is_not_taken_for_gone(tmp_path: Path) -> None:
    loader = PatientLoader()
    alice = read_audio(SAMPLE / "alice.wav", longest_s=60)
    async with (
        serving(tmp_path, loader=loader, model="base") as server,
        aiohttp.ClientSession(server.url) as session,
        session.ws_connect("/v1/stream") as socket,
    ):
        await socket.send_json({"type": "start"})
        await socket.receive_json(timeout=10)

        async def talk() -> None:
            for _ in range(100):
                await socket.send_bytes(alice.tobytes())

        talking = asyncio.ensure_future(talk())
        engine = await asyncio.to_thread(loader.first)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(35):  # its own begins anew with each ping
                await socket.receive()

        engine.let_go.set()
        assert (await socket.receive_json(timeout=10))["type"] in ("partial", "final")
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)


async def test_a_stream_too_many_is_429(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, loader=PatientLoader(), model="base", max_streams="1") as server,
        aiohttp.ClientSession(server.url) as session,
        session.ws_connect("/v1/stream") as first,
    ):
        await first.send_json({"type": "start"})
        assert (await first.receive_json())["type"] == "ready"

        with pytest.raises(aiohttp.WSServerHandshakeError) as told:
            await session.ws_connect("/v1/stream")

    assert told.value.status == 429


def test_silero_finds_speech_and_none_in_noise() -> None:
    alice = read_audio(SAMPLE / "alice.wav", longest_s=60)
    noise = np.random.default_rng(0).normal(0, 300, 16000 * 3).astype(np.int16)

    assert len(silero_speech(alice)) >= 2
    assert silero_speech(noise) == []
