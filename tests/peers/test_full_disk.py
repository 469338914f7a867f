"""Calls while a real, small disk fills up: that of the recordings, and that of the database."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.bridge import Bridge, listening, running_bridge
from harness.calls import finals, tones
from harness.recognisers import recogniser
from harness.rtp import loudest_frequency, read_wav
from siprec_bridge.caller import CallPlan, CallReport, parse_target, place_call

pytestmark = [pytest.mark.peer, pytest.mark.slow]  # half a minute each


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that is left, for others' things."""
    others = disk / "others"
    with others.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    return others


def talk(bridge: Bridge, seconds: float, rate: float = 1.0) -> "asyncio.Task[CallReport]":
    host, port = bridge.udp
    return asyncio.create_task(
        place_call(CallPlan(parse_target(f"{host}:{port}"), tones(seconds), rate=rate))
    )


async def sessions(bridge: Bridge) -> list[dict[str, Any]]:
    """What the API says of all sessions, the first one first."""
    _, listed = await bridge.get("/api/sessions")
    found = [one["id"] for one in json.loads(listed)["sessions"]]
    details = [json.loads((await bridge.get(f"/api/sessions/{one}"))[1]) for one in found]
    return sorted(details, key=lambda one: str(one["started_at"]))


def heard(folder: Path, session: dict[str, Any]) -> list[tuple[float, float]]:
    """Pitch and seconds of each leg."""
    legs = []
    for leg in session["audio"]["legs"]:
        rate, pcm = read_wav(next(folder.rglob(leg["file"])))
        legs.append((round(loudest_frequency(pcm[: rate // 2], rate), -1), len(pcm) / rate))
    return legs


async def test_recordings_on_a_full_disk_keep_what_there_was_room_for_and_say_so(
    tmp_path: Path, disk: Path
) -> None:
    async with running_bridge(tmp_path / "data", RECORDING_DIR=str(disk)) as bridge:
        # Room comes back in mid-call: what had to wait is written then.
        calling = talk(bridge, 2.0)
        await bridge.wait_for_log("stream.started", 2)
        others = fill(disk)
        await bridge.wait_for_log("stream.not_written", 2)
        refused = await talk(bridge, 0.1)
        others.unlink()
        first = await calling
        await bridge.wait_for_log("session.archived")

        # It does not, until after the call: neither its end nor its files have any room.
        calling = talk(bridge, 1.0)
        await bridge.wait_for_log("stream.started", 4)
        others = fill(disk)
        second = await calling
        await bridge.wait_for_log("session.not_archived")
        others.unlink()
        await bridge.wait_for_log("session.archived", 2)
        third = await talk(bridge, 0.5, rate=20.0)
        await bridge.wait_for_log("session.archived", 3)
        whole, cut, after = await sessions(bridge)
        written_again = bridge.logged("stream.written_again")

    assert (first.status, first.bye_status, second.bye_status, third.ok) == (200, 200, 200, True)
    assert (refused.status, refused.reason) == (503, "Service Unavailable")
    assert heard(disk, whole) == [(440, 2.0), (1000, 2.5)]
    assert whole["assurance"]["verdict"] == "complete"
    assert len(written_again) >= 2
    for (pitch, seconds), wanted in zip(heard(disk, cut), (440, 1000), strict=True):
        assert pitch == wanted
        assert 0 < seconds < 1.5
    for session in (whole, cut):
        assert "audio may be missing: no space left" in " ".join(session["warnings"]).lower()
    assert after["warnings"] == []


async def test_a_database_on_a_full_disk_loses_nothing_of_a_running_call(
    tmp_path: Path, disk: Path
) -> None:
    elsewhere = tmp_path / "recordings"
    speaks = str(recogniser(tmp_path, "speaks"))
    async with (
        running_bridge(
            tmp_path / "data", DATA_DIR=str(disk), RECORDING_DIR=str(elsewhere),
            WHISPER_BINARY_PATH=speaks,
        ) as bridge,
        listening(bridge) as events,
    ):  # fmt: skip
        calling = talk(bridge, 1.0)
        await bridge.wait_for_log("stream.started", 2)
        others = fill(disk)
        refused = await talk(bridge, 0.1)
        report = await calling
        await bridge.wait_for_log("session.not_archived")
        others.unlink()
        (final,) = await finals(bridge, events)
        again = await talk(bridge, 0.5, rate=20.0)
        await finals(bridge, events, 2)
        session, _ = await sessions(bridge)

    assert (report.status, report.bye_status, again.ok) == (200, 200, True)
    assert refused.status == 503
    assert heard(elsewhere, session) == [(440, 1.0), (1000, 1.5)]
    assert (session["state"], session["end_cause"]) == ("finished", "bye")
    assert len(final["data"]["utterances"]) == 2
