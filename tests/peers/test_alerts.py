"""Alerts: each fires when its cause is there, and no other does; by promtool's clock, and at a bridge."""

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web

from harness.bridge import running_bridge
from harness.calls import call, tones
from harness.prometheus import ALERTS, at_once, firing, prometheus, until
from harness.recognisers import recogniser
from harness.webhooks import Endpoint, Posted, hooks_file

pytestmark = pytest.mark.peer

# Two hours, a value a minute, as promtool writes series.
WELL = {
    'up{job="siprec-bridge"}': "1x120",
    "siprec_media_workers": "2x120",
    "siprec_media_workers_alive": "2x120",
    "siprec_media_worker_restarts_total": "3x120",
    'siprec_media_sweep_lateness_seconds_bucket{le="0.1"}': "0+100x120",
    'siprec_media_sweep_lateness_seconds_bucket{le="1"}': "0+100x120",
    'siprec_media_sweep_lateness_seconds_bucket{le="5"}': "0+100x120",
    'siprec_media_sweep_lateness_seconds_bucket{le="+Inf"}': "0+100x120",
    "siprec_spool_disk_free_bytes": "9e9x120",
    'siprec_sessions_assured_total{verdict="complete"}': "0+10x120",
    'siprec_sessions_assured_total{verdict="incomplete"}': "0+0.1x120",
    'siprec_sessions_assured_total{verdict="nothing"}': "4x120",
    'siprec_sessions_total{outcome="completed"}': "0+10x120",
    'siprec_sessions_total{outcome="failed"}': "2x120",
    'siprec_calls_turned_away_total{reason="capacity"}': "7x120",
    'siprec_calls_turned_away_total{reason="draining"}': "0+1x120",
    'siprec_calls_turned_away_total{reason="not_siprec"}': "0+1x120",
    "siprec_recogniser_available": "1x120",
    'siprec_vendor_circuit_open{vendor="whisper"}': "0x120",
    'siprec_whisper_timeouts_total{model="base"}': "0+0.1x120",
    "siprec_jobs_backlog_audio_seconds": "7200x120",
    "siprec_jobs_failed": "0x120",
    "siprec_live_recogniser_available": "1x120",
    'siprec_live_connections_total{result="failed"}': "0+0.1x120",
    'siprec_outbox_oldest_age_seconds{sink="amqp"}': "200x120",
    'siprec_outbox_parked{sink="amqp"}': "0x120",
    "siprec_amqp_blocked": "0x120",
    "siprec_archive_oldest_age_seconds": "3600x120",
    "siprec_archive_failing": "0x120",
    'siprec_http_refused_total{reason="token"}': "0+1x120",
    'siprec_http_refused_total{reason="none"}': "0+100x120",
    "siprec_streams_total": "0+20x120",
    "siprec_streams_with_loss_total": "0+1x120",
    "whisper_farm_up": "1x120",
    "whisper_farm_open_jobs": "3x120",
    "whisper_farm_workers": "2x120",
    "whisper_farm_dead_jobs": "0x120",
    'whisper_farm_worker_clock_ahead_seconds{worker="gpu-1"}': "0x120",
}
CAUSES: dict[str, dict[str, str]] = {
    "SiprecBridgeDown": {'up{job="siprec-bridge"}': "1x117 0x2"},
    "SiprecMediaWorkerDown": {"siprec_media_workers_alive": "2x116 0x2", "siprec_media_workers": "0x120"},
    "SiprecMediaWorkersMissing": {"siprec_media_workers_alive": "2x117 1x2"},
    "SiprecMediaWorkerDies": {"siprec_media_worker_restarts_total": "3x110 4x9"},
    "SiprecMediaWorkersLate": {
        'siprec_media_sweep_lateness_seconds_bucket{le="0.1"}': "0+98x120",
        'siprec_media_sweep_lateness_seconds_bucket{le="1"}': "0+98x120",
    },
    "SiprecRecordingDiskFull": {"siprec_spool_disk_free_bytes": "9e9x110 1e9x9"},
    "SiprecCallsNotRecorded": {'siprec_sessions_assured_total{verdict="nothing"}': "4x110 5x9"},
    "SiprecCallsIncomplete": {'siprec_sessions_assured_total{verdict="incomplete"}': "0+1x120"},
    "SiprecCallsTurnedAway": {'siprec_calls_turned_away_total{reason="capacity"}': "7x110 8x9"},
    "SiprecSessionsFailed": {'siprec_sessions_total{outcome="failed"}': "2x110 3x9"},
    "SiprecRecogniserMissing": {"siprec_recogniser_available": "1x110 0x9"},
    "SiprecRecogniserBroken": {'siprec_vendor_circuit_open{vendor="whisper"}': "0x110 1x9"},
    "SiprecWhisperTimeouts": {'siprec_whisper_timeouts_total{model="base"}': "0x110 3x9"},
    "SiprecTranscriptionBacklog": {"siprec_jobs_backlog_audio_seconds": "0x100 15000x19"},
    "SiprecJobsGivenUp": {"siprec_jobs_failed": "0x110 1x9"},
    "SiprecLiveRecogniserAway": {
        "siprec_live_recogniser_available": "1x100 0x19",
        'siprec_live_connections_total{result="failed"}': "0x100 0+2x19",
    },
    "SiprecDeliveryStuck": {'siprec_outbox_oldest_age_seconds{sink="amqp"}': "0x100 0+60x19"},
    "SiprecDeliveriesParked": {'siprec_outbox_parked{sink="amqp"}': "0x110 1x9"},
    "SiprecBrokerBlocks": {"siprec_amqp_blocked": "0x110 1x9"},
    "SiprecArchiveStuck": {"siprec_archive_oldest_age_seconds": "0x100 30000x19"},
    "SiprecArchiveFailing": {"siprec_archive_failing": "0x80 1x39"},
    "SiprecWrongTokens": {'siprec_http_refused_total{reason="token"}': "0x110 200x9"},
    "SiprecStreamsWithLoss": {"siprec_streams_with_loss_total": "0+5x120"},
    "WhisperFarmAway": {"whisper_farm_up": "1x110 0x9"},
    "WhisperFarmWithoutWorkers": {"whisper_farm_workers": "2x100 0x19"},
    "WhisperFarmJobsDead": {"whisper_farm_dead_jobs": "0x110 2x9"},
    "WhisperFarmClockWrong": {
        'whisper_farm_worker_clock_ahead_seconds{worker="gpu-1"}': "0x110 -30x9"
    },
}  # fmt: skip
# What passes by itself.
NEARLY = {
    "up": {'up{job="siprec-bridge"}': "1x118 0 1"},
    "a bridge that starts anew": {
        name: "1x60 _x3 1x55" for name in ("siprec_recogniser_available",)
    },
    "a recogniser away for four minutes": {"siprec_recogniser_available": "1x115 0x4"},
    "a recogniser that is switched off": {"siprec_recogniser_available": " ".join(["NaN"] * 120)},
    "a live recogniser that nobody asked": {"siprec_live_recogniser_available": "0x120"},
    "a lone call of the night": {
        'siprec_sessions_assured_total{verdict="complete"}': "10x100 11x19",
        'siprec_sessions_assured_total{verdict="incomplete"}': "4x120",
    },
    "a farm at rest without workers": {
        "whisper_farm_open_jobs": "0x120",
        "whisper_farm_workers": "0x120",
    },
    "two timeouts": {'siprec_whisper_timeouts_total{model="base"}': "0x110 1.8x9"},
    "a counter that begins again": {"siprec_media_worker_restarts_total": "3x110 0x9"},
}


