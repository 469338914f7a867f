"""Wyoming's speech-to-text service, for Home Assistant and other Wyoming clients.

describe -> info; transcribe, audio-start, audio-chunk…, audio-stop -> transcript or error.
"""

import asyncio
import contextlib
import io
import json
import wave
from itertools import count

import structlog
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error
from wyoming.event import Event, async_write_event
from wyoming.info import AsrModel, AsrProgram, Attribution, Describe, Info
from wyoming.ping import Ping, Pong

from siprec_asr import __version__
from siprec_asr.errors import Cancelled, Refused
from siprec_asr.transcriber import Transcriber, Wishes

log = structlog.get_logger()

_LONGEST_LINE = 1 << 16
_LONGEST_DATA = 1 << 20
_IDLE_S = 300.0
_WRITE_WITHIN_S = 30.0


class WyomingFront:
    """A TCP server over a `Transcriber`."""

    def __init__(self, transcriber: Transcriber) -> None:
        self._transcriber = transcriber
        self._numbers = count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Raises OSError when the port cannot be had."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=_LONGEST_LINE)

    async def stop_listening(self) -> None:
        """Take no further connections."""
        if self._server is not None:
            self._server.close()

    async def stop(self) -> None:
        """End the connections that there are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        owner = f"wyoming {next(self._numbers)}"
        self._tasks.add(task)
        try:
            if len(self._tasks) > self._transcriber.settings.max_streams:
                refused = Refused(429, "too_many_streams", "too many connections are open")
                await _write(writer, Error(refused.message, refused.code).event())
                return
            await _Connection(self._transcriber, reader, writer, owner).serve()
        except _BadEvent as error:
            log.warning("wyoming.bad_event", owner=owner, cause=str(error))
            with contextlib.suppress(ConnectionError, TimeoutError):
                await _write(writer, Error(str(error), "bad_event").event())
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.info("wyoming.lost", owner=owner, cause=str(error) or type(error).__name__)
        except asyncio.CancelledError:
            pass  # the server stops; this task is the connection's own
        finally:
            self._tasks.discard(task)
            writer.close()


class _BadEvent(Exception):
    """What came is no event of Wyoming's."""


