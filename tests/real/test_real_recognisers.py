"""openai-whisper, whisper-ctranslate2 and whisper.cpp themselves, each through its wrapper.

`make test-real` installs them (scripts/setup-real) and runs this. The models are made here and say
one text, whatever they hear (harness.tiny_whisper): what is tried is the programs and the way to
them, not how well they hear.
"""

import os
import subprocess
import sys
import wave
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import tiny_whisper
from harness.recognisers import is_alive
from siprec_bridge.provider import AudioFile, Job
from siprec_providers.whisper import WhisperCli

pytestmark = [pytest.mark.slow, pytest.mark.peer, pytest.mark.timeout(180)]

TEXT = "thank you for calling, how can I help?"
REAL = Path(__file__).parents[2] / "build" / "real" / "bin"
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Models:
    """The same text in three formats."""

    folder: Path

    @property
    def pt(self) -> Path:
        return self.folder / "tiny.pt"

    @property
    def ct2(self) -> Path:
        return self.folder / "fine-tuned"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    if not (REAL / "whisper").exists():
        pytest.skip("the real recognisers are not installed: make test-real")
    made = Models(tmp_path_factory.mktemp("models"))
    subprocess.run(
        [
            REAL / "python", tiny_whisper.__file__, TEXT, "--pt", made.pt, "--ct2", made.ct2,
            "--ggml", made.folder / "ggml-tiny.bin",
        ],
        check=True,
        timeout=150,
    )  # fmt: skip
    return made


CHAINS = {
    "openai-whisper": ("whisper-local", "WHISPER_LOCAL_PROGRAM", "whisper", "tiny.pt"),
    "whisper-ctranslate2": (
        "whisper-local", "WHISPER_LOCAL_PROGRAM", "whisper-ctranslate2", "fine-tuned",
    ),
    "whisper.cpp": ("whisper-cpp", "WHISPER_CPP_PROGRAM", "whisper-cpp", "tiny"),
}  # fmt: skip


def wav(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(2 * 16000 * 3))
    return path


def environment(chain: str) -> dict[str, str]:
    _, variable, program, _ = CHAINS[chain]
    return {variable: str(REAL / program), "PATH": f"{REAL}:{os.environ['PATH']}"}


@pytest.mark.parametrize("chain", CHAINS)
async def test_both_legs_of_a_call_get_the_text_with_words(
    chain: str, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper, _, _, model = CHAINS[chain]
    for name, value in environment(chain).items():
        monkeypatch.setenv(name, value)
    extra = "--beam-size 1 --best-of 1" if wrapper == "whisper-cpp" else "--word_timestamps True"
    whisper = WhisperCli.from_options(
        {
            "WHISPER_BINARY_PATH": str(BIN / wrapper),
            "WHISPER_MODEL": model,
            "WHISPER_MODELS_DIR": str(models.folder),
            "WHISPER_TIMEOUT": "150s",
            "WHISPER_EXTRA_ARGS": extra,
            "TMPDIR": str(tmp_path),
        }
    )
    legs = tuple(AudioFile(key, wav(tmp_path / f"{key}.wav"), 3.0) for key in ("1", "2"))

    run = await whisper.transcribe([Job("j1", legs)])

    assert run.facts.status == "success", run.facts.stderr_tail
    heard = run.outcomes["j1"]
    assert isinstance(heard, dict)
    for transcript in heard.values():
        assert transcript.text.strip() == TEXT
        assert transcript.language == "en"
        [segment] = transcript.segments
        assert [word.text.strip() for word in segment.words] == TEXT.split()


@pytest.mark.parametrize("chain", CHAINS)
def test_a_broken_model_is_the_programs_own_error(
    chain: str, models: Models, tmp_path: Path
) -> None:
    wrapper, _, _, model = CHAINS[chain]
    broken = tmp_path / "models"
    broken.mkdir()
    if model == "fine-tuned":
        (broken / model).mkdir()
        (broken / model / "model.bin").write_bytes(b"<html>not found</html>")
    else:
        for name in (model, f"ggml-{model}.bin"):
            (broken / name).write_bytes(b"<html>not found</html>")

    done = subprocess.run(
        [
            BIN / wrapper, wav(tmp_path / "a.wav"), "--model", model, "--model_dir", broken,
            "--output_dir", tmp_path / "out", "--output_format", "json",
        ],
        env=os.environ | environment(chain),
        capture_output=True,
        text=True,
        timeout=150,
    )  # fmt: skip

    assert done.returncode != 0
    assert done.stderr.strip()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("chain", CHAINS)
def test_its_own_deadline_ends_the_real_program(chain: str, models: Models, tmp_path: Path) -> None:
    wrapper, variable, _, model = CHAINS[chain]
    name = variable.replace("PROGRAM", "TIMEOUT")
    noted = tmp_path / "pid"
    program = tmp_path / Path(CHAINS[chain][2]).name
    program.write_text(f'#!/bin/sh\necho $$ >"{noted}"\nexec "{REAL / CHAINS[chain][2]}" "$@"\n')
    program.chmod(0o755)

    done = subprocess.run(
        [
            BIN / wrapper, wav(tmp_path / "a.wav"), "--model", model, "--model_dir", models.folder,
            "--output_dir", tmp_path / "out", "--output_format", "json",
        ],
        env=os.environ | environment(chain) | {variable: str(program), name: "0.2s"},
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip

    assert done.returncode == 124
    assert not is_alive(int(noted.read_text()))
    assert list((tmp_path / "out").iterdir()) == []
