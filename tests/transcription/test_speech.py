"""The speech map: two time lines, there and back."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from siprec_bridge.transcript import Segment, Transcript, Word
from siprec_bridge.transcription.speech import (
    Frames,
    Pcm,
    SpeechMap,
    SpeechOptions,
    listen,
    map_speech,
)

RATE = 1000  # a sample is a millisecond: what is expected can be read
FRAME_S = 0.032


def speech_map(*pieces: tuple[int, int], total: int = 60_000, guard: int = 200) -> SpeechMap:
    spoken = tuple((start / RATE, end / RATE) for start, end in pieces)
    return SpeechMap(RATE, total, pieces, guard, spoken)


@st.composite
def maps(draw: st.DrawFn) -> SpeechMap:
    """Maps as they are made: pieces apart by more than the guard, or touching."""
    guard = draw(st.integers(0, 300))
    at, pieces = draw(st.integers(0, 5000)), []
    for _ in range(draw(st.integers(1, 6))):
        length = draw(st.integers(1, 30_000))
        pieces.append((at, at + length))
        at += length + draw(st.one_of(st.just(0), st.integers(guard + 1, 100_000)))
    return SpeechMap(RATE, at + draw(st.integers(0, 5000)), tuple(pieces), guard)


def on_call(one: SpeechMap, times: Sequence[float]) -> list[float]:
    """Times of what is sent, on the call's time line, to the millisecond."""
    segments = tuple(Segment(text="a", start=time, end=time) for time in times)
    return [part.start for part in one.unpack(Transcript(segments=segments)).segments]


@given(maps(), st.data())
def test_a_time_within_a_piece_comes_back_where_it_was(one: SpeechMap, data: st.DataObject) -> None:
    piece = data.draw(st.integers(0, len(one.pieces) - 1))
    start, end = one.pieces[piece]
    at = data.draw(st.floats(start, end - 0.001))  # its end may be where the next one begins
    before = sum(b - a for a, b in one.pieces[:piece])
    guards = sum(one.guard_before(number) for number in range(piece + 1))

    (back,) = on_call(one, [(before + guards + at - start) / RATE])

    assert back == pytest.approx(at / RATE, abs=0.001)


@given(maps(), st.lists(st.floats(0, 1e6), min_size=2))
def test_order_is_kept_and_no_time_leaves_the_pieces(one: SpeechMap, times: list[float]) -> None:
    assume(not one.is_whole)

    mapped = on_call(one, sorted(times))

    assert mapped == sorted(mapped)
    for seconds in mapped:
        assert any(start / RATE - 1e-3 <= seconds <= end / RATE + 1e-3 for start, end in one.pieces)


@given(
    st.lists(st.tuples(st.integers(1, 400), st.floats(0, 1)), max_size=30),
    st.integers(0, 800),
    st.floats(1, 40),
)
def test_what_is_sent_is_never_longer_and_holds_all_speech(
    runs: list[tuple[int, float]], pad_ms: int, longest: float
) -> None:
    speech = np.repeat(
        np.array([level for _, level in runs], np.float32), [count for count, _ in runs]
    )
    total = len(speech) * 32 + 17
    options = SpeechOptions(max_speech_s=longest, pad_ms=pad_ms)

    made = map_speech(speech, np.ones_like(speech), FRAME_S, options, rate=RATE, total=total)

    assert made.packed_samples <= total
    assert all(0 <= start < end <= total for start, end in made.pieces)
    assert all(one[1] <= two[0] for one, two in zip(made.pieces, made.pieces[1:], strict=False))
    if not made.is_whole:
        assert all(end - start <= longest * RATE + 1 for start, end in made.pieces)
    for start, end in made.spoken:
        if end - start >= options.min_speech_ms / 1000:
            inside = sum(
                max(0.0, min(end, b / RATE) - max(start, a / RATE)) for a, b in made.pieces
            )
            assert inside == pytest.approx(end - start, abs=0.002)


SEGMENTS = st.lists(
    st.tuples(
        st.floats(0, 500), st.floats(0, 40), st.lists(st.floats(0, 1), max_size=6).map(sorted)
    ),
    max_size=5,
)


@given(maps(), SEGMENTS)
def test_no_word_lands_in_silence_and_none_is_lost(
    one: SpeechMap, given_segments: list[tuple[float, float, list[float]]]
) -> None:
    segments = []
    for start, length, places in given_segments:
        words = tuple(
            Word(text=f"w{number}", start=start + place * length, end=start + place * length + 0.2)
            for number, place in enumerate(places)
        )
        text = " ".join(word.text for word in words) or "something"
        segments.append(Segment(text=text, start=start, end=start + length, words=words))
    heard = Transcript(segments=tuple(segments))

    mapped = one.unpack(heard)

    assert mapped.text == heard.text
    said = [word.text for segment in mapped.segments for word in segment.words]
    assert said == [word.text for segment in heard.segments for word in segment.words]
    for segment in mapped.segments:
        assert 0 <= segment.start <= segment.end <= one.total / RATE
        assert [word.text for word in segment.words] in (segment.text.split(), [])
        if one.is_whole:
            continue
        for word in segment.words:
            assert 0 <= word.start <= word.end <= one.total / RATE
            assert any(
                start - 1 <= word.start * RATE and word.end * RATE <= end + 1
                for start, end in one.pieces
            )


