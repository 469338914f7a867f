"""kill -9 at the worst moments: nothing is lost, and nothing is delivered as something new."""

import asyncio
import json
from pathlib import Path

import pytest

from harness.bridge import eventually, listening, of_type, running_bridge, start_bridge
from harness.calls import call, finals, tones
from harness.recognisers import calls, is_alive, recogniser
from harness.rtp import loudest_frequency, read_wav, tone
from siprec_bridge.caller import CallError, CallPlan, Leg, parse_target, place_call


async def test_in_mid_call_what_was_said_until_then_is_transcribed_after_a_restart(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    speaks = str(recogniser(tmp_path, "speaks"))
    legs = [
        Leg("Alice", "sip:alice@example.com", tone(440, 30.0)),
        Leg("Bob", "sip:bob@example.com", tone(1000, 30.0)),
    ]
    bridge = await start_bridge(data, WHISPER_BINARY_PATH=speaks)
    host, port = bridge.udp
    talking = asyncio.create_task(
        place_call(CallPlan(parse_target(f"{host}:{port}"), legs, rate=1.0))
    )
    (folder,) = [path.parent for path in await spools(data, 2, 12_000)]

    await bridge.kill()
    talking.cancel()
    with pytest.raises((asyncio.CancelledError, CallError)):
        await talking
    async with (
        running_bridge(data, WHISPER_BINARY_PATH=speaks) as again,
        listening(again, "?since=0") as events,
    ):
        (final,) = await finals(again, events)
        _, text = await again.get("/api/sessions")

    (ended,) = of_type(events, "session.ended")
    assert ended["data"]["cause"] == "bridge_restarted"
    assert {one["participant"]["name"] for one in final["data"]["utterances"]} == {"Alice", "Bob"}
    for leg, frequency in zip(final["data"]["legs"], (440, 1000), strict=True):
        rate, pcm = read_wav(folder / leg["audio"])
        assert len(pcm) / rate >= 1.0
        assert loudest_frequency(pcm, rate) == pytest.approx(frequency, abs=5)
    (session,) = json.loads(text)["sessions"]
    assert session["state"] == "finished"
    assert session["assurance"] == final["data"]["assurance"]
    assert session["assurance"]["verdict"] == "incomplete"
    assert [one["code"] for one in session["assurance"]["findings"]] == ["bridge_restarted"]


async def spools(data: Path, count: int, size: int) -> set[Path]:
    """One spool of a session, once `count` of them hold `size` octets each."""

    def grown() -> list[Path]:
        return [one for one in data.glob("recordings/*/*.spool") if one.stat().st_size > size]

    await eventually(lambda: len(grown()) == count, "audio on disk")
    return {grown()[0]}


async def test_in_mid_transcription_the_job_is_run_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    hangs = recogniser(tmp_path, "hangs")
    bridge = await start_bridge(data, WHISPER_BINARY_PATH=str(hangs))
    await call(bridge)
    await eventually(lambda: bool(calls(hangs)), "a run", bridge)

    await bridge.kill()
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        running_bridge(data, WHISPER_BINARY_PATH=speaks) as again,
        listening(again, "?since=0") as events,
    ):
        await finals(again, events)
        # Nothing of the dead bridge's run may stay: it would hold its GPU for ever.
        orphan = int(str(calls(hangs)[0]["pid"]))
        await eventually(lambda: not is_alive(orphan), "the end of the dead bridge's run", again)

    assert len(of_type(events, "transcript.final")) == 1
    assert list((data / "tmp").glob("whisper-*")) == []


async def test_between_transcript_and_publish_each_event_still_arrives_with_one_id(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    speaks = str(recogniser(tmp_path, "speaks"))
    bridge = await start_bridge(data, WHISPER_BINARY_PATH=speaks)
    async with listening(bridge) as before:
        await call(bridge, legs=tones(0.5))
        await finals(bridge, before)
    await bridge.kill()

    async with (
        running_bridge(data, WHISPER_BINARY_PATH=speaks) as again,
        listening(again, "?since=0") as after,
    ):
        await finals(again, after)

    assert after == before
    assert len({one["id"] for one in after}) == len(after)
