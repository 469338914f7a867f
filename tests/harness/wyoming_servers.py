"""Speech-to-text servers built on the real `wyoming` library, that hear with the stand-in."""

import asyncio
import tempfile
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pocketsphinx import Decoder
from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
from wyoming.server import AsyncEventHandler, AsyncServer

from siprec_wrappers.standin import read_audio, recognise, speech

_NOBODY = Attribution(name="test", url="")


@dataclass
class Script:
    """What a server offers and how it behaves."""

    behaviour: str = "answers"  # streams, fails, fails_early, leaves, hangs, mumbles, says_null
    models: tuple[str, ...] = ("tiny",)
    uri: str = ""
    asked: list[Transcribe] = field(default_factory=list)
    octets: list[int] = field(default_factory=list)
    chunks: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # a connection


class _Handler(AsyncEventHandler):
    def __init__(
        self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        super().__init__(reader, writer)
        self._script = script
        self._pcm = bytearray()
        self._format = (16000, 2, 1)

    async def handle_event(self, event: Event) -> bool:
        script = self._script
        if Describe.is_type(event.type):
            await self.write_event(_info(script.models).event())
        elif Transcribe.is_type(event.type):
            script.asked.append(Transcribe.from_event(event))
        elif AudioStart.is_type(event.type):
            start = AudioStart.from_event(event)
            self._format = (start.rate, start.width, start.channels)
            if script.behaviour == "fails_early":
                await self.write_event(Error("no room for more", "overloaded").event())
        elif AudioChunk.is_type(event.type):
            script.chunks += 1
            self._pcm += AudioChunk.from_event(event).audio
            if script.behaviour == "leaves":
                return False
        elif AudioStop.is_type(event.type):
            script.octets.append(len(self._pcm))
            await self._answer()
        return True

    async def _answer(self) -> None:
        match self._script.behaviour:
            case "hangs":
                return
            case "fails":
                await self.write_event(Error("CUDA out of memory").event())
                return
            case "mumbles":
                await self.write_event(Event("transcript", {"words": 3}))
                return
            case "says_null":
                await self.write_event(Event("transcript", {"text": None, "language": 7}))
                return
            case _:
                pass
        text = await asyncio.to_thread(_hear, bytes(self._pcm), self._format)
        if self._script.behaviour == "streams":
            await self.write_event(TranscriptStart(language="english").event())
            for word in text.split():
                await self.write_event(TranscriptChunk(f"{word} ").event())
            await self.write_event(TranscriptStop().event())
        else:
            await self.write_event(Transcript(text, language="en").event())

    async def disconnect(self) -> None:
        self._script.ended.set()


@asynccontextmanager
async def wyoming_server(script: Script, socket: Path | None = None) -> AsyncIterator[Script]:
    """Serve on a free port, or on a Unix socket; `script.uri` says where."""
    server = AsyncServer.from_uri(f"unix://{socket}" if socket else "tcp://127.0.0.1:0")
    await server.start(lambda reader, writer: _Handler(script, reader, writer))
    listener = server._server  # type: ignore[attr-defined]
    script.uri = f"unix://{socket}"
    if socket is None:
        script.uri = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield script
    finally:
        await server.stop()


@asynccontextmanager
async def raw_server(greeting: bytes, *, stays: bool = False) -> AsyncIterator[str]:
    """Says this to whatever comes, and closes or stays; yields host:port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(greeting)
        if stays:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def _info(models: tuple[str, ...]) -> Info:
    listed = [AsrModel(one, _NOBODY, True, None, "1", ["en"]) for one in models]
    program = AsrProgram("standin", _NOBODY, True, None, "1", models=listed)
    return Info(asr=[program] if models else [])


@cache  # tests send the same audio again and again
def _hear(pcm: bytes, form: tuple[int, int, int]) -> str:
    with tempfile.NamedTemporaryFile(suffix=".wav") as place:
        with wave.open(place.name, "wb") as wav:
            wav.setframerate(form[0])
            wav.setsampwidth(form[1])
            wav.setnchannels(form[2])
            wav.writeframes(pcm)
        samples = read_audio(Path(place.name))
    decoder = Decoder(loglevel="FATAL")
    heard = [recognise(decoder, samples, start, end) for start, end in speech(samples)]
    return " ".join(one.text for one in heard if one is not None)
