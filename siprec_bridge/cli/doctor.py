"""`siprec-bridge doctor`: every piece tried."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from siprec_bridge.cli.arguments import AsJson, ConfigFile
from siprec_bridge.provider import ConfigurationError
from siprec_bridge.settings import from_environment

if TYPE_CHECKING:
    from siprec_bridge.doctor import Finding


def doctor(
    provider: Annotated[
        bool,
        typer.Option("--provider", help="only the recogniser, step by step, with its own words"),
    ] = False,
    vendor: Annotated[
        str | None, typer.Option(help="with --provider: another than STT_DEFAULT_VENDOR")
    ] = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> None:
    """Try every piece by using it; one line each says ok, or the cause and the remedy."""
    from siprec_bridge.doctor import examine
    from siprec_bridge.trial import try_provider

    settings, options = from_environment(config)
    if not provider:
        if vendor is not None:
            raise ConfigurationError("--vendor", "goes with --provider")
        findings = asyncio.run(_print_findings(examine(settings, options), as_json=as_json))
        raise typer.Exit(0 if findings else 1)
    trial = asyncio.run(try_provider(vendor or settings.stt_default_vendor, options))
    if as_json:
        print(trial.as_json())
    else:
        for step in trial.steps:
            print(step)
        for line in trial.stderr.splitlines()[-20:] if trial.broken is not None else ():
            print(f"      stderr      {line}")
    raise typer.Exit(0 if trial.broken is None else 1)


async def _print_findings(findings: "AsyncIterator[Finding]", *, as_json: bool) -> bool:
    kept: list[Finding] = []
    async for finding in findings:
        kept.append(finding)
        if not as_json:
            print(finding, flush=True)
    if as_json:
        print(json.dumps([asdict(one) for one in kept], indent=1))
    return all(one.ok for one in kept)
