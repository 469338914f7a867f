"""What of a leg is there, which legs are one, and where they lie: from spool to finished audio."""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from harness.rtp import Pcm, packets, read_wav, tone
from siprec_bridge.media import Covered, FinishedAudio, finish, finish_session
from siprec_bridge.receiver.spool import RTP, SpoolHeader, SpoolWriter, _record
from siprec_bridge.rtp import build_packet
from siprec_bridge.sdp import Codec

SECOND = 1_000_000_000
CODECS = (Codec(0, "PCMU", 8000), Codec(8, "PCMA", 8000), Codec(13, "CN", 8000))
START = 1_700_000_000.0


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(START + seconds, UTC)


def spool(
    folder: Path,
    datagrams: Sequence[bytes],
    index: int = 0,
    *,
    arrival: Callable[[int], float] = lambda number: 0.02 * number,
    reports: Sequence[tuple[float, bytes]] = (),
) -> None:
    """Packets by their number, arriving so many seconds after START; empty ones are lost."""
    header = SpoolHeader(f"s-{index}", "s", index, str(index + 1), CODECS, round(START * SECOND))
    writer = SpoolWriter(folder / f"s-{index}.spool", header)
    for number, one in enumerate(datagrams):
        if one:
            writer.write([_record(RTP, round((START + arrival(number)) * SECOND), one)])
    for when, report in reports:
        writer.rtcp(round((START + when) * SECOND), report)
    writer.close()


def finished(folder: Path, *stretches: tuple[float, float]) -> FinishedAudio:
    expected = [(at(since), at(until)) for since, until in stretches]
    return finish_session(folder, "s", 8000, expected=dict.fromkeys(range(4), expected))


def covered(folder: Path, *stretches: tuple[float, float]) -> Covered:
    (leg,) = finished(folder, *stretches).legs
    assert leg.covered is not None
    return leg.covered


