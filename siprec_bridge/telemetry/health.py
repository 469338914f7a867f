"""The facts behind /health/ready: each part says by itself what keeps it from working."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

Check = Callable[[], Awaitable[str | None]]

_CHECK_TIMEOUT_S = 12.0


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Each part's cause of trouble, or None where there is none. `vital`: those that calls need."""

    facts: Mapping[str, str | None]
    vital: frozenset[str]

    @property
    def ready(self) -> bool:
        """Whether calls can be taken, and nothing of them is lost."""
        return all(self.facts[name] is None for name in self.vital)

    @property
    def degraded(self) -> bool:
        """Whether any part does not work, so that something waits at least."""
        return any(cause is not None for cause in self.facts.values())


class Health:
    """A register of checks. A check returns why its part does not work, or None."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._vital: set[str] = set()

    def register(self, name: str, check: Check, *, vital: bool = True) -> None:
        """Add a part; its check must be cheap, since every scrape of /health/ready runs it.

        Unless it is `vital`, calls are taken all the same while it does not work.
        """
        self._checks[name] = check
        if vital:
            self._vital.add(name)

    async def report(self) -> HealthReport:
        """Run all checks side by side; one that hangs or breaks counts as trouble."""
        causes = await asyncio.gather(*(_run(check) for check in self._checks.values()))
        return HealthReport(dict(zip(self._checks, causes, strict=True)), frozenset(self._vital))


async def _run(check: Check) -> str | None:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return await check()
    except TimeoutError:
        return f"no answer within {_CHECK_TIMEOUT_S:g} s"
    except Exception as error:  # noqa: BLE001  a broken check is a finding, not our end
        return f"{type(error).__name__}: {error}"
