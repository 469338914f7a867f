"""The stand-in as a program: it keeps the contract and says what it is."""

import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from harness.calls import SAMPLE
from siprec_bridge.rtp import decode_g711, encode_g711
from siprec_bridge.trial import word_error_rate

STANDIN = str(Path(sys.executable).with_name("whisper-standin"))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [STANDIN, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def write_wav(path: Path, pcm: np.ndarray, rate: int = 8000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.astype("<i2").tobytes())
    return path


def through_g711(name: str, target: Path) -> Path:
    with wave.open(str(SAMPLE / f"{name}.wav")) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16)
    return write_wav(target, decode_g711("PCMU", encode_g711("PCMU", pcm)))


@pytest.mark.peer
def test_two_files_in_one_run_and_four_words_in_five_are_right(tmp_path: Path) -> None:
    files = [through_g711(name, tmp_path / f"{name}.wav") for name in ("alice", "bob")]

    done = run(
        *files, "--model", "large-v3", "--output_dir", tmp_path / "out", "--output_format", "json",
        "--language", "en", "--beam_size", "5",
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "")
    said = json.loads((SAMPLE / "transcript.json").read_text())
    for name in ("alice", "bob"):
        document = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        expected = " ".join(line["text"] for line in said if line["speaker"] == name)
        assert word_error_rate(expected, document["text"]) <= 0.2
        assert document["model"] == "pocketsphinx-en-us, not Whisper"
        lines = [line for line in said if line["speaker"] == name]
        for segment, line in zip(document["segments"], lines, strict=True):
            assert line["start"] - 0.3 <= segment["start"] <= segment["end"] <= line["end"] + 0.3


@pytest.mark.peer
def test_silence_is_an_empty_output_in_every_format(tmp_path: Path) -> None:
    quiet = write_wav(tmp_path / "quiet.wav", np.zeros(16000, np.int16), 16000)
    empty = write_wav(tmp_path / "empty.wav", np.zeros(0, np.int16))

    done = run(quiet, empty, "--output_dir", tmp_path, "--output_format", "all")

    assert done.returncode == 0
    for name in ("quiet", "empty"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["segments"] == []
        assert (tmp_path / f"{name}.txt").read_text() == ""
        assert (tmp_path / f"{name}.vtt").read_text() == "WEBVTT\n\n"


@pytest.mark.peer
def test_a_file_that_is_no_audio_is_exit_code_1_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("hello")

    (tmp_path / "folder.wav").mkdir()
    good = write_wav(tmp_path / "good.wav", np.zeros(1600, np.int16))

    missing, text = run(tmp_path / "none.wav"), run(tmp_path / "text.wav")
    folder = run(tmp_path / "folder.wav")
    nowhere = run(good, "--output_dir", tmp_path / "text.wav" / "out")

    assert {one.returncode for one in (missing, text, folder, nowhere)} == {1}
    assert missing.stderr.endswith("none.wav: No such file or directory\n")
    assert text.stderr.endswith("text.wav: no WAV file: it is cut off\n")
    assert folder.stderr.endswith("folder.wav: Is a directory\n")
    assert nowhere.stderr.endswith("text.wav/out: Not a directory\n")
    assert all(one.stderr.count("\n") == 1 for one in (missing, text, folder, nowhere))


@pytest.mark.peer
def test_a_disk_that_is_full_is_exit_code_1_with_the_cause(tmp_path: Path) -> None:
    good = write_wav(tmp_path / "good.wav", np.zeros(1600, np.int16))
    limited = 'ulimit -f 0; trap "" XFSZ; exec "$@"'  # as on a full disk, no octet can be written
    full = subprocess.run(
        ["bash", "-c", limited, "bash", STANDIN, good, "--output_dir", tmp_path],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert full.returncode == 1
    assert full.stderr == "whisper-standin: [Errno 27] File too large\n"


@pytest.mark.peer
def test_wrong_arguments_are_exit_code_2() -> None:
    assert run("a.wav", "--output_format", "docx").returncode == 2
    assert run().returncode == 2
