"""`siprec-bridge deliveries`: what sinks have not got, sent again or dropped."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated

import structlog
import typer
from sqlalchemy import Connection

from siprec_bridge.cli.arguments import AsJson, ConfigFile, Limit
from siprec_bridge.cli.database import refuse, with_database
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import from_environment
from siprec_bridge.store import Database, SinkBacklog, outbox
from siprec_bridge.store.outbox import FailingEvent
from siprec_bridge.telemetry import configure_logs

log = structlog.get_logger()

app = typer.Typer(help="Events that sinks have not got.", no_args_is_help=True)

Sink = Annotated[str, typer.Argument(help="name of the sink: amqp, webhook:crm")]
Ids = Annotated[list[str] | None, typer.Argument(help="ids of parked events")]
Reason = Annotated[str, typer.Option(help="those whose reason holds this, in any case")]
Every = Annotated[bool, typer.Option("--all", help="all that the sink gave up")]


@app.command("list")
def deliveries_list(as_json: AsJson = False, config: ConfigFile = None) -> None:
    """List sinks that have something pending or parked."""
    settings, _ = from_environment(config)

    def find(connection: Connection) -> dict[str, tuple[SinkBacklog, FailingEvent | None]]:
        return {
            name: (outbox.backlog(connection, name), outbox.failing(connection, name))
            for name in outbox.sinks(connection)
        }

    found = with_database(settings, lambda store: store.read(find))
    now = datetime.now(UTC)
    ages = {
        name: (now - one.oldest_at).total_seconds() if one.oldest_at is not None else None
        for name, (one, _) in found.items()
    }
    if as_json:
        shown = [
            {
                "name": name,
                "pending": one.pending,
                "parked": one.parked,
                "oldest_seconds": ages[name],
                "failing": asdict(failing) if failing is not None else None,
            }
            for name, (one, failing) in found.items()
        ]
        print(json.dumps(shown, default=str, indent=1))
        return
    for name, (one, failing) in found.items():
        age = ages[name]
        oldest = f", the oldest for {timedelta(seconds=round(age))}" if age is not None else ""
        print(f"{name:<20}  {one.pending} pending{oldest}, {one.parked} parked")
        if failing is not None:
            print(
                f"{'':<20}  {failing.id} of session {failing.session_id} waits after "
                f"{failing.attempts} tries: {failing.reason}"
            )
    if not found:
        print("every sink has everything")


@app.command("parked")
def deliveries_parked(
    sink: Sink,
    reason: Reason = "",
    limit: Limit = 50,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """List what a sink gave up, oldest first, and why."""
    from siprec_bridge.api.deliveries import parked_fields

    settings, _ = from_environment(config)
    rows = with_database(
        settings,
        lambda store: store.read(partial(outbox.parked, sink=sink, limit=limit, reason=reason)),
    )
    if as_json:
        print(json.dumps([parked_fields(one) for one in rows], indent=1))
        return
    for one in rows:
        event = one.event
        print(
            f"{event.id}  {event.type:<18}  {event.at:%Y-%m-%d %H:%M:%S}  {event.session_id}  "
            f"tries {one.attempts}  {one.reason}"
        )
    if not rows:
        print(f"nothing of {sink} is parked" + (" for such a reason" if reason else ""))
        # A name that is misspelt has nothing either.
        others = with_database(settings, lambda store: store.read(outbox.sinks))
        if sink not in others and others:
            print(f"sinks that have something pending or parked: {', '.join(others)}")


@app.command("resend")
def deliveries_resend(
    sink: Sink, ids: Ids = None, reason: Reason = "", every: Every = False,
    config: ConfigFile = None,
) -> None:  # fmt: skip
    """Send parked events again; a running bridge takes them up within seconds."""
    chosen = _choice("deliveries resend", ids, reason, every=every)
    settings, _ = from_environment(config)

    async def resend(store: Database) -> int:
        counts = [
            await store.write(partial(outbox.resend, sink=sink, event_id=id, reason=reason))
            for id in chosen
        ]
        return sum(counts)

    count = with_database(settings, resend)
    if ids and not count:
        refuse(f"nothing of that is parked for {sink}")
    print(f"{count} will be sent again")


@app.command("drop")
def deliveries_drop(
    sink: Sink,
    why: Annotated[str, typer.Option(help="for the log, and kept with each event")],
    ids: Ids = None,
    reason: Reason = "",
    every: Every = False,
    pending: Annotated[
        bool, typer.Option("--pending", help="also what waits, such as that of a sink that is gone")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Give up parked events for good: the sink will never get them."""
    chosen = _choice("deliveries drop", ids, reason, every=every)
    settings, _ = from_environment(config)
    configure_logs("info", settings.log_format)
    by = os.environ.get("SUDO_USER") or os.environ.get("USER") or f"uid {os.getuid()}"

    async def drop(store: Database) -> int:
        note = f"dropped by {by} (command): {why}"
        counts = [
            await store.write(
                partial(
                    outbox.drop, sink=sink, note=note, event_id=id, reason=reason, pending=pending
                )
            )
            for id in chosen
        ]
        return sum(counts)

    count = with_database(settings, drop)
    if ids and not count:
        refuse(f"nothing of that is parked for {sink}")
    log.warning(
        "delivery.dropped", sink=sink, count=count, client="command", by=by, why=why,
        ids=ids or None, of_reason=reason or None, pending_too=pending,
    )  # fmt: skip
    print(f"{count} dropped")


def _choice(
    command: str, ids: Sequence[str] | None, reason: str, *, every: bool
) -> Sequence[str | None]:
    """The ids, or None for all. Raises ConfigurationError."""
    if [bool(ids), bool(reason), every].count(True) != 1:
        raise ConfigurationError(command, "name events, or say --reason or --all")
    return ids or (None,)