def speech(seconds: float, seed: int) -> Pcm:
    """Noise in words of half a second, with pauses."""
    random = np.random.default_rng(seed)
    size = round(seconds * 8000)
    words = np.repeat(random.integers(0, 2, size // 4000 + 1), 4000)[:size]
    return (random.normal(0, 3000, size) * words).astype(np.int16)


def test_what_arrived_as_sent_is_captured_and_silence_is_told_from_sound(tmp_path: Path) -> None:
    spool(tmp_path, packets(np.concatenate((tone(440, 3.0), np.zeros(8000, np.int16)))))

    here = covered(tmp_path, (0.0, 4.0))

    assert (here.expected, here.captured, here.gaps) == (4.0, 4.0, 0)
    assert (here.late, here.early, here.left_out) == (0.0, 0.0, 0.0)
    assert (here.received, here.sound) == pytest.approx((4.0, 3.0), abs=0.02)


def test_lost_packets_are_gaps_with_places_in_the_loss_map(tmp_path: Path) -> None:
    sent = packets(tone(440, 4.0))
    sent[50] = b""
    sent[100:125] = [b""] * 25
    sent[60], sent[61] = sent[61], sent[60]
    spool(tmp_path, sent)

    here = covered(tmp_path, (0.0, 4.0))
    missing = json.loads((tmp_path / "s-0.loss.json").read_text())["missing"]

    assert (here.captured, here.gaps, here.longest_gap) == pytest.approx((3.48, 2, 0.5))
    assert missing == [[1.0, 0.02], [2.0, 0.5]]


def test_what_comes_late_and_ends_early_is_measured_against_what_was_expected(
    tmp_path: Path,
) -> None:
    spool(tmp_path, packets(tone(440, 4.0)), arrival=lambda number: 3.0 + 0.02 * number)

    here = covered(tmp_path, (0.0, 10.0))

    assert (here.late, here.early, here.captured) == (3.0, 3.0, 4.0)
    assert (here.gaps, here.longest_gap) == (0, 0.0)


def test_time_on_hold_is_not_expected(tmp_path: Path) -> None:
    sent = packets(tone(440, 2.0)) + packets(
        tone(440, 2.0), first_sequence=900, first_timestamp=1000 + 8000 * 10
    )
    spool(tmp_path, sent, arrival=lambda number: 0.02 * number + 8.0 * (number >= 100))

    with_hold = covered(tmp_path, (0.0, 2.0), (9.9, 12.0))
    (tmp_path / "s.audio.json").unlink()
    without = covered(tmp_path, (0.0, 12.0))

    assert (with_hold.captured, with_hold.gaps) == pytest.approx((4.0, 0))
    assert with_hold.expected == pytest.approx(4.1)
    assert (without.captured, without.longest_gap) == pytest.approx((4.0, 8.0))


@pytest.mark.parametrize("noise", [False, True])
def test_silence_that_a_sender_leaves_out_is_no_gap(tmp_path: Path, noise: bool) -> None:
    sent = packets(tone(440, 1.0))
    if noise:
        sent.append(build_packet(13, 150, 1000 + 8000, 0x1234, b"\x40"))
    sent += packets(tone(440, 1.0), first_sequence=150 + noise, first_timestamp=1000 + 8000 * 6)
    spool(tmp_path, sent, arrival=lambda number: 0.02 * number + 5.0 * (number >= 50 + noise))

    here = covered(tmp_path, (0.0, 7.0))

    assert (here.captured, here.gaps) == (7.0, 0)
    assert (here.left_out, here.received) == (5.0, 2.0)


def test_a_sequence_number_that_is_gone_makes_it_one(tmp_path: Path) -> None:
    sent = packets(tone(440, 1.0)) + packets(
        tone(440, 1.0), first_sequence=152, first_timestamp=1000 + 8000 * 6
    )
    spool(tmp_path, sent, arrival=lambda number: 0.02 * number + 5.0 * (number >= 50))

    here = covered(tmp_path, (0.0, 7.0))

    assert (here.captured, here.gaps, here.longest_gap) == (2.0, 1, 5.0)


@pytest.mark.parametrize("other_codec", ["PCMU", "PCMA"])
def test_legs_with_the_same_audio_are_found_however_they_arrive(
    tmp_path: Path, other_codec: str
) -> None:
    voice = speech(12.0, 1)
    spool(tmp_path, packets(voice))
    spool(
        tmp_path,
        packets(voice, codec=other_codec, ssrc=7, first_timestamp=77),
        1,
        arrival=lambda number: 0.13 + 0.02 * number,
    )

    assert finished(tmp_path, (0.0, 12.0)).identical == (("1", "2"),)


@pytest.mark.parametrize(
    "other",
    [
        speech(12.0, 2),
        tone(440, 12.0),
        np.zeros(96_000, np.int16),
        # The same turns, but said by somebody else.
        (np.sign(speech(12.0, 1)) * np.abs(np.random.default_rng(5).normal(0, 3000, 96_000))
         * np.random.default_rng(6).choice((-1, 1), 96_000)).astype(np.int16),
        (speech(12.0, 1) // 10 + speech(12.0, 3)).astype(np.int16),  # an echo beneath
    ],
    ids=["another", "tone", "silence", "same turns", "echo"],
)  # fmt: skip
def test_two_parties_are_not_taken_for_one(tmp_path: Path, other: Pcm) -> None:
    spool(tmp_path, packets(speech(12.0, 1)))
    spool(tmp_path, packets(other, ssrc=7), 1)

    assert finished(tmp_path, (0.0, 12.0)).identical == ()


def test_a_clock_that_was_set_by_years_costs_neither_memory_nor_the_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish, "_LONGEST_LINE_S", 60)
    voice = speech(6.0, 1)
    spool(tmp_path, packets(voice))
    spool(tmp_path, packets(voice), 1, arrival=lambda number: 1e9 + 0.02 * number)

    audio = finished(tmp_path, (-1.6e9, 1.6e9))

    assert audio.identical == ()
    for leg in audio.legs:
        assert leg.covered is not None
        assert leg.covered.expected == 3.2e9
        assert leg.covered.captured <= 6.0


def report(seconds: float, timestamp: int, ssrc: int, ahead: float = 500.0) -> bytes:
    """A sender report of a clock that is so far ahead of ours."""
    ntp = round((START + seconds + ahead + 2_208_988_800) * 2**32) % 2**64
    return struct.pack("!BBHIQIII", 0x80, 200, 6, ssrc, ntp, timestamp % 2**32, 0, 0)


def test_sender_reports_place_the_legs_whatever_the_network_did(tmp_path: Path) -> None:
    click = np.zeros(48_000, np.int16)
    click[40_000:40_080] = 20_000
    late = [(second + 0.05, report(second, 1000 + 8000 * second, 1)) for second in (0, 5)]
    spool(tmp_path, packets(click, ssrc=1), reports=late)
    # This one began to send at the same time, but all of it comes 300 ms later than it should.
    spool(
        tmp_path,
        packets(click, ssrc=2, first_timestamp=500),
        1,
        arrival=lambda number: 0.3 + 0.02 * number,
        reports=[(second + 0.07, report(second, 500 + 8000 * second, 2)) for second in (0, 5)],
    )

    audio = finished(tmp_path, (0.0, 6.0))

    assert audio.stereo is not None
    rate, both = read_wav(tmp_path / audio.stereo)
    left, right = (int(np.abs(both[:, channel]).argmax()) for channel in (0, 1))
    assert abs(left - right) / rate < 0.001
    assert [leg.placed_by for leg in audio.legs] == ["sender_reports"] * 2
    for leg in audio.legs:
        assert (leg.started_at - at(0.05)).total_seconds() == pytest.approx(0, abs=0.001)


@pytest.mark.parametrize(
    ("ahead", "faults"),
    [
        (None, ["other_leg", "no_reports"]),
        (900.0, ["other_clock", "other_clock"]),
        (-START - 2_208_988_800, ["other_leg", "no_time"]),
    ],
)
def test_reports_that_do_not_hold_for_both_legs_leave_it_to_the_arrivals(
    tmp_path: Path, ahead: float | None, faults: list[str]
) -> None:
    spool(tmp_path, packets(tone(440, 1.0), ssrc=1), reports=[(0.05, report(0, 1000, 1))])
    other = [] if ahead is None else [(0.05, report(0, 1000, 2, ahead))]
    spool(tmp_path, packets(tone(440, 1.0), ssrc=2), 1, reports=other)

    audio = finished(tmp_path, (0.0, 1.0))

    assert [leg.clock_fault for leg in audio.legs] == faults
    assert [leg.placed_by for leg in audio.legs] == ["arrival"] * 2
    assert [leg.started_at for leg in audio.legs] == [at(0.0)] * 2


def test_reports_that_are_seconds_off_the_packets_are_not_believed(tmp_path: Path) -> None:
    spool(tmp_path, packets(tone(440, 1.0)), reports=[(0.5, report(0.5, 1000 + 8000 * 9, 0x1234))])

    (leg,) = finished(tmp_path, (0.0, 1.0)).legs

    assert (leg.placed_by, leg.clock_fault, leg.started_at) == ("arrival", "jumps", at(0.0))


def test_a_leg_whose_clock_is_corrected_has_no_hole_between_its_packets(tmp_path: Path) -> None:
    """A clock that is 400 ppm slow leaves room for a sample every 0.3 s."""
    voice = tone(440, 40.0)
    slow = 1 - 400e-6
    reports = [
        (second + 0.05, report(second, 1000 + round(8000 * second * slow), 0x1234))
        for second in range(0, 41, 5)
    ]
    spool(tmp_path, packets(voice), arrival=lambda n: 0.02 * n / slow, reports=reports)

    (leg,) = finished(tmp_path, (0.0, 40.0)).legs

    _, heard = read_wav(tmp_path / leg.file)
    assert leg.drift_ppm == pytest.approx(-400, abs=2)
    assert len(heard) == pytest.approx(320_000 / slow, abs=10)
    # A zero among the samples would be a step of up to 16000; the tone's own are below 5600.
    assert int(np.abs(np.diff(heard.astype(np.int32))).max()) < 7000


def test_packets_without_payload_that_keep_a_way_open_are_no_audio(tmp_path: Path) -> None:
    sent = packets(tone(440, 1.0))
    open_still = [build_packet(0, 150 + number, 1000 + 8000, 0x1234, b"") for number in range(3)]
    spool(tmp_path, [*sent, *open_still])

    (leg,) = finished(tmp_path, (0.0, 1.0)).legs

    assert (leg.packets, leg.foreign, leg.undecoded, leg.duration) == (50, 0, 0, 1.0)


def test_finishing_leaves_no_file_open(tmp_path: Path) -> None:
    spool(tmp_path, packets(tone(440, 1.0)))
    before = sorted(os.listdir("/proc/self/fd"))

    finished(tmp_path, (0.0, 1.0))

    assert sorted(os.listdir("/proc/self/fd")) == before


def test_each_file_is_in_the_manifest_with_its_checksum(tmp_path: Path) -> None:
    spool(tmp_path, packets(tone(440, 1.0)))
    spool(tmp_path, packets(tone(880, 1.0)), 1)

    audio = finished(tmp_path, (0.0, 1.0))

    assert [one.name for one in audio.files] == ["s-0.wav", "s-1.wav", "s-stereo.wav"]
    for one in audio.files:
        data = (tmp_path / one.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (one.size, one.sha256)
