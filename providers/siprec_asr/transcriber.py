"""Audio in, transcript out: what all fronts ask."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog

from siprec_asr.audio import Pcm, read_audio, seconds
from siprec_asr.cache import Limits, Loaded, ModelCache
from siprec_asr.engine import Engine, Options
from siprec_asr.metrics import Metrics
from siprec_asr.models import ModelShelf
from siprec_asr.settings import Settings
from siprec_asr.transcript import Transcript
from siprec_asr.workqueue import BATCH, LIVE, WorkQueue
from siprec_wrappers.languages import code_of

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a client says of how; None is left to the settings."""

    model: str | None = None
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    beam_size: int | None = None
    batch_size: int | None = None
    word_timestamps: bool | None = None
    prompt: str | None = None
    temperature: float | None = None
    condition_on_previous_text: bool = True
    vad_filter: bool = False
    deadline: float | None = None  # seconds from now


class Transcriber:
    """Ties reading, queue, cache and engine together. Used from one event loop."""

    def __init__(
        self,
        settings: Settings,
        shelf: ModelShelf,
        cache: ModelCache,
        queue: WorkQueue,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.shelf = shelf
        self.cache = cache
        self.queue = queue
        self.metrics = metrics
        # Reading is FFmpeg's work, one thread each: more at once than cores only holds memory.
        self._readers = asyncio.Semaphore(len(os.sched_getaffinity(0)))

    def model(self, wanted: str | None) -> str:
        """The one name of the model that is asked for. Raises Refused (404)."""
        return self.shelf.name(wanted or self.settings.model)

    async def transcribe(
        self, source: Path | bytes, wishes: Wishes, *, owner: str, admitted: bool = False
    ) -> Transcript:
        """Transcribe one piece of audio of any kind. Cancelling it cancels the work.

        `admitted`: see `WorkQueue.run`. Raises Refused.
        """
        begun = time.monotonic()
        name = self.model(wishes.model)
        if not admitted:
            self.queue.check()
        async with self._readers:
            pcm = await asyncio.to_thread(read_audio, source, longest_s=self.settings.max_audio)
        deadline = self._deadline(wishes) - (time.monotonic() - begun)
        return await self._run(pcm, name, wishes, owner, deadline, BATCH, admitted=admitted)

    async def transcribe_live(self, pcm: Pcm, wishes: Wishes, *, owner: str) -> Transcript:
        """Transcribe a little, ahead of the files that wait. Raises Refused."""
        name = self.model(wishes.model)
        return await self._run(pcm, name, wishes, owner, self._deadline(wishes), LIVE)

    @asynccontextmanager
    async def holding(self, wanted: str | None, owner: str) -> AsyncIterator[str]:
        """Keep a model loaded for the length of the block, which gets its name. Raises Refused."""
        name = self.model(wanted)
        lease = self.cache.lease(name, owner)
        entering = asyncio.ensure_future(asyncio.to_thread(lease.__enter__))
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:
            # Loading cannot be interrupted; what it ends with must not stay leased.
            entering.add_done_callback(lambda done: None if done.exception() else _end(lease))
            raise
        try:
            yield name
        finally:
            _end(lease)

    def change(self, changes: dict[str, object]) -> None:
        """Change settings while running; the caller has seen to what may be. ConfigurationError."""
        self.settings = settings = self.settings.changed(changes)
        self.cache.limits = Limits(
            settings.cache_size, settings.cache_ttl, settings.cache_memory_limit
        )
        self.queue.limit, self.queue.limit_seconds = settings.queue_limit, settings.queue_audio
        log.info("settings.changed", **{name: str(value) for name, value in changes.items()})

    def loaded(self) -> list[Loaded]:
        """The models in memory."""
        return self.cache.loaded()

    def _deadline(self, wishes: Wishes) -> float:
        longest = self.settings.deadline
        return min(wishes.deadline, longest) if wishes.deadline is not None else longest

    async def _run(
        self,
        pcm: Pcm,
        name: str,
        wishes: Wishes,
        owner: str,
        deadline: float,
        priority: int,
        *,
        admitted: bool = False,
    ) -> Transcript:
        settings = self.settings
        language = wishes.language or settings.language
        options = Options(
            language=_code_of(language),
            task=wishes.task,
            beam_size=wishes.beam_size or settings.beam_size,
            batch_size=wishes.batch_size or settings.batch_size,
            word_timestamps=settings.word_timestamps
            if wishes.word_timestamps is None
            else wishes.word_timestamps,
            prompt=wishes.prompt or None,
            temperature=wishes.temperature,
            condition_on_previous_text=wishes.condition_on_previous_text,
            vad_filter=wishes.vad_filter,
        )
        length = seconds(pcm)
        if not length:
            return Transcript(options.language or "en", 0.0, name, task=options.task)

        def work(cancelled: threading.Event) -> Transcript:
            with self.cache.lease(name, owner) as engine:
                begun = time.monotonic()
                heard = engine.transcribe(pcm, options, cancelled)
                took = time.monotonic() - begun
            self.metrics.audio_seconds_total.labels(name).inc(length)
            self.metrics.realtime_factor.labels(name).observe(took / length)
            log.info(
                "transcribed",
                model=name,
                owner=owner,
                audio_seconds=round(length, 3),
                run_seconds=round(took, 3),
                language=heard.language,
                segments=len(heard.segments),
            )
            log.debug("transcribed.text", owner=owner, text=heard.text)
            return heard

        return await self.queue.run(
            work,
            seconds=length,
            deadline=max(0.0, deadline),
            priority=priority,
            admitted=admitted,
        )


def _code_of(language: str | None) -> str | None:
    """What Whisper calls it: "en-US", "EN" and "English" are "en"; None: it is to be detected."""
    if language is None or language.strip().lower() in ("", "auto"):
        return None
    named = code_of(language)
    return named if named != language else language.lower().replace("_", "-").partition("-")[0]


def _end(lease: AbstractContextManager[Engine]) -> None:
    lease.__exit__(None, None, None)
