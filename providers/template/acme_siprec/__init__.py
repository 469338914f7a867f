"""Acme's speech service as a provider of siprec-bridge.

The service: POST a WAV to ACME_URL (`?model=`, `?language=`), with a bearer token if it has one; it
answers {"language", "segments": [{"start", "end", "text"}]}.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Self

import aiohttp

from siprec_bridge.provider import (
    AudioFile,
    ConfigurationError,
    Job,
    ProviderError,
    ProviderUnavailable,
    Run,
    parse_duration,
)
from siprec_bridge.transcript import RunFacts, Segment, Transcript

_TRIED_AGAIN = range(500, 600)  # what is the service's fault; the rest would be refused again
_AWAY = (401, 403, 404, 429, 503)  # nobody's audio gets through: jobs wait


class Acme:
    """See `siprec_bridge.provider.Provider` for what each member means."""

    name = "acme"
    sample_rate = 16000
    max_batch = 1  # one request a file

    def __init__(
        self, url: str, token: str | None, model: str, timeout: float, max_concurrent: int
    ) -> None:
        self.model = model
        self.max_concurrent: int | None = max_concurrent
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout, connect=10.0)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Self:
        """Read ACME_URL, ACME_TOKEN, ACME_MODEL, ACME_TIMEOUT, ACME_MAX_CONCURRENT."""
        url = options.get("ACME_URL", "")
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"ACME_URL={url}", "the service's http(s) address is needed")
        given = options.get("ACME_TIMEOUT", "10m")
        try:
            timeout = parse_duration(given)
        except ValueError as error:
            raise ConfigurationError(f"ACME_TIMEOUT={given}", str(error)) from error
        at_once = options.get("ACME_MAX_CONCURRENT", "4")
        if not at_once.isdecimal() or int(at_once) < 1:
            raise ConfigurationError(f"ACME_MAX_CONCURRENT={at_once}", "a number from 1 is needed")
        model = options.get("ACME_MODEL") or "general"
        return cls(url, options.get("ACME_TOKEN"), model, timeout, int(at_once))

    def describe(self) -> str:
        """One line for the start."""
        return f"Acme at {self._url}, model {self.model}"

    async def unavailable(self) -> str | None:
        """Nothing that is cheap to ask tells: a request does."""
        return None

    async def transcribe(self, jobs: Sequence[Job]) -> Run:
        """One request for each party of each job, side by side."""
        begun = time.monotonic()
        done = await asyncio.gather(*(self._transcribe(job) for job in jobs))
        outcomes = dict(zip((job.id for job in jobs), done, strict=True))
        errors = [one for one in done if isinstance(one, ProviderError)]
        facts = RunFacts(
            provider=self.name,
            model=self.model,
            status="error" if errors else "success",
            reason=errors[0].reason if errors else "ok",
            duration=time.monotonic() - begun,
            files=sum(len(job.audio) for job in jobs),
        )
        return Run(facts, outcomes)

    async def close(self) -> None:
        """Release the connections."""
        if self._session is not None:
            await self._session.close()

    async def _transcribe(self, job: Job) -> Mapping[str, Transcript] | ProviderError:
        asked = (self._ask(job, audio) for audio in job.audio)
        done = await asyncio.gather(*asked, return_exceptions=True)
        heard: dict[str, Transcript] = {}
        for audio, outcome in zip(job.audio, done, strict=True):
            if isinstance(outcome, ProviderError):
                return outcome
            if isinstance(outcome, BaseException):
                raise outcome
            heard[audio.key] = outcome
        return heard

    async def _ask(self, job: Job, audio: AudioFile) -> Transcript:
        if self._session is None:  # made here: it belongs to the running loop
            self._session = aiohttp.ClientSession(timeout=self._timeout, headers=self._headers)
        query = {"model": job.model or self.model}
        if job.language:
            query["language"] = job.language
        try:
            # A path is opened and sent in pieces; reading it whole would hold a call in memory.
            with audio.path.open("rb") as file:
                async with self._session.post(self._url, params=query, data=file) as answer:
                    if answer.status in _AWAY:
                        raise ProviderUnavailable("unavailable", f"{answer.status} {answer.reason}")
                    if answer.status != 200:
                        detail = (await answer.text())[:200]
                        again = answer.status in _TRIED_AGAIN
                        raise ProviderError(f"http_{answer.status}", detail, retryable=again)
                    value = await answer.json(content_type=None)
            segments = tuple(
                Segment(text=one["text"].strip(), start=one["start"], end=one["end"])
                for one in value["segments"]
            )
            return Transcript(language=value.get("language"), segments=segments)
        except aiohttp.ClientConnectorError as error:
            raise ProviderUnavailable("unavailable", str(error)) from error
        except TimeoutError as error:
            raise ProviderError("timeout", f"no answer from {self._url}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ProviderError("connection", str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProviderError("bad_output", f"no result: {error!r}") from error