def test_a_segment_over_a_cut_is_divided_between_its_words() -> None:
    words = (
        Word(text="Good", start=0.5, end=0.8),
        Word(text="morning.", start=0.9, end=1.3),
        Word(text="Goodbye!", start=2.4, end=2.9),
    )
    heard = Transcript(
        segments=(Segment(text="Good morning.  Goodbye!", start=0.4, end=3.0, words=words),)
    )

    mapped = speech_map((10_000, 12_000), (50_000, 51_000)).unpack(heard)

    assert [(one.text, one.start, one.end) for one in mapped.segments] == [
        ("Good morning.", 10.4, 11.3),
        ("Goodbye!", 50.2, 50.8),
    ]
    assert [word.start for one in mapped.segments for word in one.words] == [10.5, 10.9, 50.2]


def test_text_without_spaces_is_divided_as_well() -> None:
    words = (Word(text="你好", start=0.5, end=0.9), Word(text="再见", start=2.4, end=2.9))
    heard = Transcript(segments=(Segment(text="你好。再见。", start=0.4, end=3.0, words=words),))

    mapped = speech_map((10_000, 12_000), (50_000, 51_000)).unpack(heard)

    assert [one.text for one in mapped.segments] == ["你好。", "再见。"]


def test_a_segment_without_words_that_strays_over_a_cut_stays_on_its_side() -> None:
    heard = Transcript(
        segments=(
            Segment(text="good morning", start=0.4, end=2.3),
            Segment(text="goodbye", start=2.05, end=3.0),
        )
    )

    mapped = speech_map((10_000, 12_000), (50_000, 51_000)).unpack(heard)

    assert [(one.start, one.end) for one in mapped.segments] == [(10.4, 12.0), (50.0, 50.8)]


def test_a_segment_without_words_over_a_cut_begins_and_ends_in_speech() -> None:
    heard = Transcript(segments=(Segment(text="good morning goodbye", start=0.4, end=3.0),))

    mapped = speech_map((10_000, 12_000), (50_000, 51_000)).unpack(heard)

    assert [(one.start, one.end) for one in mapped.segments] == [(10.4, 50.8)]


def test_pieces_that_touch_are_sent_without_a_pause_and_divide_nothing() -> None:
    words = (Word(text="on", start=0.5, end=1.0), Word(text="and", start=1.0, end=1.5))
    heard = Transcript(segments=(Segment(text="on and", start=0.5, end=1.5, words=words),))
    one = speech_map((10_000, 11_000), (11_000, 12_000))

    mapped = one.unpack(heard)

    assert one.packed == 2.0
    assert [(part.text, part.start, part.end) for part in mapped.segments] == [
        ("on and", 10.5, 11.5)
    ]


def test_long_speech_is_divided_where_it_is_quietest() -> None:
    speech = np.zeros(4000, np.float32)
    speech[1000:2250] = 1.0  # 40 s
    loudness = np.full(4000, 1000, np.float32)
    loudness[1700:1710] = 10

    made = map_speech(speech, loudness, FRAME_S, SpeechOptions(), rate=RATE, total=128_000)

    (start, cut), (begin, end) = made.pieces
    assert (start, end) == (32_000 - 400, 72_000 + 400)
    assert cut == begin == pytest.approx(1705 * 32, abs=5 * 32)


def test_a_little_silence_is_not_worth_a_cut_and_none_at_all_is_no_speech() -> None:
    speech = np.ones(1000, np.float32)
    speech[500:540] = 0  # 1.3 s of 32

    whole = map_speech(speech, speech, FRAME_S, SpeechOptions(), rate=RATE, total=32_000)
    none = map_speech(0 * speech, speech, FRAME_S, SpeechOptions(), rate=RATE, total=32_000)

    assert whole.pieces == ((0, 32_000),)
    assert whole.is_whole
    assert len(whole.spoken) == 2
    assert (none.pieces, none.packed) == ((), 0.0)


class Counting:
    """A detector that takes everything for speech and remembers how much it was asked."""

    sample_rate, frame = 8000, 256

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, frames: Pcm) -> Frames:
        self.asked += len(frames)
        return np.ones(len(frames), np.float32)

    def reset(self) -> None:
        """Nothing is held."""


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=6), st.sampled_from([0, 1000]))
def test_listening_does_not_depend_on_where_blocks_end(cuts: list[int], level: int) -> None:
    leg = np.full(20_000, level, np.int16)
    blocks = np.split(leg, np.cumsum(cuts).clip(max=len(leg)))

    speech, loudness = listen(blocks, Counting())

    assert len(speech) == len(loudness) == len(leg) // 256
    assert (speech == (level > 0)).all()
    assert loudness == pytest.approx(level, rel=1e-3)


def test_nobody_is_asked_about_silence() -> None:
    detector = Counting()
    leg = np.zeros(800 * 256, np.int16)
    leg[400 * 256 : 401 * 256] = 1000

    speech, _ = listen([leg], detector)

    assert detector.asked == 17
    assert np.flatnonzero(speech).tolist() == list(range(392, 409))
