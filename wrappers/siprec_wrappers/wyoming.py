"""`whisper-wyoming`: the CLI contract over any speech-to-text server that speaks Wyoming.

Needs the extra `wyoming`. The protocol has no times: a text is one segment over its audio.
"""

import argparse
import asyncio
import os
import sys
import wave
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from siprec_wrappers.contract import Arguments, Segment, write_outputs
from siprec_wrappers.languages import code_of
from siprec_wrappers.service import AWAY, Away, Failed, complain, longest_run, run, seconds_of

PROGRAM = "whisper-wyoming"

_CHUNK_S = 0.25
_LARGEST_EVENT = 16 << 20
_PORT = 10300

try:
    from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
    from wyoming.audio import AudioChunk, AudioStart, AudioStop
    from wyoming.error import Error
    from wyoming.event import Event, Eventable, async_read_event, async_write_event
    from wyoming.info import Describe, Info
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "wyoming":
        raise
    print(f"{PROGRAM}: needs the extra: pip install 'siprec-bridge[wyoming]'", file=sys.stderr)
    sys.exit(AWAY)


_OWN = {
    "uri": "server: host:port, tcp://host:port or unix:///path",
    "connect_timeout": "longest wait for a connection (10s)",
    "timeout": "longest run (WHISPER_TIMEOUT, else 20m)",
}


class Options(NamedTuple):
    """Where the server is, and how long it may take. Times are seconds."""

    place: tuple[str, int] | Path
    connect_timeout: float
    timeout: float


def main(argv: Sequence[str] | None = None) -> int:
    """Transcribe the files, one after the other, and return the exit code, see `service.run`."""
    return run(PROGRAM, __doc__ or "", _OWN, argv, read=_options, work=_transcribe)


def _options(own: argparse.Namespace, arguments: Arguments) -> Options:
    """Raises ValueError."""
    if own.uri is None:
        raise ValueError("no server: say --uri or WHISPER_WYOMING_URI")
    if arguments.task != "transcribe":
        raise ValueError("--task translate: Wyoming has no word for it; set it at the server")
    return Options(
        resolve(own.uri),
        seconds_of("connect_timeout", own.connect_timeout or "10s"),
        longest_run(own.timeout),
    )


def _transcribe(arguments: Arguments, options: Options) -> None:
    asyncio.run(_all(arguments, options))


def resolve(uri: str) -> tuple[str, int] | Path:
    """Host and port, or the path of a Unix socket. Raises ValueError.

    `host`, `host:port`, `tcp://host:port`, `[::1]:port`, `unix:///path`; the port is else 10300.
    """
    parts = urlsplit(uri if "://" in uri else f"tcp://{uri}")
    try:
        port = parts.port or _PORT
    except ValueError:
        port = 0
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return Path(parts.path)
    if parts.scheme != "tcp" or not parts.hostname or not port or parts.path.strip("/"):
        raise ValueError(f"--uri {uri}: host:port, tcp://host:port or unix:///path is needed")
    return parts.hostname, port


async def _all(arguments: Arguments, options: Options) -> None:
    place = options.place
    shown = str(place) if isinstance(place, Path) else f"{place[0]}:{place[1]}"
    try:
        async with asyncio.timeout(options.timeout):
            for audio in arguments.audio:
                try:
                    with wave.open(str(audio), "rb") as wav:
                        await _one(arguments, audio, wav, place, options.connect_timeout)
                except (EOFError, wave.Error) as error:
                    raise Failed(
                        f"{audio.name}: no WAV file: {str(error) or 'it is cut off'}"
                    ) from error
                except Failed as error:
                    raise type(error)(f"{audio.name}: {shown}: {error}") from error
    except TimeoutError:
        raise Failed(f"{shown}: no result within {options.timeout:g} s") from None


