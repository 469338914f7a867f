"""Lines while the call is on: a real bridge, calls by our caller, a recogniser behind a WebSocket."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from harness.asr import serving
from harness.bridge import Bridge, Events, eventually, listening, of_type, running_bridge
from harness.browser import browser
from harness.calls import SAMPLE, call, finals, tones
from harness.live_recogniser import live_recogniser
from harness.recognisers import recogniser
from harness.tiny_whisper import make_ctranslate2
from siprec_bridge.caller import load_leg


def settled(events: Events) -> Events:
    return [one for one in of_type(events, "transcript.partial") if one["data"]["settled"]]


async def metric(bridge: Bridge, name: str) -> float:
    text = (await bridge.get("/metrics"))[1]
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
    assert found, name
    return float(found[1])


async def test_lines_come_while_the_call_is_on_and_the_transcript_replaces_them(
    tmp_path: Path,
) -> None:
    patient = recogniser(tmp_path, "waits_for_leave")
    async with (
        live_recogniser() as ears,
        running_bridge(
            tmp_path / "data", WHISPER_BINARY_PATH=str(patient), LIVE_TRANSCRIPTS="on",
            LIVE_URL=ears.url, LIVE_TOKEN="a-secret", LIVE_MODEL="large", LIVE_MAX_LAG="60s",
        ) as bridge,
        listening(bridge) as events,
        listening(bridge, "?final=true") as unchanging,
        browser(tmp_path / "profile") as page,
    ):  # fmt: skip
        terminal = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "siprec_bridge", "listen", bridge.websocket, "--once",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert terminal.stdout is not None
        hello = await terminal.stdout.readline()
        await page.open(bridge.http + "/")
        await page.until("socket && socket.readyState === 1")
        calling = asyncio.create_task(
            call(bridge, rate=1, legs=tones(2.0), srtp="AES_CM_128_HMAC_SHA1_80")
        )
        await page.until("document.body.innerText.includes('Alice, Bob')")
        await page.run("document.querySelector('#sessions tr').click()")
        await page.until("document.getElementById('talk').innerText.includes('a tone')")
        report = await calling
        await eventually(
            lambda: len({one["data"]["label"] for one in settled(events)}) == 2,
            "both parties' lines",
            bridge,
        )
        await eventually(lambda: all(one.stopped for one in ears.streams), "both ends", bridge)
        patient.with_suffix(".go").touch()
        await finals(bridge, events)
        await page.until("document.getElementById('talk').innerText.includes('hello there')")
        left = await page.run("document.getElementById('talk').innerText")
        shown = (hello + (await terminal.communicate())[0]).decode()
        lines = await metric(bridge, 'siprec_live_lines_total{kind="settled"}')
        growing = await metric(bridge, 'siprec_live_lines_total{kind="growing"}')
        timed = await metric(bridge, 'siprec_live_latency_seconds_count{kind="growing"}')
        away = await metric(bridge, "siprec_live_recogniser_available")
        ready = await metric(bridge, 'siprec_live_connections_total{result="ready"}')
        log = bridge.log_file.read_text()

    assert report.ok
    partials = of_type(events, "transcript.partial")
    assert len({one["id"] for one in partials}) == len(partials)
    order = [one["type"] for one in events]
    assert order.index("transcript.partial") < order.index("session.ended")
    for name, label in (("Alice", "1"), ("Bob", "2")):
        own = [one["data"] for one in partials if one["data"]["label"] == label]
        assert {one["participant"]["name"] for one in own} == {name}
        assert {(one["final"], one["model"]) for one in own} == {(False, "tones")}
        assert [one["utterance"] for one in own] == sorted(one["utterance"] for one in own)
        assert own[0]["utterance"] == 0
        assert own[-1]["settled"]
        (said,) = [
            one for one in of_type(events, "transcript.segment") if one["data"]["label"] == label
        ]
        assert own[0]["start"] == pytest.approx(said["data"]["start"] - 0.2, abs=0.1)
    assert {one["type"] for one in unchanging} == {"transcript.segment", "transcript.final"}
    assert (lines, growing) == (len(settled(events)), len(partials) - len(settled(events)))
    assert (timed, away, ready) == (growing, 1, 2)
    assert {one.start["model"] for one in ears.streams} == {"large"}
    assert ears.tokens == ["Bearer a-secret"] * 2
    assert "a tone" not in left
    assert {*re.findall(r"s  (\w+): a tone of .* \(live\)", shown)} == {"Alice", "Bob"}
    assert "transcript complete: 2 utterances" in shown
    assert "a-secret" not in log
    assert "a tone" not in log


async def test_siprec_asr_tells_what_is_said(tmp_path: Path) -> None:
    said = "Good morning how can I help you"
    make_ctranslate2(tmp_path / "models" / "tiny", said)
    alice = load_leg("Alice", "sip:alice@example.com", SAMPLE / "alice.wav")
    short = type(alice)(alice.name, alice.aor, alice.pcm[: 8000 * 4])
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        serving(tmp_path, tmp_path / "models", beam_size="1", token="t0k") as asr,
        running_bridge(
            tmp_path / "data", WHISPER_BINARY_PATH=speaks, LIVE_TRANSCRIPTS="on",
            LIVE_URL=f"ws{asr.url.removeprefix('http')}/v1/stream", LIVE_TOKEN="t0k",
            LIVE_MAX_LAG="60s",
        ) as bridge,
        listening(bridge) as events,
    ):  # fmt: skip
        await call(bridge, rate=1, legs=(short, tones(0.1)[1]))
        await finals(bridge, events)
        await eventually(lambda: bool(settled(events)), "a settled line", bridge)

    lines = [one["data"] for one in of_type(events, "transcript.partial")]
    assert {one["text"] for one in lines} == {said}
    assert {(one["label"], one["participant"]["name"], one["model"]) for one in lines} == {
        ("1", "Alice", "tiny")
    }
    assert [word["text"] for word in settled(events)[0]["data"]["words"]] == said.split()
    assert lines[0]["start"] == pytest.approx(0.5, abs=0.5)
