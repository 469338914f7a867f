"""The sweep: what waits at all sockets is taken, checked, counted and appended to the spools.

What is done for each packet is done for all packets of a sweep at once; what is done for each
stream is a system call to receive and one to write. Only a stream in which something is unusual
(lost, repeated, a new source, keys) gets more than that.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from siprec_bridge.receiver.arena import SLOTS, Arena, Ints
from siprec_bridge.receiver.decryption import Decryption
from siprec_bridge.receiver.feedback import Feedback
from siprec_bridge.receiver.handshakes import Handshakes
from siprec_bridge.receiver.live import LiveStream
from siprec_bridge.receiver.sources import Sources
from siprec_bridge.receiver.sweep import Receiver, WorkerClock, dropped, shield, shut
from siprec_bridge.receiver.uplink import Uplink
from siprec_bridge.rtp import (
    Arrivals,
    Batch,
    Ledger,
    arrivals,
    read_headers,
)

if TYPE_CHECKING:
    from siprec_bridge.receiver.ring import Ring

_ROW = np.dtype(
    [
        ("rate", "f8"), ("drops", "i8"), ("waited", "i8"), ("heard", "f8"),
        ("secure", "?"), ("spool", "i4"), ("behind", "?"),
    ]
)  # fmt: skip
_NEVER = np.inf  # `heard` of a row that is no stream's


@dataclass(frozen=True, slots=True)
class _Sweep:
    """All that came with one sweep, or with as much of it as the arena holds."""

    batch: Batch
    times: Arrivals
    lengths: Ints
    arrivals_ns: Ints
    dropped: dict[int, int]  # not to be counted as malformed, by the stream's first slot
    any_rtcp: bool
    now: float


def _by_socket(streams: Iterable[LiveStream]) -> tuple[list[socket.socket], Ints]:
    """The sockets of those that do not come out of the ring, and their rows."""
    chosen = [stream for stream in streams if not stream.by_ring]
    return [one.rtp for one in chosen], np.array([one.row for one in chosen], np.int64)


class Intake:
    """Takes datagrams out of the sockets and puts them where they belong."""

    def __init__(
        self,
        arena: Arena,
        receiver: Receiver,
        sources: Sources,
        feedback: Feedback,
        handshakes: Handshakes,
        uplink: Uplink,
        clock: WorkerClock,
        ring: "Ring | None",
    ) -> None:
        self._arena = arena
        self._receiver = receiver
        self._sources = sources
        self._feedback = feedback
        self._decryption = Decryption(arena, receiver, sources, handshakes, uplink)
        self._uplink = uplink
        self._clock = clock
        self._ring = ring
        self.ledger = Ledger()
        self._rows = np.zeros(0, _ROW)  # as in the ledger
        self._streams: dict[int, LiveStream] = {}  # by row
        self._sockets: tuple[list[socket.socket], Ints] | None = (
            None  # and their rows; None: look anew
        )

    def open(self, stream: LiveStream, now: float) -> None:
        """Get ready for a stream's packets."""
        if stream.row >= len(self._rows):
            more = np.zeros(2 * stream.row + 64 - len(self._rows), _ROW)
            self._rows = np.concatenate((self._rows, more))
            self._rows["heard"][-len(more) :] = _NEVER
        spool = stream.spool.descriptor
        self._rows[stream.row] = (0.0, stream.drops, 0, now, False, spool, False)
        self._streams[stream.row] = stream
        self._sockets = None
        self.follow(stream)

    def close(self, stream: LiveStream) -> None:
        """Forget a stream."""
        if self._ring is not None and stream.by_ring:
            self._ring.close(stream.spec.host, stream.rtp.getsockname()[1])
        del self._streams[stream.row]
        self._sockets = None
        self._rows["heard"][stream.row] = _NEVER

    def follow(self, stream: LiveStream) -> None:
        """Take over the clock of its time stamps, and whether it is secure."""
        self._rows["rate"][stream.row] = stream.rate
        self._rows["secure"][stream.row] = stream.secure

    def note_heard(self, stream: LiveStream, now: float) -> None:
        """Begin to wait for its next packet anew."""
        self._rows["heard"][stream.row] = now

    def quiet_since(self, then: float) -> list[tuple[LiveStream, float]]:
        """Streams that nothing was kept of since then, and when it last was; monotonic seconds."""
        heard = self._rows["heard"]
        rows = np.flatnonzero(heard <= then).tolist()
        return [(self._streams[row], float(heard[row])) for row in rows]

    def follow_source(self, stream: LiveStream) -> None:
        """Receive a stream the way that fits it: by the ring, where there is one.

        A handshake does not wait for the ring's blocks: DTLS has sockets. Nothing is lost
        where the way changes, but what comes meanwhile may be received twice.
        """
        if self._ring is None:
            return
        host, port = stream.spec.host, stream.rtp.getsockname()[1]
        wanted = stream.spec.dtls is None
        if wanted and not stream.by_ring:
            # What is there by now came to another stream, or to nobody while there was none at all:
            # nobody sweeps then. What came to this one is at its socket as well.
            self._sweep_ring(self._ring, alone=len(self._streams) == 1)
            self._ring.open(host, port, stream.row)
            self.sweep([stream])
            stream.by_ring = True
            self._sockets = None
            shut(stream.rtp)
        elif stream.by_ring and not wanted:
            shield(stream.rtp, stream.guests)
            with contextlib.suppress(OSError):  # what it was shut for was taken by the ring
                stream.drops = dropped(stream.rtp)
                self._rows["drops"][stream.row] = stream.drops
            self.settle()
            self._ring.close(host, port)
            stream.by_ring = False
            self._sockets = None

    def settle(self) -> None:
        """Take what has come by now, though the ring may not have handed it over yet."""
        if self._ring is not None and self._streams:
            self._ring.settle()
            self._sweep_ring(self._ring)

    def _sweep_ring(self, ring: "Ring", *, alone: bool = False) -> None:
        for rows, counts in ring.take(self._arena):
            self._store(rows, counts)
        self._arena.use_slots()
        drops = ring.drops()
        if not alone:
            self._uplink.counters.kernel_drops += drops

    def sweep(self, streams: Iterable[LiveStream] | None = None) -> None:
        """Take everything that waits for these streams, or for all, in as many rounds as it needs."""
        if self._ring is not None:
            self._sweep_ring(self._ring)
        if streams is not None:
            sockets, rows = _by_socket(streams)
        else:
            if self._sockets is None:
                self._sockets = _by_socket(self._streams.values())
            sockets, rows = self._sockets
        first = 0
        while first < len(sockets):
            counts = np.array(self._receiver.receive(sockets, first, self._arena))
            used = int(counts.sum())
            if used:
                there = np.flatnonzero(counts)
                self._store(rows[first + there], counts[there])
            first += len(counts) - (used == SLOTS)

    def _store(self, rows: Ints, counts: Ints) -> None:
        """`counts`: datagrams that lie in the arena for each of the streams, by their rows."""
        arena, used = self._arena, int(counts.sum())
        self._clock.steady(arena.arrivals_ns[:used])
        starts = np.cumsum(counts) - counts
        of = np.repeat(rows, counts)
        sweep = self._look(rows, starts, counts, of)
        self._look_for_drops(rows, starts, counts, used)
        orderly = self.ledger.take(
            rows, starts, sweep.batch, sweep.times, sweep.lengths, sweep.arrivals_ns
        )
        self._rows["heard"][rows[orderly]] = sweep.now
        self._uplink.counters.packets += int(counts[orderly].sum())
        self._uplink.counters.octets += int(np.add.reduceat(sweep.lengths, starts)[orderly].sum())
        packed, places = arena.pack(used)
        ends = starts + counts
        at_once = orderly & ~self._rows["behind"][rows]
        self._append(rows[at_once], packed, places[starts[at_once]], places[ends[at_once]])
        for index in np.flatnonzero(~at_once).tolist():
            stream, start, end = self._streams[rows[index]], int(starts[index]), int(ends[index])
            if orderly[index]:
                pieces = [packed[places[start] : places[end]]]
            else:
                slots = self._count(stream, start, end, sweep)
                pieces = [packed[places[one] : places[one + 1]] for one in slots]
            if pieces:
                self._note_written(stream, stream.spool.write(pieces))

    def _append(self, rows: Ints, packed: memoryview, begins: Ints, ends: Ints) -> None:
        """Write a piece of `packed` to the spool of each row; none of them waits for the disk.

        No stream is looked at: of thousands, the objects of each would have to be fetched from memory.
        """
        write, descriptors = os.write, self._rows["spool"][rows].tolist()
        places = zip(descriptors, begins.tolist(), ends.tolist(), strict=True)
        for index, (descriptor, begin, end) in enumerate(places):
            try:
                written = write(descriptor, packed[begin:end])
            except OSError:
                written = 0
            if written != end - begin:
                stream = self._streams[rows[index]]
                self._note_written(stream, stream.spool.mend(packed[begin:end], written))

    def _look(self, rows: Ints, starts: Ints, counts: Ints, of: Ints) -> _Sweep:
        arena, used = self._arena, len(of)
        lengths, arrivals_ns = arena.lengths[:used], arena.arrivals_ns[:used]
        dropped: dict[int, int] = {}
        secure = self._rows["secure"][rows]
        if secure.any():
            streams = [self._streams[row] for row in rows[secure].tolist()]
            dropped = self._decryption.take(streams, secure, counts)
        batch = read_headers(arena.data, arena.offsets[:used], lengths)
        for start, count in self._sources.turn_away(self._streams, starts, of, batch).items():
            dropped[start] = dropped.get(start, 0) + count
        times = arrivals(arrivals_ns, batch.timestamp, batch.ssrc, self._rows["rate"][of])
        return _Sweep(
            batch, times, lengths, arrivals_ns, dropped, bool(batch.rtcp.any()), time.monotonic()
        )

    def _look_for_drops(self, rows: Ints, starts: Ints, counts: Ints, used: int) -> None:
        """Take over the kernel's counts where they have changed. -1: it told none."""
        told = np.maximum.reduceat(self._arena.drops[:used], starts)
        before = self._rows["waited"][rows]
        changed = (told >= 0) & (told != self._rows["drops"][rows])
        for index in np.flatnonzero(changed).tolist():
            waiting = max(int(before[index]), int(counts[index]))
            self._sources.count_drops(self._streams[rows[index]], int(told[index]), waiting)
            self._rows["drops"][rows[index]] = told[index]
        self._rows["waited"][rows] = counts

    def _count(self, stream: LiveStream, start: int, stop: int, sweep: _Sweep) -> Ints:
        """Count a stream's packets by themselves; returns the slots of those that are kept."""
        nothing = np.zeros(0, np.int64)
        counters = self._uplink.counters
        reports = 0
        if sweep.any_rtcp:
            reports = self._feedback.take_muxed(stream, sweep.batch, start, stop)
        if stream.paused:
            return nothing
        slots: Ints = np.flatnonzero(sweep.batch.valid[start:stop]) + start
        bad = stop - start - len(slots) - sweep.dropped.get(start, 0) - reports
        stream.malformed += bad
        counters.malformed += bad
        if not len(slots):
            return nothing
        self._rows["heard"][stream.row] = sweep.now
        if stream.first_ns is None:
            self._uplink.tell_of(stream, "started")
        elif stream.silent:
            self._uplink.tell_of(stream, "heard_again")
        stream.silent = False
        before = stream.sequence.duplicates
        octets = stream.count(sweep.batch, slots, sweep.arrivals_ns, sweep.lengths, sweep.times)
        self.follow(stream)
        counters.packets += len(slots)
        counters.octets += octets
        counters.duplicates += stream.sequence.duplicates - before
        return slots

    def _note_written(self, stream: LiveStream, cause: str | None) -> None:
        behind = cause is not None
        if behind != self._rows["behind"][stream.row]:
            self._rows["behind"][stream.row] = behind
            if not behind and stream.spool.dropped:
                cause = f"{stream.spool.dropped:,} octets found no room for too long"
            name = "write_failed" if behind else "written_again"
            self._uplink.tell_of(stream, name, cause=cause)
