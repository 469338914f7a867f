"""`siprec-bridge sessions`: what was recorded."""

import json
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from siprec_bridge.cli.arguments import AsJson, ConfigFile, Limit, SessionId
from siprec_bridge.cli.database import node_here, refuse, with_database
from siprec_bridge.cli.orders import orders_of
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import from_environment
from siprec_bridge.siprec import Assurance, Pause, SessionDocument, Verdict
from siprec_bridge.store import (
    Database,
    SessionRow,
    SipMessage,
    TranscriptRow,
    ladder,
    recordings,
    retention,
    transcripts,
)
from siprec_bridge.telemetry import Metrics
from siprec_bridge.transcript import Conversation

app = typer.Typer(help="Recorded sessions.", no_args_is_help=True)


@app.command("transcribe")
def sessions_transcribe(
    session: SessionId,
    model: Annotated[str | None, typer.Option(help="model, as the vendor names it")] = None,
    language: Annotated[str | None, typer.Option(help="language spoken; auto: detected")] = None,
    vendor: Annotated[str | None, typer.Option(help="one of SUPPORTED_VENDORS")] = None,
    prompt: Annotated[str | None, typer.Option(help="what the recogniser is to expect")] = None,
    priority: Annotated[str, typer.Option(help="urgent, normal or low")] = "low",
    config: ConfigFile = None,
) -> None:
    """Transcribe a session again; both versions are kept, the newer one is shown once it is there."""
    from siprec_bridge.recording import AudioDeleted, NothingToTranscribe, UnknownVendor
    from siprec_bridge.transcription import Wish

    settings, _ = from_environment(config)
    given = {"model": model, "language": language, "vendor": vendor, "prompt": prompt}
    try:
        wish = Wish.model_validate(given | {"priority": priority})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigurationError(
            f"--{first['loc'][0]}", first["msg"].removeprefix("Value error, ")
        ) from None
    orders = orders_of(settings)
    try:
        job = with_database(
            settings, lambda store: orders.again(store, session, wish, datetime.now(UTC))
        )
    except (LookupError, AudioDeleted, NothingToTranscribe) as error:
        refuse(str(error))
    except UnknownVendor as error:
        raise ConfigurationError("--vendor", str(error)) from None
    print(f"{job.id} is queued")


