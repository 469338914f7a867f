"""What killed bridges left in a temporary folder that others use as well, some in containers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from siprec_providers.leftovers import clear_leftovers, held, note_owner

CLEAR = """
import sys
from pathlib import Path
from siprec_providers.leftovers import clear_leftovers
print(clear_leftovers(Path(sys.argv[1])))
"""
MAKE_AND_DIE = """
import os, sys
from pathlib import Path
from siprec_providers.leftovers import held, note_owner
folder = Path(sys.argv[1])
with held(folder) as locked:
    note_owner(folder, os.getpid(), locked=locked)
    os._exit(0)
"""


def run_in_container(script: str, folder: Path) -> str:
    """In a namespace of pids of its own; skips the test where that is not allowed."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not make a namespace")
    done = subprocess.run(
        [*unshare, sys.executable, "-c", script, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run_of_ours(place: Path) -> Path:
    folder = place / "whisper-1"
    folder.mkdir()
    return folder


def test_a_bridge_in_another_container_leaves_alone_what_runs_here(tmp_path: Path) -> None:
    folder = run_of_ours(tmp_path)
    with held(folder) as locked:
        note_owner(folder, locked=locked)
        found = run_in_container(CLEAR, tmp_path)

    assert (locked, found, folder.exists()) == (True, "0", True)


def test_what_a_bridge_in_another_container_left_behind_goes_and_nobody_here_is_ended_for_it(
    tmp_path: Path,
) -> None:
    folder = run_of_ours(tmp_path)
    run_in_container(MAKE_AND_DIE, folder)
    note = json.loads((folder / "run.json").read_text())
    # Its number is that of a process of ours here.
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as innocent:
        note["group"] = [innocent.pid, start_tick(innocent.pid)]
        (folder / "run.json").write_text(json.dumps(note))

        cleared = clear_leftovers(tmp_path)
        lives = innocent.poll() is None
        innocent.kill()

    assert (cleared, folder.exists(), lives) == (1, False, True)


def start_tick(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_where_there_are_no_locks_pids_count_and_only_our_own(tmp_path: Path) -> None:
    folder = run_of_ours(tmp_path)
    note_owner(folder, locked=False)
    ours = clear_leftovers(tmp_path)
    elsewhere = run_in_container(CLEAR, tmp_path)
    note = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(note | {"owner": [os.getpid(), 1]}))
    of_before = clear_leftovers(tmp_path)

    assert (ours, elsewhere, of_before, folder.exists()) == (0, "0", 1, False)


def test_what_an_earlier_version_left_behind_goes_too(tmp_path: Path) -> None:
    folder = run_of_ours(tmp_path)
    (folder / "run.json").write_text(json.dumps({"owner": [os.getpid(), 1], "group": None}))

    assert clear_leftovers(tmp_path) == 1
    assert not folder.exists()
