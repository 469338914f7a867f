"""Dashboard and alerts against a real Prometheus that scrapes a running bridge."""

import asyncio
import json
import math
import re
import shutil
from pathlib import Path

import aiohttp
import pytest
import yaml

from harness.bridge import listening, of_type, running_bridge
from harness.calls import call, finals, tones
from harness.deliveries import bound_queue
from harness.live_recogniser import live_recogniser
from harness.prometheus import ALERTS, at_once, firing, prometheus, query, until
from harness.rabbitmq import RabbitMq
from harness.recognisers import recogniser
from harness.webhooks import Endpoint, hooks_file
from siprec_bridge.telemetry import Metrics

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "grafana/dashboards/siprec-bridge.json").read_text())
EXPRESSIONS = [
    (f"{panel['title']} {target['refId']}", target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
]
RULES = [
    (rule["alert"], rule["expr"])
    for group in yaml.safe_load(ALERTS.read_text())["groups"]
    for rule in group["rules"]
]


# The same on every node that shares the database.
SHARED = r"siprec_(outbox_|jobs_backlog|jobs_failed|archive_(pending|failing|oldest))"


async def has_data(http: aiohttp.ClientSession, url: str, expression: str) -> bool:
    """Whether an expression has a number; a rate of a new series needs a second scrape first."""
    for _ in range(50):
        values = [float(one["value"][1]) for one in await query(http, url, expression)]
        if any(math.isfinite(value) for value in values):
            return True
        await asyncio.sleep(0.1)
    return False


# Without the minutes for which it must last, a test machine may have it.
TELL_OF_LOAD = {"SiprecMediaWorkersLate", "SiprecStreamsWithLoss"}


@pytest.mark.peer
async def test_every_panel_has_data_after_a_call_and_no_alert_fires(
    tmp_path: Path, rabbitmq: RabbitMq
) -> None:
    speaks = str(recogniser(tmp_path, "speaks"))
    empty: list[str] = []
    async with (
        Endpoint().serving() as endpoint,
        live_recogniser() as ears,
        running_bridge(
            tmp_path / "data",
            WHISPER_BINARY_PATH=speaks,
            WEBHOOKS=hooks_file(tmp_path, endpoint.url),
            AMQP_URL=rabbitmq.url,
            AMQP_EXCHANGE="dashboard",
            LIVE_TRANSCRIPTS="on",
            LIVE_URL=ears.url,
        ) as bridge,
        bound_queue(rabbitmq, "dashboard"),  # else its events were parked
        listening(bridge) as events,
        prometheus(tmp_path / "prometheus", str(bridge.ready["http"]), at_once(tmp_path)) as url,
        aiohttp.ClientSession() as http,
    ):
        await until(http, url, "siprec_build_info")
        await call(bridge, legs=tones(0.5), rate=1.0)  # some sweeps long
        await finals(bridge, events)
        await until(http, url, 'siprec_jobs_total{outcome="done"} == 1')
        await until(http, url, "siprec_jobs_backlog == 0")
        for title, expression in EXPRESSIONS:
            plain = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
            if not await has_data(http, url, plain):
                empty.append(f"{title}: {plain}")
        for name, expression in RULES:
            assert await query(http, url, expression) == [] or name in TELL_OF_LOAD, name
        fired = await firing(http, url)

    assert len(EXPRESSIONS) > 30
    assert empty == []
    assert fired <= TELL_OF_LOAD
    assert of_type(events, "transcript.failed") == []


def test_no_panel_lies_on_another() -> None:
    cells = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["w"])
        for y in range(place["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_every_metric_that_is_charted_or_alerted_on_is_in_the_catalogue() -> None:
    metrics = Metrics()
    known = {sample.name for family in metrics.registry.collect() for sample in family.samples} | {
        name + suffix
        for name in metrics.registry._names_to_collectors
        for suffix in ("", "_bucket", "_count", "_sum")
    }

    used = {
        name
        for _, expression in EXPRESSIONS + RULES
        for name in re.findall(r"\b(?:siprec|process)_[a-z_]+", expression)
    }

    assert used - known == set()
    assert {"siprec_whisper_timeouts_total", "siprec_jobs_backlog"} <= used


@pytest.mark.peer
async def test_the_alert_rules_are_well_formed() -> None:
    process = await asyncio.create_subprocess_exec(
        shutil.which("promtool") or "promtool", "check", "rules", str(ALERTS),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()

    assert process.returncode == 0, out.decode()


@pytest.mark.parametrize(
    ("name", "expression"), [one for one in EXPRESSIONS + RULES if re.search(SHARED, one[1])]
)
def test_what_nodes_tell_of_the_database_that_they_share_is_not_counted_once_for_each(
    name: str, expression: str
) -> None:
    assert re.match(rf"max( by \([a-z, ]+\))? ?\({SHARED}", expression), name
