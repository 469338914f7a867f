"""`siprec-bridge deliveries`: the outbox without a running bridge."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Connection
from typer.testing import CliRunner

from siprec_bridge.cli.deliveries import app
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.store import Database, Event, outbox

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)

Run = Callable[..., tuple[int, str, str]]


def _fill(connection: Connection) -> None:
    events = [Event(f"e{number}", "s1", "session.updated", NOW, "{}") for number in range(4)]
    outbox.append(connection, events, ["amqp", "webhook:crm"])
    outbox.failed(connection, "amqp", 3, "the broker refused it (nack)", NOW)
    outbox.park(connection, "webhook:crm", 1, "answered 410 Gone")
    outbox.park(connection, "webhook:crm", 2, "answered 422 Unprocessable Entity")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Exit code, stdout and stderr of a command on a database with some deliveries."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    async def fill() -> None:
        database = Database(f"sqlite:///{tmp_path / 'siprec-bridge.db'}")
        await database.start()
        await database.write(_fill)
        await database.stop()

    asyncio.run(fill())

    def invoke(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    handlers = logging.getLogger().handlers
    yield invoke
    logging.getLogger().handlers = handlers  # it logs to a stderr that is no more


def test_who_names_a_sink_that_is_none_is_told_which_there_are(run: Run) -> None:
    _, shown, _ = run("parked", "webhook:crn")

    assert shown.splitlines() == [
        "nothing of webhook:crn is parked",
        "sinks that have something pending or parked: amqp, webhook:crm",
    ]


def test_each_sink_is_listed_with_what_it_has_not_got(run: Run) -> None:
    _, text, _ = run("list")
    _, shown, _ = run("list", "--json")

    assert text.splitlines()[0].startswith("amqp                  4 pending, the oldest for 0:00:0")
    assert text.splitlines()[1].strip() == (
        "e2 of session s1 waits after 1 tries: the broker refused it (nack)"
    )
    assert json.loads(shown)[0]["failing"]["id"] == "e2"
    assert json.loads(shown)[1]["failing"] is None
    assert [(one["name"], one["pending"], one["parked"]) for one in json.loads(shown)] == [
        ("amqp", 4, 0),
        ("webhook:crm", 2, 2),
    ]


def test_what_was_given_up_is_shown_and_sent_again_by_reason_or_by_id(run: Run) -> None:
    _, first, _ = run("parked", "webhook:crm")
    _, gone, _ = run("parked", "webhook:crm", "--reason", "410", "--json")
    by_reason = run("resend", "webhook:crm", "--reason", "gone")
    by_id = run("resend", "webhook:crm", "e1")
    again = run("resend", "webhook:crm", "e1")
    _, left, _ = run("parked", "webhook:crm")

    assert [line.partition(" ")[0] for line in first.splitlines()] == ["e0", "e1"]
    assert [one["id"] for one in json.loads(gone)] == ["e0"]
    assert by_reason == by_id == (0, "1 will be sent again\n", "")
    assert again[0] == 1
    assert left == "nothing of webhook:crm is parked\n"


def test_what_is_dropped_is_gone_from_the_outbox_with_a_line_that_says_so(run: Run) -> None:
    code, text, audit = run("drop", "webhook:crm", "--all", "--pending", "--why", "retired")
    _, left, _ = run("list")

    assert (code, text) == (0, "4 dropped\n")
    assert "delivery.dropped" in audit
    assert "retired" in audit
    assert left.startswith("amqp ")


@pytest.mark.parametrize("arguments", [(), ("e1", "--all"), ("--all", "--reason", "410")])
def test_which_ones_must_be_said_in_one_way(run: Run, arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match="name events, or say --reason or --all"):
        run("resend", "webhook:crm", *arguments)
