"""/v1/stream: a live stream in, partial and final transcripts out.

The client sends a text frame `{"type": "start", "sample_rate": 8000, "model", "language"}`, then
binary frames of mono PCM16 (little endian), then `{"type": "stop"}`. It gets `ready`, for each
utterance any number of `partial` and one `final`, in order, and `end`; or `error`, and the
connection is closed (1013: try again later, 1008: not so). With `"progress": true` it is told after
each step how much of its audio has been heard, so that it may skip some when that falls behind.
"""

import asyncio
import contextlib
import json
import socket as sockets
from collections.abc import Callable
from itertools import count
from typing import Annotated, Any, Literal

import numpy as np
import soxr
import structlog
from aiohttp import WSCloseCode, WSMsgType, web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from siprec_asr.audio import RATE, Pcm
from siprec_asr.errors import Cancelled, Refused
from siprec_asr.live import Piece, Stretches, Utterances
from siprec_asr.transcriber import Transcriber, Wishes

log = structlog.get_logger()

# Audio that may wait for the recogniser; then the client is not read from until it catches up.
_AHEAD_S = 30.0
_LONGEST_FRAME = 1 << 20
_START_WITHIN_S = 30.0
_PING_S = 20.0  # proxies close connections on which nothing moves
# A client that is held back is not read from, so its pongs tell nothing: its kernel is asked.
_GONE_AFTER_S = 50
_KEEP_ALIVE = {
    sockets.TCP_KEEPIDLE: 20,
    sockets.TCP_KEEPINTVL: 10,
    sockets.TCP_KEEPCNT: 3,
    sockets.TCP_USER_TIMEOUT: 1000 * _GONE_AFTER_S,
}


