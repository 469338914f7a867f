"""Streams whose packets are brought with their times."""

import resource
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.rtp import loudest_frequency, packets, read_wav, tone
from siprec_bridge.media import OfflineMedia, StreamSpec, finish_session
from siprec_bridge.sdp import STATIC, Codec

START_NS = 1_800_000_000_000_000_000
PACKET_NS = 20_000_000


def _spec(folder: Path) -> StreamSpec:
    return StreamSpec("s-0", "s", 0, "96", (Codec(0, "PCMU", 8000),), folder, "127.0.0.1")


async def test_what_is_brought_is_spooled_at_its_own_time(tmp_path: Path) -> None:
    media = OfflineMedia(lambda: START_NS)
    await media.open(_spec(tmp_path))

    for number, packet in enumerate(packets(tone(440, 8))):
        assert media.receive("s-0", packet, START_NS + number * PACKET_NS)
    (report,) = await media.close(["s-0"])

    audio = finish_session(tmp_path, "s", 8000)
    rate, pcm = read_wav(tmp_path / audio.legs[0].file)
    assert (report.packets, report.lost) == (400, 0)
    assert report.first_packet_at == datetime.fromtimestamp(START_NS / 1e9, UTC)
    assert audio.legs[0].started_at == report.first_packet_at
    assert abs(loudest_frequency(pcm, rate) - 440) < 2
    assert audio.duration == 8


async def test_nothing_of_a_paused_stream_is_kept_and_what_is_no_rtp_is_counted(
    tmp_path: Path,
) -> None:
    media = OfflineMedia(lambda: START_NS)
    await media.open(_spec(tmp_path))
    sent = packets(tone(440, 1))

    media.receive("s-0", b"no packet", START_NS)
    media.receive("s-0", sent[0], START_NS)
    await media.pause("s-0", True, datetime.fromtimestamp(START_NS / 1e9, UTC))
    media.receive("s-0", sent[1], START_NS + PACKET_NS)
    await media.pause("s-0", False, datetime.fromtimestamp(START_NS / 1e9 + 1, UTC))
    media.receive("s-0", sent[2], START_NS + 2 * PACKET_NS)
    (report,) = await media.close(["s-0", "unknown"])

    assert (report.packets, report.malformed) == (2, 1)
    assert not media.receive("s-0", sent[3], START_NS)
    assert media.reports["s-0"] == [report]


async def test_a_full_disk_is_told(tmp_path: Path) -> None:
    media = OfflineMedia(lambda: START_NS)
    await media.open(_spec(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "s-0.spool").stat().st_size, limits[1]))
    try:
        media.receive("s-0", packets(tone(440, 1))[0], START_NS)
        await media.close(["s-0"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert media.trouble == "File too large"


@pytest.mark.parametrize(("first", "then"), [("PCMU", "PCMA"), ("OPUS", "PCMU")])
async def test_jitter_is_told_by_the_clock_of_the_codec_that_is_sent(
    tmp_path: Path, first: str, then: str
) -> None:
    """Of several that were answered: the first one's clock may be another."""
    known = {"OPUS": Codec(111, "OPUS", 48000, 2), **{one.name: one for one in STATIC.values()}}
    codecs = (known[first], *(one for one in known.values() if one.name != first))
    media = OfflineMedia(lambda: START_NS)
    await media.open(replace(_spec(tmp_path), codecs=codecs))
    late_ns = [0, 4_000_000]  # every second packet

    for number, packet in enumerate(packets(tone(440, 20), codec=then)):
        media.receive("s-0", packet, START_NS + number * PACKET_NS + late_ns[number % 2])
    (report,) = await media.close(["s-0"])

    assert report.codec == then
    assert report.jitter_ms == pytest.approx(4.0, abs=0.15)
