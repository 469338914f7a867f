"""Which of many owners of deadlines is due next."""

import heapq
import itertools
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Timed(Protocol):
    """Has a time at which it has something to do; `scheduled` is the agenda's own note."""

    scheduled: float | None

    @property
    def deadline(self) -> float | None: ...


Owner = TypeVar("Owner", bound=Timed)


class Agenda(Generic[Owner]):
    """Has each owner at its deadline, or earlier. `is_live`: whether one is still known."""

    def __init__(self, is_live: Callable[[Owner], bool]) -> None:
        self._is_live = is_live
        self._numbers = itertools.count(1)
        self._times: list[tuple[float, int, Owner]] = []

    def schedule(self, owner: Owner) -> None:
        """Take an owner up, or its earlier deadline: once, not once a message."""
        at = owner.deadline
        if at is None or not self._is_live(owner):
            return
        if owner.scheduled is None or at < owner.scheduled:
            owner.scheduled = at
            heapq.heappush(self._times, (at, next(self._numbers), owner))

    def next_deadline(self) -> float | None:
        """When the next one is due."""
        while self._times:
            at, _, owner = self._times[0]
            if owner.scheduled == at:
                due = owner.deadline if self._is_live(owner) else None
                if due is not None and due <= at:
                    return at
                owner.scheduled = None
                self.schedule(owner)  # it moved to a later time, or is gone
            heapq.heappop(self._times)
        return None

    def take_due(self, now: float) -> Owner | None:
        """The next owner that is due, which is to be scheduled again; None: there is none."""
        at = self.next_deadline()
        if at is None or at > now:
            return None
        owner = heapq.heappop(self._times)[2]
        owner.scheduled = None
        return owner
