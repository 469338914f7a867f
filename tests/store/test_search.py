"""Search: what was said is found by whoever said it and when, whatever is typed to find it."""

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection

from harness.database import opened
from siprec_bridge.store import (
    Database,
    Found,
    SessionRow,
    recordings,
    retention,
    search,
    transcripts,
)
from siprec_bridge.store.words import marks, parts_of, people_of, terms_of
from siprec_bridge.transcript import Conversation, Participant, Utterance

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
ALICE = Participant(id="a", name="Alice Müller", aor="sip:+49 30 123456@example.com")
BOB = Participant(id="b", name="Bob", aor="sip:bob@example.net")


def document(id: str, *said: tuple[Participant, str]) -> str:
    utterances = tuple(
        Utterance(
            label="1", participant=who, start=float(number), end=number + 0.5,
            starts_at=NOW, ends_at=NOW, text=text,
        )
        for number, (who, text) in enumerate(said)
    )  # fmt: skip
    people = tuple(dict.fromkeys(who for who, _ in said))
    return Conversation(
        session_id=id, sip_call_id="c", started_at=NOW, ended_at=NOW, duration=1.0,
        participants=people, utterances=utterances, provider="w", model="m",
    ).model_dump_json()  # fmt: skip


async def talk(
    database: Database,
    id: str,
    *said: tuple[Participant, str],
    minutes: int = 0,
    version: int = 1,
) -> None:
    def store(connection: Connection) -> None:
        if version == 1:
            at = NOW + timedelta(minutes=minutes)
            recordings.insert(connection, SessionRow(id, "c", "finished", at, "p", "/f", "{}"))
        transcripts.save(connection, id, version, "j", "text", document(id, *said), NOW)

    await database.write(store)


async def find(database: Database, text: str = "", limit: int = 10, **more: Any) -> list[Found]:
    return await database.read(partial(search.search, limit=limit, text=text, **more))


async def ids(database: Database, text: str = "", **more: Any) -> list[str]:
    return [one.session.id for one in await find(database, text, **more)]


async def test_what_was_said_is_found_with_its_place(database_url: str) -> None:
    async with opened(database_url) as database:
        await talk(database, "s1", (ALICE, "Good morning"), (BOB, "I want a Refund, please."))
        await talk(database, "s2", (BOB, "Something else"))

        (found,) = await find(database, "refund")

    (hit,) = found.hits
    assert (found.session.id, found.matches) == ("s1", 1)
    assert (hit.start, hit.end, hit.label) == (1.0, 1.5, "1")
    assert hit.participant is not None
    assert hit.participant["name"] == "Bob"
    assert [hit.text[a:b] for a, b in hit.marks] == ["Refund"]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("credit refund", True),  # each anywhere in the conversation
        ("CREDIT cafe", True),  # neither case nor accents count
        ("credit nothing", False),
        ('"credit card"', True),
        ('"card credit"', False),
        ('"morning credit"', False),  # no phrase reaches from one utterance into the next
        ("cred", False),
        ("cred*", True),
        ("credit-card", True),
        ("10:30", True),
        ("天気", True),
        ("気天", False),
        ("0x0break0x0 alice", False),
    ],
)
async def test_words_phrases_and_beginnings(database_url: str, typed: str, found: bool) -> None:
    said = [
        (ALICE, "Good morning"), (BOB, "Credit card, at 10:30, in the Café"),
        (ALICE, "refund"), (BOB, "今日は天気がいい"),
    ]  # fmt: skip
    async with opened(database_url) as database:
        await talk(database, "s1", *said)

        assert await ids(database, typed) == (["s1"] if found else [])


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("alice", True),
        ("muller", True),
        ("Mül", True),
        ("sip:bob@example.net", True),
        ("+49 30 123456", True),
        ("030/123456", True),
        ("3456", True),
        ("12345", False),
        ("carol", False),
    ],
)
async def test_people_are_found_by_name_address_or_number(
    database_url: str, typed: str, found: bool
) -> None:
    async with opened(database_url) as database:
        await talk(database, "s1", (ALICE, "hello"), (BOB, "hello"))

        assert await ids(database, participant=typed) == (["s1"] if found else [])
        assert await ids(database, "hello", participant=typed) == (["s1"] if found else [])
        assert await ids(database, "goodbye", participant=typed) == []


