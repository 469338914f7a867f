"""Runs that a killed bridge left behind: their processes are ended, their folders removed.

Each run's folder is locked by the bridge that made it, as long as that lives, in whatever container:
several may share a temporary folder. It says which process group was started. A process is known by
its pid, in the namespace of pids, and the tick at which it started, since pids come round again.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NOTE = "run.json"
PREFIX = "whisper-"


@dataclass(frozen=True, slots=True)
class _Note:
    """What a run's folder says. `namespace` None: an earlier version's, which thought of one only."""

    owner: list[int]
    group: list[int] | None
    namespace: str | None
    locked: bool


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Have a run's folder; False: its file system knows no locks, or it is another bridge's."""
    descriptor = None
    try:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except OSError:
            locked = False
        yield locked
    finally:
        if descriptor is not None:
            os.close(descriptor)


def note_owner(folder: Path, group: int | None = None, *, locked: bool) -> None:
    """Write into a run's folder that it is ours, and the group that runs in it."""
    note = {
        "owner": _identity(os.getpid()),
        "group": _identity(group) if group else None,
        "namespace": _namespace(),
        "locked": locked,
    }
    part = folder / f".{_NOTE}.part"
    part.write_text(json.dumps(note))
    part.replace(folder / _NOTE)


def clear_leftovers(temp_dir: Path) -> int:
    """End and remove the runs of bridges that are no more; returns how many there were."""
    count = 0
    for folder, note in _runs(temp_dir):
        with held(folder) as ours:
            here = note.namespace in (None, _namespace())
            # Of pids elsewhere nothing can be known.
            over = ours if note.locked else here and not _lives(note.owner)
            if not over:
                continue
            group = note.group if here else None
            if group is not None and (_lives(group) or _identity(group[0])[1] == 0):
                # With its leader gone, a group's number is not given out while members are left.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group[0], signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)
        count += 1
    return count


def _runs(temp_dir: Path) -> Iterator[tuple[Path, _Note]]:
    for folder in temp_dir.glob(f"{PREFIX}*"):
        try:
            note = json.loads((folder / _NOTE).read_text())
            found = _Note(
                note["owner"], note["group"], note.get("namespace"), note.get("locked") is True
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not ours, or not any more
        if _is_identity(found.owner) and (found.group is None or _is_identity(found.group)):
            yield folder, found


def _is_identity(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(one, int) and one > 0 for one in value)
    )


def _namespace() -> str:
    """Where our pids mean what they say: this boot of this machine, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _identity(pid: int) -> list[int]:
    """Pid and start tick (proc(5), field 22); tick 0: there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return [pid, 0]
    return [pid, int(stat.rpartition(")")[2].split()[19])]


def _lives(identity: list[int]) -> bool:
    return _identity(identity[0]) == identity
