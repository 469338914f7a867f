"""A card number that a recogniser hears, at a real bridge: on no disk, in no log, to nobody."""

import io
import json
import wave
from pathlib import Path

import aiohttp
import numpy as np

from harness.bridge import Bridge, eventually, listening, of_type, running_bridge
from harness.calls import call, finals
from harness.recognisers import recogniser


def everything(data: Path) -> bytes:
    """All octets of a bridge's folder: database, its log, recordings, temporary files, log lines."""
    return b"\n".join(one.read_bytes() for one in data.rglob("*") if one.is_file())


async def audio(bridge: Bridge, session: str) -> dict[str, tuple[int, bytes]]:
    """Status and content of each file of a session."""
    _, text = await bridge.get(f"/api/sessions/{session}")
    files = json.loads(text)["audio"]["files"]
    found = {}
    async with aiohttp.ClientSession() as http:
        for one in files:
            url = f"{bridge.http}/api/sessions/{session}/audio/{one['name']}"
            async with http.get(url) as answer:
                found[one["name"]] = answer.status, await answer.read()
    return found


def samples(data: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.int16]]":
    with wave.open(io.BytesIO(data)) as file:
        audio = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return audio.reshape(-1, file.getnchannels())


async def test_it_is_nowhere_while_the_call_is_transcribed_and_ever_after(tmp_path: Path) -> None:
    hears = recogniser(tmp_path, "hears_a_card")
    data = tmp_path / "data"
    settings = {"WHISPER_BINARY_PATH": str(hears), "REDACT": "cards", "LOG_LEVEL": "debug"}
    async with running_bridge(data, **settings) as bridge, listening(bridge) as events:
        await call(bridge)
        await bridge.wait_for_log("session.archived")
        _, listed = await bridge.get("/api/sessions")
        (session,) = json.loads(listed)["sessions"]
        withheld = await audio(bridge, session["id"])
        hears.with_suffix(".go").touch()
        (final,) = await finals(bridge, events)
        _, shown = await bridge.get(f"/api/sessions/{session['id']}/transcript")
        shared = await audio(bridge, session["id"])
        running = everything(data)
        await bridge.stop()
    afterwards = everything(data)

    assert {status for status, _ in withheld.values()} == {409}
    assert {status for status, _ in shared.values()} == {200}
    assert [one["data"]["text"] for one in of_type(events, "transcript.segment")] == 2 * [
        "it is [card]"
    ]
    assert {one["kind"] for one in final["data"]["redactions"]} == {"card"}
    for content in (running, afterwards, shown.encode(), json.dumps(events).encode()):
        assert b"4242 4242" not in content
        assert b"four two" not in content
    for name, (_, content) in shared.items():
        heard = samples(content)
        rate = 16000 if "stereo" not in name else 8000
        # Without times of words the whole of the segment, from 0.2 to 0.8 s, and 0.2 s around it.
        assert not heard[round(0.05 * rate) : round(0.95 * rate)].any()
        assert heard[round(1.1 * rate) : round(1.5 * rate)].any()
    assert not list(data.rglob("*.spool"))


async def test_what_a_failing_recogniser_says_is_told_without_it(tmp_path: Path) -> None:
    fails = recogniser(tmp_path, "hears_a_card_and_exits_1")
    data = tmp_path / "data"
    settings = {
        "WHISPER_BINARY_PATH": str(fails), "REDACT": "all", "TRANSCRIPTION_ATTEMPTS": "1",
        "TRANSCRIPTION_CIRCUIT": "0",
    }  # fmt: skip
    async with running_bridge(data, **settings) as bridge, listening(bridge) as events:
        await call(bridge)
        await eventually(lambda: bool(of_type(events, "transcript.failed")), "a failure", bridge)
        _, text = await bridge.get("/api/jobs")

    (job,) = json.loads(text)["jobs"]
    assert "[card]" in job["stderr_tail"]
    assert b"4242 4242" not in everything(data)
