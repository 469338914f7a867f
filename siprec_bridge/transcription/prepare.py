"""Audio as a provider wants it: mono 16-bit WAV at its sample rate, and of it only the speech."""

import asyncio
import os
import threading
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
import soxr
from av.container import InputContainer

from siprec_bridge.provider import AudioFile, Job
from siprec_bridge.transcript import Transcript
from siprec_bridge.transcription.packing import Seat
from siprec_bridge.transcription.speech import (
    Pcm,
    SpeechMap,
    SpeechOptions,
    VoiceDetector,
    listen,
    map_speech,
)
from siprec_bridge.transcription.vad import SileroDetector

T = TypeVar("T")

_CHUNK = 1 << 18  # samples held at once
_CONTAINERS = {".flac": "flac", ".opus": "ogg"}  # of files that are no WAV


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """What is sent of a job, and by leg where its speech is; nobody looked in legs not named."""

    job: Job
    maps: Mapping[str, SpeechMap]

    def restore(self, heard: Mapping[str, Transcript]) -> dict[str, Transcript]:
        """What was heard in what was sent, on the call's time line, and the legs not sent."""
        silent = {key: Transcript() for key, found in self.maps.items() if not found.pieces}
        restored = {
            key: self.maps[key].unpack(one) if key in self.maps else one
            for key, one in heard.items()
        }
        return {
            key: one.model_copy(update={"speech": _spoken(self.maps[key])})
            if key in self.maps
            else one
            for key, one in (silent | restored).items()
        }


class Preparation:
    """Makes jobs ready for a provider; `speech` says what counts as such, None: send it all."""

    def __init__(
        self,
        sample_rate: int,
        speech: SpeechOptions | None = None,
        detector: Callable[[], VoiceDetector] = SileroDetector,
    ) -> None:
        self._sample_rate = sample_rate
        self._speech = speech
        self._new_detector = detector
        self._idle: list[VoiceDetector] = []  # each costs 50 ms to load
        # Threads of its own: long legs shall not keep the loop's from short works.
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "prepare")

    @property
    def finds_speech(self) -> bool:
        """Whether only speech is sent."""
        return self._speech is not None

    async def prepare(self, job: Job, folder: Path) -> PreparedJob:
        """The job with files of `folder`, which is made for the first of them, where its own do not fit.

        Raises OSError.
        Legs without speech are left out. Memory does not grow with the length of a leg.
        """
        return await self._in_thread(partial(self._prepare, job, folder))

    async def join(self, files: Sequence[Sequence[Seat]], folder: Path) -> list[AudioFile]:
        """A file in `folder` for each, of legs that were prepared, side by side. Raises OSError."""
        return await self._in_thread(partial(self._join, files, folder))

    async def _in_thread(self, function: Callable[[threading.Event], T]) -> T:
        stop = threading.Event()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, function, stop)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()  # it looks before each block, and is not to write into a folder that is gone
            await asyncio.gather(work, return_exceptions=True)
            raise

    def _prepare(self, job: Job, folder: Path, stop: threading.Event) -> PreparedJob:
        audio: list[AudioFile] = []
        maps: dict[str, SpeechMap] = {}
        for number, one in enumerate(job.audio):
            try:
                whole = self._at_rate(one, folder / f"{number}.wav", stop)
                if self._speech is None:
                    audio.append(whole)
                    continue
                found = maps[one.key] = self._find(whole.path, self._speech, stop)
                if found.pieces:
                    audio.append(_pack(whole, found, folder / f"{number}-speech.wav", stop))
            except (wave.Error, EOFError) as error:
                raise OSError(f"{one.path.name} is no WAV file: {error}") from error
            except av.FFmpegError as error:
                raise OSError(f"{one.path.name} is no audio file: {error}") from error
        return PreparedJob(replace(job, audio=tuple(audio)), maps)

    def _join(
        self, files: Sequence[Sequence[Seat]], folder: Path, stop: threading.Event
    ) -> list[AudioFile]:
        joined = []
        for number, file in enumerate(files):
            path = folder / f"{number}-legs.wav"
            with _written(path) as target:
                _describe(target, self._sample_rate)
                for seat in file:
                    silence = round(seat.start * self._sample_rate) - target.getnframes()
                    target.writeframes(bytes(2 * max(0, silence)))
                    with wave.open(str(seat.audio.path)) as source:
                        for block in _blocks(source, stop):
                            target.writeframes(block.astype("<i2").tobytes())
                length = target.getnframes() / self._sample_rate
            joined.append(AudioFile(f"{number}", path, length))
        return joined

    def _at_rate(self, audio: AudioFile, copy: Path, stop: threading.Event) -> AudioFile:
        """The file itself where it is a WAV of the provider's rate, else such a copy of it."""
        if (container_format := _CONTAINERS.get(audio.path.suffix)) is not None:
            with av.open(str(audio.path), "r", format=container_format) as container:
                rate = container.streams.audio[0].rate
                self._copy(_decoded(container, stop), rate, copy)
            return replace(audio, path=copy)
        with wave.open(str(audio.path)) as source:
            if source.getframerate() == self._sample_rate:
                return audio
            self._copy(_blocks(source, stop), source.getframerate(), copy)
        return replace(audio, path=copy)

    def _copy(self, blocks: Iterator[Pcm], rate: int, copy: Path) -> None:
        with _written(copy) as target:
            _describe(target, self._sample_rate)
            for out in _resampled(blocks, rate, self._sample_rate):
                target.writeframes(out.astype("<i2").tobytes())

    def _find(self, path: Path, options: SpeechOptions, stop: threading.Event) -> SpeechMap:
        try:
            detector = self._idle.pop()
        except IndexError:
            detector = self._new_detector()
        try:
            detector.reset()
            with wave.open(str(path)) as source:
                rate, total = source.getframerate(), source.getnframes()
                blocks = _resampled(_blocks(source, stop), rate, detector.sample_rate)
                speech, loudness = listen(blocks, detector)
        finally:
            self._idle.append(detector)
        frame_s = detector.frame / detector.sample_rate
        return map_speech(speech, loudness, frame_s, options, rate=rate, total=total)


