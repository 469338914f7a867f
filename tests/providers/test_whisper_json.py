"""Every dialect of a recogniser's output."""

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siprec_providers.whisper_json import FORMATS, MalformedOutput, read_output


def test_openai_whisper_with_words() -> None:
    data = {
        "text": " Hi there.",
        "language": "en",
        "segments": [
            {"id": 0, "start": 0.5, "end": 1.5, "text": " Hi there.", "avg_logprob": -0.2,
             "no_speech_prob": 0.01, "compression_ratio": 1.1,
             "words": [{"word": " Hi", "start": 0.5, "end": 0.9, "probability": 0.9},
                       {"word": " there.", "start": 0.9, "end": 1.5, "probability": 0.8}]},
        ],
    }  # fmt: skip

    transcript = read_output(json.dumps(data).encode(), "json", 2.0)

    (segment,) = transcript.segments
    assert (segment.text, segment.start, segment.end) == ("Hi there.", 0.5, 1.5)
    assert [(word.text, word.probability) for word in segment.words] == [
        ("Hi", 0.9),
        ("there.", 0.8),
    ]
    assert (transcript.language, segment.avg_logprob) == ("en", -0.2)


def test_whisper_cpp_with_milliseconds_and_tokens() -> None:
    data = {
        "model": {"type": "base"},
        "result": {"language": "de"},
        "transcription": [
            {"offsets": {"from": 1000, "to": 2500}, "text": " Guten Tag",
             "tokens": [{"text": "[_BEG_]", "offsets": {"from": 0, "to": 0}},
                        {"text": " Gut", "offsets": {"from": 1000, "to": 1200}, "p": 0.7},
                        {"text": "en", "offsets": {"from": 1200, "to": 1500}},
                        {"text": " Tag", "offsets": {"from": 1600, "to": 2500}}]},
        ],
    }  # fmt: skip

    transcript = read_output(json.dumps(data).encode(), "json", 3.0)

    (segment,) = transcript.segments
    assert (segment.text, segment.start, segment.end) == ("Guten Tag", 1.0, 2.5)
    assert [(word.text, word.start, word.end) for word in segment.words] == [
        ("Guten", 1.0, 1.5),
        ("Tag", 1.6, 2.5),
    ]
    assert (transcript.language, transcript.model) == ("de", "base")


def test_verbose_json_has_its_words_beside_the_segments() -> None:
    data = {
        "text": "a b",
        "segments": [{"start": 0, "end": 1, "text": "a"}, {"start": 1, "end": 2, "text": "b"}],
        "words": [{"word": "a", "start": 0.1, "end": 0.4}, {"word": "b", "start": 1.1, "end": 1.4}],
    }

    transcript = read_output(json.dumps(data).encode(), "json", 2.0)

    assert [[word.text for word in one.words] for one in transcript.segments] == [["a"], ["b"]]


def test_a_word_where_two_segments_overlap_is_of_one_of_them() -> None:
    data = b"""{"segments": [
        {"start": 1.0, "end": 3.0, "text": "b c"}, {"start": 0.0, "end": 2.0, "text": "a b"}],
        "words": [{"word": "c", "start": 2.2, "end": 2.8}, {"word": "b", "start": 1.2, "end": 1.8},
                  {"word": "a", "start": 0.2, "end": 0.8}]}"""

    late, early = read_output(data, "json", 3.0).segments

    assert [word.text for word in early.words] == ["a", "b"]
    assert [word.text for word in late.words] == ["c"]


def test_hours_of_words_beside_their_segments_are_read_in_seconds() -> None:
    segments = [{"start": at * 4, "end": at * 4 + 4, "text": "x"} for at in range(9_000)]
    words = [{"word": "x", "start": at * 0.4, "end": at * 0.4 + 0.3} for at in range(90_000)]
    data = json.dumps({"segments": segments, "words": words}).encode()
    begun = time.process_time()

    heard = read_output(data, "json", 36_000.0)

    assert time.process_time() - begun < 15  # to look at all words for each segment takes minutes
    assert {len(one.words) for one in heard.segments} == {10}


def test_a_line_of_nothing_but_digits_is_no_cue_and_soon_seen_to_be_none() -> None:
    begun = time.process_time()

    assert read_output(b"7" * 300_000, "vtt", 1.0).segments == ()
    assert time.process_time() - begun < 5


def test_text_alone_spans_the_whole_file() -> None:
    (segment,) = read_output(b'{"text": " just text "}', "json", 4.5).segments

    assert (segment.text, segment.start, segment.end) == ("just text", 0.0, 4.5)


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("srt", b"1\r\n00:00:01,000 --> 00:00:02,500\r\nhello\r\nthere\r\n\r\n"),
        ("vtt", b"WEBVTT\n\n00:01.000 --> 00:02.500\nhello there\n"),
        ("tsv", b"start\tend\ttext\n1000\t2500\thello there\n"),
    ],
)
def test_timed_text_formats(form: str, data: bytes) -> None:
    (segment,) = read_output(data, form, 3.0).segments

    assert (segment.text, segment.start, segment.end) == ("hello there", 1.0, 2.5)


