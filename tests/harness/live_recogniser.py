"""A live recogniser that does as it is told: says what it hears in tones, is slow, breaks off, talks rubbish."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from harness.rtp import Pcm, loudest_frequency

RATE = 16000
_STEP = RATE // 2


@dataclass
class Heard:
    """One stream: how it began, all that was heard of it, and how it ended."""

    start: dict[str, Any]
    pcm: list[Pcm] = field(default_factory=list)
    stopped: bool = False

    @property
    def audio(self) -> Pcm:
        """All of its sound."""
        return np.concatenate(self.pcm) if self.pcm else np.zeros(0, np.int16)


@dataclass
class LiveRecogniser:
    """Half a second of tone is an utterance that grows, silence ends it. What it says is the tone.

    `pace`: seconds of sound that it does in a second; None: all at once. `says`: instead of what it
    heard, as its first words after `start`. `status`: of the handshake; `location`: where it sends on to.
    """

    pace: float | None = None
    says: str | bytes | None = None
    status: int = 101
    location: str = ""
    tells_progress: bool = True
    streams: list[Heard] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    tries: int = 0
    port: int = 0
    _server: Server | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = await serve(
            self._talk, "127.0.0.1", self.port, process_request=self._check, compression=None
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Break off all streams."""
        if self._server is not None:
            server, self._server = self._server, None
            for connection in list(server.connections):
                connection.transport.abort()
            server.close()
            await server.wait_closed()

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        self.tries += 1
        self.tokens.append(request.headers.get("Authorization"))
        if self.status != 101:
            answer = connection.respond(HTTPStatus(self.status), "no\n")
            if self.location:
                answer.headers["Location"] = self.location
            return answer
        return None

    async def _talk(self, connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            heard = Heard(json.loads(await connection.recv()))
            self.streams.append(heard)
            if self.says is not None:
                await connection.send(self.says)
                await connection.wait_closed()
                return
            await connection.send(json.dumps({"type": "ready", "model": "tones", "step": 0.5}))
            await self._hear(connection, heard)

    async def _hear(self, connection: ServerConnection, heard: Heard) -> None:
        done, utterance, began = 0, 0, None
        waiting = np.zeros(0, np.int16)
        async for message in connection:
            if isinstance(message, bytes):
                pcm = np.frombuffer(message, "<i2").astype(np.int16)
                heard.pcm.append(pcm)
                waiting = np.concatenate((waiting, pcm))
            else:
                heard.stopped = json.loads(message) == {"type": "stop"}
            while len(waiting) >= _STEP or (heard.stopped and len(waiting)):
                step, waiting = waiting[:_STEP], waiting[_STEP:]
                if self.pace is not None:
                    await asyncio.sleep(len(step) / RATE / self.pace)
                done += len(step)
                frequency = loudest_frequency(step, RATE)
                if frequency and began is None:
                    began = (done - len(step)) / RATE
                if began is not None:
                    said: dict[str, Any] = {
                        "type": "partial" if frequency and not heard.stopped else "final",
                        "utterance": utterance,
                        "start": began,
                        "end": done / RATE,
                        "text": f" a tone of {done / RATE - began:.1f} s",
                        "language": "en",
                    }
                    if said["type"] == "final":
                        word = {"word": " tone", "start": began, "end": began + 0.2}
                        said["words"] = [word | {"probability": 0.9}]
                        utterance, began = utterance + 1, None
                    await connection.send(json.dumps(said))
                if self.tells_progress:
                    await connection.send(
                        json.dumps({"type": "progress", "audio_seconds": done / RATE})
                    )
            if heard.stopped:
                if began is not None:
                    await connection.send(
                        json.dumps(
                            {"type": "final", "utterance": utterance, "start": began,
                             "end": done / RATE, "text": "the end", "language": "en"}
                        )
                    )  # fmt: skip
                await connection.send(json.dumps({"type": "end", "audio_seconds": done / RATE}))
                return


@asynccontextmanager
async def live_recogniser(**behaviour: Any) -> AsyncIterator[LiveRecogniser]:
    """One for a test."""
    one = LiveRecogniser(**behaviour)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()


async def until(true: Callable[[], bool], patience: float = 20.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(patience):
        while not true():  # noqa: ASYNC110 - what other processes do has no event of the loop's
            await asyncio.sleep(0.02)
