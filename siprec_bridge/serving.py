"""A bridge from its start to the signal that ends it."""

import asyncio
import contextlib
import gc
import signal
from collections.abc import Mapping

import structlog

from siprec_bridge.app import Bridge
from siprec_bridge.choices import tell_choices
from siprec_bridge.settings import Settings

log = structlog.get_logger()


async def serve(settings: Settings, options: Mapping[str, str]) -> None:
    """Run a bridge until SIGTERM or SIGINT. Raises ConfigurationError when it cannot start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as parts:
        bridge = Bridge(settings, options)
        gc.collect()
        await bridge.start(parts)
        # What is there by now stays there. To look through it each time takes 0.1 s, in which nobody
        # gets an answer; and most of what a call makes goes without being looked for.
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)
        await tell_choices(bridge)
        await stop.wait()
        log.info("bridge.stopping", calls=bridge.service.active)
    log.info("bridge.stopped")
