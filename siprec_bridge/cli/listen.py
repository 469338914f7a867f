"""`siprec-bridge listen`: conversations in a terminal."""

import asyncio
import json
import ssl
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from siprec_bridge.cli.arguments import AsJson
from siprec_bridge.cli.tls import tls_of


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
        tls = tls_of(ca, None) or ssl.create_default_context()
    raise typer.Exit(asyncio.run(_listen(url, once, as_json, token, tls)))


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
