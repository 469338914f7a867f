"""Room that is set aside on the disk of SQLite's file, for a start when all other room is taken.

SQLite needs some to open its file at all: for its locks and its log, which go when it is closed.
Without it nobody could delete anything from a disk that has become full meanwhile.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

OCTETS: Final = 8 << 20  # its log goes on at its beginning from 4 MB on, and there are the locks
_TIMES: Final = 16  # so many times as much is to be free: of a small disk, nothing is set aside


class Reserve:
    """A file beside the database's that has room, and nothing in it."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + ".reserve")

    def keep(self) -> None:
        """Set the room aside where that is not done and there is plenty. What is refused is not said."""
        with contextlib.suppress(OSError):
            if self._path.exists() or self._free() < _TIMES * OCTETS:
                return
            made = self._path.with_name(self._path.name + ".new")
            try:
                descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(descriptor, 0, OCTETS)
                finally:
                    os.close(descriptor)
                made.rename(self._path)
            finally:
                made.unlink(missing_ok=True)

    def spend(self) -> bool:
        """Give the room back if there is little else; False: there is enough, or none was set aside."""
        try:
            if self._free() >= OCTETS:
                return False
            self._path.unlink()
        except OSError:
            return False
        return True

    def _free(self) -> int:
        return shutil.disk_usage(self._path.parent).free
