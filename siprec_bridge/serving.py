"""A bridge from its start to the signal that ends it."""

import asyncio
import contextlib
import gc
import os
import resource
import signal
from collections.abc import Mapping

import structlog

from siprec_bridge.app import Bridge
from siprec_bridge.choices import tell_choices
from siprec_bridge.settings import Settings, likely_typos
from siprec_bridge.telemetry import ServiceManager

log = structlog.get_logger()

_ENOUGH_FILES = 1 << 18
_STOPPING_S = 120.0  # for what is done when the calls have ended: files, the last events


def use_all_files() -> None:
    """Open as many files as this process may: each caller over TCP and each listener is one.

    The soft limit of 1,024 that processes begin with is for programs that use select(2). But where
    the limit is a thousand million, some programs that we start would close that many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < enough:
        with contextlib.suppress(
            OSError, ValueError
        ):  # some systems set a lower one than they tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))


async def serve(settings: Settings, options: Mapping[str, str]) -> None:
    """Run a bridge until SIGTERM or SIGINT. Raises ConfigurationError when it cannot start."""
    use_all_files()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    for name, setting in likely_typos(options):
        log.warning("settings.unknown", name=name, effect="none", perhaps=setting)
    manager = ServiceManager(os.environ)
    bridge = Bridge(settings, options)
    async with (
        manager.kept_told(lambda: f"calls: {bridge.service.active}"),
        contextlib.AsyncExitStack() as parts,
    ):
        gc.collect()
        await bridge.start(parts)
        # What is there by now stays there. To look through it each time takes 0.1 s, in which nobody
        # gets an answer; and most of what a call makes goes without being looked for.
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)
        await tell_choices(bridge)
        manager.tell(READY="1")
        await stop.wait()
        longest = settings.shutdown_timeout.total_seconds() + _STOPPING_S
        manager.tell(STOPPING="1", EXTEND_TIMEOUT_USEC=f"{longest * 1e6:.0f}")
        log.info("bridge.stopping", calls=bridge.service.active)
    log.info("bridge.stopped")
