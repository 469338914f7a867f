"""A stream's conversation with a recogniser, which may be slow, away, or no recogniser at all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from harness.live_recogniser import LiveRecogniser, live_recogniser, until
from harness.rtp import tone
from siprec_bridge.live import recogniser
from siprec_bridge.live.decoder import RATE, Piece, Sound
from siprec_bridge.live.recogniser import Conversation, Line, NotHeard, Wanted

SECOND = 1_000_000_000
BEGAN = 1_700_000_000 * SECOND
SILENCE = np.zeros(RATE, np.int16)


@dataclass
class Caller:
    """One stream's end of it."""

    talk: Conversation
    lines: list[Line]
    troubles: list[NotHeard | None]
    piece: Piece = field(default_factory=lambda: Piece(BEGAN))

    def say(self, pcm: np.ndarray, step: float = 0.1) -> None:
        size = round(step * RATE)
        for at in range(0, len(pcm), size):
            part = pcm[at : at + size]
            self.talk.hear(Sound(part, self.piece, self.piece.samples))
            self.piece.samples += len(part)


@asynccontextmanager
async def calling(url: str, max_lag: float = 60.0, **wanted: str) -> AsyncIterator[Caller]:
    lines: list[Line] = []
    troubles: list[NotHeard | None] = []
    talk = Conversation(
        Wanted(url, max_lag, **wanted), lines.append, troubles.append, first_pause=0.05
    )
    running = asyncio.create_task(talk.run())
    try:
        yield Caller(talk, lines, troubles)
    finally:
        talk.finish()
        async with asyncio.timeout(10):
            await running


