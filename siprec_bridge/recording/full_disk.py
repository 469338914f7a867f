"""A full disk, remembered, so that what needs room is not begun again for nothing."""

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Final

_ANYWAY_S: Final = 3600.0  # others may have had the room, and have given it back before we looked


class FullDisk:
    """That a session's audio had no room, and how much there was when that was over."""

    def __init__(self, folder: Path) -> None:
        """Look at the disk of a session's folder. Raises OSError."""
        self._folder = folder
        self._free = shutil.disk_usage(folder).free
        self._until = time.monotonic() + _ANYWAY_S
        # What is made of it is larger: at least this is needed, and nearly always much more.
        self._spooled = sum(one.stat().st_size for one in folder.glob("*.spool"))

    def complain(self) -> None:
        """Raise OSError (ENOSPC) as long as another try would end as the last one did."""
        free = shutil.disk_usage(self._folder).free
        if time.monotonic() < self._until and free < max(
            self._spooled, self._free + self._spooled // 4, self._free + 1
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
