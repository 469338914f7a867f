"""`whisper-farm node`: takes jobs from a dispatcher, and sends back what the engine makes of them."""

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import sys
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path

import aiohttp

from siprec_wrappers.farm.engine import Cancelled, Engine, RunFailed, check_engine, make_engine
from siprec_wrappers.farm.job import Job, MalformedJob, is_time
from siprec_wrappers.farm.settings import SettingError, read_engine_settings

log = logging.getLogger("whisper-farm.node")

_WAIT_S = 20.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_CHUNK = 1 << 16


class _NotLetIn(Exception):
    """The dispatcher does not know us: a token that is wrong or over."""


class _LeaseLost(Exception):
    """The job is somebody else's by now."""


def run_node(
    url: str, token: Path | None, ca: Path | None, cert: Path | None, key: Path | None
) -> int:
    """Work until TERM, which lets the job in hand end. Exit code 1 when it is not let in."""
    settings = read_engine_settings(os.environ)
    try:
        check_engine(settings)
        headers = {"Authorization": f"Bearer {token.read_text().strip()}"} if token else {}
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except RunFailed as error:
        raise SettingError(str(error)) from error
    except (OSError, ssl.SSLError) as error:
        raise SettingError(f"node: {error}") from error
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    try:
        asyncio.run(_work(url.rstrip("/"), headers, context, make_engine(settings)))
    except _NotLetIn as error:
        log.error("not let in: %s", error)
        return 1
    return 0


async def _work(url: str, headers: dict[str, str], context: ssl.SSLContext, engine: Engine) -> None:
    stopped = asyncio.Event()
    for what in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(what, stopped.set)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_WAIT_S + 20)
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector
    ) as session:
        pause = _FIRST_PAUSE_S
        while not stopped.is_set():
            try:
                offer = await _unless(stopped, _ask(session, url))
                if offer is not None:
                    await _Leased(session, url, engine, offer).do()
                pause = _FIRST_PAUSE_S
            # ValueError and RecursionError: an answer that is half or none of a dispatcher's. A proxy
            # says 404 as long as there is no dispatcher behind it.
            except (
                aiohttp.ClientError, OSError, ValueError, RecursionError, _LeaseLost
            ) as error:  # fmt: skip
                log.warning("%s: %s", url, str(error) or type(error).__name__)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)


async def _unless(
    stopped: asyncio.Event, asking: Coroutine[None, None, dict[str, object] | None]
) -> dict[str, object] | None:
    """The answer, or None when we are stopped before it comes; an offer lost so comes again."""
    ask, stop = asyncio.ensure_future(asking), asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait((ask, stop), return_when=asyncio.FIRST_COMPLETED)
        return ask.result() if ask.done() else None
    finally:
        for one in (ask, stop):
            one.cancel()
        await asyncio.gather(ask, stop, return_exceptions=True)


async def _ask(session: aiohttp.ClientSession, url: str) -> dict[str, object] | None:
    async with session.post(f"{url}/v1/work", json={"wait": _WAIT_S}) as answer:
        if answer.status == 204:
            return None
        await _check(answer)
        document = await answer.json()
        if not isinstance(document, dict):
            raise MalformedJob("an offer that is none")
        return document


async def _check(answer: aiohttp.ClientResponse) -> None:
    if answer.status in (401, 403):
        raise _NotLetIn((await answer.text())[:500])
    if answer.status in (404, 410):
        raise _LeaseLost(
            " ".join((await answer.text()).split())[:500] or f"answers {answer.status}"
        )
    answer.raise_for_status()


class _Leased:
    """One job, while it is ours."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        engine: Engine,
        offer: dict[str, object],
    ) -> None:
        lease, seconds, left = (
            offer.get("lease"), offer.get("lease_seconds"), offer.get("seconds_left"),
        )  # fmt: skip
        job = Job.from_json(offer.get("job"))
        if not (isinstance(lease, str) and is_time(seconds) and is_time(left)):
            raise MalformedJob("a lease that is none")
        self._job = replace(job, deadline=time.time() + left)
        self._session = session
        self._url = f"{url}/v1/work/{lease}"
        self._engine = engine
        self._renew_every = max(0.2, seconds / 3)
        self._unwanted = False

    async def do(self) -> None:
        """Fetch the audio, recognise it, hand in what came out."""
        renewing = asyncio.create_task(self._renew())
        try:
            with tempfile.TemporaryDirectory(prefix="whisper-farm-") as folder:
                audio = Path(folder) / self._job.audio.rpartition("/")[2]
                await self._fetch(audio)
                data = await asyncio.to_thread(
                    self._engine.transcribe, audio, self._job, lambda: self._unwanted
                )
            await self._hand_in("PUT", "result", data)
            log.info("%s done", self._job.request)
        except RunFailed as error:
            log.warning("%s failed: %s", self._job.request, error)
            document = {"error": str(error), "unavailable": error.unavailable}
            with contextlib.suppress(_LeaseLost):
                await self._hand_in("POST", "failure", document)
        except Cancelled as reason:
            log.info("%s: %s", self._job.request, reason)
            with contextlib.suppress(_LeaseLost):
                await self._hand_in("POST", "release", {})
        except _LeaseLost:
            log.warning("%s: the lease is lost", self._job.request)
        except OSError as error:
            if not isinstance(error, aiohttp.ClientError | TimeoutError):
                # Our disk is full, say: somebody else may do it now.
                with contextlib.suppress(_LeaseLost):
                    await self._hand_in("POST", "release", {})
            raise
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew(self) -> None:
        while not self._unwanted:
            await asyncio.sleep(self._renew_every)
            try:
                async with self._session.post(f"{self._url}/renew") as answer:
                    await _check(answer)
                    self._unwanted = bool((await answer.json())["cancelled"])
            except (_LeaseLost, _NotLetIn):
                self._unwanted = True
            except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError, RecursionError):
                continue  # it may be back before the lease is over

    async def _fetch(self, target: Path) -> None:
        async with self._session.get(f"{self._url}/audio") as answer:
            await _check(answer)
            with target.open("wb") as file:
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    file.write(chunk)

    async def _hand_in(self, method: str, what: str, body: bytes | dict[str, object]) -> None:
        """Until the dispatcher has it, the lease is lost, or the job's time is over."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                async with self._session.request(
                    method,
                    f"{self._url}/{what}",
                    data=body if isinstance(body, bytes) else None,
                    json=body if isinstance(body, dict) else None,
                ) as answer:
                    await _check(answer)
                    return
            except (aiohttp.ClientError, TimeoutError) as error:
                if time.time() > self._job.deadline:
                    raise
                log.warning("%s not handed in yet: %s", what, str(error) or type(error).__name__)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
