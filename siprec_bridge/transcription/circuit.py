"""Whether a recogniser is broken, whatever audio it gets. Pure: times are handed in, seconds.

Runs that fail one after the other for one reason are a suspicion only: it may be their audio. A probe
with audio that is known to be good decides, and no job is given up before it was asked. While the
circuit is open nothing is started but probes, at growing intervals.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

_FIRST_PROBE_S: Final = 5.0
_LONGEST_PROBE_S: Final = 300.0


class Circuit:
    """One recogniser's. `failures` in a row make a suspicion; 0: nothing is ever suspected."""

    def __init__(self, failures: int) -> None:
        self._failures = failures
        self._reason: str | None = None
        self._runs = 0
        self._blamed: Counter[str] = Counter()  # jobs, by attempts in this row of failures
        self._interval = 0.0
        self._probe_at = 0.0
        self.opened_at: float | None = None
        self.cause: str | None = None  # while it is open

    @property
    def is_open(self) -> bool:
        """Whether the recogniser was found to be broken."""
        return self.opened_at is not None

    @property
    def is_used(self) -> bool:
        """Whether a job is not to be given up before the recogniser was probed."""
        return self._failures > 0

    @property
    def is_suspicious(self) -> bool:
        """Whether it is time for a probe, though nothing is open."""
        return 0 < self._failures <= self._runs and not self.is_open

    def failed(self, reason: str, jobs: Iterable[str]) -> None:
        """A run of these jobs failed as a whole."""
        if reason != self._reason:
            self._reason, self._runs = reason, 0
            self._blamed.clear()
        self._runs += 1
        self._blamed.update(jobs)

    def worked(self) -> None:
        """A run gave a transcript, or a probe did: what failed before, failed by itself."""
        self._reason, self._runs = None, 0
        self._blamed.clear()
        self._interval = 0.0
        self.opened_at = self.cause = None

    def broke(self, cause: str, now: float) -> dict[str, int]:
        """A probe failed. Returns the attempts, by job, that were spent before it was known."""
        if self.opened_at is None:
            self.opened_at = now
        self.cause = cause
        self._interval = min(max(2 * self._interval, _FIRST_PROBE_S), _LONGEST_PROBE_S)
        self._probe_at = now + self._interval
        spent, self._blamed = dict(self._blamed), Counter()
        return spent

    def wait(self, now: float) -> float:
        """Seconds until the next probe is due; only while it is open."""
        return max(0.0, self._probe_at - now)
