"""Pausing and muting over HTTP while a call is on."""

import asyncio
import json
import re
from datetime import datetime
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from harness.bridge import command, listening, of_type, running_bridge
from harness.calls import call, finals, tones
from harness.recognisers import recogniser
from harness.rtp import read_wav


def silence(pcm: np.ndarray, rate: int) -> float:
    """Seconds of the longest stretch of nothing but the resampler's dither."""
    edges = np.flatnonzero(np.concatenate(([True], np.abs(pcm.astype(int)) > 1, [True])))
    return float(np.diff(edges).max() - 1) / rate


def seconds(since: str, until: str) -> float:
    """Between two times of events."""
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()


async def test_what_is_said_while_paused_is_silence_of_the_same_length(tmp_path: Path) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    data = tmp_path / "data"
    async with (
        running_bridge(data, WHISPER_BINARY_PATH=speaks) as bridge,
        listening(bridge) as events,
    ):
        calling = asyncio.create_task(call(bridge, rate=1, legs=tones(3.0)))
        started = await bridge.wait_for_log("session.started")
        session = f"/api/sessions/{started['session_id']}"
        await asyncio.sleep(0.4)
        order = {"by": "agent 7", "reason": "card number"}
        paused = await bridge.post(f"{session}/pause", order)
        muted = await bridge.post(f"{session}/pause", {"label": "2"})
        await asyncio.sleep(0.6)  # the length that is measured below
        first = await bridge.post(f"{session}/resume", {})
        await asyncio.sleep(0.3)
        second = await bridge.post(f"{session}/resume", {"label": "2"})
        report = await calling
        (final,) = await finals(bridge, events)
        after = await bridge.post(f"{session}/pause", {})
        metrics = (await bridge.get("/metrics"))[1]
        shown = json.loads((await bridge.get(session))[1])
        told_by_command = (await command("sessions", "show", str(final["subject"]), data=data))[1]

    assert report.ok
    assert [json.loads(text)["paused"] for _, text in (paused, muted, first, second)] == [
        ["1", "2"], ["1", "2"], ["2"], [],
    ]  # fmt: skip
    assert (after[0], json.loads(after[1])) == (
        409, {"error": "the session is finished, not recording"},
    )  # fmt: skip
    folder = data / "recordings" / str(final["subject"])
    lengths = {}
    for leg in final["data"]["legs"]:
        rate, pcm = read_wav(folder / leg["audio"])
        lengths[leg["participants"][0]["name"]] = (len(pcm) / rate, silence(pcm, rate))
    assert lengths["Alice"][0] == pytest.approx(3.0, abs=0.02)
    assert lengths["Bob"][0] == pytest.approx(3.5, abs=0.02)
    begun = of_type(events, "session.paused")[0]["time"]
    ends = [event["time"] for event in of_type(events, "session.resumed")]
    assert lengths["Alice"][1] == pytest.approx(seconds(begun, ends[0]), abs=0.3)
    assert lengths["Bob"][1] == pytest.approx(seconds(begun, ends[1]), abs=0.3)
    told = [event["data"]["pauses"] for event in of_type(events, "session.paused")]
    assert [(one["label"], one["cause"], one["by"], one["reason"]) for one in told[0]] == [
        ("1", "operator", "agent 7", "card number"),
        ("2", "operator", "agent 7", "card number"),
    ]
    assert 'siprec_stream_pauses_total{cause="operator"} 2.0' in metrics
    resumed = of_type(events, "session.resumed")
    assert [event["data"]["labels"] for event in resumed] == [["1"], ["2"]]
    lines = [line for line in told_by_command.splitlines() if line.startswith("paused")]
    assert [re.sub(r"[0-9]{2}(:[0-9]{2}){2}", "T", line) for line in lines] == [
        "paused    T to T, streams 1, 2, by agent 7: card number",
        "paused    T to T, stream 2",
    ]
    first_pause, second_pause = shown["document"]["streams"][1]["pauses"]
    assert first_pause["until"] < second_pause["until"]


async def test_an_order_that_cannot_be_followed_says_why(tmp_path: Path) -> None:
    async with running_bridge(tmp_path / "data") as bridge:
        calling = asyncio.create_task(call(bridge, rate=1, legs=tones(1.0)))
        started = await bridge.wait_for_log("session.started")
        pause = f"/api/sessions/{started['session_id']}/pause"
        orders: list[object] = [
            {"label": "12"}, {"participant": "nobody"}, {"who": "me"}, [],
            {"label": "1", "participant": "x"},
        ]  # fmt: skip
        answers = [await bridge.post(pause, order) for order in orders]
        answers.append(await bridge.post("/api/sessions/none/pause", {}))
        answers.append(await bridge.post(pause.replace("pause", "resume"), {}))
        async with aiohttp.ClientSession() as http, http.post(bridge.http + pause) as plain:
            form = plain.status
        assert (await calling).ok

    assert [status for status, _ in answers] == [422, 422, 400, 400, 400, 404, 422]
    assert [json.loads(text)["error"] for _, text in answers] == [
        "no stream has the label 12",
        "no participant has the id nobody",
        "who: Extra inputs are not permitted",
        "body: Input should be an object",
        "a stream or a participant, not both",
        "there is no such session",
        "the session is not paused by order",
    ]
    assert form == 415