class _Connection:
    def __init__(
        self,
        transcriber: Transcriber,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        owner: str,
    ) -> None:
        self._transcriber = transcriber
        self._reader = reader
        self._writer = writer
        self._owner = owner
        self._wishes = Wishes(word_timestamps=False)
        self._format: tuple[int, int, int] | None = None
        self._pcm = bytearray()
        self._ahead: asyncio.Task[Event | None] | None = None  # read while we transcribed

    async def serve(self) -> None:
        try:
            await self._serve()
        finally:
            if self._ahead is not None:
                self._ahead.cancel()
                await asyncio.gather(self._ahead, return_exceptions=True)

    async def _serve(self) -> None:
        while True:
            async with asyncio.timeout(_IDLE_S):
                ahead, self._ahead = self._ahead, None
                event = await (ahead or self._read())
            if event is None:
                return
            try:
                if not await self._handle(event):
                    return
            except (KeyError, TypeError, ValueError) as error:
                raise _BadEvent(f"{event.type}: {error!r}") from error

    async def _handle(self, event: Event) -> bool:
        """Do what the event says; False when the client is gone."""
        if Describe.is_type(event.type):
            await _write(self._writer, self._info().event())
        elif Ping.is_type(event.type):
            await _write(self._writer, Pong(text=Ping.from_event(event).text).event())
        elif Transcribe.is_type(event.type):
            asked = Transcribe.from_event(event)
            self._wishes = Wishes(model=asked.name, language=asked.language, word_timestamps=False)
        elif AudioStart.is_type(event.type):
            start = AudioStart.from_event(event)
            self._pcm.clear()
            self._format = _checked(start.rate, start.width, start.channels)
        elif AudioChunk.is_type(event.type):
            chunk = AudioChunk.from_event(event)
            self._format = self._format or _checked(chunk.rate, chunk.width, chunk.channels)
            self._pcm += chunk.audio
            if len(self._pcm) > self._transcriber.settings.max_upload:
                raise _BadEvent("more audio than ASR_MAX_UPLOAD")
        elif AudioStop.is_type(event.type):
            return await self._transcribe()
        return True  # what is not known is left unheeded, as the protocol asks

    async def _transcribe(self) -> bool:
        """Answer with a transcript or an error; the client's leaving ends the work."""
        audio = _wav(self._format, bytes(self._pcm))
        self._pcm.clear()
        self._format, wishes, self._wishes = None, self._wishes, Wishes(word_timestamps=False)
        answer = asyncio.ensure_future(self._answer(audio, wishes))
        # The end of a stream is seen by reading only; an event that comes early waits its turn.
        self._ahead = asyncio.ensure_future(self._read())
        try:
            await asyncio.wait({answer, self._ahead}, return_when=asyncio.FIRST_COMPLETED)
            if self._ahead.done() and (self._ahead.exception() or self._ahead.result() is None):
                log.info("wyoming.left", owner=self._owner)
                return False
            await _write(self._writer, await answer)
            return True
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)

    async def _answer(self, audio: bytes, wishes: Wishes) -> Event:
        try:
            with self._transcriber.metrics.request("wyoming"):
                heard = await self._transcriber.transcribe(audio, wishes, owner=self._owner)
            return Transcript(heard.text, language=heard.language).event()
        except Refused as refused:
            log.info("wyoming.refused", owner=self._owner, code=refused.code, cause=refused.message)
            return Error(refused.message, refused.code).event()
        except Cancelled:
            return Error("the server is stopping", "stopping").event()
        except Exception:
            log.exception("wyoming.failed", owner=self._owner)
            return Error("the server failed; its log tells how", "internal").event()

    async def _read(self) -> Event | None:
        """The next event; None at the end of the stream. Raises _BadEvent.

        As `wyoming.event.async_read_event`, with limits, and telling what is wrong.
        """
        try:
            line = await self._reader.readline()
        except ValueError as error:
            raise _BadEvent("a line that is too long") from error
        if not line:
            return None
        try:
            head = json.loads(line)
            kind, data = head["type"], head.get("data") or {}
            sizes = [int(head.get(name) or 0) for name in ("data_length", "payload_length")]
            if not 0 <= sizes[0] <= _LONGEST_DATA:
                raise ValueError("data_length")
            if not 0 <= sizes[1] <= self._transcriber.settings.max_upload:
                raise ValueError("payload_length")
            if not isinstance(data, dict):
                raise TypeError("data")
            if sizes[0]:
                data = {**data, **json.loads(await self._reader.readexactly(sizes[0]))}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _BadEvent(f"not an event of Wyoming: {error!r}") from error
        payload = await self._reader.readexactly(sizes[1]) if sizes[1] else None
        return Event(str(kind), data, payload)

    def _info(self) -> Info:
        from faster_whisper.tokenizer import _LANGUAGE_CODES

        source = Attribution("siprec-bridge", "https://github.com/SYSTRAN/faster-whisper")
        models = [
            AsrModel(
                name=name,
                attribution=source,
                installed=True,
                description=name,
                version=None,
                languages=["en"]
                if name.endswith(".en") or name == "standin"
                else list(_LANGUAGE_CODES),
            )
            for name in self._transcriber.shelf.names()
        ]
        program = AsrProgram(
            name="siprec-asr",
            attribution=source,
            installed=True,
            description="resident Whisper",
            version=__version__,
            models=models,
        )
        return Info(asr=[program])


async def _write(writer: asyncio.StreamWriter, event: Event) -> None:
    async with asyncio.timeout(_WRITE_WITHIN_S):
        await async_write_event(event, writer)


def _checked(rate: int, width: int, channels: int) -> tuple[int, int, int]:
    if not (8000 <= rate <= 192000 and width in (2, 4) and 1 <= channels <= 8):
        raise ValueError(f"PCM of {rate} Hz, {width} octets, {channels} channels is not read")
    return rate, width, channels


def _wav(form: tuple[int, int, int] | None, pcm: bytes) -> bytes:
    rate, width, channels = form or (16000, 2, 1)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setframerate(rate)
        file.setsampwidth(width)
        file.setnchannels(channels)
        file.writeframes(pcm[: len(pcm) - len(pcm) % (width * channels)])
    return out.getvalue()
