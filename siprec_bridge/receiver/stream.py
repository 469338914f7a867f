"""A stream on its way into its spool: what its packets change and its report tells.

The same whether packets come from a worker's sockets or out of a capture.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from siprec_bridge.receiver.control import StreamReport, StreamSpec, from_ns
from siprec_bridge.receiver.quality import clock_rate, quality
from siprec_bridge.receiver.spool import SpoolHeader, SpoolWriter
from siprec_bridge.rtp import Arrivals, Batch, Jitter, SequenceTracker, SrtpReceiver
from siprec_bridge.sdp import EVENTS, NOISE, StreamKeys

Ints = npt.NDArray[np.int64]


@dataclass(eq=False, slots=True)
class ReceivedStream:
    """A stream, its spool, its keys and its counts."""

    spec: StreamSpec
    spool: SpoolWriter
    srtp: SrtpReceiver | None = None
    sequence: SequenceTracker = field(default_factory=SequenceTracker)
    jitter: Jitter = field(default_factory=Jitter)
    paused: bool = False
    payload_type: int | None = None  # of the last packets of voice
    octets: int = 0
    malformed: int = 0
    unauthenticated: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    rate: int = field(init=False)  # Hz, of the time stamps that come
    secure: bool = field(init=False)  # without keys its packets are nobody's
    _beside: frozenset[int] = field(init=False)  # payload types that are no voice

    def __post_init__(self) -> None:
        self.secure = self.spec.secure
        self.rate = clock_rate(self.spec.codecs)
        self._beside = _no_voice(self.spec)

    def take_over(self, spec: StreamSpec, now_ns: int) -> None:
        """Follow an offer that changed payload types or keys."""
        old, self.spec = self.spec, spec
        self.secure = spec.secure
        self._beside = _no_voice(spec)
        if spec.keys is None or self.srtp is None:
            self.srtp = srtp_receiver(spec, {})
        elif old.keys is None or _remote(old.keys) != _remote(spec.keys):
            self.srtp.rekey(spec.keys.suite, spec.keys.remote, spec.keys.mki_length)
        if spec.codecs != old.codecs:
            self.spool.event("codecs", now_ns, spec.codecs)

    def pause(self, paused: bool, at_ns: int) -> None:
        """Keep nothing from now on, or record again."""
        self.paused = paused
        self.sequence.rebase()
        self.spool.event("paused" if paused else "resumed", at_ns)

    def count(
        self, batch: Batch, slots: Ints, arrivals_ns: Ints, lengths: Ints, times: Arrivals
    ) -> int:
        """Count the packets at these places of a batch, one at least; returns their octets."""
        if self.first_ns is None:
            self.first_ns = int(arrivals_ns[slots[0]])
        self.last_ns = int(arrivals_ns[slots[-1]])
        payload_type = int(batch.payload_type[slots[-1]])
        if payload_type not in self._beside:
            self.payload_type = payload_type
        rate = clock_rate(self.spec.codecs, self.payload_type)
        if rate == self.rate:
            self.jitter.add(times, slots, rate)
        else:  # the times were reckoned by another clock
            self.jitter.change_clock(rate / self.rate)
            self.rate = rate
        self.sequence.add(batch.sequence[slots], batch.ssrc[slots])
        octets = int(lengths[slots].sum())
        self.octets += octets
        return octets

    def report(self) -> StreamReport:
        """What was received so far."""
        return StreamReport(
            stream_id=self.spec.stream_id,
            packets=self.sequence.packets,
            octets=self.octets,
            lost=self.sequence.lost,
            duplicates=self.sequence.duplicates,
            reordered=self.sequence.reordered,
            malformed=self.malformed,
            unauthenticated=self.unauthenticated,
            **quality(self.spec.codecs, self.payload_type, self.jitter, self.sequence),
            first_packet_at=from_ns(self.first_ns),
            last_packet_at=from_ns(self.last_ns),
        )


def _no_voice(spec: StreamSpec) -> frozenset[int]:
    return frozenset(one.payload_type for one in spec.codecs if one.name in (EVENTS, NOISE))


def _remote(keys: StreamKeys) -> tuple[str, bytes, int]:
    """What its packets are opened with: some write one key into the lines of all their suites."""
    return keys.suite, keys.remote, keys.mki_length


def open_spool(spec: StreamSpec, now_ns: int) -> SpoolWriter:
    """Make a stream's spool and its folder, or go on with what is there. Raises OSError."""
    spec.folder.mkdir(parents=True, exist_ok=True)
    header = SpoolHeader(
        spec.stream_id, spec.session_id, spec.index, spec.label, spec.codecs, now_ns
    )
    spool = SpoolWriter(spec.spool, header)
    if spool.reopened:
        spool.event("reopened", now_ns, spec.codecs)
    return spool


def srtp_receiver(spec: StreamSpec, rollovers: Mapping[int, int]) -> SrtpReceiver | None:
    """What opens a stream's packets; None: they are plain RTP."""
    keys = spec.keys
    if keys is None:
        return None
    return SrtpReceiver(keys.suite, keys.remote, keys.mki_length, rollovers)
