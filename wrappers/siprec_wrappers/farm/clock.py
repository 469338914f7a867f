"""How far this machine's clock is from the store's, which tells when an object was written.

A job's deadline is a time of its client's clock: a worker that is ahead of it finds jobs over that are
not. The store's clock is the one that all of them see.
"""

import logging
import time

from siprec_wrappers.farm.store import Store

log = logging.getLogger("whisper-farm")

TOLERANCE_S = 5.0
_RESOLUTION_S = 1.0  # S3 tells whole seconds, cut off


def seconds_ahead(store: Store, key: str, data: bytes) -> float:
    """Write an object; returns by how much our clock is ahead of the store's, negative: behind.

    0 as long as both can be right, or where the store does not tell. A directory of our own disk has
    our clock. Raises StoreError.
    """
    begun = time.time()
    store.put(key, data)
    ended = time.time()
    modified = store.modified(key)
    if modified is None:
        return 0.0
    return max(0.0, begun - modified - _RESOLUTION_S) or min(0.0, ended - modified)


def complaint(ahead: float) -> str | None:
    """What is wrong with a clock, what comes of it, and the cure; None when it is near enough."""
    if abs(ahead) <= TOLERANCE_S:
        return None
    way, then = (
        ("ahead of", "jobs are dropped as over before they are (Discarding revoked task)")
        if ahead > 0
        else (
            "behind",
            "jobs are done that nobody waits for any more, or dropped elsewhere as over",
        )
    )
    return (
        f"this machine's clock is {abs(ahead):.0f} s {way} the store's: {then}. Have it set by NTP "
        "(timedatectl set-ntp true); if every machine says so, it is the store's clock"
    )


class ClockWatch:
    """A note in the store that is written again and again, and what it tells of our clock."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self._key = key
        self.ahead = 0.0  # seconds; 0 while it is near enough

    def write(self, note: bytes) -> None:
        """Write the note; log that our clock is wrong, and that it is right again, once each.

        Raises StoreError.
        """
        ahead = seconds_ahead(self._store, self._key, note)
        told = complaint(ahead)
        if told is not None and not self.ahead:
            log.error("%s", told)
        elif told is None and self.ahead:
            log.info("this machine's clock and the store's agree again")
        self.ahead = 0.0 if told is None else round(ahead, 1)
