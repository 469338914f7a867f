"""Calls while a real, small disk fills up: that of the recordings, and that of the database."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.bridge import Bridge, eventually, listening, of_type, running_bridge, start_bridge
from harness.calls import finals, tones
from harness.disk import fill, small_disk
from harness.recognisers import recogniser
from harness.rtp import loudest_frequency, read_wav
from siprec_bridge.caller import CallPlan, CallReport, parse_target, place_call

pytestmark = [pytest.mark.peer, pytest.mark.slow]  # half a minute each


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 8 MB."""
    with small_disk(tmp_path / "disk") as folder:
        yield folder


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
        calling = talk(bridge, 5.0)
        await bridge.wait_for_log("stream.started", 2)
        others = fill(disk)
        await bridge.wait_for_log("stream.not_written", 2)
        refused = await talk(bridge, 0.1)
        others.unlink()
        first = await calling
        await bridge.wait_for_log("session.archived")

        # It does not, until after the call: neither its end nor its files have any room.
        calling = talk(bridge, 4.0)
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
    assert heard(disk, whole) == [(440, 5.0), (1000, 5.5)]
    assert whole["assurance"]["verdict"] == "complete"
    assert len(written_again) >= 2
    for (pitch, seconds), wanted in zip(heard(disk, cut), (440, 1000), strict=True):
        assert pitch == wanted
        assert 0 < seconds < 4.0
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
        calling = talk(bridge, 4.0)
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
    assert heard(elsewhere, session) == [(440, 4.0), (1000, 4.5)]
    assert (session["state"], session["end_cause"]) == ("finished", "bye")
    assert len(final["data"]["utterances"]) == 2


async def begin_and_kill(data: Path, recordings: Path, **environment: str) -> None:
    """A call, and kill -9 once a second and a bit of it is on disk."""
    bridge = await start_bridge(data, **environment)
    calling = talk(bridge, 30.0)

    def long_enough() -> bool:
        spools = [one.stat().st_size for one in recordings.glob("*/*.spool")]
        return len(spools) == 2 and min(spools) > 1.1 * 8000 * 1.25  # headers of RTP and records

    await eventually(long_enough, "audio", bridge)
    await bridge.kill()
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)


async def test_a_bridge_that_was_killed_finishes_a_call_when_the_disk_has_room_again(
    tmp_path: Path, disk: Path
) -> None:
    place = {"RECORDING_DIR": str(disk), "WHISPER_BINARY_PATH": str(recogniser(tmp_path, "speaks"))}
    await begin_and_kill(tmp_path / "data", disk, **place)
    others = fill(disk)
    async with (
        running_bridge(tmp_path / "data", **place) as bridge,
        listening(bridge, "?since=0") as events,
    ):
        told = [await bridge.wait_for_log("session.not_archived", count) for count in (1, 2)]
        kept = {one: one.read_bytes() for one in disk.glob("*/*.spool")}
        (waiting,) = await sessions(bridge)
        left = {one.name for one in disk.glob("*/*") if one.suffix != ".spool"}
        fill(disk, leave=60_000)  # enough for one leg, not for both
        await bridge.wait_for_log("session.not_archived", 3)
        (waiting_still,) = await sessions(bridge)
        others.unlink()
        await finals(bridge, events)
        (after,) = await sessions(bridge)

    assert ["No space left on device" in str(one["cause"]) for one in told] == [True, True]
    assert (waiting["state"], waiting_still["state"]) == ("finishing", "finishing")
    assert not {name for name in left if not name.startswith(".")}
    assert len(kept) == 2
    assert {one: one.read_bytes() for one in disk.glob("*/*.spool")} == kept
    assert [after["state"], after["end_cause"]] == ["finished", "bridge_restarted"]
    assert [one["code"] for one in after["assurance"]["findings"]] == ["bridge_restarted"]
    for (pitch, seconds), wanted in zip(heard(disk, after), (440, 1000), strict=True):
        assert pitch == wanted
        assert seconds > 1.0
    assert len(of_type(events, "session.ended")) == 1


async def test_a_bridge_that_was_killed_finishes_a_call_when_the_database_has_room_again(
    tmp_path: Path, disk: Path
) -> None:
    elsewhere = tmp_path / "recordings"
    place = {"DATA_DIR": str(disk), "RECORDING_DIR": str(elsewhere)}
    await begin_and_kill(tmp_path / "data", elsewhere, **place)
    others = fill(disk)
    async with running_bridge(tmp_path / "data", **place) as bridge:
        told = await bridge.wait_for_log("session.not_archived", 2)
        refused = await talk(bridge, 0.1)
        ready, health = await bridge.get("/health/ready")
        (waiting,) = await sessions(bridge)
        others.unlink()
        await bridge.wait_for_log("session.archived")
        (after,) = await sessions(bridge)

    assert told["cause"] == "database or disk is full"
    assert refused.status == 503
    assert (ready, "database or disk is full" in health) == (503, True)
    assert (waiting["state"], after["state"]) == ("recording", "finished")
    assert [seconds > 1.0 for _, seconds in heard(elsewhere, after)] == [True, True]


async def test_a_bridge_starts_on_a_full_disk_and_its_retention_makes_room_for_calls(
    tmp_path: Path,
) -> None:
    silent = str(recogniser(tmp_path, "is_silent"))
    with small_disk(tmp_path / "disk", "200m") as disk:
        place = {"DATA_DIR": str(disk), "WHISPER_BINARY_PATH": silent}
        async with (
            running_bridge(tmp_path / "data", **place) as bridge,
            listening(bridge) as events,
        ):
            await talk(bridge, 0.5, rate=20.0)
            await finals(bridge, events)
        (folder,) = (one for one in (disk / "recordings").iterdir() if one.is_dir())
        (folder / "long.wav").write_bytes(bytes(40_000_000))
        fill(disk)
        keep = {"KEEP_AUDIO_SIZE": "1MB", "MIN_FREE_DISK": "20MB"}
        async with running_bridge(tmp_path / "data", **place, **keep) as bridge:
            refused = await talk(bridge, 0.1)
            status, metrics = await bridge.get("/metrics")
            await bridge.wait_for_log("retention.audio_deleted")
            async with asyncio.timeout(30):
                while not (report := await talk(bridge, 0.5, rate=20.0)).ok:  # noqa: ASYNC110
                    await asyncio.sleep(1)
            await bridge.wait_for_log("session.archived")
            told = bridge.logged("database.disk_full")

    assert [one["level"] for one in told] == ["error"]
    assert (refused.status, refused.reason) == (503, "Service Unavailable")
    assert (status, "siprec_spool_disk_free_bytes" in metrics) == (200, True)
    assert report.bye_status == 200
