"""From the outbox to one sink: in order within a session, again until confirmed.

What a sink says to an event decides what becomes of it; see the exceptions. Only the sink's own
trouble stops the relay, an event's trouble at most the events after it in its session.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

import structlog
from sqlalchemy import Connection

from siprec_bridge.store import Database, Event, PendingEvent, StoreError, outbox
from siprec_bridge.telemetry import Metrics

log = structlog.get_logger()

_BATCH = 500
_SESSIONS_AT_ONCE = 64
_LOOK_S = 5.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 60.0
_TRIES_BEFORE_PARKING = 3


class Unreachable(Exception):
    """The sink did not take the event, or we do not know whether it did: it will be tried again.

    The sink itself is in trouble: nothing is published until it had some time to recover.
    """


class Returned(Exception):
    """The sink has nobody who wants the event: tried a few times, then parked, holds up nothing."""


class Declined(Exception):
    """The sink will not take this event now, others perhaps: tried until it does, in order."""


class Unacceptable(Exception):
    """The sink will never take this event: parked."""


class Sink(Protocol):
    """Where events go."""

    name: str

    async def publish(self, event: Event) -> None:
        """Return once the sink is answerable for the event.

        Raises Unreachable, Returned, Declined, Unacceptable. What else it raises is a mistake of
        ours: the event is tried a few times, then parked, and the others go on.
        """
        ...

    async def connect(self) -> None:
        """Connect if not connected. Raises Unreachable."""
        ...


@dataclass(frozen=True, slots=True)
class _Setback:
    """An event that the sink did not take, and what to do about it."""

    pending: PendingEvent
    reason: str
    result: str  # label of the metric, while it is not parked
    holds_back: bool = True
    tries: int | None = None  # before it is parked; None: no end

    @property
    def hopeless(self) -> bool:
        """Whether that was the last try."""
        return self.tries is not None and self.pending.attempts + 1 >= self.tries

    @property
    def delay(self) -> timedelta:
        """Until the next try."""
        return timedelta(seconds=min(2.0 ** min(self.pending.attempts, 10), _LONGEST_DELAY_S))


class Relay:
    """Runs until cancelled. `wake` it after each commit; it also looks by itself.

    What was confirmed is remembered until it is noted in the database: a full disk does not make
    it publish again, only the end of the process does.
    """

    def __init__(
        self,
        database: Database,
        sink: Sink,
        metrics: Metrics,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._sink = sink
        self._duty = f"relay {sink.name}"  # of one node: so the order within a session holds
        self._metrics = metrics
        self._clock = clock
        self._news = asyncio.Event()
        self._confirmed: list[int] = []  # not yet noted, at most a batch; so are the setbacks
        self._setbacks: list[_Setback] = []
        self._delay_s = 0.0  # nothing is tried for so long; 0: all is well

    def wake(self) -> None:
        """There may be something to deliver."""
        self._news.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            self._news.clear()
            wait = _LOOK_S
            try:
                wait = await self._deliver_due()
            except Unreachable as error:
                self._put_off("delivery.sink_unreachable", error)
                self._database.leave(self._duty)  # another node may reach it
            except StoreError as error:
                self._put_off("delivery.store_failed", error)
            if self._delay_s:
                with contextlib.suppress(StoreError):
                    await self._measure()
                await asyncio.sleep(self._delay_s)  # news does not bring it back
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._news.wait()

    def _put_off(self, event: str, error: Exception) -> None:
        if not self._delay_s:
            log.error(event, sink=self._sink.name, cause=str(error))
        self._delay_s = min(max(2 * self._delay_s, _FIRST_DELAY_S), _LONGEST_DELAY_S)

    def _all_is_well(self) -> None:
        if self._delay_s:
            log.info("delivery.sink_back", sink=self._sink.name)
        self._delay_s = 0.0

    async def _deliver_due(self) -> float:
        """Deliver what is due; returns the seconds until there may be more.

        Raises Unreachable, StoreError.
        """
        name = self._sink.name
        await self._note()
        await self._sink.connect()
        while self._database.leads(self._duty) and (
            waiting := await self._database.read(
                lambda connection: outbox.pending(connection, name, _BATCH, self._clock())
            )
        ):
            await self._deliver(waiting)
            self._all_is_well()
        self._all_is_well()
        await self._measure()
        due = await self._database.read(lambda connection: outbox.next_due(connection, name))
        if due is None:
            return _LOOK_S
        return min(_LOOK_S, max(0.01, (due - self._clock()).total_seconds()))

    async def _deliver(self, waiting: Sequence[PendingEvent]) -> None:
        """Publish a batch, sessions side by side, and note what became of it.

        Raises Unreachable, StoreError.
        """
        by_session: dict[str, list[PendingEvent]] = {}
        for one in waiting:
            by_session.setdefault(one.event.session_id, []).append(one)
        slots = asyncio.Semaphore(_SESSIONS_AT_ONCE)
        outages: list[Unreachable] = []

        async def deliver_session(events: Sequence[PendingEvent]) -> None:
            async with slots:
                for one in events:
                    if outages:
                        return
                    try:
                        setback = await self._publish(one)
                    except Unreachable as error:
                        outages.append(error)
                        self._count("retried")
                        return
                    if setback is None:
                        self._confirmed.append(one.event.seq)
                        self._count("delivered")
                        continue
                    self._setbacks.append(setback)
                    if setback.holds_back and not setback.hopeless:
                        return

        try:
            async with asyncio.TaskGroup() as sessions:
                for events in by_session.values():
                    sessions.create_task(deliver_session(events))
        except asyncio.CancelledError:
            # What was confirmed must not be sent again without need.
            with contextlib.suppress(StoreError):
                await self._note()
            raise
        await self._note()
        if outages:
            raise outages[0]

    async def _publish(self, one: PendingEvent) -> _Setback | None:
        """Publish an event; returns what stands in its way, if anything. Raises Unreachable."""
        try:
            await self._sink.publish(one.event)
        except Unreachable:
            raise
        except Returned as error:
            # Nobody wants it now; that must not hold up what somebody does want.
            return _Setback(one, str(error), "returned", False, _TRIES_BEFORE_PARKING)
        except Declined as error:
            return _Setback(one, str(error), "retried")
        except Unacceptable as error:
            return _Setback(one, str(error), "retried", tries=1)
        except Exception as error:  # one event that we cannot publish must not hold up all
            log.exception("delivery.failed", sink=self._sink.name, id=one.event.id)
            reason = f"{type(error).__name__}: {error}"
            return _Setback(one, reason, "retried", tries=_TRIES_BEFORE_PARKING)
        return None

    async def _note(self) -> None:
        """Store what became of events. Raises StoreError: then it is still to be done."""
        confirmed, setbacks = tuple(self._confirmed), tuple(self._setbacks)
        if not confirmed and not setbacks:
            return
        work = partial(self._store, confirmed=confirmed, setbacks=setbacks)
        # Shielded: who cancels the relay shall not take back what the sink has confirmed.
        await asyncio.shield(self._database.write(work))
        self._confirmed.clear()
        self._setbacks.clear()
        for one in setbacks:
            self._count("parked" if one.hopeless else one.result)
            if one.hopeless:
                event = one.pending.event
                log.warning(
                    "delivery.parked",
                    sink=self._sink.name,
                    type=event.type,
                    id=event.id,
                    session_id=event.session_id,
                    reason=one.reason,
                )

    def _store(
        self, connection: Connection, confirmed: Sequence[int], setbacks: Sequence[_Setback]
    ) -> None:
        name = self._sink.name
        outbox.delivered(connection, name, confirmed)
        for one in setbacks:
            seq = one.pending.event.seq
            if one.hopeless:
                outbox.park(connection, name, seq, one.reason)
            else:
                later = self._clock() + one.delay
                outbox.failed(connection, name, seq, one.reason, later, holds_back=one.holds_back)

    async def _measure(self) -> None:
        name = self._sink.name
        backlog = await self._database.read(lambda connection: outbox.backlog(connection, name))
        age = 0.0
        if backlog.oldest_at is not None:
            age = max(0.0, (self._clock() - backlog.oldest_at).total_seconds())
        self._metrics.outbox_backlog.labels(sink=name).set(backlog.pending)
        self._metrics.outbox_oldest_age_seconds.labels(sink=name).set(age)

    def _count(self, result: str) -> None:
        self._metrics.deliveries_total.labels(sink=self._sink.name, result=result).inc()
