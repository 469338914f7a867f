"""What a client has asked for and does not wait for is not left alone, and the end waits for it."""

import asyncio

import pytest
import structlog

from siprec_bridge.api.undertakings import Undertakings


async def given_up(undertakings: Undertakings, done: list[str], go_on: asyncio.Event) -> None:
    """Work whose client goes away as soon as it has begun."""
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await go_on.wait()
            done.append("done")
        finally:
            done.append("ended")

    client = asyncio.create_task(undertakings.done(work()))
    await begun.wait()
    client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client


async def test_the_end_waits_for_what_goes_on() -> None:
    undertakings, done, go_on = Undertakings(), list[str](), asyncio.Event()
    await given_up(undertakings, done, go_on)

    asyncio.get_running_loop().call_soon(go_on.set)
    await undertakings.stop(10)

    assert done == ["done", "ended"]
    assert undertakings.ending


async def test_what_takes_too_long_is_told_to_end_and_has_ended_before_the_rest_does() -> None:
    undertakings, done = Undertakings(), list[str]()
    await given_up(undertakings, done, asyncio.Event())

    with structlog.testing.capture_logs() as logs:
        await undertakings.stop(0.01)
        await asyncio.sleep(0)

    assert done == ["ended"]
    assert [one["event"] for one in logs] == ["api.cut_off"]


async def test_a_failure_that_nobody_waits_for_is_one_line_in_the_log() -> None:
    undertakings, go_on = Undertakings(), asyncio.Event()

    async def work() -> None:
        await go_on.wait()
        raise OSError("no space left")

    client = asyncio.create_task(undertakings.done(work()))
    await asyncio.sleep(0)
    client.cancel()
    await asyncio.gather(client, return_exceptions=True)
    with structlog.testing.capture_logs() as logs:
        go_on.set()
        await undertakings.stop(10)
        await asyncio.sleep(0)

    assert logs == [{"event": "api.failed_unheard", "cause": "no space left", "log_level": "error"}]
