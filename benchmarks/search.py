"""Search over many transcripts, and the list of very many sessions.

    benchmarks/search.py [--segments 100000] [--sessions 1000000] [--write build/bench/search.json]

Both in SQLite and, where Debian's postgresql is installed, in a PostgreSQL server of its own.
Rows come in by plain SQL; what is timed are the bridge's own reads, worst of several each.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from harness.postgresql import Postgresql
from siprec_bridge.store import Database, recordings, schema, search

SEGMENTS_A_SESSION = 20
WORDS_A_SEGMENT = 12
VOCABULARY = 20_000
SEARCH_GOAL_MS, LIST_GOAL_MS = 150.0, 50.0
START = datetime(2026, 1, 1, tzinfo=UTC)
ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segments", type=int, default=100_000)
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        results += asyncio.run(measure("SQLite", f"sqlite:///{folder}/a.db", options))
    if Postgresql.programs() is not None:
        server = Postgresql()
        try:
            server.start()
            results += asyncio.run(measure("PostgreSQL", server.new_database(), options))
        finally:
            server.remove()
    for one in results:
        verdict = "ok" if one["ok"] else "TOO SLOW"
        print(f"{one['name']:<58} {one['value']:8.1f} ms  (goal {one['goal']:g})  {verdict}")
    if options.write is not None:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(json.dumps(results, indent=1) + "\n")


async def measure(kind: str, url: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    database = Database(url)
    await database.start()
    try:
        begun = time.perf_counter()
        await fill(database, options.segments // SEGMENTS_A_SESSION, options.sessions)
        print(f"{kind}: filled in {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        results = []
        queries: dict[str, dict[str, Any]] = {
            "a rare word": {"text": "w19999"},
            "a word of every call": {"text": "w0"},
            "two words": {"text": "w0 w19000"},
            "a phrase": {"text": '"w1 w0"'},
            "a begin": {"text": "w1999*"},
            "a number's end": {"participant": "000042"},
            "a word, and a name": {"text": "w1", "participant": "party7"},
            "a word within a day": {"text": "w1", "until": START + timedelta(days=1)},
            "nothing": {"text": "nowhere"},
        }
        for name, query in queries.items():
            took = await worst(database, partial(search.search, limit=50, **query))
            title = f"{kind}: search {options.segments:,} segments for {name}"
            results.append(result(title, took, SEARCH_GOAL_MS))
        middle = (START + timedelta(seconds=options.sessions // 2), "x")
        for name, listing in {
            "first page": partial(recordings.listing, limit=50),
            "middle page": partial(recordings.listing, limit=50, before=middle),
            "of a state": partial(recordings.listing, limit=50, state="failed"),
            "of a Call-ID": partial(recordings.listing, limit=50, sip_call_id="c777"),
        }.items():
            took = await worst(database, listing)
            title = f"{kind}: list of {options.sessions:,} sessions, {name}"
            results.append(result(title, took, LIST_GOAL_MS))
        return results
    finally:
        await database.stop()


def result(name: str, took: float, goal: float) -> dict[str, Any]:
    return {"name": name, "value": round(took, 2), "unit": "ms", "goal": goal, "ok": took <= goal,
            "how": f"worst of {ROUNDS}"}  # fmt: skip


async def worst(database: Database, read: Callable[[Connection], Any]) -> float:
    """Milliseconds, the first of all rounds, which warms, left out."""
    taken = []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        await database.read(read)
        taken.append(1000 * (time.perf_counter() - begun))
    return max(taken[1:])


async def fill(database: Database, transcribed: int, sessions: int) -> None:
    chance = random.Random(1)
    step = 10_000
    for first in range(0, sessions, step):
        rows = [row_of(number) for number in range(first, min(first + step, sessions))]
        await database.write(partial(insert, rows=rows))
    for number in range(transcribed):
        # Spread over all sessions, so that neither is at an end of its table.
        session = number * (sessions // transcribed)
        text = document(chance, number)
        await database.write(partial(store, session=session, text=text))
    await database.write(lambda c: c.execute(sa.text("ANALYZE")))


def insert(connection: Connection, rows: list[dict[str, Any]]) -> None:
    connection.execute(schema.sessions.insert(), rows)


def row_of(number: int) -> dict[str, Any]:
    return {
        "id": f"s{number:08}", "sip_call_id": f"c{number}", "warnings": "[]",
        "state": "failed" if number % 1000 == 0 else "finished",
        "started_at": START + timedelta(seconds=number), "peer": "udp:192.0.2.1:5060",
        "ended_at": START + timedelta(seconds=number + 60), "folder": "/f", "document": "{}",
    }  # fmt: skip


def store(connection: Connection, session: int, text: str) -> None:
    id, at = f"s{session:08}", START + timedelta(seconds=session)
    connection.execute(
        schema.transcripts.insert(),
        {"session_id": id, "version": 1, "job_id": "j", "text": "", "document": text,
         "created_at": at},
    )  # fmt: skip
    search.index(connection, id, at, text)


def document(chance: random.Random, number: int) -> str:
    people = [
        {"id": f"p{side}", "name": f"Party{number % 100} Side{side}", "aor": aor}
        for side, aor in enumerate((f"sip:+4930{number:08}@example.com", "sip:agent@example.com"))
    ]
    utterances = []
    for place in range(SEGMENTS_A_SESSION):
        # Common words are common: ranks as Zipf has them, roughly.
        words = [
            f"w{int(VOCABULARY ** chance.random()) - 1 if place or one else 0}"
            for one in range(WORDS_A_SEGMENT)
        ]
        utterances.append(
            {"label": str(place % 2), "participant": people[place % 2], "start": 3.0 * place,
             "end": 3.0 * place + 2.5, "starts_at": START.isoformat(), "text": " ".join(words)}
        )  # fmt: skip
    return json.dumps({"participants": people, "utterances": utterances})


if __name__ == "__main__":
    main()
