"""`siprec-bridge listen`: conversations in a terminal."""

import asyncio
import json
import shutil
import ssl
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

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
            screen = _Screen(sys.stdout)
            async for frame in socket:
                event = json.loads(frame)
                if as_json:
                    print(json.dumps(event), flush=True)
                elif event["type"] == "transcript.partial":
                    screen.show(_said(event["data"]), over=event["data"]["settled"])
                else:
                    for line in _lines_of(event, url):
                        screen.show(line)
                if once and event["type"] in ("transcript.final", "transcript.failed"):
                    return 0 if event["type"] == "transcript.final" else 1
            why = socket.close_reason or "the bridge stops"
            print(f"siprec-bridge: {url}: closed ({socket.close_code}): {why}", file=sys.stderr)
            return 1
    except InvalidStatus as refusal:
        answer = refusal.response
        why = (answer.body or b"").decode(errors="replace").strip() or answer.reason_phrase
        print(f"siprec-bridge: {url}: {answer.status_code} {why}", file=sys.stderr)
        return 1
    except (OSError, WebSocketException, ValueError) as error:  # of an address, or no JSON
        print(f"siprec-bridge: {url}: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return code


class _Screen:
    """Lines of a terminal, the last of which may still grow; elsewhere only whole lines are written."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._terminal = out.isatty()
        self._growing = False

    def show(self, line: str, *, over: bool = True) -> None:
        """Write a line; one that is not over is written over by the next."""
        if not over and not self._terminal:
            return
        if self._growing:
            self._out.write("\r\x1b[K")
        if not over:
            width = shutil.get_terminal_size().columns - 1
            line = line if len(line) <= width else "…" + line[-width + 1 :]
        self._out.write(line if not over else f"{line}\n")
        self._out.flush()
        self._growing = not over


def _said(data: dict[str, Any]) -> str:
    who = data.get("participant") or {}
    name = who.get("name") or who.get("aor") or f"stream {data['label']}"
    return f"{data['start']:6.1f} s  {name}: {data['text']}" + " (live)" * (not data["final"])


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
            return [_said(data)]
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
