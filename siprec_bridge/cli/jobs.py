"""`siprec-bridge jobs`: transcription jobs."""

import json
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Annotated

import typer
from sqlalchemy import Connection

from siprec_bridge.cli.arguments import AsJson, ConfigFile, Limit
from siprec_bridge.cli.database import refuse, with_database
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import from_environment
from siprec_bridge.store import (
    JobRow,
    Waiting,
    jobs,
)
from siprec_bridge.store.jobs import JobState

app = typer.Typer(help="Transcription jobs.", no_args_is_help=True)


@app.command("list")
def jobs_list(
    state: Annotated[
        JobState | None, typer.Option(help="only queued, running, done, failed or off ones")
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """List jobs, latest first; those that wait with their place in the queue."""
    settings, _ = from_environment(config)

    def find(connection: Connection) -> tuple[list[JobRow], dict[str, Waiting], float | None]:
        rows = jobs.listing(connection, limit, state=state)
        return rows, jobs.places(connection), jobs.recent_speed(connection)

    rows, places, speed = with_database(settings, lambda store: store.read(find))
    if as_json:
        shown = [
            {name: getattr(row, name) for name in row.__slots__}
            | {"position": places[row.id].position if row.id in places else None}
            for row in rows
        ]
        print(json.dumps(shown, default=str, indent=1))
        return
    for row in rows:
        why = f"  {row.reason}" if row.reason not in (None, "ok") else ""
        code = f" (exit code {row.exit_code})" if row.exit_code else ""
        print(
            f"{row.id}  {row.state:<7}  {row.created_at:%Y-%m-%d %H:%M:%S}  "
            f"{row.audio_seconds:7.1f} s  tries {row.attempts}{why}{code}"
            + _place(row, places, speed)
        )
    if not rows:
        print("no jobs")


def _place(row: JobRow, places: Mapping[str, Waiting], speed: float | None) -> str:
    if row.id not in places:
        return ""
    place = places[row.id]
    text = f"  number {place.position} in the queue"
    if speed is None:
        return text
    seconds = (place.audio_before + row.audio_seconds) / speed
    return f"{text}, done in about {timedelta(seconds=round(seconds))}"


@app.command("retry")
def jobs_retry(
    job: Annotated[str | None, typer.Argument(help="id of a failed job")] = None,
    every: Annotated[bool, typer.Option("--all", help="all failed jobs")] = False,
    config: ConfigFile = None,
) -> None:
    """Queue failed jobs again; a running bridge takes them up within seconds."""
    if (job is None) == (not every):
        raise ConfigurationError("jobs retry", "name one job, or say --all")
    settings, _ = from_environment(config)
    count = with_database(settings, lambda store: store.write(partial(jobs.retry, job_id=job)))
    if job is not None and not count:
        refuse(f"there is no failed job {job}")
    print(f"{count} queued")
