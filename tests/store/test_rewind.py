"""After the wall clock was set back."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from siprec_bridge.store import Database, Event, JobRow, SessionRow, jobs, outbox, recordings
from siprec_bridge.store.rewind import rewind

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
AHEAD = NOW + timedelta(hours=1)


async def test_what_was_put_off_by_a_clock_that_was_ahead_is_due(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.db'}")
    await database.start()
    row = SessionRow("s1", "c1", "finished", NOW, "udp:192.0.2.1:5060", str(tmp_path), "{}")
    event = Event("e1", "s1", "session.started", NOW, "{}")
    later = AHEAD + timedelta(seconds=5)
    try:
        await database.write(lambda c: recordings.insert(c, row))
        await database.write(lambda c: jobs.insert(c, JobRow("j", "s1", "whisper", 1.0, NOW)))
        await database.write(lambda c: jobs.insert(c, JobRow("k", "s1", "whisper", 1.0, NOW)))
        await database.write(lambda c: jobs.claim(c, 1, AHEAD, vendor="whisper"))
        await database.write(lambda c: jobs.reschedule(c, "j", later, "exit_code"))
        await database.write(lambda c: outbox.append(c, [event], ["amqp"]))
        await database.write(lambda c: outbox.failed(c, "amqp", 1, "away", later))
        before = await database.read(lambda c: outbox.pending(c, "amqp", 9, now=NOW))

        count = await database.write(lambda c: rewind(c, NOW))

        after = await database.read(lambda c: outbox.pending(c, "amqp", 9, now=NOW))
        taken = await database.write(lambda c: jobs.claim(c, 9, NOW, vendor="whisper"))
    finally:
        await database.stop()

    assert count == 2
    assert (before, [one.event.id for one in after]) == ([], ["e1"])
    assert {one.id for one in taken} == {"j", "k"}
