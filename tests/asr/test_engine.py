"""The real faster-whisper, with a model that always says one text a window of 30 s."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from harness.asr import CPU
from siprec_asr.audio import read_audio
from siprec_asr.engine import FasterWhisper, Options, Standin
from siprec_asr.errors import Cancelled, Refused
from siprec_bridge import caller

SAID = "Good morning how can I help you"
SAMPLE = Path(caller.__file__).parent / "sample"


def silence(length_s: float) -> np.ndarray:
    return np.zeros(round(16000 * length_s), np.int16)


@pytest.fixture(scope="module")
def engine(models_dir: Path) -> FasterWhisper:
    return FasterWhisper("tiny", models_dir / "tiny", CPU, cpu_threads=1, workers=2, memory=1)


def test_it_hears_text_segments_and_words(engine: FasterWhisper) -> None:
    heard = engine.transcribe(silence(5), Options(beam_size=2), threading.Event())

    assert (heard.text, heard.language, heard.model, heard.duration) == (SAID, "en", "tiny", 5.0)
    (segment,) = heard.segments
    assert [word.word for word in segment.words] == [f" {word}" for word in SAID.split()]
    assert segment.avg_logprob is not None
    assert 0 <= segment.start <= segment.end


def test_words_are_left_out_when_they_are_not_wanted(engine: FasterWhisper) -> None:
    heard = engine.transcribe(silence(5), Options(word_timestamps=False), threading.Event())

    assert heard.segments[0].words == ()


def test_it_stops_after_the_window_in_which_it_is_told_to(engine: FasterWhisper) -> None:
    cancelled = threading.Event()
    cancelled.set()

    with pytest.raises(Cancelled):
        engine.transcribe(silence(90), Options(), cancelled)


def test_threads_share_it(engine: FasterWhisper) -> None:
    def run(windows: int) -> int:
        options = Options(word_timestamps=False, beam_size=1)
        return len(engine.transcribe(silence(30 * windows), options, threading.Event()).segments)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(run, [1, 3, 2, 1])) == [1, 3, 2, 1]


def test_long_audio_is_decoded_in_batches_at_its_true_times(engine: FasterWhisper) -> None:
    speech = read_audio(SAMPLE / "alice.wav", longest_s=60)
    call = np.concatenate([silence(40), speech])

    heard = engine.transcribe(call, Options(batch_size=4, word_timestamps=False), threading.Event())

    assert SAID in heard.text
    assert 39.5 <= heard.segments[0].start <= 42


def test_a_language_that_is_none_is_the_clients_fault(engine: FasterWhisper) -> None:
    with pytest.raises(Refused) as told:
        engine.transcribe(silence(1), Options(language="klingon"), threading.Event())

    assert (told.value.status, told.value.code) == (400, "unknown_language")


@pytest.mark.parametrize("what", ["no tokenizer.json", "no model.bin", "half a model.bin"])
def test_a_broken_model_folder_is_refused_with_its_cause(
    models_dir: Path, tmp_path: Path, what: str
) -> None:
    folder = shutil.copytree(models_dir / "tiny", tmp_path / "broken")
    if what.startswith("no "):
        (folder / what.removeprefix("no ")).unlink()
    else:
        (folder / "model.bin").write_bytes((folder / "model.bin").read_bytes()[:1000])

    with pytest.raises(Refused, match="broken") as told:
        FasterWhisper("broken", folder, CPU, cpu_threads=1, workers=1, memory=1)

    assert (told.value.status, told.value.code) == (503, "model_failed")


def test_the_standin_hears_real_words_and_says_what_it_is() -> None:
    heard = Standin().transcribe(
        read_audio(SAMPLE / "alice.wav", longest_s=60), Options(), threading.Event()
    )

    assert "question about the meeting on tuesday" in heard.text
    assert "not Whisper" in heard.model
