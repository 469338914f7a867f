"""The wall clock is set while calls are recorded, transcribed and delivered: nobody waits for it.

libfaketime sets the bridge's clock, as an operator or a hypervisor would; timers go on as they do.
"""

import asyncio
import json
import wave
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web

from harness.bridge import eventually, listening, of_type, running_bridge
from harness.calls import call, finals, tones
from harness.recognisers import calls, recogniser
from harness.rtp import loudest_frequency
from harness.webhooks import Endpoint, Posted, hooks_file

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
SECONDS = 2.0


class Clock:
    """The bridge's wall clock: how far it is from ours."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.set(0)

    def set(self, seconds: int) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(f"{seconds:+d}")
        part.replace(self._file)

    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
        }


@pytest.mark.peer
@pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (scripts/setup)")
async def test_an_hour_ahead_and_back_costs_no_audio_no_event_and_no_hour(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    away = False
    program = recogniser(tmp_path, "fails_until_told")

    async def answer(_: Posted) -> web.Response:
        return web.Response(status=503 if away else 204)

    endpoint = Endpoint(answer)
    async with (
        endpoint.serving(),
        running_bridge(
            tmp_path / "data", WHISPER_BINARY_PATH=str(program), TRANSCRIPTION_ATTEMPTS="9",
            TRANSCRIPTION_RETRY_DELAY="1s", TRANSCRIPTION_CIRCUIT="0",
            WEBHOOKS=hooks_file(tmp_path, endpoint.url), **clock.environment(),
        ) as bridge,
        listening(bridge) as events,
    ):  # fmt: skip
        calling = asyncio.create_task(call(bridge, rate=1, legs=tones(SECONDS)))
        await eventually(lambda: bool(endpoint.took), "the first event", bridge)
        clock.set(3600)
        await asyncio.sleep(0.6)  # of the call
        clock.set(0)
        await asyncio.sleep(0.6)
        clock.set(3600)
        away = True
        await calling
        await bridge.wait_for_log("session.archived")
        # A job was put off, and so was an event: until an hour from now.
        await eventually(lambda: len(calls(program)) >= 1, "a run that fails", bridge)
        refused = len(endpoint.posted)
        await eventually(lambda: len(endpoint.posted) > refused, "an event that waits", bridge)
        program.with_suffix(".works").touch()
        clock.set(0)
        away = False
        await finals(bridge, events)
        await eventually(
            lambda: {*endpoint.took} >= {one["id"] for one in events}, "all events", bridge
        )
        (session,) = json.loads((await bridge.get("/api/sessions"))[1])["sessions"]
        folder = tmp_path / "data" / "recordings" / session["id"]
        legs = {one.name[-5]: one for one in folder.glob("*-[01].wav")}
        lengths, heard = {}, {}
        for index, path in legs.items():
            with wave.open(str(path)) as file:
                rate = file.getframerate()
                pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
            lengths[index], heard[index] = len(pcm) / rate, loudest_frequency(pcm, rate)

    assert lengths == {
        "0": pytest.approx(SECONDS, abs=0.3), "1": pytest.approx(SECONDS + 0.5, abs=0.3),
    }  # fmt: skip
    assert heard == {"0": pytest.approx(440, abs=10), "1": pytest.approx(1000, abs=10)}
    assert len(endpoint.took) == len({*endpoint.took})
    assert {*endpoint.took} == {one["id"] for one in events}
    (ended,) = of_type(events, "session.ended")
    assert ended["data"]["cause"] == "bye"
    (said,) = of_type(events, "transcript.final")
    began = datetime.fromisoformat(said["data"]["started_at"])
    assert abs((datetime.now(UTC) - began).total_seconds()) < 60