@app.command("list")
def sessions_list(
    limit: Limit = 50,
    assurance: Annotated[
        Verdict | None, typer.Option(help="only complete, incomplete or nothing ones")
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """List sessions, latest first, and whether they were recorded as a whole."""
    settings, _ = from_environment(config)
    rows = with_database(
        settings,
        lambda store: store.read(partial(recordings.listing, limit=limit, assurance=assurance)),
    )
    if as_json:
        shown = [
            {
                name: getattr(row, name)
                for name in row.__slots__
                if name not in ("document", "audio")
            }
            for row in rows
        ]
        print(json.dumps(shown, default=str, indent=1))
        return
    for row in rows:
        people = json.loads(row.document).get("participants", [])
        names = ", ".join(one.get("name") or one.get("aor") or one["id"] for one in people)
        print(
            f"{row.id}  {row.state:<9}  {row.assurance or '':<10}  "
            f"{row.started_at:%Y-%m-%d %H:%M:%S}  {names}"
        )
    if not rows:
        print("no sessions")


@app.command("hold")
def sessions_hold(
    session: SessionId,
    by: Annotated[str | None, typer.Option(help="who wants it kept")] = None,
    reason: Annotated[str | None, typer.Option(help="why")] = None,
    config: ConfigFile = None,
) -> None:
    """Keep a session from being deleted, by age or by anybody, until it is released."""
    note = {"by": by, "reason": reason, "at": datetime.now(UTC).isoformat()}
    _set_hold(session, json.dumps(note), config)
    print(f"{session} is held")


@app.command("release")
def sessions_release(session: SessionId, config: ConfigFile = None) -> None:
    """End a session's hold."""
    _set_hold(session, None, config)
    print(f"{session} is not held")


@app.command("delete")
def sessions_delete(session: SessionId, config: ConfigFile = None) -> None:
    """Delete a session with its audio, its transcript and all that is known of it."""
    from siprec_bridge.recording import Elsewhere, InUse, Keep, Retention, UnderHold

    settings, _ = from_environment(config)

    async def delete(store: Database) -> bool:
        node = node_here(settings, store)
        keeper = Retention(store, Metrics(), Keep(), clock=lambda: datetime.now(UTC), node=node)
        return await keeper.delete(session)

    try:
        if not with_database(settings, delete):
            refuse(f"there is no session {session}")
    except UnderHold:
        refuse(f"{session} is under hold: release it first")
    except Elsewhere as error:
        refuse(f"the audio of {session} is on node {error}: delete it there")
    except InUse:
        refuse(f"{session} is being recorded or transcribed")
    print(f"{session} is deleted")


@app.command("export")
def sessions_export(
    session: SessionId,
    out: Annotated[
        Path | None, typer.Option(help="file to write; - is standard output; ./ID.zip if not said")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Write all that is known of a session into one ZIP file, its audio included."""
    from siprec_bridge.recording.export import gather, zipped

    settings, _ = from_environment(config)
    parts = with_database(settings, lambda store: gather(store, session))
    if parts is None:
        refuse(f"there is no session {session}")
    if out is not None and str(out) == "-":
        for piece in zipped(parts):
            sys.stdout.buffer.write(piece)
        return
    path = out or Path(f"{session}.zip")
    try:
        with path.open("xb") as file:
            for piece in zipped(parts):
                file.write(piece)
    except OSError as error:
        refuse(f"{path}: {error.strerror}")
    print(f"{path} is written" + "".join(f"; without {name}" for name in parts.left_out))


def _set_hold(session: str, held: str | None, config: Path | None) -> None:
    settings, _ = from_environment(config)
    change = partial(retention.hold, session_id=session, held=held, now=datetime.now(UTC))
    try:
        if not with_database(settings, lambda store: store.write(change)):
            refuse(f"there is no session {session}")
    except retention.Going:
        refuse(f"too late: files of {session} are being deleted or changed; ask again")


@app.command("show")
def sessions_show(
    session: SessionId,
    show_ladder: Annotated[
        bool, typer.Option("--ladder", help="its SIP messages, one line each")
    ] = False,
    verbose: Annotated[bool, typer.Option(help="with --ladder: whole messages")] = False,
    version: Annotated[
        int | None, typer.Option(help="of the transcript; not said: the newest")
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Show a session and what was said in it."""
    settings, _ = from_environment(config)

    async def find(
        store: Database,
    ) -> tuple[SessionRow | None, TranscriptRow | None, list[SipMessage]]:
        return (
            await store.read(partial(recordings.get, session_id=session)),
            await store.read(partial(transcripts.get, session_id=session, version=version)),
            await store.read(partial(ladder.of_session, session_id=session)),
        )

    row, transcript, messages = with_database(settings, find)
    if row is None:
        refuse(f"there is no session {session}")
    if show_ladder:
        for line in _ladder_lines(messages, verbose=verbose):
            print(line)
        return
    if as_json:
        print(transcript.document if transcript is not None else row.document)
        return
    end = f"{row.ended_at:%H:%M:%S} ({row.end_cause})" if row.ended_at else "not yet"
    print(f"session   {row.id}\nCall-ID   {row.sip_call_id}\npeer      {row.peer}")
    print(
        f"state     {row.state}\nstarted   {row.started_at:%Y-%m-%d %H:%M:%S} UTC\nended     {end}"
    )
    print(f"folder    {row.folder}")
    if row.group_id is not None:
        print(f"group     {row.group_id}")
    for warning in row.warnings:
        print(f"warning   {warning}")
    document = SessionDocument.model_validate_json(row.document)
    for line in (*_pause_lines(document), *_assurance_lines(document.assurance)):
        print(line)
    if transcript is None:
        print("transcript: none yet" if version is None else f"transcript: no version {version}")
        return
    talk = Conversation.model_validate_json(transcript.document)
    print(f"transcript {transcript.version} by {talk.provider}, {talk.model}")
    for one in talk.utterances:
        print(f"  {one.start:7.1f}  {one.line}")


def _pause_lines(document: SessionDocument) -> list[str]:
    """When somebody had us record less, who and why; one line for all streams that it was one order of."""
    names = {one.id: one.name or one.aor or one.id for one in document.participants}
    paused: dict[Pause, list[str]] = {}
    for stream in document.streams:
        for one in stream.pauses:
            if one.cause != "hold":
                paused.setdefault(one, []).append(stream.label)
    lines = []
    for one, labels in sorted(paused.items(), key=lambda pause: pause[0].since):
        until = f"{one.until:%H:%M:%S}" if one.until is not None else "now"
        who = one.participant_id
        whom = f", {names.get(who, who)}" if who is not None else ""
        by = f", by {one.by}" if one.by else ""
        why = f": {one.reason}" if one.reason else ""
        lines.append(
            f"paused    {one.since:%H:%M:%S} to {until}, stream{'s' * (len(labels) > 1)} "
            f"{', '.join(labels)}{whom}{by}{why}"
        )
    return lines


def _assurance_lines(assurance: Assurance | None) -> list[str]:
    """What of the call was recorded."""
    if assurance is None:
        return []
    lines = [f"recorded  {assurance.verdict}"]
    for finding in assurance.findings:
        where = f", stream {finding.label}" if finding.label is not None else ""
        lines.append(f"          {finding.code}{where}: {finding.detail}")
    for one in assurance.streams:
        gaps = f", gaps {one.gaps} (longest {one.longest_gap:.2f} s)" if one.gaps else ""
        silence = f", silence {one.silence:.1%}" if one.silence is not None else ""
        lines.append(
            f"          stream {one.label}: {one.captured:.1f} of {one.expected:.1f} s"
            f"{gaps}{silence}"
        )
    return lines


def _ladder_lines(messages: list[SipMessage], *, verbose: bool) -> list[str]:
    """The messages as arrows: the peer is on the left, we are on the right."""
    lines: list[str] = []
    for one in messages:
        seconds = (one.at - messages[0].at).total_seconds()
        arrow = "<--" if one.sent else "-->"
        lines.append(f"{seconds:9.3f}  {one.peer} {arrow} {one.title}")
        if verbose:
            lines += [f"           | {line}" for line in one.text.splitlines()] + [""]
    return lines or ["no messages are stored for this session"]
