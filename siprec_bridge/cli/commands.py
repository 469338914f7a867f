"""All commands, and how they end."""

import sys
from typing import Annotated

import typer

from siprec_bridge import __version__
from siprec_bridge.cli import archive, deliveries, jobs, recordings, rules, sessions, tokens
from siprec_bridge.cli.call import call
from siprec_bridge.cli.doctor import doctor
from siprec_bridge.cli.erase import erase
from siprec_bridge.cli.group import sessions_group
from siprec_bridge.cli.listen import listen
from siprec_bridge.cli.redact import redact
from siprec_bridge.cli.replay import replay
from siprec_bridge.cli.search import search
from siprec_bridge.cli.serve import serve
from siprec_bridge.cli.vcon import sessions_vcon
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.store import StoreError
from siprec_bridge.telemetry import configure_logs

app = typer.Typer(
    help="SIPREC recording server: calls in over SIP and RTP, who-said-what out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (serve, call, listen, doctor, search, replay, erase, redact):
    app.command()(command)
sessions.app.command("vcon")(sessions_vcon)
sessions.app.command("group")(sessions_group)
for name, group in (
    ("jobs", jobs.app),
    ("deliveries", deliveries.app),
    ("sessions", sessions.app),
    ("rules", rules.app),
    ("recordings", recordings.app),
    ("archive", archive.app),
    ("token", tokens.app),
):
    app.add_typer(group, name=name)


def main() -> None:
    """Run the command line; a wrong setting is one line on stderr and exit code 2."""
    try:
        app()
    except ConfigurationError as error:
        print(f"siprec-bridge: {error}", file=sys.stderr)
        sys.exit(2)
    except StoreError as error:
        print(f"siprec-bridge: {error}", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    if version:
        print(f"siprec-bridge {__version__}")
        raise typer.Exit
    configure_logs("error", "console")  # on stderr: what a command prints may be piped on
