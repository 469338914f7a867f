"""FRONT DOOR FOR READERS: builds every part from Settings, starts and stops them in order."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from siprec_asr import __version__, http
from siprec_asr.admin import Admin
from siprec_asr.audio import Pcm
from siprec_asr.cache import Limits, Loader, ModelCache
from siprec_asr.errors import ConfigurationError, Refused
from siprec_asr.live import Stretches
from siprec_asr.metrics import Metrics
from siprec_asr.models import ModelShelf
from siprec_asr.openai import OpenAiFront
from siprec_asr.resident import ResidentFront
from siprec_asr.settings import Settings
from siprec_asr.transcriber import Transcriber
from siprec_asr.websocket import WebSocketFront
from siprec_asr.workqueue import WorkQueue
from siprec_asr.wyoming import WyomingFront

log = structlog.get_logger()

_SWEEP_S = 5.0
_ANSWERS_WITHIN_S = 5.0


class AsrServer:
    """One server. `loader` stands in the shelf's place in tests of timing alone."""

    def __init__(
        self,
        settings: Settings,
        shelf: ModelShelf,
        find_speech: Callable[[Pcm], Stretches],
        *,
        socket_path: Path | None = None,
        loader: Loader | None = None,
    ) -> None:
        self._settings = settings
        self._socket_path = socket_path
        self._socket_is_ours = False
        self.metrics = Metrics()
        self.cache = ModelCache(
            loader or shelf,
            Limits(settings.cache_size, settings.cache_ttl, settings.cache_memory_limit),
            self.metrics,
        )
        self.queue = WorkQueue(
            settings.workers, settings.queue_limit, settings.queue_audio, self.metrics
        )
        self.transcriber = Transcriber(settings, shelf, self.cache, self.queue, self.metrics)
        self._websocket = WebSocketFront(self.transcriber, find_speech)
        self._wyoming = WyomingFront(self.transcriber)
        app = web.Application(middlewares=[http.errors, http.login(settings.token)])
        for front in (
            OpenAiFront(self.transcriber),
            ResidentFront(self.transcriber),
            self._websocket,
            Admin(self.transcriber, lambda: self._unready),
        ):
            app.add_routes(front.routes())
        # Who closes its connection wants no answer any more: its handler is cancelled.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=_ANSWERS_WITHIN_S
        )
        self._unready: str | None = "starting"
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, then load ASR_PRELOAD. Raises ConfigurationError."""
        settings = self._settings
        await self._runner.setup()
        listening = []
        if settings.port:
            await self._listen(
                "ASR_PORT", settings.port, web.TCPSite(self._runner, settings.host, settings.port).start()
            )  # fmt: skip
            listening.append(f"http://{settings.host}:{settings.port}")
            if settings.token is None and not _is_local(settings.host):
                log.warning(
                    "http.open",
                    cause="without ASR_TOKEN whoever reaches it uses and administers it",
                    host=settings.host,
                )
        if self._socket_path is not None:
            own = _unix_socket(self._socket_path, settings.socket_mode)
            self._socket_is_ours = True
            await web.SockSite(self._runner, own).start()
            listening.append(f"unix://{self._socket_path}")
        if settings.wyoming_port:
            await self._listen(
                "ASR_WYOMING_PORT", settings.wyoming_port,
                self._wyoming.start(settings.host, settings.wyoming_port),
            )  # fmt: skip
            listening.append(f"tcp://{settings.host}:{settings.wyoming_port}")
            if settings.token is not None and not _is_local(settings.host):
                log.warning(
                    "wyoming.open", cause="ASR_TOKEN does not guard Wyoming", host=settings.host
                )
        if not listening:
            raise ConfigurationError(
                "ASR_PORT=0: there is no Unix socket and no Wyoming port either"
            )
        log.info("siprec-asr listens", version=__version__, on=listening, workers=settings.workers)
        self._sweeping = asyncio.create_task(self._sweep())
        for name in settings.preload:
            try:
                await asyncio.to_thread(self.cache.load, self.transcriber.model(name))
            except Refused as refused:
                raise ConfigurationError(f"ASR_PRELOAD: {refused.message}") from refused
        self._unready = None

    async def stop(self) -> bool:
        """Take nothing new, let what runs end within ASR_STOP_TIMEOUT, answer, close.

        False when a worker thread could not be brought to an end.
        """
        self._unready = "stopping"
        log.info("siprec-asr stops", running_may_take=self._settings.stop_timeout)
        await self._wyoming.stop_listening()
        clean = await self.queue.stop(self._settings.stop_timeout)
        await self._websocket.stop()
        await asyncio.sleep(0)  # those whose work has ended write their answers
        await self._wyoming.stop()
        await self._runner.cleanup()
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._socket_path is not None and self._socket_is_ours:
            self._socket_path.unlink(missing_ok=True)
        if clean:
            self.cache.close()
        log.info("siprec-asr stopped", clean=clean)
        return clean

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.cache.sweep()

    @staticmethod
    async def _listen(setting: str, port: int, starting: Coroutine[Any, Any, None]) -> None:
        try:
            await starting
        except OSError as error:
            raise ConfigurationError(f"{setting}={port}: {error.strerror or error}") from error


def _is_local(host: str) -> bool:
    return host.startswith(("127.", "::1", "local"))


def _unix_socket(path: Path, mode: int) -> socket.socket:
    """Listen there; what a killed server left is replaced, a living one's is not."""
    try:
        if path.is_socket():
            with (
                socket.socket(socket.AF_UNIX) as probe,
                contextlib.suppress(ConnectionRefusedError),
            ):
                probe.connect(str(path))
                raise ConfigurationError(f"ASR_SOCKET={path}: another server listens there")
            path.unlink()
        listener = socket.socket(socket.AF_UNIX)
        # Created closed to everybody else: a chmod afterwards would leave a moment open.
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
            path.chmod(mode)
        except OSError:
            listener.close()
            raise
        finally:
            os.umask(before)
        listener.setblocking(False)
    except OSError as error:
        raise ConfigurationError(f"ASR_SOCKET={path}: {error.strerror or error}") from error
    return listener
