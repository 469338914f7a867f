"""RTCP of a worker's streams: what the SRC reports, and what we report to it. RFC 3550 §6."""

import base64
import contextlib
import heapq
import itertools
import os
import random
import selectors
import time

import numpy as np

from siprec_bridge.receiver.arena import Arena
from siprec_bridge.receiver.handshakes import Handshakes, is_dtls
from siprec_bridge.receiver.live import LiveStream
from siprec_bridge.receiver.sources import Sources
from siprec_bridge.receiver.sweep import NOBODY, WorkerClock, receive_stamped, source_of
from siprec_bridge.receiver.uplink import Uplink
from siprec_bridge.rtp import (
    Batch,
    NotAuthentic,
    Reception,
    Replayed,
    ReportBlock,
    SrtpReceiver,
    read_rtcp,
    receiver_report,
)

_REPORT_S = 5.0  # mean of the time between receiver reports of a stream. RFC 3550 §6.2
_MOST_REPORTS = 1000  # of one sweep; the others go with the next ones
_MOST_RTCP = 16  # datagrams of a stream in a sweep


class Feedback:
    """Reads the RTCP sockets and sends receiver reports."""

    def __init__(
        self,
        arena: Arena,
        sources: Sources,
        handshakes: Handshakes,
        uplink: Uplink,
        clock: WorkerClock,
    ) -> None:
        self._arena = arena
        self._sources = sources
        self._handshakes = handshakes
        self._uplink = uplink
        self._clock = clock
        self._sockets = selectors.DefaultSelector()
        self._due: list[tuple[float, int, LiveStream]] = []  # a heap by time
        self._numbers = itertools.count()
        self._cname = base64.b64encode(os.urandom(12)).decode()  # RFC 7022 §4.2

    def open(self, stream: LiveStream) -> None:
        """Listen to a stream's RTCP, and report on it."""
        self.listen(stream)
        self.follow(stream)
        self._schedule(stream, time.monotonic())

    def listen(self, stream: LiveStream) -> None:
        """Read what comes to its RTCP port, if it has one."""
        if stream.rtcp is not None:
            self._sockets.register(stream.rtcp, selectors.EVENT_READ, stream)

    def leave(self, stream: LiveStream) -> None:
        """Read nothing more from its RTCP port, which is about to be closed."""
        if stream.rtcp is not None:
            self._sockets.unregister(stream.rtcp)

    def follow(self, stream: LiveStream) -> None:
        """Take over where its RTCP goes, and with which key."""
        spec = stream.spec
        stream.target = _target(spec.rtcp, spec.host)
        if spec.dtls is None:  # else with the handshake
            stream.encrypt_with(spec.keys)

    def close(self, stream: LiveStream) -> None:
        """Say goodbye to its source."""
        if stream.has_reported:
            self._send(stream, receiver_report(stream.ssrc, self._cname, bye=True))
        self.leave(stream)

    def stop(self) -> None:
        """Give everything back."""
        self._sockets.close()

    def read(self) -> None:
        """Take what has come to the RTCP ports."""
        for key, _ in self._sockets.select(0):
            self.read_from(key.data)

    def read_from(self, stream: LiveStream) -> None:
        """Take what has come to a stream's RTCP port."""
        for _ in range(_MOST_RTCP):
            received = receive_stamped(stream.rtcp) if stream.rtcp is not None else None
            if received is None:
                break
            data, arrival_ns, address = received
            source = source_of(address[0]) or NOBODY
            if not self._sources.takes(stream, source):
                self._sources.count_strangers(stream, source, 1)
            elif stream.spec.dtls is not None and is_dtls(data):
                self._handshakes.take(stream, data, address, rtcp=True)
            else:
                srtp = stream.rtcp_srtp or stream.srtp
                arrivals = np.array([arrival_ns], np.int64)
                self._clock.steady(arrivals)
                self._take(stream, srtp, data, int(arrivals[0]))

    def take_muxed(self, stream: LiveStream, batch: Batch, start: int, stop: int) -> int:
        """RTCP among the RTP (RFC 5761), agreed on or not; returns how much there was."""
        arena = self._arena
        slots = (np.flatnonzero(batch.rtcp[start:stop]) + start).tolist()
        for slot in slots:
            at = int(arena.offsets[slot])
            data = bytes(arena.view[at : at + int(arena.lengths[slot])])
            self._take(stream, stream.srtp, data, int(arena.arrivals_ns[slot]))
        return len(slots)

    def send(self, now: float) -> None:
        """Report on the streams that are due and were heard since their last report."""
        for _ in range(min(_MOST_REPORTS, len(self._due))):
            if self._due[0][0] > now:
                return
            _, _, stream = heapq.heappop(self._due)
            if stream.rtp.fileno() < 0:
                continue  # closed
            self._schedule(stream, now)
            reception = stream.reception()
            if reception is None or reception == stream.reported or stream.target is None:
                continue
            block = self._block(stream, reception)
            stream.reported, stream.has_reported = reception, True
            self._send(stream, receiver_report(stream.ssrc, self._cname, (block,)))

    def _schedule(self, stream: LiveStream, now: float) -> None:
        due = now + _REPORT_S * (0.5 + random.random())
        heapq.heappush(self._due, (due, next(self._numbers), stream))

    def _take(
        self, stream: LiveStream, srtp: SrtpReceiver | None, data: bytes, arrival_ns: int
    ) -> None:
        if stream.secure:
            try:
                data = srtp.unprotect_rtcp(data) if srtp is not None else b""
            except Replayed:
                return
            except NotAuthentic:
                data = b""
            if not data:
                stream.unauthenticated += 1
                self._uplink.counters.unauthenticated += 1
                return
        rtcp = read_rtcp(data)
        if rtcp is None or not (rtcp.reports or rtcp.byes):
            return
        for one in rtcp.reports:
            if one.ssrc in stream.clocks or len(stream.clocks) < _MOST_RTCP:
                stream.clocks[one.ssrc] = (one.ntp, arrival_ns)
        stream.sender_reports += len(rtcp.reports)
        stream.said_bye |= bool(rtcp.byes)
        if not stream.paused:
            stream.keep_rtcp(arrival_ns, data)

    def _block(self, stream: LiveStream, reception: Reception) -> ReportBlock:
        last = stream.reported
        expected, received = reception.expected, reception.received
        if last is not None and last.ssrc == reception.ssrc and last.expected <= expected:
            expected, received = expected - last.expected, received - last.received
        lost = max(0, expected - received)
        ntp, arrival_ns = stream.clocks.get(reception.ssrc, (0, 0))
        # Both by the clock that arrivals are told with.
        age_ns = self._clock.now_ns() - arrival_ns
        return ReportBlock(
            ssrc=reception.ssrc,
            fraction=min(255, 256 * lost // expected) if expected else 0,
            lost=reception.expected - reception.received,
            highest=reception.highest,
            jitter=round(stream.jitter.now),
            last_report=ntp >> 16 & 0xFFFFFFFF,
            delay=max(0, (age_ns << 16) // 1_000_000_000) if ntp else 0,
        )

    def _send(self, stream: LiveStream, packet: bytes) -> None:
        if stream.target is None or (stream.secure and stream.sender is None):
            return
        if stream.sender is not None:
            packet = stream.sender.protect_rtcp(packet)
        one = stream.rtp if stream.spec.rtcp_mux else stream.rtcp
        if one is None:
            return
        with contextlib.suppress(OSError):  # no way there: nobody misses a report
            one.sendto(packet, stream.target)


def _target(rtcp: tuple[str, int] | None, ours: str) -> tuple[str, int] | None:
    """Where to send RTCP. SDP is a stranger's text: a name would be looked up in the loop."""
    if rtcp is None or not 0 < rtcp[1] < 65536:
        return None
    # Zones are ours alone: RFC 4007 §11.2. The socket's own is where its link-local SRC is.
    host = rtcp[0].partition("%")[0]
    if source_of(host) is None or (":" in host) != (":" in ours):
        return None
    return host, rtcp[1]
