"""What is counted against a job and what is not, and what is told of jobs."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from siprec_bridge.store import JobRow, SessionRow, jobs, recordings, schema
from siprec_bridge.transcript import RunFacts

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


@pytest.fixture
def here() -> Iterator[Connection]:
    """A database with two sessions and four jobs of 2.5 s; of the second one, two."""
    engine = sa.create_engine("sqlite://")
    schema.metadata.create_all(engine)
    with engine.begin() as connection:
        for id in ("s1", "s2"):
            recordings.insert(connection, SessionRow(id, "c", "finished", NOW, "p", "f", "{}"))
        for number, (session, node) in enumerate(
            (("s1", None), ("s1", "a"), ("s2", "a"), ("s2", "b"))
        ):
            at = NOW + timedelta(seconds=number)
            jobs.insert(connection, JobRow(f"j{number}", session, "w", 2.5, at, node=node))
        yield connection
    engine.dispose()


def run(here: Connection, count: int, node: str | None = None) -> list[str]:
    """Claim one after the other: each is a run of its own."""
    return [
        one.id
        for number in range(count)
        for one in jobs.claim(here, 1, NOW + timedelta(seconds=number), vendor="w", node=node)
    ]


def job(here: Connection, id: str) -> JobRow:
    row = jobs.get(here, id)
    assert row is not None
    return row


def test_a_run_that_did_not_come_about_is_not_counted(here: Connection) -> None:
    assert run(here, 3) == ["j0", "j1", "j2"]

    jobs.release(here, ["j0"], NOW + timedelta(minutes=1))
    counted = jobs.requeue_running(here)

    assert counted == 2
    assert [job(here, id).attempts for id in ("j0", "j1", "j2")] == [0, 0, 0]
    assert {job(here, id).state for id in ("j0", "j1", "j2")} == {"queued"}
    assert job(here, "j0").not_before == NOW + timedelta(minutes=1)


def test_attempts_are_taken_back_but_never_below_none_nor_of_what_is_over(
    here: Connection,
) -> None:
    for attempt in range(3):
        run(here, 4)
        for id in ("j0", "j1", "j2"):
            jobs.reschedule(here, id, NOW, "exit_code", solo=True)
        if not attempt:
            jobs.fail(here, "j3", "timeout", NOW)

    jobs.refund(here, {"j0": 2, "j1": 3, "j2": 7, "j3": 1})

    assert [job(here, f"j{n}").attempts for n in range(4)] == [1, 0, 0, 1]
    assert [job(here, f"j{n}").solo for n in range(3)] == [False] * 3


def test_whoever_does_not_run_a_job_any_more_says_nothing_of_it(here: Connection) -> None:
    facts = RunFacts(provider="w", model="m", status="success")
    assert run(here, 1, "a") == ["j0"]
    row = job(here, "j0")

    refused = [
        jobs.fail(here, "j0", "timeout", NOW, runner="b"),
        jobs.reschedule(here, "j0", NOW, "timeout", runner="b"),
        jobs.hand_over(here, row, "v", runner="b"),
    ]
    untouched = job(here, "j0")
    heard = jobs.hand_over(here, row, "v", runner="a")

    assert refused == [False] * 3
    assert untouched == row
    assert heard
    taken_over = job(here, "j0")
    assert (taken_over.vendor, taken_over.tried, taken_over.state) == ("v", "w", "queued")
    assert (taken_over.attempts, taken_over.solo) == (0, False)
    jobs.finish(here, "j0", facts, NOW)  # whoever made it, there is a transcript
    assert job(here, "j0").state == "done"


def test_a_lease_lasts_from_now_on_and_is_renewed_by_its_runner_alone(here: Connection) -> None:
    run(here, 1, "a")
    minute = timedelta(minutes=1)

    renewed = jobs.renew(here, ["j0", "j1"], NOW + minute, "a")

    assert jobs.renew(here, ["j0"], NOW + minute, "b") == set()
    assert renewed == {"j0"}
    assert job(here, "j0").lease_until == NOW + minute + jobs.LEASE
    assert jobs.claim(here, 1, NOW + minute + jobs.LEASE, vendor="w", node="b")[0].id == "j3"
    assert jobs.claim(here, 1, NOW + 3 * minute, vendor="w", node="b")[0].id == "j0"


@pytest.mark.parametrize(("node", "adopted"), [(None, 4), ("a", 2), ("b", 1), ("c", 0)])
def test_of_several_nodes_one_adopts_only_what_no_other_can_run(
    here: Connection, node: str | None, adopted: int
) -> None:
    assert jobs.adopt(here, ["w"], "v", node) == 0
    assert jobs.adopt(here, ["v"], "v", node) == adopted


def test_one_failed_job_is_tried_again_or_all(here: Connection) -> None:
    run(here, 3)
    for id in ("j0", "j1", "j2"):
        jobs.fail(here, id, "timeout", NOW)

    one = jobs.retry(here, "j1")
    left = [row.id for row in jobs.listing(here, 9, state="failed")]
    rest = jobs.retry(here)

    assert (one, left, rest) == (1, ["j2", "j0"], 2)
    assert job(here, "j1").attempts == 0


def test_jobs_are_counted_by_what_becomes_of_them(here: Connection) -> None:
    jobs.insert(here, JobRow("other", "s1", "v", 1.0, NOW))
    run(here, 2)
    jobs.fail(here, "j0", "timeout", NOW)

    backlog = jobs.backlog(here)

    assert (backlog.jobs, backlog.audio_seconds, backlog.failed) == (4, 8.5, 1)
    assert jobs.waiting(here) == {"w": (2, 5.0), "v": (1, 1.0)}
    assert jobs.waiting(here, "b") == {"w": (1, 2.5), "v": (1, 1.0)}
    assert [jobs.ready(here, ["w", "v"], most) for most in (1, 9)] == [2, 3]
    assert jobs.ready(here, ["w"], 9, "b") == 1
    assert jobs.next_due(here, ["w"]) == NOW + timedelta(seconds=2)
    assert jobs.next_due(here, ["w", "v"]) == jobs.next_due(here, ["v"]) == NOW
    assert jobs.next_due(here, ["x"]) is None
    assert [row.id for row in jobs.listing(here, 9, session_id="s2")] == ["j3", "j2"]
    pages = [row.id for row in jobs.listing(here, 9, before=(NOW + timedelta(seconds=2), "j2"))]
    assert pages == ["j1", "other", "j0"]


def test_the_speed_is_that_of_the_latest_runs_times_those_that_run_now(here: Connection) -> None:
    assert jobs.recent_speed(here) is None
    facts = RunFacts(provider="w", model="m", status="success", duration=0.5)
    for id in jobs.claim(here, 2, NOW, vendor="w"):  # one run of two jobs took half a second
        jobs.finish(here, id.id, facts, NOW)

    alone = jobs.recent_speed(here)
    run(here, 2)

    assert jobs.recent_runs(here) == [("w", 5.0, 0.5)]
    assert (alone, jobs.recent_speed(here)) == (10.0, 20.0)
