"""Tiny models for the real engine, made once."""

from pathlib import Path

import pytest

from harness.tiny_whisper import write_tiny_whisper

SAID = "Good morning how can I help you"


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `tiny` and `fine/tuned`, which say different things."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_whisper(folder / "tiny", f" {SAID}")
    write_tiny_whisper(folder / "tuned", " We call from Fine Tuning")
    return folder
