"""`siprec-bridge sessions group`: a call that was recorded in several sessions."""

from functools import partial
from typing import Annotated

import typer

from siprec_bridge.cli.arguments import AsJson, ConfigFile
from siprec_bridge.cli.database import refuse, with_database
from siprec_bridge.settings import from_environment
from siprec_bridge.store import groups


def sessions_group(
    group: Annotated[str, typer.Argument(help="id of the group, as `sessions show` tells it")],
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Show what was said in all sessions of a group, in order of time."""
    from siprec_bridge.recording import read_group

    settings, _ = from_environment(config)
    find = partial(read_group, group_id=group, sees=lambda row: True)
    try:
        found = with_database(settings, lambda store: store.read(find))
    except groups.TooLarge as error:
        refuse(str(error))
    if found is None:
        refuse(f"there is no group {group}")
    if as_json:
        print(found.model_dump_json())
        return
    for session in found.sessions:
        version = "no transcript yet" if session.version is None else f"version {session.version}"
        print(f"{session.session_id}  {session.state:<9}  {session.started_at:%H:%M:%S}  {version}")
    for one in found.utterances:
        print(f"  {one.start:7.1f}  {one.line}")
