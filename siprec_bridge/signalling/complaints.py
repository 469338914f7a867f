"""Log lines that a peer can cause at will: the first is written, the others are counted."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

_MOST = 10_000


@dataclass(slots=True)
class _Told:
    at: float
    unsaid: int = 0


class Complaints:
    """Decides which of many lines about the same thing are worth writing: one in `every` seconds."""

    def __init__(self, clock: Callable[[], float], every: float) -> None:
        self._clock = clock
        self._every = every
        self._told: dict[Hashable, _Told] = {}

    def due(self, about: Hashable) -> int | None:
        """How many lines were left out before this one; None: leave this one out as well."""
        now = self._clock()
        told = self._told.get(about)
        if told is not None and now - told.at < self._every:
            told.unsaid += 1
            return None
        if told is None and len(self._told) >= _MOST:
            self._told.clear()
        self._told[about] = _Told(now)
        return told.unsaid if told is not None else 0

    def forget(self, about: Hashable) -> int:
        """The thing is over: how many lines about it were left out since the last one."""
        told = self._told.pop(about, None)
        return told.unsaid if told is not None else 0
