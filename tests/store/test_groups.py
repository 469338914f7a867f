"""Sessions of one call: when all of them have a transcript, and which group each is of."""

import asyncio
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from harness.database import opened
from siprec_bridge.store import Database, SessionRow, groups, recordings, transcripts

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)


async def add(database: Database, id: str, group: str | None, seconds: float = 0.0) -> None:
    row = SessionRow(
        id, f"{id}@pbx", "finished", NOW + timedelta(seconds=seconds), "udp:h:1", "/f",
        json.dumps({"session_id": id, "group_id": group}), group_id=group,
    )  # fmt: skip
    await database.write(partial(recordings.insert, row=row))


async def transcribe(database: Database, id: str, version: int = 1) -> None:
    document = json.dumps({"utterances": []})
    save = partial(
        transcripts.save, session_id=id, version=version, job_id=f"{id}.{version}", text="",
        document=document, at=NOW,
    )  # fmt: skip
    await database.write(save)


async def told(database: Database, group: str) -> list[tuple[str, int]]:
    return await database.read(partial(groups.transcribed, group_id=group))


async def members(database: Database, group: str) -> list[str]:
    rows = await database.read(partial(groups.sessions_of, group_id=group))
    return [row.id for row in rows]


async def test_a_group_is_transcribed_once_each_of_its_sessions_is(database_url: str) -> None:
    async with opened(database_url) as database:
        await add(database, "far", "g", 1.0)
        await add(database, "near", "g")
        await add(database, "alone", "h")
        for id in ("near", "alone"):
            await transcribe(database, id)
        before = await told(database, "g")
        await transcribe(database, "far")
        await transcribe(database, "near", 2)
        after = await told(database, "g")
        await add(database, "transferred", "g", 2.0)

        assert (before, after) == ([], [("near", 2), ("far", 1)])
        assert await told(database, "g") == []
        assert await told(database, "h") == []
        assert await members(database, "g") == ["near", "far", "transferred"]


async def test_a_session_may_come_to_another_group_and_no_id_is_too_long(
    database_url: str,
) -> None:
    async with opened(database_url) as database:
        await add(database, "s", None)
        await add(database, "long", "g" * 100_000)
        await database.write(partial(recordings.update, session_id="s", group_id="g"))

        assert await members(database, "g") == ["s"]
        assert await members(database, "g" * 100_000) == []


def test_sessions_that_were_there_before_are_in_their_groups(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"

    async def fill() -> None:
        async with opened(url) as database:
            for number in range(1001):
                await add(database, f"s{number:04}", f"g{number % 100}" if number % 2 else None)

    async def look() -> list[int]:
        async with opened(url) as database:
            return [len(await members(database, group)) for group in ("g1", "g2", "g99")]

    asyncio.run(fill())
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.executescript(
            "DROP INDEX ix_sessions_group_id_started_at_id;"
            "ALTER TABLE sessions DROP COLUMN group_id;"
            "UPDATE alembic_version SET version_num = '0011';"
        )
    connection.close()

    assert asyncio.run(look()) == [10, 0, 10]
