"""What goes on when the client that asked for it does not wait any more, and is not left alone for that."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")


class Undertakings:
    """Owns them: the API does not end before they have, or have been told to for long enough."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self.ending = False

    async def done(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it to its end, whoever waits. Raises what `work` raises."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_tell)
            raise

    async def stop(self, patience: float) -> None:
        """Wait for all, cancel after so many seconds what is left, and wait for that.

        Those that do one thing after the other look at `ending` in between.
        """
        self.ending = True
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=patience)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)


def _tell(task: asyncio.Task[Any]) -> None:
    """Nobody else hears of it."""
    if task.cancelled():
        log.warning("api.cut_off", cause="the bridge stops", remedy="ask for the same again")
    elif (error := task.exception()) is not None:
        log.error("api.failed_unheard", cause=" ".join(str(error).split()) or type(error).__name__)