class _Start(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    type: Literal["start"]
    sample_rate: Annotated[int, Field(ge=8000, le=48000)] = RATE
    model: str | None = None
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    prompt: str | None = None
    partial: bool = True
    progress: bool = False


class WebSocketFront:
    """The route over a `Transcriber`."""

    def __init__(self, transcriber: Transcriber, find_speech: Callable[[Pcm], Stretches]) -> None:
        self._transcriber = transcriber
        self._find_speech = find_speech
        self._numbers = count(1)
        self._tasks: set[asyncio.Task[Any]] = set()

    def routes(self) -> list[web.RouteDef]:
        """To be added to the application."""
        return [web.get("/v1/stream", self.stream)]

    async def stop(self) -> None:
        """End the streams that there are."""
        for task in self._tasks:
            task.cancel()

    async def stream(self, request: web.Request) -> web.WebSocketResponse:
        """One stream from `start` to `end`."""
        if len(self._tasks) >= self._transcriber.settings.max_streams:
            raise Refused(
                429, "too_many_streams", "as many streams as ASR_MAX_STREAMS are open",
                retry_after=10,
            )  # fmt: skip
        socket = web.WebSocketResponse(max_msg_size=_LONGEST_FRAME)
        await socket.prepare(request)
        _keep_alive(request)
        pinging = asyncio.ensure_future(_ping(socket))
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        owner = f"websocket {next(self._numbers)}"
        metrics = self._transcriber.metrics
        metrics.streams_active.set(len(self._tasks))
        try:
            with metrics.request("websocket"), self._transcriber.queue.live_stream():
                start = await self._start(socket)
                async with self._transcriber.holding(start.model, owner) as model:
                    log.info("stream.started", owner=owner, model=model, rate=start.sample_rate)
                    ready = {"type": "ready", "model": model, "sample_rate": start.sample_rate}
                    step = self._transcriber.settings.stream_step
                    await socket.send_json(ready | {"step": step})
                    await _Stream(self._transcriber, socket, start, owner, self._find_speech).run()
        except Refused as refused:
            log.info("stream.refused", owner=owner, code=refused.code, cause=refused.message)
            await self._close(socket, refused)
        except asyncio.CancelledError:
            # The client went away, or the server stops: then it hears so.
            await self._close(socket, Refused(503, "stopping", "the server is stopping"))
            raise
        except ConnectionError:
            log.info("stream.lost", owner=owner)
        except Exception:
            log.exception("stream.failed", owner=owner)
            await self._close(socket, Refused(500, "internal", "the server failed"))
        finally:
            pinging.cancel()
            self._tasks.discard(task)
            metrics.streams_active.set(len(self._tasks))
        await socket.close()
        return socket

    async def _start(self, socket: web.WebSocketResponse) -> _Start:
        try:
            async with asyncio.timeout(_START_WITHIN_S):
                message = await socket.receive()
        except TimeoutError as error:
            raise Refused(408, "no_start", "no `start` came") from error
        if message.type is not WSMsgType.TEXT:
            raise Refused(400, "no_start", "the first frame is the text frame `start`")
        try:
            return _Start.model_validate_json(message.data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "start"
            raise Refused(400, "bad_request", f"{where}: {first['msg']}") from error

    @staticmethod
    async def _close(socket: web.WebSocketResponse, refused: Refused) -> None:
        if socket.closed:
            return
        code = (
            WSCloseCode.TRY_AGAIN_LATER
            if refused.status >= 500 or refused.status == 429
            else WSCloseCode.POLICY_VIOLATION
        )
        try:
            async with asyncio.timeout(5):
                await socket.send_json(
                    {"type": "error", "code": refused.code, "message": refused.message}
                )
                await socket.close(code=code)
        except (ConnectionError, TimeoutError):
            pass


class _Stream:
    """Reads frames and transcribes at the same time, never more than `_AHEAD_S` apart."""

    def __init__(
        self,
        transcriber: Transcriber,
        socket: web.WebSocketResponse,
        start: _Start,
        owner: str,
        find_speech: Callable[[Pcm], Stretches],
    ) -> None:
        self._transcriber = transcriber
        self._socket = socket
        self._owner = owner
        self._wishes = Wishes(
            model=start.model,
            language=start.language,
            task=start.task,
            prompt=start.prompt,
            word_timestamps=True,
            # An utterance stands for itself, and Whisper's second tries take too long for live.
            condition_on_previous_text=False,
        )
        self._partial = start.partial
        self._progress = start.progress
        self._heard = 0  # samples
        self._utterances = Utterances(find_speech)
        self._resampler = (
            soxr.ResampleStream(start.sample_rate, RATE, 1, dtype="int16")
            if start.sample_rate != RATE
            else None
        )
        self._new: list[Pcm] = []
        self._samples = 0  # in _new
        self._all_samples = 0
        self._odd = b""
        self._ended = False
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        """Until `stop`, or the client is gone. Raises Refused, Cancelled."""
        reading = asyncio.ensure_future(self._read())
        hearing = asyncio.ensure_future(self._hear())
        try:
            await asyncio.wait({reading, hearing}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and not reading.exception() and not reading.result():
                return  # the client is gone: nobody hears the rest
            if reading.done() and reading.exception():
                reading.result()
            await hearing
        except Cancelled as error:
            raise Refused(503, "stopping", "the server is stopping") from error
        finally:
            for task in (reading, hearing):
                task.cancel()
            await asyncio.gather(reading, hearing, return_exceptions=True)
        await self._socket.send_json(
            {"type": "end", "audio_seconds": round(self._all_samples / RATE, 3)}
        )

    async def _read(self) -> bool:
        """Take frames until `stop` (True) or the end of the connection (False)."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._samples < _AHEAD_S * RATE)
            message = await self._socket.receive()
            if message.type is WSMsgType.BINARY:
                await self._add(message.data)
            elif message.type is WSMsgType.TEXT:
                if _kind(message.data) != "stop":
                    raise Refused(400, "bad_request", "a text frame after `start` is `stop`")
                async with self._changed:
                    if self._resampler is not None:
                        self._append(
                            self._resampler.resample_chunk(np.zeros(0, np.int16), last=True)
                        )
                    self._ended = True
                    self._changed.notify_all()
                return True
            else:
                return False

    async def _add(self, octets: bytes) -> None:
        octets = self._odd + octets
        even = len(octets) & ~1
        self._odd = octets[even:]
        pcm = np.frombuffer(octets[:even], "<i2").astype(np.int16)
        if self._resampler is not None:
            pcm = self._resampler.resample_chunk(pcm)
        async with self._changed:
            self._append(pcm)
            self._changed.notify_all()

    def _append(self, pcm: Pcm) -> None:
        self._new.append(pcm)
        self._samples += len(pcm)
        self._all_samples += len(pcm)

    async def _hear(self) -> None:
        step = self._transcriber.settings.stream_step * RATE
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._ended or self._samples >= step)
                new, last = self._new, self._ended
                self._new, self._samples = [], 0
                self._changed.notify_all()
            pcm = np.concatenate(new) if new else np.zeros(0, np.int16)
            pieces = await asyncio.to_thread(self._utterances.cut, pcm, last=last)
            for piece in pieces:
                if piece.final or self._partial:
                    await self._tell(piece)
            self._heard += len(pcm)
            if self._progress:
                heard = round(self._heard / RATE, 3)
                await self._socket.send_json({"type": "progress", "audio_seconds": heard})
            if last:
                return

    async def _tell(self, piece: Piece) -> None:
        heard = await self._transcriber.transcribe_live(piece.pcm, self._wishes, owner=self._owner)
        message: dict[str, object] = {
            "type": "final" if piece.final else "partial",
            "utterance": piece.utterance,
            "start": round(piece.start, 3),
            "end": round(piece.start + heard.duration, 3),
            "text": heard.text,
            "language": heard.language,
        }
        if piece.final:
            message["model"] = heard.model
            message["words"] = [
                {
                    "word": word.word.strip(),
                    "start": round(piece.start + word.start, 3),
                    "end": round(piece.start + word.end, 3),
                    "probability": round(word.probability, 4),
                }
                for segment in heard.segments
                for word in segment.words
            ]
        if heard.text or piece.final:
            await self._socket.send_json(message)


async def _ping(socket: web.WebSocketResponse) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            await asyncio.sleep(_PING_S)
            await socket.ping()


def _keep_alive(request: web.Request) -> None:
    """Have the kernel end the connection of a client whose machine has gone."""
    connection = request.transport.get_extra_info("socket") if request.transport else None
    if connection is None or connection.family == sockets.AF_UNIX:
        return
    connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE.items():
        connection.setsockopt(sockets.IPPROTO_TCP, option, value)


def _kind(text: str) -> object:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value.get("type") if isinstance(value, dict) else None
