"""Clocks of timestamps that are another than their codec's: when they are believed to be."""

import numpy as np
import pytest

from siprec_bridge.media.odd_clock import OddClocks


class Sender:
    """20 ms of audio a packet, whose timestamps run `factor` times as fast as `rate` Hz."""

    def __init__(
        self,
        clocks: OddClocks,
        factor: float,
        *,
        ssrc: int = 7,
        payload_type: int = 9,
        rate: int = 8000,
    ) -> None:
        self._clocks, self._factor, self._rate = clocks, factor, rate
        self._ssrc, self._type = ssrc, payload_type
        self._sent = 0
        self.last = 0  # timestamp, as corrected

    def send(self, count: int, pace: float = 1.0) -> list[int]:
        """Send packets, arriving `pace` times as slowly as they play: what steps they make then."""
        number = np.arange(self._sent, self._sent + count)
        self._sent += count
        same = np.ones(count, np.int64)
        corrected = self._clocks.correct(
            ((2**32 - 4000 + number * round(self._rate // 50 * self._factor)) % 2**32).astype(
                np.uint32
            ),
            (65500 + number).astype(np.uint16),
            (same * self._ssrc).astype(np.uint32),
            (same * self._type).astype(np.uint8),
            (number * 20e6 * pace).astype(np.int64),
            np.full(count, 0.02),
            same * self._rate,
        )
        self.last = int(corrected[-1])
        return sorted(set(np.diff(corrected).tolist()))


@pytest.mark.parametrize(
    ("rate", "factor"),
    [(8000, 1), (8000, 2), (8000, 3), (8000, 6), (48000, 1 / 2), (48000, 1 / 3), (48000, 1 / 6)],
)
def test_a_clock_of_any_codec_is_known_for_what_it_is(rate: int, factor: float) -> None:
    sender = Sender(OddClocks(), factor, rate=rate)

    assert sender.send(50) == [rate // 50]
    assert sender.last == (2**32 - 4000 + 49 * rate // 50) % 2**32  # counted from the first


def test_what_small_batches_say_adds_up() -> None:
    sender = Sender(OddClocks(), 2)

    steps = [sender.send(5) for _ in range(7)]

    assert steps == [[320]] * 5 + [[160]] * 2


def test_packets_that_come_at_the_pace_of_their_timestamps_are_believed() -> None:
    # 20 ms of speech and 20 ms of silence that was left out, say.
    assert Sender(OddClocks(), 2).send(100, pace=2.0) == [320]


def test_a_fast_clock_goes_on_where_its_timestamps_begin_anew_for_days() -> None:
    sender = Sender(OddClocks(), 2)
    sender.send(50)
    begun = sender.last

    steps = {one for _ in range(100) for one in sender.send(90_000)}  # half an hour each

    assert steps == {160}
    assert sender.last == begun + 100 * 90_000 * 160


def test_a_burst_tells_nothing_and_what_follows_does() -> None:
    sender = Sender(OddClocks(), 2)

    burst = sender.send(60, pace=0.01)
    after = [sender.send(60) for _ in range(3)]

    assert burst == [320]
    assert after[-1] == [160]


def test_each_codec_of_each_source_has_a_clock_of_its_own() -> None:
    clocks = OddClocks()
    odd, right = Sender(clocks, 2), Sender(clocks, 1, payload_type=0)
    other = Sender(clocks, 3, ssrc=8)

    assert [one.send(50) for one in (odd, right, other)] == [[160]] * 3
    assert [one.send(50) for one in (odd, right, other)] == [[160]] * 3


def test_no_more_sources_are_remembered_than_a_stream_can_have() -> None:
    clocks = OddClocks()
    first = Sender(clocks, 2)
    first.send(50)
    for ssrc in range(100, 120):
        Sender(clocks, 2, ssrc=ssrc).send(50)
        Sender(clocks, 2, ssrc=ssrc + 100).send(5)

    assert first.send(5) == [320]  # it has to show it again
