"""From the packets of each codec to its WAV, against what FFmpeg makes of the same stream."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.codecs import Stream, noise, paced, speech_with_copies, spool, streams
from harness.rtp import Pcm, loudest_frequency, read_wav
from siprec_bridge.media import FinishedLeg, decodable, finish_session
from siprec_bridge.rtp import build_packet
from siprec_bridge.sdp import RECORDABLE, Codec

STREAMS = streams()
each = pytest.mark.parametrize("name", STREAMS)
anywhere = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
KEYS = Codec(101, "TELEPHONE-EVENT", 8000)
NOISE = Codec(13, "CN", 8000)


def finished(
    folder: Path, datagrams: list[tuple[float, bytes]], codecs: tuple[Codec, ...], rate: int
) -> tuple[FinishedLeg, Pcm]:
    for old in folder.glob("s*"):
        old.unlink()
    spool(folder, datagrams, codecs)
    (leg,) = finish_session(folder, "s", rate, "keep").legs
    return leg, read_wav(folder / leg.file)[1]


def same(one: Pcm, other: Pcm) -> bool:
    size = min(len(one), len(other))
    return len(one) == len(other) and bool(
        (np.abs(one[:size].astype(int) - other[:size]) <= 1).all()
    )


def test_this_build_has_every_decoder() -> None:
    assert decodable() == RECORDABLE


@each
def test_a_stream_sounds_as_ffmpeg_plays_it(tmp_path: Path, name: str) -> None:
    stream = STREAMS[name]

    leg, heard = finished(tmp_path, paced(stream), (stream.codec,), stream.rate)

    assert same(heard, stream.pcm)
    assert np.abs(heard.astype(int)).max() > 1000
    assert (leg.native_rate, leg.codecs) == (stream.rate, (stream.codec.name,))
    assert (leg.foreign, leg.undecoded, leg.discontinuities) == (0, 0, 0)


@each
def test_packets_out_of_order_and_sent_twice_change_nothing(tmp_path: Path, name: str) -> None:
    stream = STREAMS[name]
    sent = paced(stream)
    order = list(range(len(sent)))
    for at in range(10, len(order) - 10, 7):
        order[at], order[at + 3] = order[at + 3], order[at]
    mixed = [(sent[place][0], sent[number][1]) for place, number in enumerate(order)]
    mixed = sorted([*mixed, *((at + 0.03, data) for at, data in sent[5:40:5])])

    _, heard = finished(tmp_path, mixed, (stream.codec,), stream.rate)

    assert same(heard, stream.pcm)


@each
def test_lost_packets_leave_everything_else_in_its_place(tmp_path: Path, name: str) -> None:
    stream = STREAMS[name]
    size = len(stream.pcm) // len(stream.payloads)
    gone = [number for number in range(len(stream.payloads)) if 20 <= number < 30]
    kept = [one for number, one in enumerate(paced(stream)) if number not in gone]

    leg, heard = finished(tmp_path, kept, (stream.codec,), stream.rate)

    assert len(heard) == len(stream.pcm)
    assert same(heard[: 20 * size], stream.pcm[: 20 * size])
    assert leg.packets == len(kept)
    longest = round(0.1 * stream.rate)  # a codec fills so much of a gap itself
    assert not heard[20 * size + longest : 30 * size].any()
    assert heard[30 * size :].any()


def test_a_short_gap_in_a_tone_is_filled_by_the_codec(tmp_path: Path) -> None:
    for name in ("Opus", "AMR in bits"):
        stream = STREAMS[name]
        size = len(stream.pcm) // len(stream.payloads)
        kept = [one for number, one in enumerate(paced(stream)) if number != 50]

        _, heard = finished(tmp_path, kept, (stream.codec,), stream.rate)

        gap = heard[50 * size : 51 * size].astype(float)
        voice = stream.pcm[50 * size : 51 * size].astype(float)
        assert np.sqrt((gap**2).mean()) > 0.3 * np.sqrt((voice**2).mean())


def test_lost_packets_of_opus_come_back_from_the_copies_in_the_next_ones(tmp_path: Path) -> None:
    stream = speech_with_copies()
    size, gone = stream.ticks, range(10, len(stream.payloads) - 1, 7)
    kept = [one for number, one in enumerate(paced(stream)) if number not in gone]

    _, heard = finished(tmp_path, kept, (stream.codec,), 48000)

    frames = np.array([range(number * size, (number + 1) * size) for number in gone])
    loudness = np.square(stream.pcm[frames].astype(float)).mean(axis=1)
    errors = np.square(heard[frames].astype(float) - stream.pcm[frames]).mean(axis=1)
    spoken = loudness > loudness.max() / 100
    assert spoken.sum() > 10
    assert np.median(errors[spoken] / loudness[spoken]) < 0.05  # made up by the codec: 0.3


def test_wide_band_reaches_the_recogniser_and_the_stereo_file(tmp_path: Path) -> None:
    wide, narrow = STREAMS["G722"], STREAMS["PCMU"]
    spool(tmp_path, paced(wide), (wide.codec,), 0)
    spool(tmp_path, paced(narrow), (narrow.codec,), 1)

    audio = finish_session(tmp_path, "s", 16000)

    _, leg = read_wav(tmp_path / audio.legs[0].file)
    assert audio.stereo is not None
    rate, both = read_wav(tmp_path / audio.stereo)
    assert rate == 16000
    assert both.shape == (32000, 2)
    for heard in (leg, both[:, 0]):
        spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
        assert spectrum[(5000 * 2)] > 0.3 * spectrum[(440 * 2)]
    assert loudest_frequency(both[:, 1], rate) == pytest.approx(440, abs=1)


def test_a_call_changes_its_codec_and_goes_on(tmp_path: Path) -> None:
    """Two seconds each of G.711, G.722, G.729 and G.711 again, one sender, one clock."""
    parts = [STREAMS[name] for name in ("PCMU", "G722", "G729 of 20 ms", "PCMU")]
    datagrams: list[bytes] = []
    for part in parts:
        for payload in part.payloads[:50]:
            number = len(datagrams)
            datagrams.append(
                build_packet(part.codec.payload_type, number, 160 * number, 7, payload)
            )
    sent = [(0.02 * number, one) for number, one in enumerate(datagrams)]

    leg, heard = finished(tmp_path, sent, tuple(part.codec for part in parts), 16000)

    assert (leg.native_rate, leg.codecs) == (16000, ("PCMU", "G722", "G729"))
    assert (leg.duration, leg.discontinuities, leg.undecoded) == (4.0, 0, 0)
    assert same(heard[16000 + 400 : 32000 - 400], parts[1].pcm[400 : 16000 - 400])
    for second in (0, 3):
        piece = heard[16000 * second + 1000 : 16000 * (second + 1) - 1000]
        assert loudest_frequency(piece, 16000) == pytest.approx(440, abs=2)


def test_a_codec_with_another_clock_goes_on_by_the_time_of_arrival(tmp_path: Path) -> None:
    first, second = STREAMS["PCMU"], STREAMS["Opus"]
    later = [(2.0 + at, second.packet(n, first=200)) for n, (at, _) in enumerate(paced(second))]

    leg, heard = finished(tmp_path, [*paced(first), *later], (first.codec, second.codec), 16000)

    assert leg.duration == pytest.approx(4.0, abs=0.02)
    assert leg.discontinuities == 1
    assert loudest_frequency(heard[36000:60000], 16000) == pytest.approx(440, abs=1)


def test_comfort_noise_is_silence_of_its_length(tmp_path: Path) -> None:
    stream = STREAMS["PCMU"]
    sent = paced(stream)
    quiet = [
        (at, build_packet(13, 100 + number, 5000 + 160 * number, 7, b"\x40"))
        for number, (at, _) in enumerate(sent)
        if number in (50, 60)
    ]
    talking = [one for number, one in enumerate(sent) if not 50 <= number < 70]

    leg, heard = finished(tmp_path, sorted(talking + quiet), (stream.codec, NOISE), 8000)

    assert (leg.foreign, leg.undecoded, leg.duration) == (0, 0, 2.0)
    assert not heard[8000:11200].any()
    assert same(heard[11200:], stream.pcm[11200:])


def test_payloads_that_are_none_are_silence_and_counted(tmp_path: Path) -> None:
    stream = STREAMS["Opus"]
    sent = paced(stream)
    # No frame in it; two frames of one size in three octets, which the decoder refuses.
    bad = {10: b"\xfb\x00", 11: b"\xf9\1\2\3"}
    sent = [
        (at, build_packet(111, 100 + n, 5000 + 960 * n, 7, bad[n]) if n in bad else data)
        for n, (at, data) in enumerate(sent)
    ]

    leg, heard = finished(tmp_path, sent, (stream.codec,), 48000)

    assert (leg.undecoded, leg.foreign) == (2, 0)
    assert leg.duration == 2.0
    assert same(heard[:9600], stream.pcm[:9600])
    assert not heard[11 * 960 : 12 * 960].any()
    assert heard[12 * 960 :].any()


def test_a_sender_that_starts_anew_gets_a_new_decoder(tmp_path: Path) -> None:
    stream = STREAMS["G722"]
    again = [(5 + at, stream.packet(n, ssrc=8, first=9)) for n, (at, _) in enumerate(paced(stream))]

    leg, heard = finished(tmp_path, [*paced(stream), *again], (stream.codec,), 16000)

    assert leg.duration == pytest.approx(7.0, abs=0.001)
    assert same(heard[80000:], stream.pcm)
    assert not heard[32000:80000].any()


@anywhere
@given(
    st.sampled_from(sorted(STREAMS)),
    st.lists(st.binary(max_size=200), min_size=1, max_size=12),
    st.lists(st.integers(0, 65535), min_size=12, max_size=12),
)
def test_any_payloads_end_in_files(
    tmp_path: Path, name: str, payloads: list[bytes], numbers: list[int]
) -> None:
    stream = STREAMS[name]
    for old in tmp_path.glob("s*"):
        old.unlink()
    kind = stream.codec.payload_type
    broken = [
        (0.02 * n, build_packet(kind, numbers[n], 160 * numbers[n], 7, one))
        for n, one in enumerate(payloads)
    ]
    spool(tmp_path, [*broken, *paced(stream, stream.packets[:5])], (stream.codec, KEYS))
    began = time.process_time()

    audio = finish_session(tmp_path, "s", 8000)

    assert all((tmp_path / leg.file).exists() for leg in audio.legs)
    assert time.process_time() - began < 5


def key(
    number: int, event: int, start: int, duration: int, *, end: bool = False, ssrc: int = 7
) -> bytes:
    body = bytes([event, 0x80 * end | 10]) + duration.to_bytes(2, "big")
    return build_packet(101, number, start, ssrc, body)


def dialled(stream: Stream) -> list[tuple[float, bytes]]:
    """Two seconds of speech with the key 5 at 0.5 s, its packets among those of the voice."""
    sent = [one for n, one in enumerate(paced(stream)) if not 25 <= n < 30]
    start = 5000 + 25 * 160
    for n in range(5):
        sent.append((0.52 + 0.02 * n, key(125 + n, 5, start, 160 * (n + 1), end=n == 4)))
    sent += [(0.602 + 0.001 * n, key(130, 5, start, 800, end=True)) for n in range(2)]
    return sorted(sent)


@pytest.mark.parametrize(("dtmf", "told"), [("keep", "5"), ("mask", "*"), ("drop", "")])
def test_a_key_is_one_event_however_often_its_end_is_sent(
    tmp_path: Path, dtmf: str, told: str
) -> None:
    stream = STREAMS["PCMU"]
    spool(tmp_path, dialled(stream), (stream.codec, KEYS))

    (leg,) = finish_session(tmp_path, "s", 8000, dtmf).legs  # type: ignore[arg-type]

    assert [(one.key, one.start, one.duration) for one in leg.keys] == [
        (key, 0.5, 0.1) for key in told
    ]
    assert (leg.foreign, leg.duration) == (0, 2.0)


def test_a_key_is_no_loss_that_a_codec_would_fill(tmp_path: Path) -> None:
    stream = STREAMS["AMR in bits"]

    leg, heard = finished(tmp_path, dialled(stream), (stream.codec, KEYS), 8000)

    assert [one.key for one in leg.keys] == ["5"]
    assert not heard[25 * 160 : 30 * 160].any()
    assert same(heard[: 25 * 160], stream.pcm[: 25 * 160])


def test_keys_are_counted_by_their_timestamps(tmp_path: Path) -> None:
    stream = STREAMS["PCMU"]
    at = [5000 + 8000 + 800 * n for n in range(4)]
    pressed = [
        (1.0, key(900, 1, at[0], 400, end=True)),
        (1.1, key(901, 1, at[1], 400)),  # its end is lost
        (1.2, key(902, 11, at[2], 160)),
        (1.25, key(900, 1, at[0], 400, end=True)),  # late
        (1.26, key(903, 11, at[2], 400, end=True)),
        (1.3, key(904, 15, at[3], 0xFFFF - 1600)),  # the last ones before it is full are lost
        (1.3, key(905, 15, at[3] + 0xFFFF, 100, end=True)),  # a key that was held for long
        (1.31, key(905, 15, at[3] + 0xFFFF, 100, end=True)),
        (1.4, key(906, 16, at[3] + 5, 100, end=True)),  # a flash is no key
        (1.4, build_packet(101, 907, at[3], 7, b"\1")),
    ]

    leg, _ = finished(
        tmp_path, sorted([*paced(stream), *pressed], key=lambda one: one[0]),
        (stream.codec, KEYS), 8000,
    )  # fmt: skip

    assert [one.key for one in leg.keys] == ["1", "1", "#", "D"]
    assert [one.start for one in leg.keys] == [1.0, 1.1, 1.2, 1.3]
    assert [one.duration for one in leg.keys] == [0.05, 0.05, 0.05, 8.204]
    assert leg.duration == 2.0


def test_another_policy_for_keys_makes_the_files_anew(tmp_path: Path) -> None:
    stream = STREAMS["PCMU"]
    spool(tmp_path, dialled(stream), (stream.codec, KEYS))

    masked = finish_session(tmp_path, "s", 8000)
    kept = finish_session(tmp_path, "s", 8000, "keep")

    assert [one.legs[0].keys[0].key for one in (masked, kept)] == ["*", "5"]


def test_noise_in_a_codec_has_bounded_cost(tmp_path: Path) -> None:
    codec = Codec(111, "OPUS", 48000, 2)
    sent = [
        (0.001 * n, build_packet(111, n * 7919, n * 104729, n % 50, data))
        for n, data in enumerate(noise(60, 3000))
    ]
    began = time.process_time()

    spool(tmp_path, sent, (codec,))
    finish_session(tmp_path, "s", 16000)

    assert time.process_time() - began < 30


def test_a_tone_of_each_rate_survives_at_every_target(tmp_path: Path) -> None:
    for name in ("PCMU", "Opus", "L16 in stereo"):
        stream = STREAMS[name]
        for rate in (8000, 16000, 48000):
            leg, heard = finished(tmp_path, paced(stream), (stream.codec,), rate)
            assert leg.duration == pytest.approx(2.0, abs=0.001)
            assert loudest_frequency(heard[2000:], rate) == pytest.approx(440, abs=2)


@pytest.mark.parametrize(("name", "factor"), [("G722", 2), ("G722", 1), ("Opus", 1 / 3)])
@pytest.mark.parametrize("jitter", [0.0, 0.015])
def test_timestamps_at_another_clock_than_the_codec_s_make_no_call_longer_or_shorter(
    tmp_path: Path, name: str, factor: float, jitter: float
) -> None:
    stream = STREAMS[name]
    sent = paced(stream)
    by_other = [
        (at + jitter * (number % 3), build_packet(
            stream.codec.payload_type, 65500 + number,
            2**32 - 3200 + round(number * stream.ticks * factor), 7, payload,
        ))
        for number, ((at, _), payload) in enumerate(zip(sent, stream.payloads, strict=True))
    ]  # fmt: skip

    leg, heard = finished(tmp_path, by_other, (stream.codec,), stream.rate)
    _, right = finished(tmp_path, sent, (stream.codec,), stream.rate)

    assert leg.discontinuities == 0
    assert same(heard, right)
