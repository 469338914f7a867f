"""Log lines that a peer can cause at will: the first is written, the others are counted."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

_MOST = 1000  # told of in `every` seconds


@dataclass(slots=True)
class _Told:
    at: float
    unsaid: int = 0


class Complaints:
    """Decides which of many lines about the same thing are worth writing: one in `every` seconds.

    And about how many things: senders of datagrams are whoever they say to be.
    """

    def __init__(self, clock: Callable[[], float], every: float) -> None:
        self._clock = clock
        self._every = every
        self._told: OrderedDict[Hashable, _Told] = OrderedDict()  # the longest past ones first

    def due(self, about: Hashable) -> int | None:
        """How many lines were left out before this one; None: leave this one out as well."""
        now = self._clock()
        told = self._told.get(about)
        if told is not None and now - told.at < self._every:
            told.unsaid += 1
            return None
        if told is None and not self._has_room(now):
            return None
        self._told[about] = _Told(now)
        self._told.move_to_end(about)
        return told.unsaid if told is not None else 0

    def _has_room(self, now: float) -> bool:
        while len(self._told) >= _MOST:
            if now - next(iter(self._told.values())).at < self._every:
                return False
            self._told.popitem(last=False)
        return True

    def forget(self, about: Hashable) -> int:
        """The thing is over: how many lines about it were left out since the last one."""
        told = self._told.pop(about, None)
        return told.unsaid if told is not None else 0
