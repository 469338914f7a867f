"""Tiny models for the real engine, made once."""

from pathlib import Path

import pytest

from harness.tiny_whisper import make_ctranslate2

SAID = "Good morning how can I help you"


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `tiny` and `fine/tuned`, which say different things."""
    folder = tmp_path_factory.mktemp("models")
    make_ctranslate2(folder / "tiny", SAID)
    make_ctranslate2(folder / "tuned", "We call from Fine Tuning")
    return folder
