"""Finishing in a process of its own: decoding and resampling must not hold up signalling."""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from siprec_bridge.media.audio_file import RecordingFormat
from siprec_bridge.media.finish import DtmfEvents, FinishedAudio, Stretches, finish_session


class Finisher:
    """Makes sessions' audio files, `processes` at a time; the rest as for `finish_session`."""

    def __init__(
        self, processes: int = 1, dtmf: DtmfEvents = "mask", form: RecordingFormat = "wav"
    ) -> None:
        self._processes = processes
        self._dtmf: DtmfEvents = dtmf
        self._form: RecordingFormat = form
        self._pool: ProcessPoolExecutor | None = None

    async def finish(
        self,
        folder: Path,
        session_id: str,
        sample_rate: int,
        expected: Mapping[int, Stretches] | None = None,
    ) -> FinishedAudio:
        """As `finish_session`. Raises OSError, also when the process was killed."""
        pool = self._pool or self._new_pool()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                pool,
                finish_session,
                folder,
                session_id,
                sample_rate,
                self._dtmf,
                expected,
                self._form,
            )
        except BrokenProcessPool as error:
            if self._pool is pool:
                self._pool = None
            raise OSError("the finishing process was killed") from error

    async def stop(self) -> None:
        """End the processes after what they are at."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await asyncio.to_thread(pool.shutdown)

    def _new_pool(self) -> ProcessPoolExecutor:
        self._pool = ProcessPoolExecutor(
            self._processes, multiprocessing.get_context("spawn"), _belong_to_the_bridge
        )
        return self._pool


def _belong_to_the_bridge() -> None:
    """Leave signals to the bridge, and end with it, also when it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_bridge, daemon=True).start()


def _end_with_the_bridge() -> None:
    if (bridge := multiprocessing.parent_process()) is not None:
        bridge.join()
        os._exit(1)
