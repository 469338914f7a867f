"""Streams whose packets come from elsewhere than a socket, at times that are told with them.

Spools and counts as a worker does: same tests of a packet, same records, same pauses.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from siprec_bridge.receiver.control import StreamPort, StreamReport, StreamSpec
from siprec_bridge.receiver.spool import RECORD, write_records
from siprec_bridge.receiver.stream import ReceivedStream, open_spool, srtp_receiver
from siprec_bridge.rtp import (
    NotAuthentic,
    Replayed,
    SrtpReceiver,
    read_headers,
)
from siprec_bridge.rtp import arrivals as of_arrivals
from siprec_bridge.sdp import Crypto

_FIRST_PORT, _LAST_PORT = 16384, 32766
_BATCH = 256  # packets held before they are spooled


@dataclass(eq=False, slots=True, kw_only=True)
class _Stream(ReceivedStream):
    port: StreamPort
    waiting: list[tuple[int, bytes]] = field(default_factory=list)


class OfflineMedia:
    """Stands where the media engine does; `receive` brings the packets.

    `now_ns` tells the time, ns since 1970. `trouble` says why the disk took no more, once it did
    not. `reports` has the closed streams by id: one each time that a stream was closed.
    """

    def __init__(self, now_ns: Callable[[], int], host: str = "127.0.0.1") -> None:
        self._now_ns = now_ns
        self._host = host
        self._ports = itertools.cycle(range(_FIRST_PORT, _LAST_PORT, 2))
        self._open: dict[str, _Stream] = {}
        self.reports: dict[str, list[StreamReport]] = {}
        self.trouble: str | None = None

    def receive(self, stream_id: str, datagram: bytes, at_ns: int) -> bool:
        """Take a datagram; False when the stream is not open."""
        stream = self._open.get(stream_id)
        if stream is None:
            return False
        if stream.spec.dtls is not None and stream.srtp is None:
            stream.unauthenticated += 1
            return True
        if stream.srtp is not None:
            try:
                datagram = stream.srtp.unprotect(datagram)
            except Replayed:
                stream.sequence.duplicates += not stream.paused
                return True
            except NotAuthentic:
                stream.unauthenticated += 1
                return True
        if not stream.paused:
            stream.waiting.append((at_ns, datagram))
            if len(stream.waiting) >= _BATCH:
                self._store(stream)
        return True

    def set_keys(self, stream_id: str, crypto: Crypto | None) -> None:
        """Decrypt a stream with this key from now on; None: it is plain."""
        if (stream := self._open.get(stream_id)) is not None:
            stream.srtp = None
            if crypto is not None:
                stream.srtp = SrtpReceiver(crypto.suite, crypto.key, crypto.mki_length)

    async def open(self, spec: StreamSpec) -> StreamPort:
        """Make the spool, and its folder."""
        known = self._open.get(spec.stream_id)
        if known is None:
            spool = open_spool(spec, self._now_ns())
            number = next(self._ports)
            port = StreamPort(self._host, number, number + 1)
            known = _Stream(spec, spool, srtp_receiver(spec, {}), port=port)
            self._open[spec.stream_id] = known
        return known.port

    async def update(self, spec: StreamSpec) -> None:
        """Note that a stream's payload types or keys are others from now on."""
        if (stream := self._open.get(spec.stream_id)) is not None:
            self._store(stream)
            stream.take_over(spec, self._now_ns())

    async def pause(self, stream_id: str, paused: bool, at: datetime) -> None:
        """Keep nothing of a stream, or record it again."""
        stream = self._open.get(stream_id)
        if stream is not None and stream.paused != paused:
            self._store(stream)
            stream.pause(paused, round(at.timestamp() * 1e9))

    async def close(self, stream_ids: Sequence[str]) -> list[StreamReport]:
        """Make what has arrived durable; unknown ids are skipped."""
        done: list[StreamReport] = []
        for name in stream_ids:
            if (stream := self._open.pop(name, None)) is not None:
                self._store(stream)
                stream.spool.close()
                done.append(stream.report())
                self.reports.setdefault(name, []).append(done[-1])
        return done

    def _store(self, stream: _Stream) -> None:
        self.trouble = self.trouble or _spool(stream)


def _spool(stream: _Stream) -> str | None:
    """Spool what waits; returns why the disk does not take it, or None."""
    waiting, stream.waiting = stream.waiting, []
    if not waiting:
        return None
    lengths = np.array([len(data) for _, data in waiting], np.int64)
    arrivals = np.array([at for at, _ in waiting], np.int64)
    data = np.frombuffer(b"".join(data for _, data in waiting), np.uint8)
    batch = read_headers(data, np.cumsum(lengths) - lengths, lengths)
    kept = np.flatnonzero(batch.valid)
    stream.malformed += len(waiting) - len(kept)
    if not len(kept):
        return None
    rates = np.full(len(waiting), float(stream.rate))
    times = of_arrivals(arrivals, batch.timestamp, batch.ssrc, rates)
    stream.count(batch, kept, arrivals, lengths, times)
    heads = np.zeros(len(waiting), RECORD)
    write_records(heads, lengths, arrivals)
    return stream.spool.write([heads[at].tobytes() + waiting[at][1] for at in kept.tolist()])
