"""Speech servers as whisper-asr-webservice, OpenAI's API and whisper.cpp's server are ones.

They hear with the stand-in, so that their words can be compared, answer in each API's own dialect,
and fail on request in the ways that real ones do.
"""

import asyncio
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import BodyPartReader, web
from pocketsphinx import Decoder

from siprec_wrappers.contract import Segment
from siprec_wrappers.standin import read_audio, recognise, speech

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class Asked:
    """A request as it arrived."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    fields: list[tuple[str, str]]
    file_field: str
    filename: str
    octets: int

    def values(self, name: str) -> list[str]:
        """All values of a form field."""
        return [value for field, value in self.fields if field == name]


@dataclass
class SpeechServer:
    """`faults` are used up from the first, one a request; then it answers well."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    requests: int = 0
    at_once: int = 0
    most_at_once: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # a client left before its answer


@asynccontextmanager
async def speech_server(
    *faults: Fault, tls: ssl.SSLContext | None = None, largest: int = 1 << 30
) -> AsyncIterator[SpeechServer]:
    """A server on a free port that speaks all three APIs."""
    server = SpeechServer("", faults=list(faults))

    @web.middleware
    async def account(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        server.requests += 1
        server.at_once += 1
        server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            if server.faults and (answer := await server.faults.pop(0)(request)) is not None:
                return answer
            return await handler(request)
        except asyncio.CancelledError:
            server.gone.set()
            raise
        finally:
            server.at_once -= 1

    app = web.Application(middlewares=[account], client_max_size=largest)
    app.router.add_post("/asr", _serve(server, "audio_file", _asr))
    app.router.add_post(
        "/v1/audio/{task:transcriptions|translations}", _serve(server, "file", _openai)
    )
    app.router.add_post("/inference", _serve(server, "file", _cpp))
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


def _serve(
    server: SpeechServer,
    wanted: str,
    dialect: Callable[[Asked, list[Segment], float], web.Response],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        fields: list[tuple[str, str]] = []
        asked = None
        with tempfile.NamedTemporaryFile(suffix=".wav") as place:
            async for part in await request.multipart():
                assert isinstance(part, BodyPartReader)
                if part.filename is None:
                    fields.append((part.name or "", await part.text()))
                    continue
                octets = 0
                while chunk := await part.read_chunk():
                    octets += len(chunk)
                    place.write(chunk)
                asked = Asked(
                    request.path, dict(request.query), dict(request.headers), fields,
                    part.name or "", part.filename, octets,
                )  # fmt: skip
            if asked is None or asked.file_field != wanted:
                return web.json_response(
                    {"error": f"no '{wanted}' field in the request"}, status=400
                )
            server.asked.append(asked)
            place.flush()
            segments, duration = await asyncio.to_thread(_hear, Path(place.name).read_bytes())
        return dialect(asked, segments, duration)

    return handle


@cache  # tests send the same audio again and again
def _hear(audio: bytes) -> tuple[list[Segment], float]:
    with tempfile.NamedTemporaryFile(suffix=".wav") as place:
        place.write(audio)
        place.flush()
        pcm = read_audio(Path(place.name))
    decoder = Decoder(loglevel="FATAL")
    heard = [recognise(decoder, pcm, start, end) for start, end in speech(pcm)]
    return [one for one in heard if one is not None], len(pcm) / 16000


def _asr(asked: Asked, segments: list[Segment], _: float) -> web.Response:
    listed = []
    for number, one in enumerate(segments):
        entry: dict[str, Any] = {
            "id": number, "seek": 0, "start": one.start, "end": one.end, "text": f" {one.text}",
            "tokens": [], "avg_logprob": -0.25, "compression_ratio": 1.1, "no_speech_prob": 0.01,
        }  # fmt: skip
        if asked.query.get("word_timestamps") == "true":
            entry["words"] = [
                {"word": f" {w.text}", "start": w.start, "end": w.end, "probability": w.probability}
                for w in one.words
            ]
        listed.append(entry)
    text = "".join(f" {one.text}" for one in segments)
    body = {"language": asked.query.get("language", "en"), "segments": listed, "text": text}
    # It declares its JSON as text, and names the engine.
    return web.Response(
        text=json.dumps(body), content_type="text/plain", headers={"Asr-Engine": "standin"}
    )


def _openai(asked: Asked, segments: list[Segment], duration: float) -> web.Response:
    text = " ".join(one.text for one in segments)
    if asked.values("model") == ["gpt-4o-transcribe"]:
        if asked.values("response_format") != ["json"]:
            cause = "response_format 'verbose_json' is not compatible with model"
            return web.json_response({"error": {"message": cause, "code": None}}, status=400)
        return web.json_response({"text": text, "usage": {"type": "tokens"}})
    task = "translate" if asked.path.endswith("translations") else "transcribe"
    body: dict[str, Any] = {
        "task": task, "language": "english", "duration": duration, "text": text,
        "segments": [
            {
                "id": number, "seek": 0, "start": one.start, "end": one.end, "text": f" {one.text}",
                "tokens": [], "temperature": 0.0, "avg_logprob": -0.25, "compression_ratio": 1.1,
                "no_speech_prob": 0.01,
            }
            for number, one in enumerate(segments)
        ],
    }  # fmt: skip
    if "word" in asked.values("timestamp_granularities[]"):
        body["words"] = [
            {"word": w.text, "start": w.start, "end": w.end} for one in segments for w in one.words
        ]
    return web.json_response(body)


def _cpp(asked: Asked, segments: list[Segment], duration: float) -> web.Response:
    listed = []
    for number, one in enumerate(segments):
        pieces = []
        for word in one.words:  # its "words" are tokens: long words come in two
            middle = (word.start + word.end) / 2
            cut = 4 if len(word.text) > 6 else len(word.text)
            pieces.append(
                (f" {word.text[:cut]}", word.start, middle if word.text[cut:] else word.end)
            )
            if word.text[cut:]:
                pieces.append((word.text[cut:], middle, word.end))
        listed.append(
            {
                "id": number, "text": f" {one.text}", "start": one.start, "end": one.end,
                "tokens": [], "temperature": 0.0, "avg_logprob": -0.3, "no_speech_prob": 0.02,
                "words": [
                    {"word": text, "start": start, "end": end, "t_dtw": -1, "probability": 0.5}
                    for text, start, end in pieces
                ],
            }
        )  # fmt: skip
    body = {
        "task": "translate" if asked.values("translate") == ["true"] else "transcribe",
        "language": "english", "duration": duration,
        "text": "".join(f" {one.text}\n" for one in segments), "segments": listed,
        "detected_language": "english",
    }  # fmt: skip
    return web.json_response(body)


def says(status: int, body: str | dict[str, Any], **headers: str) -> Fault:
    """Answer at once, without reading what is sent, with JSON or with a page."""

    async def fault(request: web.Request) -> web.StreamResponse:
        kind = "text/html" if isinstance(body, str) else "application/json"
        text = body if isinstance(body, str) else json.dumps(body)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        response = web.Response(status=status, text=text, content_type=kind, headers=given)
        response.force_close()
        return response

    return fault


def waits_for_company(count: int) -> Fault:
    """Answers none before so many are there."""
    barrier = asyncio.Barrier(count)

    async def fault(_: web.Request) -> None:
        await barrier.wait()

    return fault


async def cuts_its_answer(request: web.Request) -> web.StreamResponse:
    """Half an answer, then no connection."""
    await request.read()
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"text": "half of')
    assert request.transport is not None
    request.transport.close()
    return response


async def drips(request: web.Request) -> web.StreamResponse:
    """An octet now and then, for ever: each comes within any timeout of one read."""
    await request.read()
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


async def hangs(request: web.Request) -> web.StreamResponse:
    """Takes everything and says nothing."""
    await request.read()
    await asyncio.Event().wait()
    raise AssertionError


async def never_ends(request: web.Request) -> web.StreamResponse:
    """An answer of a hundred megabytes, not announced."""
    await request.read()
    response = web.StreamResponse()
    await response.prepare(request)
    try:
        for _ in range(1600):
            await response.write(b" " * 65536)
    except ConnectionResetError:
        pass
    return response
