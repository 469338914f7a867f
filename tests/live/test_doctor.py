"""The doctor speaks to the live recogniser as a call would."""

import json
import socket

import pytest

from harness.live_recogniser import live_recogniser
from siprec_bridge.doctor import examine_live
from siprec_bridge.settings import Settings
from siprec_bridge.trial import sample_words


def settings(url: str, token: str | None = None) -> Settings:
    return Settings(live_transcripts="on", live_url=url, live_token=token)


async def test_a_recogniser_that_hears_the_sample_is_well_and_its_words_are_counted() -> None:
    async with live_recogniser() as ears:
        found = await examine_live(settings(ears.url, "secret"))

    assert (found.ok, found.soon) == (True, True)  # it hears tones, not words
    assert "tones told" in found.text
    assert "is LIVE_MODEL right for English?" in found.text
    assert ears.tokens == ["Bearer secret"]
    assert len(ears.streams[0].audio) > 3 * 16000
    assert ears.streams[0].stopped
    assert not any(word in found.text for word in sample_words()["alice"].split() if len(word) > 5)


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        ({"status": 401}, "connect: it answers 401; check LIVE_URL, LIVE_TOKEN"),
        ({"status": 429}, "connect: it answers 429"),
        ({"says": "hello"}, "connect: it does not speak the protocol"),
        (
            {"says": json.dumps({"type": "error", "code": "no_model", "message": "unknown"})},
            "connect: it says no_model: unknown",
        ),
    ],
)
async def test_the_step_that_breaks_is_named(behaviour: dict[str, object], told: str) -> None:
    async with live_recogniser(**behaviour) as ears:
        found = await examine_live(settings(ears.url))

    assert not found.ok
    assert told in found.text
    assert ears.tries == 1


async def test_one_that_is_away_is_named() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        port = nobody.getsockname()[1]
        found = await examine_live(settings(f"ws://127.0.0.1:{port}/v1/stream"))

    assert not found.ok
    assert "connect: " in found.text
    assert "calls are recorded without" in found.text