async def test_sessions_come_latest_first_by_pages_and_within_their_time(database_url: str) -> None:
    async with opened(database_url) as database:
        for number in range(5):
            await talk(database, f"s{number}", (BOB, "hello"), minutes=number // 2)
        seen: list[str] = []
        before: tuple[datetime, str] | None = None
        while page := await find(database, "hello", limit=2, before=before):
            seen += [one.session.id for one in page]
            before = (page[-1].session.started_at, page[-1].session.id)
        minute = NOW + timedelta(minutes=1)
        since = await ids(database, "hello", since=minute)
        until = await ids(database, until=minute)

    assert seen == ["s4", "s3", "s2", "s1", "s0"]
    assert (since, until) == (["s4", "s3", "s2"], ["s1", "s0"])


async def test_a_new_version_takes_the_place_of_the_old_one(database_url: str) -> None:
    async with opened(database_url) as database:
        await talk(database, "s1", (BOB, "misheard"))
        await talk(database, "s1", (BOB, "heard"), version=3)
        await talk(database, "s1", (BOB, "late"), version=2)

        assert await ids(database, "misheard") == []
        assert await ids(database, "late") == []
        assert await ids(database, "heard") == ["s1"]


async def test_nothing_is_left_of_a_deleted_session(database_url: str) -> None:
    async with opened(database_url) as database:
        await talk(database, "s1", (BOB, "secret"))
        await talk(database, "s2", (BOB, "secret"))
        await database.write(partial(retention.delete_sessions, ids=["s1"]))

        assert await ids(database, "secret") == ["s2"]
        left = await database.read(
            lambda connection: connection.scalar(sa.text("SELECT count(*) FROM passages"))
        )
    assert left == 1


async def test_a_long_conversation_is_found_from_end_to_end(database_url: str) -> None:
    said = [(BOB, f"word{number} " * 20) for number in range(1500)]
    async with opened(database_url) as database:
        await talk(database, "s1", (BOB, "alpha"), *said, (BOB, "omega point"))

        assert await ids(database, "alpha") == ["s1"]
        assert await ids(database, '"omega point"') == ["s1"]
        (found,) = await find(database, "word777")
        assert found.matches == 1


def test_what_was_there_before_is_found_after_the_migration(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"

    async def fill() -> None:
        async with opened(url) as database:
            for number in range(250):
                await talk(database, f"s{number:03}", (BOB, f"number{number}"))
            await talk(database, "s000", (BOB, "corrected"), version=2)

    async def look() -> list[list[str]]:
        async with opened(url) as database:
            return [await ids(database, text) for text in ("number249", "corrected", "number0")]

    asyncio.run(fill())
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.executescript(
            "DROP TABLE passages_fts; DROP TABLE passages; DROP TABLE audit; DROP TABLE deposits;"
            "DROP INDEX ix_sessions_group_id_started_at_id;"
            "ALTER TABLE sessions DROP COLUMN group_id;"
            "ALTER TABLE sessions DROP COLUMN node; ALTER TABLE jobs DROP COLUMN node;"
            "ALTER TABLE jobs DROP COLUMN runner; ALTER TABLE jobs DROP COLUMN lease_until;"
            "DROP INDEX ix_jobs_state_order_at_id; DROP INDEX ix_jobs_line;"
            "DROP INDEX ix_jobs_state_vendor_order_at_id;"
            + "".join(
                f"ALTER TABLE jobs DROP COLUMN {name};"
                for name in ("priority", "source", "prompt", "tried", "order_at")
            )
            + "ALTER TABLE deliveries DROP COLUMN failing_since;"
            "UPDATE alembic_version SET version_num = '0004';"
        )
    connection.close()

    assert asyncio.run(look()) == [["s249"], ["s000"], []]


NASTY = [
    "", " ", '"', '""', '"a', "a\"b'c", "*", "a*b*", "AND", "a AND", "OR NOT", "NEAR(a b)", "-a",
    "words:a", "^a", "(a", "a)", "{a}", "\\", "%", "_", "a\0b", "!a", "a & | !", "<->", ":*", "'",
    "a" * 5000, "a " * 5000, "é\u0301\u0301", "½ﷺ", "\ud800", "🙂", "'; DROP TABLE passages; --",
]  # fmt: skip


async def test_nothing_that_can_be_typed_breaks_the_search(database_url: str) -> None:
    async with opened(database_url) as database:
        await talk(database, "s1", (ALICE, "a AND b " + "".join(NASTY[:-4])), (BOB, "not near"))

        for text in NASTY:
            for found in (await find(database, text), await find(database, participant=text)):
                assert len(found) <= 1
        assert await ids(database, "AND b") == ["s1"]


@given(st.text(max_size=80))
def test_any_text_makes_terms_of_letters_and_digits(text: str) -> None:
    for term in (*terms_of(text), *people_of(text)):
        assert term.words
        assert all(word.isalnum() for word in term.words)


@given(st.text(max_size=80))
def test_a_text_is_found_by_itself(text: str) -> None:
    (term,) = terms_of('"' + text.replace('"', " ") + '"') or (None,)
    if term is not None:
        assert marks(text, [term])


@given(st.text(max_size=200))
def test_any_document_can_be_indexed(text: str) -> None:
    assert parts_of(text)
