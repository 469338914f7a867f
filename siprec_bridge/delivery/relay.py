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
_SESSIONS_AT_ONCE = 256
_LOOK_S = 5.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 60.0
_LONGEST_PAUSE_S = 15.0  # of a sink that is away: a try costs it little
_TRIES_BEFORE_PARKING = 3
_STRAGGLER_S = 0.5  # for so long all wait for one event, then the others go on
_FAILURES_OF_A_SINK = 8  # events declined in a row: the trouble is the sink's, not theirs


class Unreachable(Exception):
    """The sink did not take the event, or we do not know whether it did: it will be tried again.

    The sink itself is in trouble: nothing is published until it had some time to recover, or for as
    long as it says itself (`retry_after_s`).
    """

    def __init__(self, cause: str, retry_after_s: float = 0.0) -> None:
        super().__init__(cause)
        self.retry_after_s = retry_after_s


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
    overdue: bool = False  # it has failed for as long as we are to try

    @property
    def hopeless(self) -> bool:
        """Whether that was the last try."""
        return self.overdue or (self.tries is not None and self.pending.attempts + 1 >= self.tries)

    @property
    def delay(self) -> timedelta:
        """Until the next try."""
        return timedelta(seconds=min(2.0 ** min(self.pending.attempts, 10), _LONGEST_DELAY_S))


