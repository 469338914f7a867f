"""A media engine with its real worker process."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from harness.bridge import eventually
from harness.ports import rtp_ports
from siprec_bridge.media import MediaEngine, MediaEvent, StreamSpec
from siprec_bridge.receiver.control import SourcePolicy
from siprec_bridge.receiver.spool import Packets, SpoolReader
from siprec_bridge.receiver.worker import Worker
from siprec_bridge.sdp import Codec, StreamKeys
from siprec_bridge.telemetry import Metrics

SESSION = "s1"


@asynccontextmanager
async def engine(
    *,
    fast: bool = True,
    ports: tuple[int, int] | None = None,
    workers: int = 1,
    rtp_timeout: float = 30.0,
    rtp_source: SourcePolicy = "learned",
    ring: int = 0,
    interfaces: Sequence[str] = (),
    on_event: Callable[[MediaEvent], None] | None = None,
) -> AsyncIterator[tuple[MediaEngine, list[MediaEvent], Metrics]]:
    """An engine, what it told, and its metrics."""
    events: list[MediaEvent] = []
    metrics = Metrics()
    first, last = ports or rtp_ports()
    media = MediaEngine(
        port_min=first,
        port_max=last,
        metrics=metrics,
        on_event=on_event or events.append,
        workers=workers,
        fast_path=fast,
        rtp_timeout=rtp_timeout,
        rtp_source=rtp_source,
        ring=ring,
        interfaces=interfaces,
    )
    await media.start()
    try:
        yield media, events, metrics
    finally:
        await media.stop()


def spec(
    folder: Path,
    index: int = 0,
    host: str = "127.0.0.1",
    *,
    session: str = SESSION,
    keys: StreamKeys | None = None,
    home: str | None = None,
    peer: str | None = None,
) -> StreamSpec:
    """A stream of G.711. `home`: the address in its SDP, `peer`: that of its SIP."""
    return StreamSpec(
        f"{session}-{index}",
        session,
        index,
        str(index + 1),
        (Codec(0, "PCMU", 8000), Codec(8, "PCMA", 8000)),
        folder,
        host,
        keys,
        rtcp=(home, 9) if home is not None else None,
        peer=peer,
    )


def spooled(spool: Path) -> list[bytes]:
    """The datagrams in a spool."""
    return [
        one.data[at : at + length].tobytes()
        for one in SpoolReader(spool)
        if isinstance(one, Packets)
        for at, length in zip(one.offsets.tolist(), one.lengths.tolist(), strict=True)
    ]


async def received(metrics: Metrics, count: int) -> None:
    """Return when so many packets were received in all."""

    def total() -> float:
        return metrics.registry.get_sample_value("siprec_rtp_packets_total") or 0.0

    await eventually(lambda: total() >= count, f"{count} packets (there are {total()})")


def opened(worker: Worker, one: StreamSpec) -> int:
    """Have a worker in the test's own process open a stream; the port of its RTP."""
    reply = worker._do({"do": "open", "spec": one.to_json(), "port": None, "rollovers": []})
    port = reply["port"]
    assert isinstance(port, list)
    return int(port[1])
