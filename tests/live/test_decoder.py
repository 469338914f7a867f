"""Packets to sound while the call is on: order, loss, pauses, and when each sample was said."""

from collections.abc import Sequence

import numpy as np
import pytest

from harness.codecs import context, encode
from harness.rtp import Pcm, loudest_frequency, packets, tone
from siprec_bridge.live.decoder import RATE, LiveDecoder, Sound
from siprec_bridge.receiver.spool import Packets, SpoolEvent
from siprec_bridge.rtp import build_packet
from siprec_bridge.sdp import Codec

SECOND = 1_000_000_000
HELD_BACK = 0.08  # seconds, by the resampler
BEGAN = 1_700_000_000 * SECOND
PCMU, G722, KEYS = (
    Codec(0, "PCMU", 8000),
    Codec(9, "G722", 8000),
    Codec(101, "TELEPHONE-EVENT", 8000),
)


def run(datagrams: Sequence[bytes], at: Sequence[float]) -> Packets:
    """These datagrams, arrived at these seconds."""
    lengths = np.array([len(one) for one in datagrams], np.int64)
    arrivals = np.array([BEGAN + round(one * SECOND) for one in at], np.int64)
    data = np.frombuffer(b"".join(datagrams), np.uint8)
    return Packets(data, np.cumsum(lengths) - lengths, lengths, arrivals)


def paced(datagrams: Sequence[bytes], start: float = 0.0, sweep: int = 5) -> list[Packets]:
    """Packets as sweeps of 100 ms bring them."""
    times = [start + 0.02 * number for number in range(len(datagrams))]
    return [
        run(datagrams[at : at + sweep], times[at : at + sweep])
        for at in range(0, len(datagrams), sweep)
    ]


def joined(sounds: Sequence[Sound]) -> Pcm:
    return np.concatenate([one.pcm for one in sounds]) if sounds else np.zeros(0, np.int16)


def hear(decoder: LiveDecoder, sweeps: Sequence[Packets]) -> list[Sound]:
    return [sound for sweep in sweeps for sound in decoder.take([sweep])]


def test_sound_comes_with_each_sweep_at_one_rate_and_says_when_it_was_said() -> None:
    decoder = LiveDecoder((PCMU,))
    sweeps = paced(packets(tone(440, 2.0)))

    first = decoder.take([sweeps[0]])
    rest = hear(decoder, sweeps[1:])

    assert 0.04 < sum(one.seconds for one in first) <= 0.1
    assert len(joined(first + rest)) / RATE == pytest.approx(2.0, abs=HELD_BACK)
    assert loudest_frequency(joined(rest), RATE) == pytest.approx(440, abs=3)
    (last,) = [one for one in rest if one is rest[-1]]
    ended = last.piece.when(last.offset + len(last.pcm))
    assert (ended - BEGAN) / SECOND == pytest.approx(2.0, abs=HELD_BACK)


def test_packets_out_of_order_are_put_in_order_within_the_window() -> None:
    voice = packets(tone(440, 1.0))
    swapped = list(voice)
    for at in range(3, 48, 7):
        swapped[at], swapped[at + 1] = swapped[at + 1], swapped[at]
    straight, crooked = LiveDecoder((PCMU,)), LiveDecoder((PCMU,))

    expected = joined(hear(straight, paced(voice)) + straight.rest())
    got = joined(hear(crooked, paced(swapped)) + crooked.rest())

    assert np.allclose(got, expected, atol=2)  # the resampler dithers
    assert crooked.late == 0


def test_a_lost_packet_is_waited_for_in_vain_only_for_a_moment_and_leaves_its_length() -> None:
    voice = packets(tone(440, 1.0))
    times = [0.02 * number for number in range(50)]
    sweeps = [
        run([voice[at] for at in some], [times[at] for at in some])
        for some in (
            range(0, 10),
            [10, *range(12, 15)],
            range(15, 17),
            range(17, 20),
            range(20, 50),
        )
    ]
    decoder = LiveDecoder((PCMU,))

    held = hear(decoder, sweeps[:3])
    late = decoder.take([sweeps[3]]) + decoder.take([sweeps[4]])
    missing = decoder.take([run([voice[11]], [1.0])])

    assert sum(one.seconds for one in held) == pytest.approx(0.2, abs=HELD_BACK)
    assert sum(one.seconds for one in held + late) == pytest.approx(1.0, abs=HELD_BACK)
    assert (missing, decoder.late) == ([], 1)


def test_a_pause_ends_the_piece_with_silence_and_what_follows_is_a_new_one() -> None:
    decoder = LiveDecoder((PCMU,))
    voice = packets(tone(440, 4.0))
    before = hear(decoder, paced(voice[:50]))

    paused = decoder.take([SpoolEvent("paused", BEGAN + SECOND)])
    resumed = decoder.take([SpoolEvent("resumed", BEGAN + 3 * SECOND)])
    after = hear(decoder, paced(voice[150:], start=3.0))

    ending = joined(paused)
    assert len(ending) / RATE == pytest.approx(1.2, abs=HELD_BACK)
    assert not ending[round(0.06 * RATE) :].any()
    assert resumed == []
    assert after[0].piece is not before[0].piece
    assert (after[0].piece.at_ns - BEGAN) / SECOND == pytest.approx(3.0, abs=0.03)


