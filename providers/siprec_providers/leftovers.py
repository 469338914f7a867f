"""Runs that a killed bridge left behind: their processes are ended, their folders removed.

Each run's folder says whose it is and which process group it started. A process is known by its
pid and the tick at which it started, since pids come round again.
"""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

_NOTE = "run.json"
PREFIX = "whisper-"


def note_owner(folder: Path, group: int | None = None) -> None:
    """Write into a run's folder that it is ours, and the group that runs in it."""
    note = {"owner": _identity(os.getpid()), "group": _identity(group) if group else None}
    part = folder / f".{_NOTE}.part"
    part.write_text(json.dumps(note))
    part.replace(folder / _NOTE)


def clear_leftovers(temp_dir: Path) -> int:
    """End and remove the runs of bridges that are no more; returns how many there were."""
    count = 0
    for folder, owner, group in _runs(temp_dir):
        if owner is None or _lives(owner):
            continue
        if group is not None and (_lives(group) or _identity(group[0])[1] == 0):
            # With its leader gone, a group's number is not given out while members are left.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group[0], signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        count += 1
    return count


def _runs(temp_dir: Path) -> Iterator[tuple[Path, list[int] | None, list[int] | None]]:
    for folder in temp_dir.glob(f"{PREFIX}*"):
        try:
            note = json.loads((folder / _NOTE).read_text())
            owner, group = note["owner"], note["group"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not ours, or not any more
        if _is_identity(owner) and (group is None or _is_identity(group)):
            yield folder, owner, group


def _is_identity(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(one, int) and one > 0 for one in value)
    )


def _identity(pid: int) -> list[int]:
    """Pid and start tick (proc(5), field 22); tick 0: there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return [pid, 0]
    return [pid, int(stat.rpartition(")")[2].split()[19])]


def _lives(identity: list[int]) -> bool:
    return _identity(identity[0]) == identity
