"""The order in which jobs are run: whatever comes, nothing starves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from siprec_bridge.store import JobRow, SessionRow, jobs, recordings, schema

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


@contextmanager
def queue() -> Iterator[Connection]:
    engine = sa.create_engine("sqlite://")
    schema.metadata.create_all(engine)
    with engine.begin() as connection:
        recordings.insert(connection, SessionRow("s", "c", "finished", NOW, "p", "f", "{}"))
        yield connection
    engine.dispose()


def add(
    connection: Connection,
    id: str,
    minutes: float = 1.0,
    *,
    at: float = 0.0,
    source: str = "trunk",
    priority: jobs.Priority = "normal",
    model: str | None = None,
    solo: bool = False,
    vendor: str = "w",
) -> JobRow:
    """Queue a job of so many minutes, `at` minutes from now."""
    row = JobRow(
        id, "s", vendor, 60 * minutes, NOW + timedelta(minutes=at),
        source=source, priority=priority, model=model, solo=solo,
    )  # fmt: skip
    jobs.insert(connection, row)
    found = jobs.get(connection, id)
    assert found is not None
    return found


def order(connection: Connection, vendor: str = "w") -> list[str]:
    """The ids in the order in which single runs take them."""
    taken = []
    while one := jobs.claim(connection, 1, NOW + timedelta(days=30), vendor=vendor):
        taken.append(one[0].id)
    return taken


def test_short_calls_go_before_long_ones_that_came_a_little_earlier() -> None:
    with queue() as here:
        add(here, "ten hours", 600)
        add(here, "half an hour", 30, at=1)
        add(here, "a minute", 1, at=2)

        assert order(here) == ["a minute", "half an hour", "ten hours"]


def test_a_long_call_gets_its_turn_before_short_ones_that_come_an_hour_later() -> None:
    with queue() as here:
        add(here, "ten hours", 600)
        for number in range(3):
            add(here, f"later {number}", 1, at=61 + number)

        assert order(here)[0] == "ten hours"


def test_one_trunks_backlog_does_not_keep_another_waiting() -> None:
    with queue() as here:
        for number in range(100):
            add(here, f"big {number}", 5, source="big")
        add(here, "small 1", 5, source="small", at=6)
        add(here, "small 2", 5, source="small", at=6)

        places = jobs.places(here)
        assert places["small 1"].position <= 3
        assert places["small 2"].position <= 5
        assert places["small 1"].audio_before == 300 * (places["small 1"].position - 1)


def test_priorities_go_first_but_not_for_ever() -> None:
    with queue() as here:
        add(here, "low", priority="low")
        add(here, "normal", at=60)
        add(here, "urgent", at=120, priority="urgent")
        add(here, "normal, two days later", at=2 * 24 * 60)

        assert order(here) == ["urgent", "normal", "low", "normal, two days later"]


def test_a_run_holds_only_what_agrees_in_all_that_the_recogniser_is_told() -> None:
    with queue() as here:
        for number, model in enumerate(("a", "b", None, "a", None)):
            add(here, f"{number}{model}", at=number, model=model)
        add(here, "alone", at=5, model="a", solo=True)
        now = NOW + timedelta(days=1)
        runs = []
        while taken := jobs.claim(here, 8, now, vendor="w"):
            runs.append([row.id for row in taken])

    assert runs == [["0a", "3a"], ["1b"], ["2None", "4None"], ["alone"]]


def test_nothing_waits_in_a_run_for_the_end_of_a_long_call() -> None:
    with queue() as here:
        for number in range(4):
            add(here, f"{number}", 6)

        assert [row.id for row in jobs.claim(here, 4, NOW, vendor="w")] == ["0", "1"]


def test_a_vendor_takes_anothers_jobs_only_when_it_stands_in_and_not_its_model() -> None:
    with queue() as here:
        add(here, "theirs", vendor="x", model="x-large")
        before = jobs.claim(here, 8, NOW, vendor="w")
        (taken,) = jobs.claim(here, 8, NOW, vendor="w", instead_of=["x"])

    assert before == []
    assert (taken.vendor, taken.model) == ("w", None)


@dataclass(frozen=True)
class Arrival:
    """A call: how long after the one before it, in seconds; how long, whose, how urgent."""

    after: int
    seconds: float
    source: str
    priority: jobs.Priority


arrivals = st.lists(
    st.builds(
        Arrival,
        after=st.integers(0, 3600),
        seconds=st.floats(0, 36_000),
        source=st.sampled_from("abc"),
        priority=st.sampled_from(["urgent", "normal", "low"]),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60)
@given(arrivals=arrivals, run_every=st.integers(1, 4))
def test_nothing_starves_and_the_promised_order_holds(
    arrivals: list[Arrival], run_every: int
) -> None:
    """Fewer runs than calls: still no job is overtaken by one that came after its time."""
    with queue() as here:
        now, started = NOW, []
        waiting: dict[str, JobRow] = {}
        for number, call in enumerate(arrivals):
            now += timedelta(seconds=call.after)
            ahead = [
                row.audio_seconds for row in waiting.values()
                if (row.source, row.priority) == (call.source, call.priority)
                and row.audio_seconds <= call.seconds
            ]  # fmt: skip
            row = add(
                here, f"{number:03}", call.seconds / 60, at=(now - NOW).total_seconds() / 60,
                source=call.source, priority=call.priority,
            )  # fmt: skip
            waiting[row.id] = row
            assert row.order_at is not None
            # The longest that a job can be put behind later ones: known when it comes.
            promised = sum(ahead) + min(call.seconds, 3600) + 1
            day = jobs.PRIORITIES[call.priority]
            assert row.order_at - row.created_at <= day + timedelta(seconds=promised)
            if number % run_every == 0:
                (taken,) = jobs.claim(here, 1, now, vendor="w")
                started.append((taken, dict(waiting)))
                del waiting[taken.id]
        while taken_rows := jobs.claim(here, 1, now, vendor="w"):
            started.append((taken_rows[0], dict(waiting)))
            del waiting[taken_rows[0].id]

    assert waiting == {}
    assert len(started) == len(arrivals)
    for taken, others in started:
        for other in others.values():
            assert taken.order_at is not None
            assert other.order_at is not None
            assert (taken.order_at, taken.id) <= (other.order_at, other.id)
            # An urgent job may come a day after it, no job later than that.
            assert taken.created_at <= other.order_at + timedelta(days=1)


def _steps(waiting: int) -> int:
    """What SQLite does, in thousands of its instructions, for whom takes a job, adds one, looks."""
    with queue() as here:
        model = jobs.JobRow("", "s", "w", 60.0, NOW, source="trunk")
        values = {name: getattr(model, name) for name in JobRow.__slots__}
        here.execute(
            schema.jobs.insert(),
            [
                values
                | {
                    "id": f"j{number}",
                    "vendor": ("w", "other")[number % 2],
                    "order_at": NOW + timedelta(seconds=number),
                }
                for number in range(waiting)
            ],
        )
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        driver = here.connection.driver_connection
        assert driver is not None
        driver.set_progress_handler(count, 1000)
        add(here, "new")
        assert len(jobs.claim(here, 4, NOW + timedelta(days=1), vendor="w", node="here")) == 4
        assert jobs.ready(here, ["w", "other"], 64) == 128
        assert jobs.next_due(here, ["w"]) is not None
        driver.set_progress_handler(None, 0)
        return steps


def test_a_long_queue_does_not_slow_who_takes_from_it() -> None:
    assert _steps(20_000) <= 1.5 * _steps(4_000)
