"""The folder of the audio that is prepared for recognisers: callers' voices, not to be left lying.

It is locked as long as its bridge lives, in whatever container: what nobody has locked was left
behind by one that was killed, and goes with the next start. File systems without locks keep it.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger()

_PREFIX: Final = "siprec-prepare-"
_TRIES: Final = 10


class Workroom:
    """One bridge's, in the temporary folder. `folder` is for its runs to make folders in."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.gettempdir())
        self._lock: int | None = None

    def open(self) -> None:
        """Remove what killed bridges left behind, and have a folder where there is room for one."""
        temporary = Path(tempfile.gettempdir())
        left = sum(_remove(folder) for folder in temporary.glob(f"{_PREFIX}*"))
        if left:
            log.warning("jobs.leftovers_removed", folders=left, temp_dir=str(temporary))
        with contextlib.suppress(
            OSError
        ):  # a full disk: without it, nothing can be prepared either
            for _ in range(_TRIES):
                self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
                try:
                    self._lock = _lock(self.folder)
                except (BlockingIOError, FileNotFoundError):
                    continue  # another bridge took it for left behind, and removes it
                if self.folder.exists():
                    return
                self._unlock()

    def close(self) -> None:
        """Remove it."""
        if self.folder.name.startswith(_PREFIX):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove(folder: Path) -> bool:
    """Whether it was nobody's."""
    try:
        lock = _lock(folder)
    except OSError:
        return False
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
    return True


def _lock(folder: Path) -> int:
    """Raises OSError: BlockingIOError where somebody has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
