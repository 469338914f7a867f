"""`whisper-farm exporter`: the farm's state for Prometheus, read anew for each scrape."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from siprec_wrappers.farm.broker import Broker, BrokerError
from siprec_wrappers.farm.settings import Settings
from siprec_wrappers.farm.status import Status, read_status
from siprec_wrappers.farm.store import Store, StoreError


class FarmCollector(Collector):
    """One look a scrape; `whisper_farm_up` 0 and nothing else when there is nothing to see."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._looking = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client, in a thread of its own."""
        with self._looking:
            try:
                broker = Broker(self._settings)
                with contextlib.closing(broker):
                    broker.declare()
                    status = read_status(self._settings, self._store, broker)
            except (BrokerError, StoreError) as error:
                print(f"whisper-farm exporter: {error}", file=sys.stderr)
                yield _gauge("up", "1: broker and store answered", 0)
                return
        yield _gauge("up", "1: broker and store answered", 1)
        yield from _metrics(status)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"whisper_farm_{name}", about, value=value)


def _metrics(status: Status) -> Iterator[Metric]:
    yield _gauge("queued_jobs", "jobs that no worker has taken", status.queued)
    yield _gauge("open_jobs", "jobs that wait or run", status.open)
    yield _gauge("open_audio_seconds", "audio in them", status.open_audio_seconds)
    yield _gauge("oldest_job_seconds", "age of the oldest open job", status.oldest)
    if status.eta is not None:
        yield _gauge("eta_seconds", "until all open jobs are done", status.eta)
    yield _gauge("dead_jobs", "jobs in the dead-letter queue", status.dead)
    yield _gauge("workers", "consumers of the queue", status.consumers)
    busy = sum(one.busy for one in status.workers)
    yield _gauge("busy_workers", "workers with a job in hand", busy)
    jobs = CounterMetricFamily(
        "whisper_farm_worker_jobs", "a worker's jobs by result", labels=["worker", "result"]
    )
    audio = CounterMetricFamily(
        "whisper_farm_worker_audio_seconds", "audio it has done", labels=["worker"]
    )
    time = CounterMetricFamily(
        "whisper_farm_worker_busy_seconds", "time it had a job in hand", labels=["worker"]
    )
    ahead = GaugeMetricFamily(
        "whisper_farm_worker_clock_ahead_seconds",
        "how far its clock is ahead of the store's (negative: behind); 0: within 5 s",
        labels=["worker"],
    )
    for one in status.workers:
        ahead.add_metric([one.name], one.clock_ahead)
        jobs.add_metric([one.name, "done"], one.done)
        jobs.add_metric([one.name, "failed"], one.failed)
        jobs.add_metric([one.name, "dead"], one.dead)
        audio.add_metric([one.name], one.audio_seconds)
        time.add_metric([one.name], one.busy_seconds)
    yield from (jobs, audio, time, ahead)


def run_exporter(settings: Settings, store: Store, host: str, port: int) -> int:
    """Serve /metrics until TERM."""
    stopped = threading.Event()
    for what in (signal.SIGTERM, signal.SIGINT):
        signal.signal(what, lambda *_: stopped.set())
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FarmCollector(settings, store))
    server, thread = start_http_server(port, host, registry)
    print(f"listening on http://{host}:{server.server_port}/metrics", flush=True)
    stopped.wait()
    server.shutdown()
    thread.join()
    return 0
