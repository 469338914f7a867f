"""`siprec-bridge erase`: one person out of all that is stored."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from siprec_bridge.cli.arguments import AsJson, By, ConfigFile, DoIt, Reason
from siprec_bridge.cli.audio import DeleteEncrypted, Identity, keys_of, stored_audio_of
from siprec_bridge.cli.database import node_here, with_database
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import from_environment
from siprec_bridge.store import Database
from siprec_bridge.telemetry import Metrics

if TYPE_CHECKING:
    from siprec_bridge.recording import Affected


_AUDIO = {
    "archived": "audio in the archive alone",
    "encrypted": "audio is encrypted",
    "sealed_again": "audio silenced and encrypted again",
    "deleted": "audio with the voice deleted",
}


def erase(
    participant: Annotated[str, typer.Option(help="sip:user@host, tel:+number or +number")],
    reason: Reason = None,
    by: By = None,
    whole: Annotated[
        bool, typer.Option("--whole-sessions", help="delete the sessions, not the person alone")
    ] = False,
    identity: Identity = None,
    delete_encrypted: DeleteEncrypted = False,
    do_it: DoIt = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Erase a person from all sessions: voice, words, name and address; what others said stays.

    Exit code 1: some sessions were left as they are, each with its cause.
    """
    from siprec_bridge.delivery import load_hooks
    from siprec_bridge.parts import recipients_of
    from siprec_bridge.recording import Eraser, Identifier, Keep, Retention
    from siprec_bridge.recording.erasure import as_json as shown

    settings, _ = from_environment(config)
    try:
        whom = Identifier.parse(participant)
    except ValueError as error:
        raise ConfigurationError("--participant", str(error)) from None
    keys = keys_of(identity, delete_encrypted)

    async def run(store: Database) -> "list[Affected]":
        node = node_here(settings, store)

        def now() -> datetime:
            return datetime.now(UTC)

        metrics = Metrics()
        sinks = recipients_of(settings, load_hooks(settings.webhooks))
        retention = Retention(store, metrics, Keep(), clock=now, node=node)
        audio = stored_audio_of(settings, store)
        eraser = Eraser(store, metrics, retention, audio, sinks=sinks, clock=now, node=node)
        if not do_it:
            return await eraser.find(whom)
        return await eraser.erase(whom, by=by, reason=reason, whole=whole, keys=keys)

    found = with_database(settings, run)
    if as_json:
        print(json.dumps([shown(one) for one in found], indent=1))
    else:
        for one in found:
            said = [one.cause, _AUDIO.get(one.treatment or one.kept or "")]
            if one.replaces is not None:
                said.append(f"the bridge replaces the copy in {one.replaces}")
            if one.named_in is not None:
                said.append(f"{one.named_in} has the name still, and keeps it")
            cause = f" ({'; '.join(filter(None, said))})" if any(said) else ""
            print(
                f"{one.session_id}  {one.started_at:%Y-%m-%d %H:%M:%S}  {one.outcome}{cause}  "
                f"{one.utterances} utterances, {one.audio_seconds:.1f} s of audio"
            )
        print(f"{len(found)} sessions" + ("" if do_it else "; nothing was changed: say --yes"))
    if do_it and any(one.outcome != "erased" for one in found):
        raise typer.Exit(1)