def test_silence_that_the_sender_leaves_out_is_filled_when_short() -> None:
    voice = packets(tone(440, 3.0))
    kept = [*voice[:50], *voice[100:]]
    numbered = [
        one[:2] + (100 + number).to_bytes(2, "big") + one[4:] for number, one in enumerate(kept)
    ]
    times = [0.02 * number for number in [*range(50), *range(100, 150)]]
    decoder = LiveDecoder((PCMU,))

    sounds = decoder.take([run(numbered, times)]) + decoder.rest()

    assert {id(one.piece) for one in sounds} == {id(sounds[0].piece)}
    pcm = joined(sounds)
    assert len(pcm) / RATE == pytest.approx(3.0 + 1.2, abs=0.01)
    assert np.abs(pcm[round(1.1 * RATE) : round(1.9 * RATE)]).max() <= 2


def test_a_burst_of_what_was_held_up_was_not_said_at_once() -> None:
    decoder = LiveDecoder((PCMU,))
    voice = packets(tone(440, 4.0))
    hear(decoder, paced(voice[:50]))
    decoder.rest()  # nothing came for a while

    burst = decoder.take([run(voice[50:150], [3.0 + 0.0001 * one for one in range(100)])])

    start = burst[0].piece.when(burst[0].offset)
    assert (start - BEGAN) / SECOND == pytest.approx(1.0, abs=0.03)


def test_another_source_codec_or_keys_do_not_upset_it() -> None:
    decoder = LiveDecoder((PCMU, G722, KEYS))
    first = hear(decoder, paced(packets(tone(440, 1.0), ssrc=1)))
    other = hear(decoder, paced(packets(tone(880, 1.0), ssrc=2, first_sequence=9000), start=1.0))
    keys = [build_packet(101, 9050 + n, 10000, 2, b"\x01\x80\x00\xa0") for n in range(3)]
    silent = decoder.take([run(keys, [2.0, 2.02, 2.04])])
    wide = [build_packet(9, 9053 + n, 9000 + 160 * n, 2, bytes(160)) for n in range(50)]
    more = hear(decoder, paced(wide, start=2.1))

    assert loudest_frequency(joined(first), RATE) == pytest.approx(440, abs=3)
    assert loudest_frequency(joined(other)[2000:], RATE) == pytest.approx(880, abs=3)
    assert silent == []
    assert sum(one.seconds for one in more) == pytest.approx(1.0, abs=HELD_BACK)
    assert decoder.late == 0


def test_what_is_too_old_is_left_out() -> None:
    decoder = LiveDecoder((PCMU,))
    times = [0.02 * number for number in range(100)]

    sounds = decoder.take([run(packets(tone(440, 2.0)), times)], after_ns=BEGAN + SECOND)

    assert sum(one.seconds for one in sounds) == pytest.approx(1.0, abs=HELD_BACK)
    assert (sounds[0].piece.at_ns - BEGAN) / SECOND == pytest.approx(1.0, abs=0.03)


def test_what_is_no_voice_and_what_is_damaged_is_no_harm() -> None:
    amr = Codec(96, "AMR", 8000, 1, "octet-align=1")
    decoder = LiveDecoder((PCMU, amr))
    junk = [b"", b"\x80", bytes(12), b"\xff" * 60, build_packet(96, 1, 0, 7, b"\xff" * 40)]
    unknown = [build_packet(77, 2, 0, 7, b"x"), build_packet(0, 3, 0, 7, b"")]

    sounds = decoder.take([run(junk + unknown, [0.0] * 7)])
    after = hear(decoder, paced(packets(tone(440, 0.5))))

    assert joined(sounds).size == 0
    assert decoder.undecoded == 1
    assert loudest_frequency(joined(after), RATE) == pytest.approx(440, abs=5)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("jitter", [0.0, 0.015])
def test_timestamps_at_another_clock_than_the_codec_s_stretch_no_time(
    factor: int, jitter: float
) -> None:
    decoder = LiveDecoder((G722,))
    voice = encode(context("g722", 16000, "w"), tone(440, 6.0, 16000), 320)
    wide = [
        build_packet(9, 65500 + n & 0xFFFF, (2**32 - 3200 + 160 * factor * n) % 2**32, 7, payload)
        for n, payload in enumerate(voice)
    ]
    times = [0.02 * n + jitter * (n % 3) for n in range(len(wide))]

    sweeps = [run(wide[at : at + 5], times[at : at + 5]) for at in range(0, 150, 5)]
    sounds = hear(decoder, sweeps) + decoder.rest()
    burst = decoder.take([run(wide[200:], [6.0 + 0.0001 * n for n in range(100)])])

    pcm = joined(sounds)
    assert len(pcm) / RATE == pytest.approx(3.0 + 1.2, abs=0.01)
    assert loudest_frequency(pcm[: RATE * 3], RATE) == pytest.approx(440, abs=2)
    assert (burst[0].piece.at_ns - BEGAN) / SECOND == pytest.approx(4.0, abs=0.05)