@pytest.mark.parametrize(
    ("cue", "times"),
    [
        ("01:02:03,250 --> 01:02:04,500", (3723.25, 3724.5)),
        ("1:1:3.5 --> 10:00:00.05", (3663.5, 36000.05)),
        ("12:03.000 --> 12:04.999", (723.0, 724.999)),
        ("00:09.000 --> 00:08.000", (9.0, 9.0)),
    ],
)
def test_cues_may_have_hours(cue: str, times: tuple[float, float]) -> None:
    (segment,) = read_output(f"7\n{cue}\nhello\n\nno cue\n".encode(), "srt", 0.0).segments

    assert (segment.text, segment.start, segment.end) == ("hello", *times)


def test_segments_that_have_words_keep_them_and_what_is_blank_is_nothing() -> None:
    own = {"start": 0, "end": 1, "text": "a", "words": [{"word": "own", "start": 0, "end": 1}]}
    beside = [{"word": "beside", "start": 0.1, "end": 0.4}]
    tokens = [
        {"text": text, "offsets": {"from": 0, "to": 9}}
        for text in (" a", None, " ", "[_TT_1]", "b")
    ]
    cpp = {"transcription": [{"text": "ab", "tokens": [*tokens, {"text": "c"}]}], "result": None}

    listed = read_output(
        json.dumps({"segments": [own], "words": beside, "language": ""}).encode(), "json", 1.0
    )
    (pieces,) = read_output(json.dumps(cpp).encode(), "json", 1.0).segments

    assert [word.text for word in listed.segments[0].words] == ["own"]
    assert listed.language is None
    assert [word.text for word in pieces.words] == ["ab"]


@pytest.mark.parametrize("data", [b"", b"[]", b'{"segments": []}', b'{"text": ""}'])
def test_no_speech_is_an_empty_transcript(data: bytes) -> None:
    form = "json" if data else "txt"

    assert read_output(data, form, 3.0).segments == ()


@pytest.mark.parametrize("data", [b"", b"null", b"{}", b'"x"', b"{", b'{"text": 5}', b"\xff\xfe"])
def test_what_is_no_transcript_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedOutput):
        read_output(data, "json", 3.0)


def test_what_no_store_can_hold_is_replaced_in_texts() -> None:
    data = (
        b'{"language": "e\\u0000n", "segments": [{"start": -3, "end": 1, "text": "a\\ud83d b\\u0000",'
        b' "words": [{"word": "\\ud83d\\ude00", "start": -1, "end": 1}]}]}'
    )

    transcript = read_output(data, "json", 2.0)

    (segment,) = transcript.segments
    assert (segment.text, segment.start, transcript.language) == (
        "a\ufffd b\ufffd",
        0.0,
        "e\ufffdn",
    )
    assert [(word.text, word.start) for word in segment.words] == [("\U0001f600", 0.0)]
    assert transcript.model_dump_json()


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            ["text", "segments", "start", "end", "words", "word", "transcription", "offsets",
             "from", "tokens", "language", "model", "result", "probability"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON | st.lists(JSON), st.binary(max_size=100), st.sampled_from(FORMATS))
def test_any_output_is_a_transcript_or_malformed(value: object, data: bytes, form: str) -> None:
    for candidate in (json.dumps(value).encode(), data):
        with contextlib.suppress(MalformedOutput):
            transcript = read_output(candidate, form, 3.0)
            assert all(one.end >= one.start >= 0 and one.text for one in transcript.segments)
            assert transcript.model_dump_json()


TIME = st.floats(-5, 5) | st.integers(-5000, 5000) | st.sampled_from([None, True, "1.5", "x", 1e12])


@given(TIME, TIME, TIME)
def test_no_dialect_has_times_before_the_audio_or_the_wrong_way_round(
    start: object, end: object, likely: object
) -> None:
    offsets, times = {"from": start, "to": end}, {"start": start, "end": end}
    word = times | {"word": "a", "probability": likely}
    cases = {
        json.dumps({"segments": [times | {"text": "a", "words": [word]}]}): "json",
        json.dumps([times | {"text": "a"}]): "json",
        json.dumps(
            {
                "transcription": [
                    {
                        "text": "a",
                        "offsets": offsets,
                        "tokens": [{"text": " a", "offsets": offsets, "p": likely}],
                    }
                ]
            }
        ): "json",
        f"{start}\t{end}\ta\n": "tsv",
    }

    for text, form in cases.items():
        for segment in read_output(text.encode(), form, 3.0).segments:
            assert segment.text == "a"
            assert 0 <= segment.start <= segment.end
            for one in segment.words:
                assert 0 <= one.start <= one.end
                assert one.probability is None or 0 <= one.probability <= 1
