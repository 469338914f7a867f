"""`siprec-bridge rules`: what the rules of transcription make of a session."""

import json
from functools import partial

import typer

from siprec_bridge.cli.arguments import AsJson, ConfigFile, SessionId
from siprec_bridge.cli.database import refuse, with_database
from siprec_bridge.cli.orders import orders_of
from siprec_bridge.settings import from_environment
from siprec_bridge.siprec import SessionDocument
from siprec_bridge.store import (
    recordings,
)

app = typer.Typer(help="Rules of transcription.", no_args_is_help=True)


@app.command("test")
def rules_test(session: SessionId, as_json: AsJson = False, config: ConfigFile = None) -> None:
    """Show what the rules make of a session, and which rule decides on what."""
    settings, _ = from_environment(config)
    orders = orders_of(settings)
    row = with_database(
        settings, lambda store: store.read(partial(recordings.get, session_id=session))
    )
    if row is None:
        refuse(f"there is no session {session}")
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
