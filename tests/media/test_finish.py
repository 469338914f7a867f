"""From spools to files: which there are, when they are made anew, and how long they may be."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.codecs import paced, spool, streams
from harness.rtp import packets, read_wav, tone
from siprec_bridge.media import finish, finish_session
from siprec_bridge.rtp import build_packet
from siprec_bridge.sdp import Codec

PCMU = Codec(0, "PCMU", 8000)


def speak(folder: Path, frequency: float, seconds: float, index: int = 0, at: float = 0.0) -> None:
    sent = packets(tone(frequency, seconds))
    spool(folder, [(at + 0.02 * n, one) for n, one in enumerate(sent)], (PCMU,), index)


def files(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir() if one.suffix != ".spool"}


def test_a_stream_without_voice_has_no_leg_and_a_session_without_any_has_no_audio(
    tmp_path: Path,
) -> None:
    foreign = [(0.02 * n, build_packet(77, n, 160 * n, 5, b"what?")) for n in range(10)]
    for name in ("one", "none"):
        (tmp_path / name).mkdir()
        spool(tmp_path / name, [], (PCMU,), 1)
        spool(tmp_path / name, foreign, (PCMU,), 2)
    speak(tmp_path / "one", 440, 1.0)

    one, none = (finish_session(tmp_path / name, "s", 8000) for name in ("one", "none"))

    assert [leg.index for leg in one.legs] == [0]
    assert [file.name for file in one.files] == ["s-0.wav", "s-stereo.wav"]
    assert (none.legs, none.stereo, none.files, none.duration) == ((), None, (), 0.0)
    assert list(files(tmp_path / "none")) == ["s.audio.json"]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("s-0.wav", None),
        ("s-stereo.wav", None),
        ("s-0.wav", b""),
        ("s-stereo.wav", b"RIFF"),
        ("s.audio.json", b'{"legs": ['),
        ("s.audio.json", b"[]"),
    ],
)
def test_files_that_are_gone_or_cut_are_made_anew(
    tmp_path: Path, name: str, left: bytes | None
) -> None:
    speak(tmp_path, 440, 1.0)
    before = finish_session(tmp_path, "s", 8000)
    whole = files(tmp_path)
    if left is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(left)

    after = finish_session(tmp_path, "s", 8000)

    assert after == before
    assert files(tmp_path) == whole


def test_files_do_not_depend_on_how_much_is_held_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = streams()["G722"]
    spool(tmp_path, [(0.4 + at, data) for at, data in paced(wide)], (wide.codec,))
    speak(tmp_path, 880, 3.0, 1)
    speak(tmp_path, 1200, 1.0, 2, at=1.0)
    at_once = finish_session(tmp_path, "s", 11025)
    whole = [read_wav(tmp_path / one.name)[1].astype(int) for one in at_once.files]
    (tmp_path / "s.audio.json").unlink()

    monkeypatch.setattr(finish, "_CHUNK", 1000)
    in_pieces = finish_session(tmp_path, "s", 11025)

    assert replace(in_pieces, files=()) == replace(at_once, files=())
    for one, wanted in zip(in_pieces.files, whole, strict=True):
        pcm = read_wav(tmp_path / one.name)[1]
        assert pcm.shape == wanted.shape
        assert np.abs(pcm - wanted).max() <= 4  # soxr's dither is by the piece
    assert at_once.stereo is not None
    rate, both = read_wav(tmp_path / at_once.stereo)
    assert rate == 16000
    assert len(both) / rate == pytest.approx(at_once.duration)
    assert not both[: round(0.39 * rate), 0].any()
    assert both[: round(0.39 * rate), 1].any()


def test_what_is_too_long_for_a_file_in_both_directions_is_there_at_a_lower_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = streams()["G722"]
    seconds = len(wide.pcm) / wide.rate
    spool(tmp_path, paced(wide), (wide.codec,))
    monkeypatch.setattr(finish, "_LARGEST_FILE", round(seconds * 16000 * 4) - 4)

    audio = finish_session(tmp_path, "s", 16000)

    assert audio.stereo is not None
    rate, both = read_wav(tmp_path / audio.stereo)
    assert (rate, len(both)) == (8000, round(seconds * 8000))
    assert audio.legs[0].duration == pytest.approx(seconds)


def test_a_leg_that_is_too_long_for_a_file_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speak(tmp_path, 440, 3.0)
    monkeypatch.setattr(finish, "_LARGEST_FILE", 2 * 16000 * 2)

    (leg,) = finish_session(tmp_path, "s", 16000).legs

    assert leg.duration == 2.0
    assert len(read_wav(tmp_path / leg.file)[1]) == 32000


def test_three_parties_are_heard_the_third_on_both_sides_and_none_wraps(tmp_path: Path) -> None:
    loud = np.full(8000, 30000, np.int16)
    for index in range(3):
        sent = packets(loud)
        spool(tmp_path, [(0.02 * n, one) for n, one in enumerate(sent)], (PCMU,), index)

    audio = finish_session(tmp_path, "s", 8000)

    assert audio.stereo is not None
    _, both = read_wav(tmp_path / audio.stereo)
    assert (both == 32767).all()


def test_the_map_of_what_is_missing_is_of_the_file_and_not_of_what_was_expected(
    tmp_path: Path,
) -> None:
    sent = [(0.02 * n, one) for n, one in enumerate(packets(tone(440, 2.0))) if n not in (30, 31)]
    spool(tmp_path, sent, (PCMU,))
    begun = 10.0  # s since 1970, as the harness has it

    stretch = [(finish._time(round((begun + at) * 1e9))) for at in (-5.0, 9.0)]
    finish_session(tmp_path, "s", 8000, expected={0: [(stretch[0], stretch[1])]})

    assert json.loads((tmp_path / "s-0.loss.json").read_text()) == {"missing": [[0.6, 0.04]]}
