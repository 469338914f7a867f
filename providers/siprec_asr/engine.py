"""What hears: the protocol, faster-whisper, and the stand-in for machines without Whisper."""

import math
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import structlog

from siprec_asr.audio import RATE, Pcm, seconds
from siprec_asr.device import Device
from siprec_asr.errors import Cancelled, Refused
from siprec_asr.transcript import Segment, Transcript, Word

log = structlog.get_logger()

# The shortest audio that the batched pipeline is worth its cutting at pauses for.
_ONE_WINDOW_S = 30.0


@dataclass(frozen=True, slots=True)
class Options:
    """How to transcribe. `temperature` None: Whisper's ladder of second tries."""

    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    beam_size: int = 5
    batch_size: int = 1
    word_timestamps: bool = True
    prompt: str | None = None
    temperature: float | None = None
    condition_on_previous_text: bool = True
    vad_filter: bool = False


class Engine(Protocol):
    """A loaded model. Its methods are called from several threads at once."""

    memory: int  # octets, as far as is known

    def transcribe(self, pcm: Pcm, options: Options, cancelled: threading.Event) -> Transcript:
        """Hear int16 samples at 16 kHz.

        Raises Cancelled soon after `cancelled` is set, Refused for what the model cannot do.
        """
        ...

    def close(self) -> None:
        """Give the memory back; no run is under way, and none follows."""
        ...


class FasterWhisper:
    """A Whisper model in CTranslate2's form, any size, fine-tuned or distilled."""

    def __init__(
        self, name: str, folder: Path, device: Device, *, cpu_threads: int, workers: int, memory: int
    ) -> None:  # fmt: skip
        from faster_whisper import WhisperModel  # heavy, and of the extra `asr`

        if not (folder / "tokenizer.json").is_file():
            # faster-whisper would fetch another model's over the network, or hang trying.
            raise Refused(503, "model_failed", f"{name}: {folder} has no tokenizer.json")
        begun = time.perf_counter()
        try:
            self._model = WhisperModel(
                str(folder),
                device=device.name,
                device_index=device.index,
                compute_type=device.compute_type,
                cpu_threads=cpu_threads,
                num_workers=workers,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise Refused(503, "model_failed", f"{name} cannot be loaded: {error}") from error
        self._name = name
        self.memory = memory
        loaded = time.perf_counter()
        # The first run pays for threads, kernels and buffers; no caller shall.
        self.transcribe(np.zeros(RATE, np.int16), Options(language="en"), threading.Event())
        log.info(
            "model.loaded",
            model=name,
            folder=str(folder),
            device=device.name,
            compute_type=device.compute_type,
            reason=device.reason,
            load_seconds=round(loaded - begun, 3),
            warm_up_seconds=round(time.perf_counter() - loaded, 3),
        )

    def transcribe(self, pcm: Pcm, options: Options, cancelled: threading.Event) -> Transcript:
        """See `Engine`. Cancelling takes effect between two windows of 30 s."""
        if options.language is not None and options.language not in _languages():
            raise Refused(
                400, "unknown_language", f"{options.language} is no language of Whisper's"
            )
        audio = pcm.astype(np.float32) / 32768.0
        arguments: dict[str, Any] = {
            "language": options.language,
            "task": options.task,
            "beam_size": options.beam_size,
            "word_timestamps": options.word_timestamps,
            "initial_prompt": options.prompt,
            "condition_on_previous_text": options.condition_on_previous_text,
        }
        if options.temperature is not None:
            arguments["temperature"] = options.temperature
        try:
            found, info = self._start(audio, seconds(pcm), options, arguments)
            segments = []
            for one in found:
                segments.append(_segment(one))
                if cancelled.is_set():
                    raise Cancelled
        except RuntimeError as error:  # CTranslate2's: no memory, a broken device
            raise Refused(500, "run_failed", f"{self._name}: {error}") from error
        return Transcript(
            info.language, seconds(pcm), self._name, tuple(segments), task=options.task
        )

    def _start(
        self, audio: np.ndarray, length_s: float, options: Options, arguments: dict[str, Any]
    ) -> Any:
        if options.batch_size > 1 and length_s > _ONE_WINDOW_S:
            from faster_whisper import BatchedInferencePipeline

            # A pipeline remembers the last word of a run, so each run has its own.
            return BatchedInferencePipeline(self._model).transcribe(
                audio, batch_size=options.batch_size, without_timestamps=False, **arguments
            )
        return self._model.transcribe(audio, vad_filter=options.vad_filter, **arguments)

    def close(self) -> None:
        """See `Engine`."""
        self._model.model.unload_model()


class Standin:
    """pocketsphinx in Whisper's place, for trying things out. English; says what it is."""

    memory = 0

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(loglevel="FATAL")
        self._one_at_a_time = threading.Lock()

    def transcribe(self, pcm: Pcm, options: Options, cancelled: threading.Event) -> Transcript:
        """See `Engine`. Of the options it heeds none."""
        from siprec_wrappers.standin import MODEL, recognise, speech

        segments = []
        with self._one_at_a_time:
            for start, end in speech(pcm):
                if cancelled.is_set():
                    raise Cancelled
                one = recognise(self._decoder, pcm, start, end)
                if one is not None:
                    words = tuple(
                        Word(f" {word.text}", word.start, word.end, word.probability or 0.0)
                        for word in one.words
                    )
                    segments.append(Segment(f" {one.text}", one.start, one.end, words))
        return Transcript("en", seconds(pcm), MODEL, tuple(segments))

    def close(self) -> None:
        """See `Engine`."""


def _languages() -> frozenset[str]:
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    return frozenset(_LANGUAGE_CODES)


def _segment(one: Any) -> Segment:
    return Segment(
        text=one.text,
        start=float(one.start),
        end=float(one.end),
        words=tuple(
            Word(word.word, float(word.start), float(word.end), float(word.probability))
            for word in one.words or ()
        ),
        avg_logprob=_finite(one.avg_logprob),
        no_speech_prob=_finite(one.no_speech_prob),
        compression_ratio=_finite(one.compression_ratio),
        temperature=_finite(one.temperature),
    )


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None
