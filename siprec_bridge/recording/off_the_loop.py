"""Blocking work of stores and keys, beside the loop."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def off_the_loop(work: Callable[[threading.Event], T]) -> T:
    """Run blocking work, which is told to stop when we are cancelled.

    In a thread of its own that nobody waits for: a store that hangs must not hold up our end.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    stop = threading.Event()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = work(stop)
        except BaseException as caught:  # noqa: BLE001  it is raised again, in the loop
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="archive", daemon=True).start()
    try:
        return await future
    except asyncio.CancelledError:
        stop.set()
        raise


async def to_its_end(work: Callable[[], T]) -> T:
    """Run blocking work that changes files in a thread that is waited for, also when we are cancelled."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        task.cancelled() or task.exception()  # nobody else looks at it
        raise
