"""From the outbox to one sink: in order within a session, again until confirmed."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
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
_RETURNS_BEFORE_PARKING = 3


class Unreachable(Exception):
    """The sink did not take the event, or we do not know whether it did: try again."""


class Returned(Exception):
    """The sink has nobody who wants the event."""


class Sink(Protocol):
    """Where events go."""

    name: str

    async def publish(self, event: Event) -> None:
        """Return once the sink is answerable for the event. Raises Unreachable, Returned."""
        ...

    async def connect(self) -> None:
        """Connect if not connected. Raises Unreachable."""
        ...


class Relay:
    """Runs until cancelled. `wake` it after each commit; it also looks by itself."""

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
        self._metrics = metrics
        self._clock = clock
        self._news = asyncio.Event()
        self._outage_s = 0.0

    def wake(self) -> None:
        """There may be something to deliver."""
        self._news.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            self._news.clear()
            try:
                wait = await self._deliver_due()
            except StoreError as error:
                log.error("delivery.store_failed", sink=self._sink.name, cause=str(error))
                wait = _LOOK_S
            if self._outage_s:
                await asyncio.sleep(wait)  # news does not bring the sink back
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._news.wait()

    async def _deliver_due(self) -> float:
        """Deliver what is due; returns the seconds until there may be more."""
        name = self._sink.name
        try:
            await self._sink.connect()
        except Unreachable as error:
            return await self._pause(str(error))
        while True:
            waiting = await self._database.read(
                lambda connection: outbox.pending(connection, name, _BATCH, self._clock())
            )
            if not waiting:
                break
            cause = await self._deliver(waiting)
            if cause is not None:
                return await self._pause(cause)
            if self._outage_s:
                log.info("delivery.sink_back", sink=name)
            self._outage_s = 0.0
        self._outage_s = 0.0
        await self._measure()
        due = await self._database.read(lambda connection: outbox.next_due(connection, name))
        if due is None:
            return _LOOK_S
        return min(_LOOK_S, max(0.01, (due - self._clock()).total_seconds()))

    async def _pause(self, cause: str) -> float:
        if not self._outage_s:
            log.error("delivery.sink_unreachable", sink=self._sink.name, cause=cause)
        self._outage_s = min(max(2 * self._outage_s, _FIRST_DELAY_S), _LONGEST_DELAY_S)
        await self._measure()
        return self._outage_s

    async def _deliver(self, waiting: Sequence[PendingEvent]) -> str | None:
        """Publish a batch, sessions side by side; returns why the sink stopped taking events."""
        by_session: dict[str, list[PendingEvent]] = {}
        for one in waiting:
            by_session.setdefault(one.event.session_id, []).append(one)
        slots = asyncio.Semaphore(_SESSIONS_AT_ONCE)
        confirmed: list[int] = []
        returned: list[tuple[PendingEvent, str]] = []
        causes: list[str] = []

        async def deliver_session(events: Sequence[PendingEvent]) -> None:
            async with slots:
                for one in events:
                    if causes:
                        return
                    try:
                        await self._sink.publish(one.event)
                    except Returned as error:
                        returned.append((one, str(error)))
                    except Unreachable as error:
                        causes.append(str(error))
                        self._count("retried")
                        return
                    else:
                        confirmed.append(one.event.seq)
                        self._count("delivered")

        try:
            async with asyncio.TaskGroup() as sessions:
                for events in by_session.values():
                    sessions.create_task(deliver_session(events))
        finally:
            # Also when cancelled: what was confirmed must not be sent again without need.
            if confirmed or returned:
                await asyncio.shield(
                    self._database.write(
                        partial(self._note, confirmed=confirmed, returned=returned)
                    )
                )
                self._tell_of_returned(returned)
        return causes[0] if causes else None

    def _note(
        self,
        connection: Connection,
        confirmed: Sequence[int],
        returned: Sequence[tuple[PendingEvent, str]],
    ) -> None:
        name = self._sink.name
        outbox.delivered(connection, name, confirmed)
        for one, reason in returned:
            if _is_hopeless(one):
                outbox.park(connection, name, one.event.seq, reason)
                continue
            # Nobody wants it now; that must not hold up what somebody does want.
            later = self._clock() + timedelta(seconds=2.0**one.attempts)
            outbox.failed(connection, name, one.event.seq, reason, later, holds_back=False)

    def _tell_of_returned(self, returned: Sequence[tuple[PendingEvent, str]]) -> None:
        for one, reason in returned:
            hopeless = _is_hopeless(one)
            self._count("parked" if hopeless else "returned")
            if hopeless:
                log.warning(
                    "delivery.parked",
                    sink=self._sink.name,
                    type=one.event.type,
                    id=one.event.id,
                    session_id=one.event.session_id,
                    reason=reason,
                )

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


def _is_hopeless(one: PendingEvent) -> bool:
    return one.attempts + 1 >= _RETURNS_BEFORE_PARKING
