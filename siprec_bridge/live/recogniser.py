"""One stream's conversation with a live recogniser, over a WebSocket: docs/live.md has the protocol.

It never waits for long: what a recogniser does not keep up with, or what comes while there is none,
is left out and counted. It is tried again with growing pauses until there is nothing more to say.
"""

import asyncio
import contextlib
import json
import random
import socket
import ssl
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from siprec_bridge.live.decoder import RATE, Sound

_READY_WITHIN_S = 60.0  # it may have to load a model
_OPEN_WITHIN_S = 10.0
_END_WITHIN_S = 15.0  # after the last sound
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_SEND_BUFFER = 1 << 16  # octets: two seconds, so that who does not read is noticed
_LARGEST_MESSAGE = 1 << 20
_LONGEST_TEXT = 10_000
_MOST_WORDS = 2000
_FRAME = RATE // 5  # samples of one message at most
_OLDEST_S = 120.0  # of sound whose times may still be asked for
_TOO_MANY = 429

Seconds = Annotated[float, Field(ge=0, le=10**7, allow_inf_nan=False)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class _Ready(_Message):
    type: Literal["ready"]
    model: str | None = Field(None, max_length=500)
    step: float = Field(1.0, ge=0, le=60)


class _Word(_Message):
    word: str = Field(max_length=200)
    start: Seconds
    end: Seconds
    probability: float | None = Field(None, ge=0, le=1)


class _Said(_Message):
    type: Literal["partial", "final"]
    utterance: int = Field(ge=0, lt=10**9)
    start: Seconds
    end: Seconds
    text: str = Field(max_length=_LONGEST_TEXT)
    language: str | None = Field(None, max_length=40)
    words: tuple[_Word, ...] = Field((), max_length=_MOST_WORDS)


class _Progress(_Message):
    type: Literal["progress"]
    audio_seconds: Seconds


class _End(_Message):
    type: Literal["end"]


class _Error(_Message):
    type: Literal["error"]
    code: str = Field("error", max_length=100)
    message: str = Field("", max_length=1000)


_ANY: TypeAdapter[_Ready | _Said | _Progress | _End | _Error] = TypeAdapter(
    Annotated[_Ready | _Said | _Progress | _End | _Error, Field(discriminator="type")]
)


@dataclass(frozen=True, slots=True)
class Line:
    """What was said, as far as it is known: `settled` is told once for an utterance, at last.

    Times in ns since 1970; of words too: text, start, end, probability.
    """

    utterance: int  # of the stream, rises
    settled: bool
    text: str
    start_ns: int
    end_ns: int
    language: str | None = None
    model: str | None = None
    words: tuple[tuple[str, int, int, float | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a recogniser is asked for. `max_lag`: seconds that it may be behind."""

    url: str
    max_lag: float
    token: str | None = None
    model: str | None = None
    language: str | None = None
    prompt: str | None = None

    def start(self) -> str:
        """The first message."""
        named = {"model": self.model, "language": self.language, "prompt": self.prompt}
        given = {name: value for name, value in named.items() if value is not None}
        return json.dumps({"type": "start", "sample_rate": RATE, "progress": True} | given)


class NotHeard(Exception):
    """The recogniser is away, or does not speak the protocol; `full`: it takes no more streams."""

    def __init__(self, cause: str, *, full: bool = False) -> None:
        super().__init__(cause)
        self.full = full


class _Times:
    """When the sound was said that was sent: by its seconds in the connection."""

    def __init__(self) -> None:
        self._starts: list[int] = []  # samples in the connection
        self._sounds: list[Sound] = []
        self.samples = 0

    def sent(self, sound: Sound) -> None:
        last = self._sounds[-1] if self._sounds else None
        goes_on = (
            last is not None
            and last.piece is sound.piece
            and self.samples - self._starts[-1] == sound.offset - last.offset
        )
        if not goes_on:
            self._starts.append(self.samples)
            self._sounds.append(sound)
        self.samples += len(sound.pcm)
        while len(self._starts) > 1 and self.samples - self._starts[1] > _OLDEST_S * RATE:
            del self._starts[0], self._sounds[0]

    def when(self, seconds: float) -> int:
        """ns since 1970; a time that was never sent is that of the last sound."""
        sample = min(round(seconds * RATE), self.samples)
        at = max(0, bisect_right(self._starts, sample) - 1)
        sound = self._sounds[at]
        return sound.piece.when(sound.offset + sample - self._starts[at])


class Conversation:
    """A stream's sound in, lines out. `hear` and `finish` never block; `run` ends after `finish`.

    `skipped` and `sent` count seconds of sound. `on_trouble` gets why nothing is heard, each time
    that it is tried in vain, and None once it works.
    """

    def __init__(
        self,
        wanted: Wanted,
        on_line: Callable[[Line], None],
        on_trouble: Callable[[NotHeard | None], None],
        *,
        first_pause: float = _FIRST_PAUSE_S,
    ) -> None:
        self._wanted = wanted
        self._on_line = on_line
        self._on_trouble = on_trouble
        self._first_pause = first_pause
        self._queue: deque[Sound] = deque()
        self._queued = 0.0
        self._news = asyncio.Event()
        self._finished = False
        self._ready = False
        self._limit: asyncio.Timeout | None = None  # of what is done once finished
        self._in_flight = wanted.max_lag / 2  # seconds of sound that it may have and not have heard
        self._utterances = 0  # that were told of, over all connections
        self._progress: float | None = None  # seconds that it has heard, where it tells
        self._times = _Times()
        self.sent = 0.0
        self.skipped = 0.0
        self.behind = 0  # times that it was left behind

    @property
    def connected(self) -> bool:
        """Whether sound gets anywhere."""
        return self._ready

    def hear(self, sound: Sound) -> None:
        """Take sound that was said just now."""
        self._queue.append(sound)
        self._queued += sound.seconds
        if not self._ready:
            self._skip_first()
        elif self._queued + self._unheard() > self._wanted.max_lag:
            self.behind += 1
            self._skip()  # all at once: by little and little, no word would be whole
        self._news.set()

    def finish(self) -> None:
        """There will be no more sound."""
        self._finished = True
        if self._limit is not None and self._limit.when() is None:
            self._limit.reschedule(asyncio.get_running_loop().time() + _END_WITHIN_S)
        self._news.set()

    async def run(self) -> None:
        """Talk until finished."""
        try:
            async with asyncio.timeout(None) as self._limit:
                await self._keep_talking()
        except TimeoutError:
            pass  # it takes too long over the end
        finally:
            self._skip()

    async def _keep_talking(self) -> None:
        pause = self._first_pause
        while not self._is_finished():
            try:
                await self._talk()
                trouble = NotHeard("it ended the stream")
            except NotHeard as error:
                trouble = error
            worked, self._ready = self._ready, False
            if self._is_finished():
                return
            self._on_trouble(trouble)
            pause = self._first_pause if worked else min(2 * pause, _LONGEST_PAUSE_S)
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.75, 1.25)):
                    await self._until_finished()

    def _is_finished(self) -> bool:
        return self._finished

    async def _until_finished(self) -> None:
        while not self._finished:
            await self._news.wait()
            self._news.clear()

    def _skip(self) -> None:
        self.skipped += self._queued
        self._queue.clear()
        self._queued = 0.0

    def _skip_first(self) -> None:
        while self._queue and self._queued > self._wanted.max_lag / 2:
            seconds = self._queue.popleft().seconds
            self._queued -= seconds
            self.skipped += seconds

    async def _talk(self) -> None:
        """One connection. Raises NotHeard."""
        wanted = self._wanted
        headers = {"Authorization": f"Bearer {wanted.token}"} if wanted.token else None
        tls = ssl.create_default_context() if wanted.url.startswith("wss:") else None
        try:
            async with connect(
                wanted.url,
                ssl=tls,
                additional_headers=headers,
                compression=None,  # of audio it costs much and saves little
                max_size=_LARGEST_MESSAGE,
                max_queue=64,
                open_timeout=_OPEN_WITHIN_S,
                close_timeout=2.0,
                proxy=None,
            ) as connection:
                sock = connection.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
                try:
                    await self._converse(connection)
                except BaseException:  # a close in good order would wait for who does not read
                    connection.transport.abort()
                    raise
        except InvalidStatus as refusal:
            status = refusal.response.status_code
            raise NotHeard(f"it answers {status}", full=status == _TOO_MANY) from refusal
        except TimeoutError as error:
            raise NotHeard(str(error) or "it does not answer in time") from error
        # ValueError: it sends us on to an address that is none, or to TLS where ours has none.
        except (OSError, WebSocketException, ValueError) as error:
            raise NotHeard(str(error) or type(error).__name__) from error

    async def _converse(self, connection: ClientConnection) -> None:
        await connection.send(self._wanted.start())
        async with asyncio.timeout(_READY_WITHIN_S):
            first = _read(await connection.recv())
        if not isinstance(first, _Ready):
            raise _wrong(first)
        self._progress, self._times = None, _Times()
        self._in_flight = max(self._wanted.max_lag / 2, 2 * first.step)
        self._ready = True
        self._on_trouble(None)
        sending = asyncio.create_task(self._send(connection), name="live sound")
        try:
            base = self._utterances
            async for frame in connection:
                message = _read(frame)
                match message:
                    case _Progress(audio_seconds=seconds):
                        self._progress = seconds
                        self._news.set()
                    case _Said():
                        if self._times.samples:
                            self._say(message, base, first.model)
                    case _End():
                        if self._finished:
                            return
                        raise NotHeard("it ended the stream")
                    case _Ready() | _Error():
                        raise _wrong(message)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, connection: ClientConnection) -> None:
        try:
            while True:
                while self._queue and self._unheard() < self._in_flight:
                    sound = self._queue.popleft()
                    self._queued -= sound.seconds
                    for part in _frames(sound):
                        self._times.sent(part)
                        self.sent += part.seconds
                        await connection.send(part.pcm.astype("<i2").tobytes())
                if self._finished and not self._queue:
                    break
                self._news.clear()
                await self._news.wait()
            await connection.send('{"type": "stop"}')
        except (OSError, WebSocketException):
            connection.transport.abort()  # who reads hears of it

    def _unheard(self) -> float:
        """Seconds of sound that were sent and not heard; who does not tell is held back by TCP."""
        if self._progress is None:
            return 0.0
        return max(0.0, self._times.samples / RATE - self._progress)  # it may tell of any number

    def _say(self, said: _Said, base: int, model: str | None) -> None:
        number = base + said.utterance
        self._utterances = max(self._utterances, number + 1)
        text = " ".join(said.text.split())
        if not text:
            return
        when = self._times.when
        words = tuple(
            (one.word.strip(), when(one.start), when(max(one.start, one.end)), one.probability)
            for one in said.words
            if one.word.strip()
        )
        start_ns = when(said.start)
        self._on_line(
            Line(
                utterance=number,
                settled=said.type == "final",
                text=text,
                start_ns=start_ns,
                end_ns=max(start_ns, when(said.end)),
                language=said.language,
                model=model,
                words=words,
            )
        )


def _frames(sound: Sound) -> Iterator[Sound]:
    for at in range(0, len(sound.pcm), _FRAME):
        yield Sound(sound.pcm[at : at + _FRAME], sound.piece, sound.offset + at)


def _read(frame: str | bytes) -> _Ready | _Said | _Progress | _End | _Error:
    """Raises NotHeard for what is none of the protocol's."""
    if isinstance(frame, bytes):
        raise NotHeard("it does not speak the protocol: a binary frame")
    try:
        return _ANY.validate_json(frame)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise NotHeard(f"it does not speak the protocol: {what}") from error


def _wrong(message: BaseModel) -> NotHeard:
    if isinstance(message, _Error):
        cause = f"{message.code}: {message.message}"
        return NotHeard(f"it says {cause}", full=message.code == "too_many_streams")
    return NotHeard("it does not speak the protocol: messages out of order")
