"""The commands. Each reads the settings, builds what it needs, prints, and exits with a code.

0: done; 1: it did not work; 2: a setting or an argument is wrong.
"""

import asyncio
import hashlib
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer
from pydantic import ValidationError
from sqlalchemy import Connection

from siprec_bridge import __version__
from siprec_bridge.access import SCOPES, new_secret, read_tokens
from siprec_bridge.caller import (
    CallError,
    CallPlan,
    load_leg,
    parse_participant,
    parse_target,
    place_call,
    report_lines,
    sample_call,
)
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import Settings, from_environment
from siprec_bridge.siprec import Assurance, SessionDocument, Verdict
from siprec_bridge.store import (
    Database,
    JobRow,
    SessionRow,
    SipMessage,
    StoreError,
    TranscriptRow,
    Waiting,
    jobs,
    ladder,
    node_id,
    recordings,
    transcripts,
)
from siprec_bridge.store import search as store_search
from siprec_bridge.store.jobs import JobState
from siprec_bridge.telemetry import Metrics, configure_logs
from siprec_bridge.transcript import Conversation

if TYPE_CHECKING:
    from siprec_bridge.doctor import Finding
    from siprec_bridge.recording import Orders

T = TypeVar("T")

_PAGE = 500  # rows of the database at once

app = typer.Typer(
    help="SIPREC recording server: calls in over SIP and RTP, who-said-what out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
rules_app = typer.Typer(help="Rules of transcription.", no_args_is_help=True)
jobs_app = typer.Typer(help="Transcription jobs.", no_args_is_help=True)
sessions_app = typer.Typer(help="Recorded sessions.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")
app.add_typer(sessions_app, name="sessions")
app.add_typer(rules_app, name="rules")
recordings_app = typer.Typer(help="Audio files of sessions.", no_args_is_help=True)
app.add_typer(recordings_app, name="recordings")
token_app = typer.Typer(help="Tokens for HTTP and WebSocket.", no_args_is_help=True)
app.add_typer(token_app, name="token")

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file of settings; the environment outranks it"),
]
Limit = Annotated[int, typer.Option(help="rows to show at most", min=1, max=10_000)]
SessionId = Annotated[str, typer.Argument(help="id of the session")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def main() -> None:
    """Run the command line; a wrong setting is one line on stderr and exit code 2."""
    try:
        app()
    except ConfigurationError as error:
        print(f"siprec-bridge: {error}", file=sys.stderr)
        sys.exit(2)
    except (CallError, StoreError) as error:
        print(f"siprec-bridge: {error}", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    if version:
        print(f"siprec-bridge {__version__}")
        raise typer.Exit


@app.command()
def serve(config: ConfigFile = None) -> None:
    """Run the bridge until SIGTERM."""
    from siprec_bridge.app import serve as run

    settings, options = from_environment(config)
    configure_logs(settings.log_level, settings.log_format)
    # What is said, and who said it, is for our own user and group. It never grants more.
    os.umask(os.umask(0o077) | 0o007)
    asyncio.run(run(settings, options))


@app.command()
def call(
    target: Annotated[
        str | None, typer.Argument(help="server to call, such as sip:192.0.2.1:5060;transport=tcp")
    ] = None,
    audio: Annotated[
        list[Path] | None,
        typer.Argument(help="audio file of each participant; none: the sample call"),
    ] = None,
    to: Annotated[str | None, typer.Option(help="server to call, if not the argument")] = None,
    transport: Annotated[str | None, typer.Option(help="udp, tcp or tls")] = None,
    codec: Annotated[str, typer.Option(help="pcmu or pcma")] = "pcmu",
    participants: Annotated[
        list[str] | None,
        typer.Option(
            "--participants", "--participant", help="'Alice <sip:alice@example.com>', repeated"
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(help="pace of the packets; 1 is that of speech", min=0.1, max=100)
    ] = 1.0,
    user: Annotated[
        str | None, typer.Option(help="name:password, for a server that asks for it")
    ] = None,
    srtp: Annotated[bool, typer.Option("--srtp", help="encrypt the media")] = False,
    suite: Annotated[
        str, typer.Option(help="with --srtp: how, such as AEAD_AES_128_GCM")
    ] = "AES_CM_128_HMAC_SHA1_80",
    ca: Annotated[
        Path | None, typer.Option(help="TLS: CAs that the server's certificate must come from")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(help="TLS: our certificate and key in one PEM file")
    ] = None,
    brief: Annotated[bool, typer.Option(help="print the report only")] = False,
) -> None:
    """Place a SIPREC call to any recording server and tell what it answered."""
    arguments = list(audio or [])
    goal = to
    if goal is None:
        goal = target
    elif target is not None:
        arguments.insert(0, Path(target))
    if goal is None:
        raise ConfigurationError("--to", "say whom to call, such as sip:127.0.0.1:5060")
    people = [parse_participant(text) for text in participants or []]
    if arguments:
        named = people + [
            (path.stem, f"sip:{path.stem}@example.com") for path in arguments[len(people) :]
        ]
        legs = [load_leg(*who, path) for who, path in zip(named, arguments, strict=False)]
    else:
        legs = [
            replace(leg, name=people[index][0], aor=people[index][1])
            if index < len(people)
            else leg
            for index, leg in enumerate(sample_call())
        ]
    name, _, password = (user or "").partition(":")
    plan = CallPlan(
        parse_target(goal, transport),
        legs,
        codec.lower(),
        rate,
        _tls(ca, cert),
        (name, password) if user else None,
        suite if srtp else None,
    )
    report = asyncio.run(place_call(plan, on_status=None if brief else print))
    for line in report_lines(report):
        print(line)
    raise typer.Exit(0 if report.ok else 1)


def _tls(ca: Path | None, cert: Path | None) -> ssl.SSLContext | None:
    """What `--ca` and `--cert` ask for; None: any certificate will do."""
    if ca is None and cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
        if ca is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if cert is not None:
            context.load_cert_chain(cert)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError("--ca, --cert", error.strerror or str(error)) from error
    return context


@app.command()
def listen(
    url: Annotated[
        str, typer.Argument(help="address of the transcript socket")
    ] = "ws://127.0.0.1:8080/ws/transcripts",
    once: Annotated[bool, typer.Option(help="end after the first finished transcript")] = False,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SIPREC_TOKEN",
            show_envvar=True,
            help="a token with the scope listen; others see arguments, not the environment",
        ),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="wss: CAs that the server's certificate must come from")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print conversations as they arrive at a WebSocket listener."""
    tls = None
    if url.startswith("wss:"):
        tls = _tls(ca, None) or ssl.create_default_context()
    raise typer.Exit(asyncio.run(_listen(url, once, as_json, token, tls)))


@app.command()
def doctor(
    provider: Annotated[
        bool,
        typer.Option("--provider", help="only the recogniser, step by step, with its own words"),
    ] = False,
    vendor: Annotated[
        str | None, typer.Option(help="with --provider: another than STT_DEFAULT_VENDOR")
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Try every piece by using it; one line each says ok, or the cause and the remedy."""
    from siprec_bridge.doctor import examine
    from siprec_bridge.trial import try_provider

    settings, options = from_environment(config)
    configure_logs("error", "console")
    if not provider:
        if vendor is not None:
            raise ConfigurationError("--vendor", "goes with --provider")
        findings = asyncio.run(_print_findings(examine(settings, options), as_json=as_json))
        raise typer.Exit(0 if findings else 1)
    trial = asyncio.run(try_provider(vendor or settings.stt_default_vendor, options))
    if as_json:
        print(trial.as_json())
    else:
        for step in trial.steps:
            print(step)
        for line in trial.stderr.splitlines()[-20:] if trial.broken is not None else ():
            print(f"      stderr      {line}")
    raise typer.Exit(0 if trial.broken is None else 1)


@app.command()
def search(
    words: Annotated[
        list[str] | None, typer.Argument(help="words that were said; '\"a phrase\"', begin*")
    ] = None,
    participant: Annotated[
        str, typer.Option(help="who took part: begin of name or address, or last digits")
    ] = "",
    since: Annotated[
        datetime | None, typer.Option("--from", help="started then (UTC) or later")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--to", help="started before then (UTC)")
    ] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Search transcripts; sessions latest first, each with the best of what was found in it."""
    settings, _ = from_environment(config)
    found = _with_database(
        settings,
        lambda store: store.read(
            partial(
                store_search.search,
                limit=limit,
                text=" ".join(words or ()),
                participant=participant,
                since=since.replace(tzinfo=UTC) if since is not None else None,
                until=until.replace(tzinfo=UTC) if until is not None else None,
            )
        ),
    )
    if as_json:
        shown = [
            {
                "id": one.session.id,
                "started_at": one.session.started_at.isoformat(),
                "matches": one.matches,
                "hits": [asdict(hit) for hit in one.hits],
            }
            for one in found
        ]
        print(json.dumps(shown, indent=1))
        return
    for one in found:
        print(f"{one.session.id}  {one.session.started_at:%Y-%m-%d %H:%M:%S}")
        for hit in one.hits:
            who = hit.participant or {}
            name = who.get("name") or who.get("aor") or f"stream {hit.label}"
            print(f"  {hit.start:7.1f}  {name}: {hit.text}")
        if one.matches > len(one.hits):
            print(f"           and {one.matches - len(one.hits)} more")
    if not found:
        print("nothing found")


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="capture (pcap, pcapng) of SIP and RTP")],
    out: Annotated[
        Path | None,
        typer.Option(help="folder for what was recorded, new or empty; ./replay-NAME if not said"),
    ] = None,
    srs: Annotated[
        list[str] | None,
        typer.Option(
            help="HOST[:PORT] whose calls are recording sessions, whatever they look like"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Record the calls of a capture as if they came in live, and tell what came of it."""
    from siprec_bridge.replay import (
        REPORT,
        Capture,
        ReplayFailed,
        UnreadableCapture,
        report_lines,
    )
    from siprec_bridge.replay import replay as run

    folder = out or Path(f"replay-{file.stem}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"--out {folder}", "is there already and not an empty folder")
    try:
        Capture(file)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "bridge.log").open("w") as logs:
            configure_logs("info", "json", logs)
            try:
                report = asyncio.run(run(file, folder, srs or ()))
            finally:
                configure_logs("error", "console")
    except UnreadableCapture as error:
        print(f"siprec-bridge: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except (ReplayFailed, OSError) as error:
        print(f"siprec-bridge: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print(REPORT.dump_json(report, indent=1).decode())
    else:
        for line in report_lines(report):
            print(line)
    raise typer.Exit(0 if report.ok else 1)


@token_app.command("new")
def token_new(
    name: Annotated[str, typer.Argument(help="whose it is, for the log")],
    scope: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(SCOPES)}; repeated. None: read")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="only sessions of this group; repeated")
    ] = None,
    participant: Annotated[
        list[str] | None,
        typer.Option(help="only sessions with this AoR, such as sip:*@example.com; repeated"),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="only sessions from this SIP address or network; repeated"),
    ] = None,
) -> None:
    """Make a token, and the line to configure. The token itself is shown this once."""
    secret = new_secret()
    limits = {"group": group, "participant": participant, "peer": peer}
    words = [f"{kind}={value}" for kind, values in limits.items() for value in values or ()]
    hashed = f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}"
    line = " ".join([name, hashed, ",".join(scope or ["read"]), *words])
    try:
        if len(read_tokens(line)) != 1 or "#" in line:
            raise ValueError("no ; # or line break can be part of it")
    except ValueError as error:
        raise ConfigurationError("token new", str(error)) from None
    print(f"token (give it to the client; it is not shown again):\n  {secret}")
    print(f"line for HTTP_TOKENS or the file of HTTP_TOKENS_FILE:\n  {line}")


@jobs_app.command("list")
def jobs_list(
    state: Annotated[
        JobState | None, typer.Option(help="only queued, running, done or failed ones")
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

    rows, places, speed = _with_database(settings, lambda store: store.read(find))
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


@rules_app.command("test")
def rules_test(session: SessionId, as_json: AsJson = False, config: ConfigFile = None) -> None:
    """Show what the rules make of a session, and which rule decides on what."""
    settings, _ = from_environment(config)
    orders = _orders(settings)
    row = _with_database(
        settings, lambda store: store.read(partial(recordings.get, session_id=session))
    )
    if row is None:
        _refuse(f"there is no session {session}")
    choice = orders.choose(SessionDocument.model_validate_json(row.document), row.peer)
    chosen = choice.wish.model_dump()
    if as_json:
        print(
            json.dumps(
                {name: {"value": value, "rule": choice.because.get(name)}
                 for name, value in chosen.items()}, indent=1)
        )  # fmt: skip
        return
    for name, value in chosen.items():
        because = choice.because.get(name)
        print(f"{name:<9} {value}  ({because})" if because else f"{name:<9} as without rules")


def _orders(settings: Settings) -> "Orders":
    from siprec_bridge.recording import Orders
    from siprec_bridge.transcription import load_rules

    vendors = settings.supported_vendors
    rules = load_rules(settings.transcription_rules, vendors)
    return Orders(settings.stt_default_vendor, vendors, rules, shared=settings.recordings_shared)


@sessions_app.command("transcribe")
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
    orders = _orders(settings)
    try:
        job = _with_database(
            settings, lambda store: orders.again(store, session, wish, datetime.now(UTC))
        )
    except (LookupError, AudioDeleted, NothingToTranscribe) as error:
        _refuse(str(error))
    except UnknownVendor as error:
        raise ConfigurationError("--vendor", str(error)) from None
    print(f"{job.id} is queued")


@jobs_app.command("retry")
def jobs_retry(
    job: Annotated[str | None, typer.Argument(help="id of a failed job")] = None,
    every: Annotated[bool, typer.Option("--all", help="all failed jobs")] = False,
    config: ConfigFile = None,
) -> None:
    """Queue failed jobs again; a running bridge takes them up within seconds."""
    if (job is None) == (not every):
        raise ConfigurationError("jobs retry", "name one job, or say --all")
    settings, _ = from_environment(config)
    count = _with_database(settings, lambda store: store.write(partial(jobs.retry, job_id=job)))
    if job is not None and not count:
        _refuse(f"there is no failed job {job}")
    print(f"{count} queued")


@sessions_app.command("list")
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
    rows = _with_database(
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


@sessions_app.command("hold")
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


@sessions_app.command("release")
def sessions_release(session: SessionId, config: ConfigFile = None) -> None:
    """End a session's hold."""
    _set_hold(session, None, config)
    print(f"{session} is not held")


@sessions_app.command("delete")
def sessions_delete(session: SessionId, config: ConfigFile = None) -> None:
    """Delete a session with its audio, its transcript and all that is known of it."""
    from siprec_bridge.recording import Elsewhere, InUse, Keep, Retention, UnderHold

    settings, _ = from_environment(config)

    async def delete(store: Database) -> bool:
        node = None
        if store.shared and not settings.recordings_shared:
            node = settings.node_id or node_id(settings.data_dir)
        retention = Retention(store, Metrics(), Keep(), clock=lambda: datetime.now(UTC), node=node)
        return await retention.delete(session)

    try:
        if not _with_database(settings, delete):
            _refuse(f"there is no session {session}")
    except UnderHold:
        _refuse(f"{session} is under hold: release it first")
    except Elsewhere as error:
        _refuse(f"the audio of {session} is on node {error}: delete it there")
    except InUse:
        _refuse(f"{session} is being recorded or transcribed")
    print(f"{session} is deleted")


def _set_hold(session: str, held: str | None, config: Path | None) -> None:
    settings, _ = from_environment(config)
    change = partial(recordings.update, session_id=session, held=held)
    if not _with_database(settings, lambda store: store.write(change)):
        _refuse(f"there is no session {session}")


def _refuse(why: str) -> NoReturn:
    print(f"siprec-bridge: {why}", file=sys.stderr)
    raise typer.Exit(1)


@sessions_app.command("show")
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

    row, transcript, messages = _with_database(settings, find)
    if row is None:
        _refuse(f"there is no session {session}")
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
    for warning in row.warnings:
        print(f"warning   {warning}")
    for line in _assurance_lines(SessionDocument.model_validate_json(row.document).assurance):
        print(line)
    if transcript is None:
        print("transcript: none yet" if version is None else f"transcript: no version {version}")
        return
    talk = Conversation.model_validate_json(transcript.document)
    print(f"transcript {transcript.version} by {talk.provider}, {talk.model}")
    for one in talk.utterances:
        who = one.participant.name or one.participant.aor if one.participant else None
        print(f"  {one.start:7.1f}  {who or 'stream ' + one.label}: {one.text}")


@recordings_app.command("verify")
def recordings_verify(
    session: Annotated[str | None, typer.Argument(help="id of a session; none: all")] = None,
    config: ConfigFile = None,
) -> None:
    """Compare finished audio files with the checksums that were noted when they were written.

    Exit code 1: a file is gone, or not what was written.
    """
    from siprec_bridge.recording.integrity import verify

    settings, _ = from_environment(config)
    files = octets = compared = unsaid = bad = 0
    for row in _with_database(settings, partial(_rows_of, session=session)):
        found = verify(row)
        files, octets = files + found.files, octets + found.octets
        compared += found.unsaid is None
        unsaid += found.unsaid is not None
        bad += bool(found.troubles)
        for trouble in found.troubles:
            print(f"{found.session_id}  {trouble}")
        if session is not None and found.unsaid is not None:
            _refuse(f"{session} cannot be verified: {found.unsaid}")
    left = f"; {unsaid} sessions with nothing to compare" if unsaid else ""
    print(f"{compared} sessions, {files} files, {octets:,} octets: {bad} sessions damaged{left}")
    if bad:
        raise typer.Exit(1)


async def _rows_of(store: Database, session: str | None) -> list[SessionRow]:
    """One session, or all of them."""
    if session is not None:
        row = await store.read(partial(recordings.get, session_id=session))
        if row is None:
            _refuse(f"there is no session {session}")
        return [row]
    rows: list[SessionRow] = []
    before: tuple[datetime, str] | None = None
    while page := await store.read(partial(recordings.listing, limit=_PAGE, before=before)):
        # The documents of years are not held all at once.
        rows += [replace(row, document="") for row in page]
        before = page[-1].started_at, page[-1].id
    return rows


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


def _with_database(settings: Settings, use: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        store = Database(settings.database)
        await store.start()
        try:
            return await use(store)
        finally:
            await store.stop()

    return asyncio.run(run())


async def _print_findings(findings: "AsyncIterator[Finding]", *, as_json: bool) -> bool:
    kept: list[Finding] = []
    async for finding in findings:
        kept.append(finding)
        if not as_json:
            print(finding, flush=True)
    if as_json:
        print(json.dumps([asdict(one) for one in kept], indent=1))
    return all(one.ok for one in kept)


async def _listen(
    url: str, once: bool, as_json: bool, token: str | None, tls: ssl.SSLContext | None
) -> int:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus, WebSocketException

    code: Literal[0, 1] = 1 if once else 0
    try:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else None
        async with connect(url, max_size=None, ssl=tls, additional_headers=headers) as socket:
            async for frame in socket:
                event = json.loads(frame)
                if as_json:
                    print(json.dumps(event), flush=True)
                else:
                    for line in _lines_of(event, url):
                        print(line, flush=True)
                if once and event["type"] in ("transcript.final", "transcript.failed"):
                    return 0 if event["type"] == "transcript.final" else 1
    except InvalidStatus as refusal:
        answer = refusal.response
        why = (answer.body or b"").decode(errors="replace").strip() or answer.reason_phrase
        print(f"siprec-bridge: {url}: {answer.status_code} {why}", file=sys.stderr)
        return 1
    except (OSError, WebSocketException) as error:
        print(f"siprec-bridge: {url}: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return code
    return code


def _lines_of(event: dict[str, Any], url: str) -> list[str]:
    """An event for a terminal."""
    data = event.get("data", {})
    match event["type"]:
        case "listener.ready":
            return [f"listening to {url}"]
        case "session.started":
            names = [one.get("name") or one.get("aor") for one in data["participants"]]
            return [f"call of {' and '.join(map(str, names)) or 'unknown parties'}"]
        case "session.ended":
            return [f"call ended after {data['duration']:.1f} s ({data['cause']})"]
        case "transcript.segment":
            who = data.get("participant") or {}
            name = who.get("name") or who.get("aor") or f"stream {data['label']}"
            return [f"{data['start']:6.1f} s  {name}: {data['text']}"]
        case "transcript.final":
            count = len(data["utterances"])
            return [
                f"transcript complete: {count} utterances by {data['provider']}, {data['model']}"
            ]
        case "transcript.failed":
            return [f"transcription failed: {data['reason']} after {data['attempts']} tries"]
        case "listener.lagged":
            return [f"lagged: {event['missed']} events missed"]
        case kind:
            return [str(kind)]
