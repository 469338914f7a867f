"""A media engine with its real worker process."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from harness.bridge import eventually
from siprec_bridge.media import MediaEngine, MediaEvent, StreamSpec
from siprec_bridge.sdp import Codec, StreamKeys
from siprec_bridge.telemetry import Metrics

SESSION = "s1"


@asynccontextmanager
async def engine(
    *,
    fast: bool = True,
    ports: tuple[int, int] = (20000, 29999),
    rtp_timeout: float = 30.0,
    on_event: Callable[[MediaEvent], None] | None = None,
) -> AsyncIterator[tuple[MediaEngine, list[MediaEvent], Metrics]]:
    """An engine, what it told, and its metrics."""
    events: list[MediaEvent] = []
    metrics = Metrics()
    media = MediaEngine(
        port_min=ports[0],
        port_max=ports[1],
        metrics=metrics,
        on_event=on_event or events.append,
        fast_path=fast,
        rtp_timeout=rtp_timeout,
    )
    await media.start()
    try:
        yield media, events, metrics
    finally:
        await media.stop()


def spec(
    folder: Path, index: int = 0, host: str = "127.0.0.1", *, keys: StreamKeys | None = None
) -> StreamSpec:
    """A stream of G.711."""
    codecs = (Codec(0, "PCMU", 8000), Codec(8, "PCMA", 8000))
    return StreamSpec(
        f"{SESSION}-{index}", SESSION, index, str(index + 1), codecs, folder, host, keys
    )


async def received(metrics: Metrics, count: int) -> None:
    """Return when so many packets were received in all."""

    def total() -> float:
        return metrics.registry.get_sample_value("siprec_rtp_packets_total") or 0.0

    await eventually(lambda: total() >= count, f"{count} packets (there are {total()})")