class Relay:
    """Runs until cancelled. `wake` it after each commit; it also looks by itself.

    What was confirmed is remembered until it is noted in the database: a full disk does not make
    it publish again, only the end of the process does. `sessions_at_once`: so many events are under
    way at most, each of another session. `patience`: an event that has failed for so long is parked,
    whatever the reason; None: never, unless the sink says so.
    """

    def __init__(
        self,
        database: Database,
        sink: Sink,
        metrics: Metrics,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sessions_at_once: int = _SESSIONS_AT_ONCE,
        patience: timedelta | None = None,
    ) -> None:
        self._database = database
        self._sink = sink
        self._duty = f"relay {sink.name}"  # of one node: so the order within a session holds
        self._metrics = metrics
        self._clock = clock
        self._patience = patience
        self._at_once = sessions_at_once
        self._slots = asyncio.Semaphore(sessions_at_once)
        self._news = asyncio.Event()
        self._under_way: dict[str, asyncio.Task[None]] = {}  # by session
        self._confirmed: list[int] = []  # not yet noted, at most a batch; so are the setbacks
        self._setbacks: list[_Setback] = []
        self._outage: Unreachable | None = None
        self._declined_in_a_row = 0
        self._measured_at = 0.0
        self._delay_s = 0.0  # nothing is tried for so long; 0: go on
        self.trouble: str | None = None

    @property
    def name(self) -> str:
        """The sink's."""
        return self._sink.name

    def wake(self) -> None:
        """There may be something to deliver."""
        self._news.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        try:
            while True:
                await self._round()
        finally:
            for task in self._under_way.values():
                task.cancel()
            await asyncio.gather(*self._under_way.values(), return_exceptions=True)
            self._under_way.clear()
            # What was confirmed must not be sent again without need.
            with contextlib.suppress(StoreError):
                await self._note()

    async def _round(self) -> None:
        """Deliver what is due, and wait until there may be more."""
        self._news.clear()
        try:
            wait = await self._deliver_due()
        except Unreachable as error:
            self._put_off("delivery.sink_unreachable", error)
            if not error.retry_after_s:
                self._database.leave(self._duty)  # another node may reach it
            await self._pause(max(self._delay_s, error.retry_after_s))
        except StoreError as error:
            self._put_off("delivery.store_failed", error)
            await self._pause(self._delay_s)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._news.wait()

    async def _pause(self, seconds: float) -> None:
        """Try nothing for so long: news does not bring the sink back."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while (left := until - loop.time()) > 0:
            with contextlib.suppress(StoreError):
                await self._measure()
            await asyncio.sleep(min(left, _LOOK_S))

    def _put_off(self, event: str, error: Exception) -> None:
        if self.trouble is None:
            log.error(event, sink=self._sink.name, cause=str(error))
        self.trouble = str(error)
        self._delay_s = min(max(2 * self._delay_s, _FIRST_DELAY_S), _LONGEST_PAUSE_S)

    def _all_is_well(self) -> None:
        if self.trouble is not None:
            log.info("delivery.sink_back", sink=self._sink.name)
        self.trouble = None
        self._delay_s = 0.0

    async def _deliver_due(self) -> float:
        """Deliver what is due; returns the seconds until there may be more.

        Raises Unreachable, StoreError.
        """
        name = self._sink.name
        await self._note()
        await self._sink.connect()
        while leads := self._database.leads(self._duty):
            waiting = await self._database.read(
                partial(
                    outbox.pending, sink=name, limit=_BATCH, now=self._clock(),
                    besides=tuple(self._under_way),
                )
            )  # fmt: skip
            if waiting:
                self._deliver(waiting)
            elif self._under_way:
                await self._wait_beside_stragglers()
            else:
                break
            await self._settle()
        self._delay_s = 0.0
        pending = await self._measure()
        due = await self._database.read(lambda connection: outbox.next_due(connection, name))
        if leads and not pending:
            self._all_is_well()  # nothing is left that could fail
        if due is None:
            return _LOOK_S
        return min(_LOOK_S, max(0.01, (due - self._clock()).total_seconds()))

    def _deliver(self, waiting: Sequence[PendingEvent]) -> None:
        """Begin to publish a batch, sessions side by side."""
        by_session: dict[str, list[PendingEvent]] = {}
        for one in waiting:
            by_session.setdefault(one.event.session_id, []).append(one)
        for session_id, events in by_session.items():
            self._under_way[session_id] = asyncio.create_task(self._deliver_session(events))

    async def _deliver_session(self, events: Sequence[PendingEvent]) -> None:
        async with self._slots:
            for one in events:
                if self._outage is not None:
                    return
                try:
                    setback = await self._publish(one)
                except Unreachable as error:
                    self._fail(error)
                    if self._patience is None:
                        self._count("retried")
                        return
                    setback = self._setback(one, str(error))
                if setback is None:
                    self._declined_in_a_row = 0
                    self._confirmed.append(one.event.seq)
                    self._count("delivered")
                    self._all_is_well()
                    continue
                self._setbacks.append(setback)
                if setback.holds_back and not setback.hopeless:
                    return

    def _fail(self, outage: Unreachable) -> None:
        """The sink is in trouble; the longest wait that it asks for counts."""
        if self._outage is None or outage.retry_after_s > self._outage.retry_after_s:
            self._outage = outage

    async def _settle(self) -> None:
        """Wait for what is under way, and note what became of it.

        Returns with stragglers still under way, as long as they leave room for others. Raises
        Unreachable, when nothing is under way any more, and StoreError.
        """
        while True:
            await asyncio.wait(set(self._under_way.values()), timeout=_STRAGGLER_S)
            for session_id, task in list(self._under_way.items()):
                if task.done():
                    del self._under_way[session_id]
                    if not task.cancelled():
                        task.result()
            await self._note()
            # A broker that blocks us may hold up a batch for hours, while the backlog grows.
            if asyncio.get_running_loop().time() - self._measured_at > _LOOK_S:
                await self._measure()
            if not self._under_way:
                break
            if self._outage is None and len(self._under_way) <= self._at_once // 2:
                break
        outage, self._outage = self._outage, None
        if outage is not None:
            raise outage

    async def _wait_beside_stragglers(self) -> None:
        """Until one of them is done, or there is news."""
        news = asyncio.create_task(self._news.wait())
        try:
            await asyncio.wait(
                {news, *self._under_way.values()},
                timeout=_LOOK_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            news.cancel()
        self._news.clear()

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
            self._declined_in_a_row += 1
            if self._declined_in_a_row >= _FAILURES_OF_A_SINK:
                many = self._declined_in_a_row
                self._fail(Unreachable(f"it declined {many} events in a row: {error}"))
            return self._setback(one, str(error))
        except Unacceptable as error:
            self._declined_in_a_row = 0
            return _Setback(one, str(error), "retried", tries=1)
        except Exception as error:  # one event that we cannot publish must not hold up all
            log.exception("delivery.failed", sink=self._sink.name, id=one.event.id)
            reason = f"{type(error).__name__}: {error}"
            return _Setback(one, reason, "retried", tries=_TRIES_BEFORE_PARKING)
        return None

    def _setback(self, one: PendingEvent, reason: str) -> _Setback:
        """One that may pass, unless it has lasted too long."""
        failing_for = self._clock() - (one.failing_since or self._clock())
        overdue = self._patience is not None and failing_for >= self._patience
        return _Setback(one, reason, "retried", overdue=overdue)

    async def _note(self) -> None:
        """Store what became of events. Raises StoreError: then it is still to be done."""
        confirmed, setbacks = tuple(self._confirmed), tuple(self._setbacks)
        if not confirmed and not setbacks:
            return
        work = partial(self._store, confirmed=confirmed, setbacks=setbacks)
        # Shielded: who cancels the relay shall not take back what the sink has confirmed.
        await asyncio.shield(self._database.write(work))
        del self._confirmed[: len(confirmed)]  # more may have come
        del self._setbacks[: len(setbacks)]
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
        name, now = self._sink.name, self._clock()
        outbox.delivered(connection, name, confirmed)
        for one in setbacks:
            seq = one.pending.event.seq
            if one.hopeless:
                outbox.park(connection, name, seq, one.reason, now)
            else:
                later = now + one.delay
                outbox.failed(
                    connection, name, seq, one.reason, later, holds_back=one.holds_back, at=now
                )

    async def _measure(self) -> int:
        """Show how much waits; returns that."""
        self._measured_at = asyncio.get_running_loop().time()
        name = self._sink.name
        backlog = await self._database.read(lambda connection: outbox.backlog(connection, name))
        age = 0.0
        if backlog.oldest_at is not None:
            age = max(0.0, (self._clock() - backlog.oldest_at).total_seconds())
        self._metrics.outbox_backlog.labels(sink=name).set(backlog.pending)
        self._metrics.outbox_parked.labels(sink=name).set(backlog.parked)
        self._metrics.outbox_oldest_age_seconds.labels(sink=name).set(age)
        return backlog.pending

    def _count(self, result: str) -> None:
        self._metrics.deliveries_total.labels(sink=self._sink.name, result=result).inc()
