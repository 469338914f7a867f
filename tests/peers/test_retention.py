"""Holding and deleting a real call over HTTP and by command."""

import json
from pathlib import Path

import aiohttp

from harness.bridge import command, eventually, listening, running_bridge
from harness.calls import call, finals
from harness.recognisers import recogniser


async def test_a_held_call_cannot_be_deleted_and_a_released_one_leaves_nothing(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        running_bridge(data, WHISPER_BINARY_PATH=speaks) as bridge,
        listening(bridge) as events,
        aiohttp.ClientSession() as http,
    ):
        await call(bridge)
        (final,) = await finals(bridge, events)
        id = str(final["subject"])
        url = f"{bridge.http}/api/sessions/{id}"
        async with http.put(f"{url}/hold", json={"by": "court", "reason": "4711"}) as answer:
            held = (await answer.json())["held"]
        async with http.delete(url) as answer:
            refused = answer.status, (await answer.json())["error"]
        by_command = await command("sessions", "delete", id, data=data)
        released = await command("sessions", "release", id, data=data)
        shown = json.loads((await bridge.get(f"/api/sessions/{id}"))[1])
        async with http.delete(url) as answer:
            deleted = answer.status
        async with http.delete(url) as answer:
            again = answer.status
        gone = await bridge.get(f"/api/sessions/{id}")

    assert (held["by"], held["reason"]) == ("court", "4711")
    assert refused == (409, "the session is under hold")
    assert (by_command[0], "under hold" in by_command[2]) == (1, True)
    assert (released[0], shown["held"]) == (0, None)
    assert (deleted, again, gone[0]) == (204, 404, 404)
    assert list((data / "recordings").iterdir()) == []


async def test_a_bridge_deletes_old_audio_by_itself_and_says_so(tmp_path: Path) -> None:
    data = tmp_path / "data"
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        running_bridge(data, WHISPER_BINARY_PATH=speaks) as bridge,
        listening(bridge) as events,
    ):
        await call(bridge)
        (final,) = await finals(bridge, events)
    id = str(final["subject"])
    async with running_bridge(data, WHISPER_BINARY_PATH=speaks, KEEP_AUDIO="1ms") as bridge:
        await eventually(
            lambda: bool(bridge.logged("retention.audio_deleted")), "deleted audio", bridge
        )
        leg = final["data"]["legs"][0]["audio"]
        audio = await bridge.get(f"/api/sessions/{id}/audio/{leg}")
        text = await bridge.get(f"/api/sessions/{id}/transcript?format=text")

    assert audio[0] == 410
    assert "hello there" in text[1]
    assert list((data / "recordings").iterdir()) == []