def test_each_alert_has_its_cause_here() -> None:
    rules = yaml.safe_load(ALERTS.read_text())["groups"]

    assert {rule["alert"] for group in rules for rule in group["rules"]} == set(CAUSES)


def test_each_alert_fires_when_its_cause_is_there_and_no_other_does(tmp_path: Path) -> None:
    cases = {name: ({name}, series) for name, series in CAUSES.items()}
    cases |= {name: (set(), series) for name, series in NEARLY.items()}
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": [
                {"series": _of_one_bridge(series), "values": values}
                for series, values in (WELL | changed).items()
            ],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "119m",
                    "exp_samples": [
                        {"labels": f'{{alertname="{one}"}}', "value": 1} for one in fires
                    ],
                }
            ],
        }
        for name, (fires, changed) in cases.items()
    ]
    document = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump(document))

    done = subprocess.run(
        [shutil.which("promtool") or "promtool", "test", "rules", str(file)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr


def _of_one_bridge(series: str) -> str:
    name, _, labels = series.partition("{")
    given = labels.rstrip("}").split(",") if labels else []
    if not any(one.startswith("job=") for one in given):
        given.append('job="siprec-bridge"')
    given.append('instance="bridge:8080"')
    return f"{name}{{{','.join(given)}}}"


@pytest.mark.slow
async def test_causes_at_a_bridge_are_seen(tmp_path: Path) -> None:
    async def gone(_: Posted) -> web.Response:
        return web.Response(status=410)

    endpoint = Endpoint(gone)
    wanted = {
        "SiprecMediaWorkerDies", "SiprecRecogniserMissing", "SiprecRecogniserBroken",
        "SiprecDeliveriesParked", "SiprecArchiveFailing", "SiprecWrongTokens",
    }  # fmt: skip
    # While the worker is away, or the test's machine is busy.
    may = {
        "SiprecMediaWorkerDown", "SiprecMediaWorkersMissing", "SiprecMediaWorkersLate",
        "SiprecStreamsWithLoss",
    }  # fmt: skip
    async with (
        endpoint.serving(),
        running_bridge(
            tmp_path / "data",
            WHISPER_BINARY_PATH=str(recogniser(tmp_path, "exits_1")),
            TRANSCRIPTION_ATTEMPTS="1",
            WEBHOOKS=hooks_file(tmp_path, endpoint.url),
            ARCHIVE_URL=f"file://{tmp_path}/no-mount",
            HTTP_TOKENS=f"desk sha256:{'0' * 64} read",
            HTTP_OPEN_METRICS="true",
        ) as bridge,
        prometheus(tmp_path / "prometheus", str(bridge.ready["http"]), at_once(tmp_path)) as url,
        aiohttp.ClientSession() as http,
    ):
        await until(http, url, "siprec_build_info")
        await call(bridge, legs=tones(1.0))
        wrong = {"Authorization": "Bearer of-nobody"}
        for _ in range(110):
            async with http.get(f"{bridge.http}/api/sessions", headers=wrong) as answer:
                assert answer.status in (401, 429)
        for worker in _media_workers(bridge.process.pid):
            os.kill(worker, signal.SIGKILL)
        fired: set[str] = set()
        async with asyncio.timeout(30):
            while not wanted <= fired:
                fired = await firing(http, url)
                await asyncio.sleep(0.2)

    assert fired - may == wanted


def _media_workers(bridge: int) -> list[int]:
    children = Path(f"/proc/{bridge}/task/{bridge}/children").read_text().split()
    return [
        int(one)
        for one in children
        if "siprec_bridge.receiver" in Path(f"/proc/{one}/cmdline").read_text()
    ]