async def _one(
    arguments: Arguments,
    audio: Path,
    wav: wave.Wave_read,
    place: tuple[str, int] | Path,
    connect_timeout: float,
) -> None:
    async with connection(place, connect_timeout) as peer:
        model = await _choose_model(peer, arguments.model)
        language = code_of(arguments.language) if arguments.language else None
        await peer.send(Transcribe(name=model, language=language))
        # Both ways at once: a server may fail, or have enough, before all has been said.
        sending = asyncio.create_task(_send_audio(peer, wav))
        hearing = asyncio.create_task(_hear(peer))
        try:
            await asyncio.wait({sending, hearing}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not isinstance(sending.exception(), Failed | None):
                await sending  # raises: the file, not the server
            text, language = await hearing  # knows more than "the connection broke"
        finally:
            sending.cancel()
            hearing.cancel()
            await asyncio.gather(sending, hearing, return_exceptions=True)
    plain = " ".join(text.split())
    duration = wav.getnframes() / wav.getframerate()
    write_outputs(
        arguments, audio, [Segment(plain, 0.0, duration)] if plain else [],
        language=code_of(language) if language else arguments.language, model=model,
    )  # fmt: skip


class Peer:
    """A connection to a server, in events. Remembers the last line, to tell what is no event."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._line = b""

    async def readline(self) -> bytes:
        """A line, for `async_read_event`."""
        self._line = await self._reader.readline()
        return self._line

    async def readexactly(self, count: int) -> bytes:
        """So many octets, for `async_read_event`. Raises Failed where nobody can mean it."""
        if count > _LARGEST_EVENT:
            raise Failed(f"an event of {count} octets is beyond any reason")
        return await self._reader.readexactly(count)

    async def send(self, event: Eventable) -> None:
        """Raises Failed when the server has gone."""
        try:
            await async_write_event(event.event(), self._writer)
        except OSError as error:
            raise Failed(f"the connection broke ({error.strerror or error})") from error

    async def receive(self) -> Event:
        """The next event. Raises Away for what is none, Failed for an end and for an error."""
        try:
            event = await async_read_event(self)  # type: ignore[arg-type]
        except asyncio.IncompleteReadError as error:
            raise Failed("the connection ended within an event") from error
        # JSON, but no event, or nested without end.
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise Away(f"does not speak Wyoming: {self._shown()}") from error
        except OSError as error:
            raise Failed(f"the connection broke ({error.strerror or error})") from error
        if event is None:
            if self._line:
                raise Away(f"does not speak Wyoming: {self._shown()}")
            raise Failed("ended the connection without a transcript")
        if Error.is_type(event.type):
            code = event.data.get("code")
            text = " ".join(str(event.data.get("text", "")).split())[:500]
            raise Failed(f"says: {text or 'an error'}{f' ({code})' if code else ''}")
        return event

    def _shown(self) -> str:
        return repr(self._line[:60].decode("utf-8", "replace"))


@asynccontextmanager
async def connection(place: tuple[str, int] | Path, patience: float) -> AsyncIterator[Peer]:
    """Connect within `patience` seconds. Raises Away."""
    try:
        async with asyncio.timeout(patience):
            if isinstance(place, Path):
                reader, writer = await asyncio.open_unix_connection(place, limit=_LARGEST_EVENT)
            else:
                reader, writer = await asyncio.open_connection(*place, limit=_LARGEST_EVENT)
    except TimeoutError:
        raise Away(f"no connection within {patience:g} s") from None
    except OSError as error:
        # asyncio's own text is "Connect call failed", whatever the cause.
        raise Away(
            os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        ) from error
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()  # what is under way there is not wanted any more


async def _choose_model(peer: Peer, wanted: str) -> str | None:
    """The model's name if the server has it; else the server's own choice."""
    await peer.send(Describe())
    while True:
        event = await peer.receive()
        if Info.is_type(event.type):
            break
    try:
        programs = Info.from_event(event).asr
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Away(f"describes itself in a way that cannot be read: {error!r}") from error
    if not programs:
        raise Away("recognises no speech: it offers no asr program")
    models = [one.name for program in programs for one in program.models]
    if wanted in models:
        return wanted
    complain(
        PROGRAM, f"no model {wanted} there ({', '.join(models) or 'none named'}): it chooses itself"
    )
    return models[0] if len(models) == 1 else None


async def _send_audio(peer: Peer, wav: wave.Wave_read) -> None:
    rate, width, channels = wav.getframerate(), wav.getsampwidth(), wav.getnchannels()
    await peer.send(AudioStart(rate, width, channels))
    while pcm := wav.readframes(max(1, round(_CHUNK_S * rate))):
        await peer.send(AudioChunk(rate, width, channels, pcm))
    await peer.send(AudioStop())


async def _hear(peer: Peer) -> tuple[str, str | None]:
    """Text and language: of a whole transcript, or of one that comes in chunks."""
    chunks: list[str] = []
    language: str | None = None
    while True:
        event = await peer.receive()
        try:
            if Transcript.is_type(event.type):
                whole = Transcript.from_event(event)
                # TypeError where its text is null.
                return "".join([whole.text]), _name(whole.language) or language
            if TranscriptStart.is_type(event.type):
                language = _name(TranscriptStart.from_event(event).language)
            elif TranscriptChunk.is_type(event.type):
                chunks.append(TranscriptChunk.from_event(event).text)
            elif TranscriptStop.is_type(event.type):
                return "".join(chunks), language
        except (KeyError, TypeError) as error:
            raise Failed(f"its {event.type} cannot be read: {event.data!r:.200}") from error


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


if __name__ == "__main__":
    sys.exit(main())