async def test_what_is_said_comes_back_growing_then_settled_with_its_times() -> None:
    async with (
        live_recogniser() as ears,
        calling(ears.url, token="secret", language="en", prompt="names", model="m") as caller,
    ):
        await until(lambda: caller.talk.connected)
        caller.say(SILENCE)
        caller.say(tone(440, 1.5, RATE))
        caller.say(SILENCE)
        await until(lambda: any(line.settled for line in caller.lines))

    *growing, settled = caller.lines
    assert len(growing) == 3
    assert not any(line.settled for line in growing)
    assert {line.utterance for line in caller.lines} == {0}
    assert all(one.end_ns < other.end_ns for one, other in pairwise(growing))
    assert settled.text == "a tone of 2.0 s"
    assert (settled.start_ns - BEGAN, settled.end_ns - BEGAN) == (1 * SECOND, 3 * SECOND)
    assert settled.words == (("tone", BEGAN + SECOND, BEGAN + SECOND * 12 // 10, 0.9),)
    assert (settled.model, settled.language) == ("tones", "en")
    (heard,) = ears.streams
    assert heard.start == {
        "type": "start", "sample_rate": 16000, "progress": True,
        "language": "en", "prompt": "names", "model": "m",
    }  # fmt: skip
    assert ears.tokens == ["Bearer secret"]
    assert heard.stopped
    assert caller.troubles == [None]


async def test_times_are_those_of_the_call_also_after_a_pause_in_it() -> None:
    async with live_recogniser() as ears, calling(ears.url) as caller:
        await until(lambda: caller.talk.connected)
        caller.say(tone(440, 1.0, RATE))
        caller.say(SILENCE)
        caller.piece = Piece(BEGAN + 60 * SECOND)
        caller.say(tone(440, 1.0, RATE))
        caller.say(SILENCE)
        await until(lambda: sum(line.settled for line in caller.lines) == 2)

    first, second = [line for line in caller.lines if line.settled]
    assert first.start_ns == BEGAN
    assert second.start_ns == BEGAN + 60 * SECOND


@pytest.mark.parametrize("tells", [True, False], ids=["tells", "does not tell"])
async def test_who_is_slow_is_left_behind_and_hears_what_is_said_now(tells: bool) -> None:
    async with (
        live_recogniser(pace=1.0, tells_progress=tells) as ears,
        calling(ears.url, max_lag=2.0) as caller,
    ):
        await until(lambda: caller.talk.connected)
        for _ in range(60):
            caller.say(tone(440, 1.0, RATE))
            await asyncio.sleep(0.01)
        sent, skipped = caller.talk.sent, caller.talk.skipped
        queued = caller.talk._queued
        behind = caller.talk.behind
        ears.pace = None  # what it has it may have heard soon
        caller.talk.finish()

    assert skipped > 15
    assert behind > 0
    assert sent + skipped + queued == pytest.approx(60)
    assert queued <= 2.0
    if tells:
        assert sent < 25
    assert caller.troubles == [None]


async def test_who_tells_of_more_than_it_was_sent_is_left_behind_when_it_reads_no_more() -> None:
    class Boaster(LiveRecogniser):
        async def _hear(self, connection, heard):  # type: ignore[no-untyped-def]
            await connection.send('{"type": "progress", "audio_seconds": 100000}')
            connection.transport.pause_reading()
            await connection.wait_closed()

    ears = Boaster()
    await ears.start()
    try:
        async with calling(ears.url, max_lag=2.0) as caller:
            await until(lambda: caller.talk._progress is not None)
            for _ in range(300):
                caller.say(SILENCE)
                await asyncio.sleep(0)
            queued = caller.talk._queued
            await ears.stop()
    finally:
        await ears.stop()

    assert queued <= 2.0


async def test_a_recogniser_that_dies_is_tried_again_and_utterances_go_on_counting() -> None:
    async with live_recogniser() as ears, calling(ears.url, max_lag=2.0) as caller:
        await until(lambda: caller.talk.connected)
        caller.say(tone(440, 1.0, RATE))
        await until(lambda: len(caller.lines) == 2)
        await ears.stop()
        await until(lambda: len(caller.troubles) >= 3)
        for _ in range(10):
            caller.say(SILENCE)
        await ears.start()
        await until(lambda: caller.talk.connected)
        caller.say(tone(440, 0.9, RATE))
        caller.say(SILENCE)
        await until(lambda: any(line.settled for line in caller.lines))

    assert caller.troubles[0] is caller.troubles[-1] is None
    assert all(one is not None and not one.full for one in caller.troubles[1:-1])
    assert [line.utterance for line in caller.lines if line.settled] == [1]
    assert caller.talk.skipped >= 8


@pytest.mark.parametrize(
    ("behaviour", "cause", "full"),
    [
        ({"status": 401}, "it answers 401", False),
        ({"status": 429}, "it answers 429", True),
        ({"status": 302, "location": "http://["}, "Invalid IPv6 URL", False),
        ({"status": 302, "location": "wss://other/"}, "ssl=None is incompatible", False),
        ({"says": "hello"}, "it does not speak the protocol: Invalid JSON", False),
        ({"says": b"\0\1"}, "it does not speak the protocol: a binary frame", False),
        ({"says": '{"type": "transcript"}'}, "it does not speak the protocol", False),
        ({"says": '{"type": "partial", "utterance": 0, "start": 0, "end": 1, "text": "x"}'},
         "it does not speak the protocol: messages out of order", False),
        ({"says": '{"type": "error", "code": "unknown_model", "message": "no m"}'},
         "it says unknown_model: no m", False),
        ({"says": '{"type": "error", "code": "too_many_streams", "message": "16"}'},
         "it says too_many_streams: 16", True),
    ],
)  # fmt: skip
async def test_who_cannot_be_talked_to_is_tried_again_with_a_reason(
    behaviour: dict[str, object], cause: str, full: bool
) -> None:
    async with live_recogniser(**behaviour) as ears, calling(ears.url) as caller:
        await until(lambda: len(caller.troubles) >= 2)

    assert ears.tries >= 2
    for trouble in caller.troubles:
        assert trouble is not None
        assert str(trouble).startswith(cause)
        assert trouble.full == full
    assert caller.lines == []


async def test_garbage_after_a_good_start_ends_the_connection_and_no_more() -> None:
    class Mad(LiveRecogniser):
        async def _hear(self, connection, heard):  # type: ignore[no-untyped-def]
            await connection.send('{"type": "final", "utterance": -1}')
            await connection.wait_closed()

    ears = Mad()
    await ears.start()
    try:
        async with calling(ears.url) as caller:
            await until(lambda: len(caller.troubles) >= 4)
    finally:
        await ears.stop()

    told = [str(one) for one in caller.troubles if one is not None]
    assert set(told) == {
        "it does not speak the protocol: final.utterance: Input should be greater than or equal to 0"
    }


async def test_a_stream_ends_in_time_though_nobody_hears_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recogniser, "_END_WITHIN_S", 0.3)
    async with live_recogniser(pace=0.5) as ears:
        async with calling(ears.url) as caller:
            await until(lambda: caller.talk.connected)
            caller.say(tone(440, 20.0, RATE))
            begun = asyncio.get_running_loop().time()
        took = asyncio.get_running_loop().time() - begun

    assert took < 3
