"""How many calls the bridge takes: at once, on this disk, from one source, and in time."""

from collections import OrderedDict
from dataclasses import dataclass, field

_MOST_LAG_S = 0.4  # less than T1, after which an SRC repeats its INVITE. RFC 3261 §17.1.1.1
_MOST_WAIT_S = 1.0
_SOURCES = 10_000  # remembered; the one that has been quiet for longest is forgotten


@dataclass(slots=True)
class Capacity:
    """What there is room for. `free_disk` and `lag` are kept up to date by whoever looks."""

    max_calls: int = 0  # at once; 0: no limit
    min_free_disk: int = 0  # octets
    max_call_rate: float = 0.0  # new calls a second from one source; 0: no limit
    free_disk: int | None = None
    lag: float = 0.0  # seconds that the bridge is behind with what it has to do, as last seen
    _sources: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def exhausted_by(self, calls: int, waiting: float = 0.0) -> str | None:
        """What there is too little of for one more call: capacity, disk or time; None: nothing.

        `waiting`: seconds since the oldest INVITE that has no answer yet.
        """
        if self.max_calls and calls >= self.max_calls:
            return "capacity"
        if self.free_disk is not None and self.free_disk < self.min_free_disk:
            return "disk"
        # Late answers are asked for again, and again: who takes on more gets slower still.
        # But to turn away the only call would relieve nobody.
        late = (calls > 0 and self.lag > _MOST_LAG_S) or waiting > _MOST_WAIT_S
        return "overload" if late else None

    def too_fast(self, source: str, now: float) -> bool:
        """Whether one more call at `now` (seconds) is beyond its source's rate; counts it if not.

        A bucket of two seconds' calls: SRCs send what has piled up at once.
        """
        if not self.max_call_rate:
            return False
        size = max(1.0, 2 * self.max_call_rate)
        left, before = self._sources.pop(source, (size, now))
        left = min(size, left + (now - before) * self.max_call_rate)
        taken = left >= 1
        self._sources[source] = (left - taken, now)
        if len(self._sources) > _SOURCES:
            self._sources.popitem(last=False)
        return not taken
