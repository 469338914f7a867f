"""A real Prometheus with our alerts, that scrapes a bridge."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

ALERTS = Path(__file__).parents[2] / "config/prometheus/alerts.yml"


def at_once(folder: Path) -> Path:
    """The alerts without the time for which their causes must last."""
    document = yaml.safe_load(ALERTS.read_text())
    for group in document["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
    file = folder / "alerts.yml"
    file.write_text(yaml.safe_dump(document))
    return file


@asynccontextmanager
async def prometheus(folder: Path, target: str, rules: Path = ALERTS) -> AsyncIterator[str]:
    """A Prometheus that scrapes one target every second; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {"job_name": "siprec-bridge", "static_configs": [{"targets": [target]}]}
        ],
    }
    folder.mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = await asyncio.create_subprocess_exec(
        shutil.which("prometheus") or "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def query(http: aiohttp.ClientSession, url: str, expression: str) -> list[dict[str, Any]]:
    """The instant vector of an expression; fails on an error."""
    async with http.get(f"{url}/api/v1/query", params={"query": expression}) as answer:
        document = await answer.json()
    assert document["status"] == "success", f"{expression}: {document}"
    result: list[dict[str, Any]] = document["data"]["result"]
    return result


async def until(http: aiohttp.ClientSession, url: str, expression: str) -> None:
    """Wait until an expression has a result."""
    async with asyncio.timeout(30):
        while True:
            try:
                if await query(http, url, expression):
                    return
            except (aiohttp.ClientError, AssertionError):
                pass  # it is still starting
            await asyncio.sleep(0.1)


async def firing(http: aiohttp.ClientSession, url: str) -> set[str]:
    """Names of the alerts that fire."""
    found = await query(http, url, 'ALERTS{alertstate="firing"}')
    return {str(one["metric"]["alertname"]) for one in found}
