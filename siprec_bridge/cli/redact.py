"""`siprec-bridge redact`: what was stored before, by the policy of today."""

import json
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from siprec_bridge.cli.arguments import AsJson, By, ConfigFile, DoIt, Reason, Since, Until
from siprec_bridge.cli.audio import DeleteEncrypted, Identity, keys_of, stored_audio_of
from siprec_bridge.cli.database import node_here, refuse, with_database
from siprec_bridge.cli.orders import orders_of
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import from_environment
from siprec_bridge.store import Database, recordings
from siprec_bridge.telemetry import Metrics

if TYPE_CHECKING:
    from siprec_bridge.recording import Redressed


def redact(
    session: Annotated[str | None, typer.Argument(help="id of a session")] = None,
    every: Annotated[bool, typer.Option("--all", help="all sessions")] = False,
    since: Since = None,
    until: Until = None,
    reason: Reason = None,
    by: By = None,
    identity: Identity = None,
    delete_encrypted: DeleteEncrypted = False,
    text_only: Annotated[
        bool, typer.Option("--text-only", help="leave the audio as it is; text and events alone")
    ] = False,
    do_it: DoIt = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Take out of stored sessions what REDACT and the rules name now, in place, audio and all.

    A line for each session of which anything goes; cut off, the same command does the rest. Exit
    code 1: some sessions were left as they are, each with its cause.
    """
    from siprec_bridge.delivery import load_hooks
    from siprec_bridge.parts import recipients_of, redactor_of
    from siprec_bridge.recording import LateRedaction
    from siprec_bridge.recording.late_redaction import as_json as shown

    if (session is not None) + (every or since is not None or until is not None) != 1:
        raise ConfigurationError("redact", "name one session, or say --from, --to or --all")
    settings, _ = from_environment(config)
    metrics = Metrics()
    redactor = redactor_of(settings, orders_of(settings), metrics)
    if not redactor.kinds:
        raise ConfigurationError("REDACT", "neither it nor a rule names anything to take out")
    keys = keys_of(identity, delete_encrypted)

    async def run(store: Database) -> dict[str, int]:
        late = LateRedaction(
            store, metrics, redactor, stored_audio_of(settings, store),
            sinks=recipients_of(settings, load_hooks(settings.webhooks)),
            clock=lambda: datetime.now(UTC), node=node_here(settings, store),
        )  # fmt: skip
        counts: dict[str, int] = {}

        async def one(row: recordings.SessionRow) -> None:
            found = await late.redact(
                row, dry_run=not do_it, by=by, reason=reason, keys=keys, text_only=text_only
            )
            counts[found.outcome] = counts.get(found.outcome, 0) + 1
            if as_json:
                print(json.dumps(shown(found)), flush=True)
            elif found.outcome != "clean":
                print(_line(found), flush=True)

        try:
            if session is not None:
                row = await store.read(partial(recordings.get, session_id=session))
                if row is None:
                    refuse(f"there is no session {session}")
                await one(row)
            else:
                begin = since.replace(tzinfo=UTC) if since is not None else None
                end = until.replace(tzinfo=UTC) if until is not None else None
                async for row in late.sessions(begin, end):
                    await one(row)
        finally:
            if counts.get("redacted"):
                await late.finish()
        return counts

    counts = with_database(settings, run)
    if not as_json:
        said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        print((said or "no sessions") + ("" if do_it else "; nothing was changed: say --yes"))
    if do_it and set(counts) - {"redacted", "clean"}:
        raise typer.Exit(1)


def _line(found: "Redressed") -> str:
    said = [f"{count} {kind}" for kind, count in sorted(found.found.items())]
    if found.audio_seconds:
        said.append(f"{found.audio_seconds:.1f} s of audio")
    if found.withheld:
        said.append("its audio is withheld until it is transcribed")
    if found.treatment in ("sealed_again", "deleted"):
        said.append(f"audio {found.treatment.replace('_', ' ')}")
    if found.replaces is not None:
        said.append(f"the bridge replaces the copy in {found.replaces}")
    cause = f" ({found.cause})" if found.cause else ""
    at = f"{found.started_at:%Y-%m-%d %H:%M:%S}"
    return f"{found.session_id}  {at}  {found.outcome}{cause}  {', '.join(said)}".rstrip()
