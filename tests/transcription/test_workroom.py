"""Prepared audio in a temporary folder: nothing of it outlives its bridge, and no other's goes."""

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from siprec_bridge.transcription.workroom import Workroom

MAKE_AND_DIE = """
import os
from siprec_bridge.transcription.workroom import Workroom
room = Workroom()
room.open()
(room.folder / "0.wav").write_bytes(b"a voice")
os._exit(0)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_what_a_killed_bridge_left_behind_goes_and_who_lives_keeps_his(temporary: Path) -> None:
    subprocess.run([sys.executable, "-c", MAKE_AND_DIE], check=True)
    (left,) = temporary.iterdir()
    one, other = Workroom(), Workroom()

    one.open()
    after_one = set(temporary.iterdir())
    other.open()
    after_both = set(temporary.iterdir())
    modes = {folder.stat().st_mode & 0o777 for folder in after_both}
    one.close()
    other.close()

    assert left not in after_one
    assert after_one == {one.folder}
    assert after_both == {one.folder, other.folder}
    assert modes == {0o700}
    assert list(temporary.iterdir()) == []


def test_a_folder_that_another_bridge_takes_for_left_behind_is_made_anew(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = fcntl.flock, [True]

    def flock(descriptor: int, operation: int) -> None:
        real(descriptor, operation)
        if taken:  # by one who was faster
            taken.pop()
            for folder in temporary.iterdir():
                os.rmdir(folder)

    monkeypatch.setattr(fcntl, "flock", flock)
    room = Workroom()
    room.open()

    assert list(temporary.iterdir()) == [room.folder]
    room.close()


def test_without_room_for_a_folder_it_is_done_without(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    room = Workroom()
    room.open()
    room.close()

    assert room.folder == temporary
    assert temporary.exists()
