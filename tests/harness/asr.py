"""A `siprec-asr` in this process on free ports, and models that wait to be told."""

import socket
import threading
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from faster_whisper.utils import available_models

from siprec_asr.audio import Pcm, seconds
from siprec_asr.cache import Loader
from siprec_asr.device import Device
from siprec_asr.engine import Engine, Options
from siprec_asr.errors import Cancelled, Refused
from siprec_asr.live import silero_speech
from siprec_asr.models import ModelShelf
from siprec_asr.server import AsrServer
from siprec_asr.settings import Settings, load
from siprec_asr.transcript import Segment, Transcript

CPU = Device("cpu", 0, "float32", "for the tests")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wav(length_s: float = 1.0, rate: int = 16000, pcm: Pcm | None = None) -> bytes:
    """A WAV of that PCM, or of a soft tone."""
    if pcm is None:
        pcm = (1000 * np.sin(np.arange(round(length_s * rate)) / 10)).astype(np.int16)
    out = BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.astype("<i2").tobytes())
    return out.getvalue()


class PatientEngine:
    """Says its name when `let_go` is set; meanwhile it may be cancelled."""

    def __init__(self, name: str, memory: int) -> None:
        self.name = name
        self.memory = memory
        self.started = threading.Event()
        self.let_go = threading.Event()
        self.cancelled = threading.Event()
        self.closed = False
        self.heard: list[tuple[float, Options]] = []

    def transcribe(self, pcm: Pcm, options: Options, cancelled: threading.Event) -> Transcript:
        """See `siprec_asr.engine.Engine`."""
        self.heard.append((seconds(pcm), options))
        self.started.set()
        while not self.let_go.wait(0.01):
            if cancelled.is_set():
                self.cancelled.set()
                raise Cancelled
        return Transcript("en", seconds(pcm), self.name, (Segment(f" {self.name}", 0.0, 1.0),))

    def close(self) -> None:
        """See `siprec_asr.engine.Engine`."""
        self.closed = True


class PatientLoader:
    """Gives engines of its own, keeps them in `engines`; may be told to fail or to wait."""

    def __init__(self, memory: int = 100) -> None:
        self.memory = memory
        self.engines: list[PatientEngine] = []
        self.failure: Exception | None = None
        self.may_load = threading.Event()
        self.may_load.set()
        self.answers_at_once = False
        self._made = threading.Condition()

    def size(self, name: str) -> int:
        """See `siprec_asr.cache.Loader`."""
        return self.memory

    def load(self, name: str) -> Engine:
        """See `siprec_asr.cache.Loader`."""
        if not self.may_load.wait(10):
            raise Refused(503, "model_failed", "the test forgot to let it load")
        if self.failure is not None:
            raise self.failure
        engine = PatientEngine(name, self.memory)
        if self.answers_at_once:
            engine.let_go.set()
        with self._made:
            self.engines.append(engine)
            self._made.notify_all()
        return engine

    def first(self) -> PatientEngine:
        """Wait for the first engine and its first run."""
        with self._made:
            assert self._made.wait_for(lambda: bool(self.engines), 10)
        assert self.engines[0].started.wait(10)
        return self.engines[0]


@dataclass(frozen=True, slots=True)
class Running:
    """Where a server is reached."""

    server: AsrServer
    url: str
    wyoming: str
    socket: Path


@asynccontextmanager
async def serving(
    folder: Path, models_dir: Path | None = None, loader: Loader | None = None, **settings: str
) -> AsyncIterator[Running]:
    """A started server; `settings` are ASR_… in lower case without the prefix, as text."""
    port, wyoming_port = free_ports(2)
    given = {"model": "tiny", "port": str(port), "wyoming_port": str(wyoming_port)} | settings
    if models_dir is not None:
        given["models_dir"] = str(models_dir)
    parsed: Settings = load({f"ASR_{name.upper()}": value for name, value in given.items()})
    path = folder / "asr.sock"
    server = AsrServer(
        parsed, ModelShelf(parsed, CPU, available_models), silero_speech, socket_path=path, loader=loader
    )  # fmt: skip
    try:
        await server.start()
        yield Running(server, f"http://127.0.0.1:{port}", f"tcp://127.0.0.1:{wyoming_port}", path)
    finally:
        if isinstance(loader, PatientLoader):
            for engine in loader.engines:
                engine.let_go.set()
        await server.stop()
