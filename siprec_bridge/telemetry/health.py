"""The facts behind /health/ready: each part says by itself what keeps it from working."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

Check = Callable[[], Awaitable[str | None]]

_CHECK_TIMEOUT_S = 12.0


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Each part's cause of trouble, or None where there is none."""

    facts: Mapping[str, str | None]

    @property
    def ready(self) -> bool:
        """Whether every part works."""
        return all(cause is None for cause in self.facts.values())


class Health:
    """A register of checks. A check returns why its part does not work, or None."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}

    def register(self, name: str, check: Check) -> None:
        """Add a part; its check must be cheap, since every scrape of /health/ready runs it."""
        self._checks[name] = check

    async def report(self) -> HealthReport:
        """Run all checks side by side; one that hangs or breaks counts as trouble."""
        causes = await asyncio.gather(*(_run(check) for check in self._checks.values()))
        return HealthReport(dict(zip(self._checks, causes, strict=True)))


async def _run(check: Check) -> str | None:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return await check()
    except TimeoutError:
        return f"no answer within {_CHECK_TIMEOUT_S:g} s"
    except Exception as error:  # noqa: BLE001  a broken check is a finding, not our end
        return f"{type(error).__name__}: {error}"
