"""`siprec-bridge search`: what was said."""

import json
from dataclasses import asdict
from datetime import UTC
from functools import partial
from typing import Annotated

import typer

from siprec_bridge.cli.arguments import AsJson, ConfigFile, Limit, Since, Until
from siprec_bridge.cli.database import with_database
from siprec_bridge.settings import from_environment
from siprec_bridge.store import search as store_search


def search(
    words: Annotated[
        list[str] | None, typer.Argument(help="words that were said; '\"a phrase\"', begin*")
    ] = None,
    participant: Annotated[
        str, typer.Option(help="who took part: begin of name or address, or last digits")
    ] = "",
    since: Since = None,
    until: Until = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Search transcripts; sessions latest first, each with the best of what was found in it."""
    settings, _ = from_environment(config)
    found = with_database(
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
