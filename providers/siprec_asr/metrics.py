"""The whole metric catalogue; an attribute is a metric's name without the prefix `siprec_asr_`.

No label grows with traffic: models are those that were really loaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from siprec_asr.errors import Refused

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FRONTS = ("openai", "resident", "websocket", "wyoming")
DROP_REASONS = ("room", "unused", "unloaded", "closed")

_RTF = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 5)
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1200)


class Metrics:
    """One server's metrics in a registry of their own; safe to use from any thread."""

    def __init__(self) -> None:
        # Of the whole process: else a gauge beside each series, with the time of its first value.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"siprec_asr_{name}", about, labels, registry=registry)

        def gauge(name: str, about: str) -> Gauge:
            return Gauge(f"siprec_asr_{name}", about, registry=registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(
                f"siprec_asr_{name}", about, labels, buckets=buckets, registry=registry
            )

        self.requests_total = counter(
            "requests", "requests by front and HTTP status; 499: the client went away",
            "front", "status",
        )  # fmt: skip
        self.request_seconds = histogram(
            "request_seconds", "from the whole request to its answer", _SECONDS, "front"
        )
        self.queue_depth = gauge("queue_depth", "pieces of audio that wait for a worker")
        self.queue_audio_seconds = gauge("queue_audio_seconds", "their play time")
        self.queue_wait_seconds = histogram(
            "queue_wait_seconds", "time that a piece of audio waited", _SECONDS
        )
        self.runs_active = gauge("runs_active", "workers that are busy")
        self.runs_cancelled_total = counter(
            "runs_cancelled", "pieces of audio dropped because their client left or time was over"
        )
        self.audio_seconds_total = counter("audio_seconds", "audio transcribed", "model")
        self.realtime_factor = histogram(
            "realtime_factor", "time of a run divided by the play time of its audio", _RTF, "model"
        )
        self.model_load_seconds = histogram(
            "model_load_seconds", "loading a model, with its warm-up", _SECONDS
        )
        self.model_loads_total = counter("model_loads", "tries to load a model", "result")
        self.models_loaded = gauge("models_loaded", "models in memory")
        self.models_memory_bytes = gauge(
            "models_memory_bytes", "memory of the loaded models (estimate)"
        )
        self.models_dropped_total = counter(
            "models_dropped", "models taken out of memory, by reason", "reason"
        )
        self.cache_lookups_total = counter(
            "cache_lookups", "leases of a model that was loaded (hit) or not (miss)", "result"
        )
        self.streams_active = gauge("streams_active", "live streams connected")
        for front in FRONTS:
            self.requests_total.labels(front, "200")
            self.request_seconds.labels(front)
        for reason in DROP_REASONS:
            self.models_dropped_total.labels(reason)
        for result in ("loaded", "refused", "failed"):
            self.model_loads_total.labels(result)
        for result in ("hit", "miss"):
            self.cache_lookups_total.labels(result)

    @contextmanager
    def request(self, front: str) -> Iterator[None]:
        """Count what becomes of a request."""
        status = "499"  # what is left: cancelled
        try:
            with self.request_seconds.labels(front).time():
                yield
            status = "200"
        except Refused as refused:
            status = str(refused.status)
            raise
        except Exception:
            status = "500"
            raise
        finally:
            self.requests_total.labels(front, status).inc()

    def exposition(self) -> bytes:
        """Prometheus' text form."""
        return generate_latest(self.registry)
