"""Closed spools made durable beside the sweep: a disk may take seconds, in which all calls go on."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

_AT_ONCE = 4  # file systems make one write of several that wait


@dataclass(slots=True)
class _Batch:
    left: int
    then: Callable[[dict[int, str]], None]
    failed: dict[int, str] = field(default_factory=dict)


class Durable:
    """Threads that sync and close files."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[int, int, _Batch] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def close(self, files: Sequence[int], then: Callable[[dict[int, str]], None]) -> None:
        """Have descriptors synced and closed; `then` is told, in a thread of ours, which could not be.

        By their places in `files`, with the cause.
        """
        if not files:
            then({})
            return
        batch = _Batch(len(files), then)
        for place, file in enumerate(files):
            self._waiting.put((place, file, batch))
        while len(self._threads) < min(_AT_ONCE, self._waiting.qsize()):
            # No reason for a worker to stay whose sweep has failed.
            one = threading.Thread(target=self._work, name="durable", daemon=True)
            try:
                one.start()
            except RuntimeError:  # so many processes are not allowed: fewer threads, or this one
                if not self._threads:
                    self._waiting.put(None)
                    self._work()
                break
            self._threads.append(one)

    def stop(self) -> None:
        """Wait until all are closed."""
        for _ in self._threads:
            self._waiting.put(None)
        for one in self._threads:
            one.join()

    def _work(self) -> None:
        while (work := self._waiting.get()) is not None:
            place, file, batch = work
            cause = _sync_and_close(file)
            with self._lock:
                if cause is not None:
                    batch.failed[place] = cause
                batch.left -= 1
                done = not batch.left
            if done:
                batch.then(batch.failed)


def _sync_and_close(file: int) -> str | None:
    cause = None
    try:
        os.fsync(file)
    except OSError as error:
        cause = error.strerror or str(error)
    try:
        os.close(file)
    except OSError as error:  # NFS tells a full disk here
        cause = cause or error.strerror or str(error)
    return cause