def _pack(audio: AudioFile, found: SpeechMap, copy: Path, stop: threading.Event) -> AudioFile:
    """A file of the pieces alone, or the file itself where that is all of it."""
    if found.is_whole:
        return replace(audio, duration=found.packed)
    with wave.open(str(audio.path)) as source, _written(copy) as target:
        _describe(target, found.rate)
        for number, (start, end) in enumerate(found.pieces):
            target.writeframes(bytes(2 * found.guard_before(number)))
            source.setpos(start)
            for block in _blocks(source, stop, end - start):
                target.writeframes(block.astype("<i2").tobytes())
    return replace(audio, path=copy, duration=found.packed)


def _written(copy: Path) -> wave.Wave_write:
    copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return wave.open(str(copy), "wb")


def _blocks(
    source: wave.Wave_read, stop: threading.Event, most: int | None = None
) -> Iterator[Pcm]:
    """The samples from where the file stands: int16, (n,)."""
    left = source.getnframes() if most is None else most
    while left > 0:
        if stop.is_set():
            raise OSError("stopped")
        pcm = np.frombuffer(source.readframes(min(left, _CHUNK)), "<i2").astype(np.int16)
        if not len(pcm):
            return  # shorter than its header says
        left -= len(pcm)
        yield pcm


def _decoded(container: InputContainer, stop: threading.Event) -> Iterator[Pcm]:
    for frame in container.decode(audio=0):
        if stop.is_set():
            raise OSError("stopped")
        audio = frame.to_ndarray()[0]
        whole = audio.dtype == np.int16
        yield audio if whole else (np.clip(audio, -1, 1) * 32767).round().astype(np.int16)


def _resampled(blocks: Iterator[Pcm], rate: int, wanted: int) -> Iterator[Pcm]:
    if rate == wanted:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, wanted, 1, dtype="int16")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.int16), last=True)


def _describe(target: wave.Wave_write, rate: int) -> None:
    target.setnchannels(1)
    target.setsampwidth(2)
    target.setframerate(rate)


def _spoken(found: SpeechMap) -> float:
    """Seconds of detected speech."""
    return round(sum(end - start for start, end in found.spoken), 3) if found.pieces else 0.0
