"""`whisper-cpp`: whisper.cpp's flags and JSON. tests/real has the real program."""

import json
import math
import os
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import pytest

from harness.recognisers import recogniser
from harness.whispercpp import whisper_cli
from siprec_wrappers.contract import Failure
from siprec_wrappers.cpp import find_model, read_json

PROGRAM = Path(sys.executable).with_name("whisper-cpp")


def wav(path: Path, *, rate: int = 16000, octets: int = 2) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(octets)
        file.setframerate(rate)
        file.writeframes(bytes(rate))
    return path


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *map(str, arguments), "--output_dir", folder / "out", "--output_format", "json"],
        env=os.environ | {"WHISPER_CPP_PROGRAM": str(folder / "whisper-cli")},
        capture_output=True,
        text=True,
        timeout=30,
    )


def token(text: str, start: int, end: int, chance: float = 0.9) -> dict[str, Any]:
    return {"text": text, "offsets": {"from": start, "to": end}, "p": chance}


def written(text: str, *tokens: dict[str, Any], language: str = "en") -> bytes:
    segment = {"offsets": {"from": 0, "to": 1500}, "text": text, "tokens": list(tokens)}
    document = {"result": {"language": language}, "transcription": [segment]}
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape")


def test_language_task_and_options_become_its_own(tmp_path: Path) -> None:
    whisper_cli(tmp_path, recogniser(tmp_path, "speaks"))
    a = wav(tmp_path / "a.wav")

    plain = run(tmp_path, a, "--model_dir", tmp_path, "--model", "base", "--threads", "8")
    flags = json.loads((tmp_path / "whisper-cli.flags").read_text())
    told = run(tmp_path, a, "--model_dir", tmp_path, "--task", "translate", "--language", "German",
               "--initial_prompt", "Storno, x")  # fmt: skip
    told_flags = json.loads((tmp_path / "whisper-cli.flags").read_text())

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "2")
        run(tmp_path, a, "--model_dir", tmp_path)
    assert json.loads((tmp_path / "whisper-cli.flags").read_text())["threads"] == "2"

    assert (plain.returncode, told.returncode) == (0, 0), plain.stderr + told.stderr
    assert (flags["language"], flags["threads"], flags["full"]) == ("auto", "8", True)
    assert "translate" not in flags
    assert (told_flags["language"], told_flags["translate"]) == ("de", True)
    assert told_flags["prompt"] == "Storno, x"


def test_audio_of_another_kind_is_told_before_a_run(tmp_path: Path) -> None:
    whisper_cli(tmp_path, recogniser(tmp_path, "speaks"))
    (tmp_path / "text.wav").write_text("hello")

    slow = run(tmp_path, wav(tmp_path / "8k.wav", rate=8000), "--model_dir", tmp_path)
    deep = run(tmp_path, wav(tmp_path / "24.wav", octets=3), "--model_dir", tmp_path)
    none = run(tmp_path, tmp_path / "text.wav", "--model_dir", tmp_path)

    assert slow.returncode == deep.returncode == none.returncode == 1
    assert "8000 Hz; this recogniser takes 16000 (WHISPER_SAMPLE_RATE)" in slow.stderr
    assert "24-bit samples" in deep.stderr
    assert "text.wav: no WAV file" in none.stderr
    assert not (tmp_path / "whisper-cli.flags").exists()


def test_a_model_that_is_not_there_lets_the_job_wait_and_a_broken_one_fails(
    tmp_path: Path,
) -> None:
    whisper_cli(tmp_path, recogniser(tmp_path, "speaks"))
    a = wav(tmp_path / "a.wav")

    none = run(tmp_path, a, "--model_dir", tmp_path, "--model", "turbo")
    (tmp_path / "ggml-base.bin").write_bytes(b"<html>not found</html>")
    broken = run(tmp_path, a, "--model_dir", tmp_path, "--model", "base")

    assert none.returncode == 126
    assert "ggml-large-v3-turbo.bin" in none.stderr
    assert broken.returncode == 3
    assert "failed to initialize whisper context" in broken.stderr


def test_an_option_it_does_not_know_is_a_failed_run_though_it_ends_with_0(
    tmp_path: Path,
) -> None:
    whisper_cli(tmp_path, recogniser(tmp_path, "speaks"))

    done = run(
        tmp_path, wav(tmp_path / "a.wav"), "--model_dir", tmp_path, "--word_timestamps", "True"
    )

    assert done.returncode == 1
    assert "unknown argument: --word_timestamps" in done.stderr
    assert "wrote no a.json" in done.stderr


@pytest.mark.parametrize("name", ["ggml-base.bin", "base", "mine.bin"])
def test_a_model_is_found_by_name_or_path(tmp_path: Path, name: str) -> None:
    for file in ("ggml-base.bin", "mine.bin"):
        (tmp_path / file).touch()

    assert find_model(name, str(tmp_path)).parent == tmp_path
    assert find_model(str(tmp_path / "mine.bin"), "/elsewhere") == tmp_path / "mine.bin"


def test_tokens_become_words_with_times_and_chances() -> None:
    heard = read_json(
        written(
            " Hello there, Bob.",
            token("[_BEG_]", 0, 0),
            token(" Hel", 0, 200, 0.8), token("lo", 200, 400, 0.6), token(" there", 400, 800),
            token(",", 800, 810, 0.5), token(" Bob", 900, 1300), token(".", 1300, 1500),
            token("[_TT_75]", 1500, 1500, 0.1),
        )
    )  # fmt: skip

    [segment] = heard.segments
    assert (heard.language, segment.text) == ("en", "Hello there, Bob.")
    assert [(one.text, one.start, one.end) for one in segment.words] == [
        ("Hello", 0.0, 0.4), ("there,", 0.4, 0.81), ("Bob.", 0.9, 1.5),
    ]  # fmt: skip
    assert segment.words[0].probability == pytest.approx(0.7)
    chances = [0.8, 0.6, 0.9, 0.5, 0.9, 0.9]
    assert segment.avg_logprob == pytest.approx(sum(map(math.log, chances)) / 6)
    assert segment.compression_ratio is not None


def test_a_character_that_two_tokens_share_is_read_whole() -> None:
    first, second = (part.decode("utf-8", "surrogateescape") for part in (b" caf\xc3", b"\xa9"))

    [segment] = read_json(
        written(" café", token(first, 0, 300), token(second, 300, 500), language="fr")
    ).segments

    assert [word.text for word in segment.words] == ["café"]


def test_where_no_spaces_are_written_each_token_is_a_word() -> None:
    cut = [part.decode("utf-8", "surrogateescape") for part in (b"\xe5\xa5", b"\xbd")]

    [segment] = read_json(
        written(
            "你好", token("你", 0, 300), token(cut[0], 300, 400), token(cut[1], 400, 500),
            language="zh",
        )
    ).segments  # fmt: skip

    assert [(word.text, word.start, word.end) for word in segment.words] == [
        ("你", 0.0, 0.3), ("好", 0.3, 0.5),
    ]  # fmt: skip


def test_what_it_writes_for_silence_is_no_speech() -> None:
    assert read_json(written(" [BLANK_AUDIO]", token(" [", 0, 9), token("]", 9, 9))).segments == ()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"text": "half', b"{}", b'{"result": {"language": "en"}, "transcription": [1]}'],
)
def test_anything_else_is_no_output(content: bytes) -> None:
    with pytest.raises(Failure, match="not understood"):
        read_json(content)
