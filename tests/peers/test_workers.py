"""kill -9 of one media worker of two while both receive a call."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from harness.bridge import Bridge, eventually, listening, of_type, running_bridge
from harness.calls import finals
from harness.media import spooled
from harness.recognisers import recogniser
from harness.rtp import tone
from siprec_bridge.caller import CallPlan, Leg, parse_target, place_call
from siprec_bridge.rtp import encode_g711

SECONDS = 5.0
VOICES = (tone(440, SECONDS), tone(1000, SECONDS))
LEGS = [
    Leg("Alice", "sip:alice@example.com", VOICES[0]),
    Leg("Bob", "sip:bob@example.com", VOICES[1]),
]


def workers(bridge: Bridge) -> list[int]:
    """Process ids of a bridge's media workers."""
    pid = bridge.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"siprec_bridge.receiver.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def payloads(spool: Path) -> bytes:
    """What was said, as it came."""
    return b"".join(packet[12:] for packet in spooled(spool))


async def test_the_other_call_is_whole_and_the_one_that_was_hit_goes_on_and_says_so(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        running_bridge(data, WHISPER_BINARY_PATH=speaks, MEDIA_WORKERS="2") as bridge,
        listening(bridge) as events,
    ):
        host, port = bridge.udp
        plan = CallPlan(parse_target(f"{host}:{port}"), LEGS)
        calls = asyncio.gather(place_call(plan), place_call(plan))

        def heard() -> bool:
            spools = list(data.glob("recordings/*/*.spool"))
            return len(spools) == 4 and all(one.stat().st_size > 15_000 for one in spools)

        await eventually(heard, "audio of both calls", bridge)
        before = workers(bridge)
        os.kill(before[0], signal.SIGKILL)
        reports = await calls
        await finals(bridge, events, 2)
        after = workers(bridge)
        _, text = await bridge.get("/api/sessions")
        hit_id = (await bridge.wait_for_log("stream.interrupted"))["session_id"]
        _, metrics = await bridge.get("/metrics")
        ready, _ = await bridge.get("/health/ready")

    assert len(before) == len(after) == 2
    assert set(before) & set(after) == {before[1]}
    assert all(report.ok for report in reports)
    (hit,) = [one for one in json.loads(text)["sessions"] if one["id"] == hit_id]
    (other,) = [one for one in json.loads(text)["sessions"] if one["id"] != hit_id]
    assert not [one for one in other["warnings"] if "worker" in one]
    died = [one for one in hit["warnings"] if one.startswith("media worker died; audio of ")]
    assert len(died) == 2
    for kind in ("session.updated", "session.ended"):
        (event,) = [e for e in of_type(events, kind) if e["subject"] == hit_id]
        assert set(died) <= set(event["data"]["warnings"])
    for index, voice in enumerate(VOICES):
        whole = encode_g711("PCMU", voice)
        assert payloads(data / f"recordings/{other['id']}/{other['id']}-{index}.spool") == whole
        kept = payloads(data / f"recordings/{hit_id}/{hit_id}-{index}.spool")
        assert 0.3 * len(whole) < len(kept) < len(whole)
        assert kept[:8000] == whole[:8000]  # what there was
        assert kept[-8000:] == whole[-8000:]  # and on the same port it went on
    assert "siprec_media_worker_restarts_total 1.0" in metrics
    assert "siprec_media_workers_alive 2.0" in metrics
    assert ready == 200


@pytest.mark.parametrize(("wanted", "there"), [("1", 1), ("3", 2)])
async def test_as_many_workers_as_are_wanted_and_have_ports(
    tmp_path: Path, wanted: str, there: int
) -> None:
    ports = {"RTP_PORT_MIN": "29900", "RTP_PORT_MAX": "29907"}
    async with running_bridge(tmp_path / "data", MEDIA_WORKERS=wanted, **ports) as bridge:
        assert len(workers(bridge)) == there
        assert len(bridge.logged("media.fewer_workers")) == (there < int(wanted))
