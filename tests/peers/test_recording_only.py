"""A bridge whose recogniser is switched off: recording is all that it is to do, and nothing is wrong."""

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from harness.bridge import PATIENCE_S, Bridge, command, listening, running_bridge
from harness.calls import call, finals
from harness.recognisers import recogniser

pytestmark = pytest.mark.peer


async def shelved(bridge: Bridge, count: int) -> list[str]:
    """The sessions whose jobs are off, once there are so many."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            _, told = await bridge.get("/api/jobs?state=off")
            if len(found := [one["session_id"] for one in json.loads(told)["jobs"]]) == count:
                return found
            await asyncio.sleep(0.05)


async def test_a_recorder_is_well_without_a_recogniser_and_transcribes_once_it_is_to(
    tmp_path: Path,
) -> None:
    data, speaks = tmp_path / "data", str(recogniser(tmp_path, "speaks"))
    async with running_bridge(
        data, WHISPER_BINARY_PATH=speaks, WHISPER_ENABLED="false"
    ) as bridge:  # fmt: skip
        for count in (1, 2):
            await call(bridge)
            await bridge.wait_for_log("session.archived", count)
        await bridge.wait_for_log("recogniser.off")
        gone, left = await shelved(bridge, 2)
        status, ready = await bridge.get("/health/ready")
        backlog = json.loads((await bridge.get("/api/backlog"))[1])
        async with (
            aiohttp.ClientSession() as http,
            http.delete(f"{bridge.http}/api/sessions/{gone}") as answer,
        ):
            deleted = answer.status
        worse = [line for line in bridge.log() if line["level"] in ("warning", "error")]
    found, report, _ = await command(
        "doctor", data=data, WHISPER_BINARY_PATH=speaks, WHISPER_ENABLED="false",
        SIP_HOST="127.0.0.1", HTTP_PORT="0", PORTS="0",
    )  # fmt: skip
    async with (
        running_bridge(data, WHISPER_BINARY_PATH=speaks) as bridge,
        listening(bridge, "?since=0") as events,
    ):
        (final,) = await finals(bridge, events)

    assert (status, json.loads(ready)["degraded"]) == (200, False)
    assert "recogniser" not in json.loads(ready)["facts"]
    assert (backlog["jobs"], backlog["vendors"][0]["state"]) == (0, "off")
    assert deleted == 204
    assert not worse
    assert (found, "WHISPER_ENABLED=false" in report) == (0, True), report
    assert final["subject"] == left
