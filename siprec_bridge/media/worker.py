"""A media worker: owns RTP and RTCP sockets, sweeps them on a timer, appends to the spools.

`python -m siprec_bridge.media.worker FD`, where FD is its end of a socket pair to the bridge.
It ends when the other end is gone, after a last sweep.
"""

import base64
import contextlib
import heapq
import itertools
import os
import random
import resource
import select
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import numpy as np

from siprec_bridge.media.control import (
    LINE_LIMIT,
    SWEEP_S,
    Configuration,
    Counters,
    StreamReport,
    StreamSpec,
    decode,
    encode,
)
from siprec_bridge.media.ports import NoPortLeft, PortRange
from siprec_bridge.media.quality import clock_rate
from siprec_bridge.media.spool import write_records
from siprec_bridge.media.stream import ReceivedStream, open_spool, srtp_receiver
from siprec_bridge.media.sweep import (
    NOBODY,
    SLOTS,
    Arena,
    Source,
    address_of,
    best_receiver,
    prepare,
    prepare_rtcp,
    receive_stamped,
    room,
    shield,
    source_of,
)
from siprec_bridge.rtp import (
    HEADER_SIZE,
    Batch,
    NotAuthentic,
    Reception,
    Replayed,
    ReportBlock,
    SrtpReceiver,
    SrtpSender,
    read_headers,
    read_rtcp,
    receiver_report,
)
from siprec_bridge.rtp import arrivals as of_arrivals

_REPORT_S = 5.0  # mean of the time between receiver reports of a stream. RFC 3550 §6.2
_MOST_REPORTS = 1000  # of one sweep; the others go with the next ones
_MOST_RTCP = 16  # datagrams of a stream in a sweep


@dataclass(eq=False, slots=True, kw_only=True)
class _Stream(ReceivedStream):
    rtp: socket.socket
    rtcp: socket.socket
    room: int  # for datagrams that wait
    sender: SrtpSender | None = None
    target: tuple[str, int] | None = None  # of our RTCP
    ssrc: int = field(default_factory=lambda: random.getrandbits(32))  # ours
    clocks: dict[int, tuple[int, int]] = field(default_factory=dict)  # SSRC -> NTP of SR, arrival
    sender_reports: int = 0
    said_bye: bool = False
    reported: Reception | None = None  # with our last report
    has_reported: bool = False
    homes: frozenset[Source] = frozenset()  # where the SRC itself says that it is
    source: Source = NOBODY  # whose packets are taken, besides those from home; nobody's: anyone's
    guests: frozenset[Source] = frozenset()  # whom the kernel lets through; none: anyone
    strangers: int = 0  # datagrams dropped
    waited: int = 0  # datagrams at the last sweep
    drops: int = 0  # the kernel's count, for want of room or by our filter
    kernel_drops: int = 0  # of these, for want of room
    heard_at: float = 0.0  # monotonic
    silent: bool = False
    write_failed: bool = False

    def report(self) -> StreamReport:
        return replace(
            ReceivedStream.report(self),
            sender_reports=self.sender_reports,
            said_bye=self.said_bye,
            kernel_drops=self.kernel_drops,
        )


class Worker:
    """The loop: commands as they come, a sweep whenever one is due."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._streams: dict[str, _Stream] = {}
        self._arena = Arena()
        self._buffer = b""
        self._configure(Configuration(16384, 32767, True, 30.0, "any"))
        self._bound: dict[tuple[str, int | None], tuple[socket.socket, socket.socket]] = {}
        self._counters = Counters()
        self._rtcp = selectors.DefaultSelector()
        self._reports: list[tuple[float, int, _Stream]] = []  # a heap by time
        self._numbers = itertools.count()
        self._cname = base64.b64encode(os.urandom(12)).decode()  # RFC 7022 §4.2
        self._clock_offset_ns = time.time_ns() - time.monotonic_ns()

    def run(self) -> None:
        """Serve until the bridge is gone."""
        due = swept_at = time.monotonic()
        worked = time.process_time()
        while True:
            idle = not self._streams
            wait = None if idle else max(0.0, due - time.monotonic())
            readable, _, _ = select.select([self._control], [], [], wait)
            if readable and not self._take_commands():
                break
            now = time.monotonic()
            if idle:  # there was nothing to be late with
                due, swept_at, worked = now + SWEEP_S, now, time.process_time()
            elif now >= due:
                self._sweep(list(self._streams.values()))
                self._read_rtcp()
                self._send_reports(now)
                self._look_for_silence(now)
                spent = time.process_time()
                self._counters.late = round(now - due, 6)
                self._counters.busy = round((spent - worked) / (now - swept_at), 4)
                self._tell_counters()
                due, swept_at, worked = now + SWEEP_S, now, spent
        self._close(list(self._streams))
        self._rtcp.close()

    def _take_commands(self) -> bool:
        data = self._control.recv(1 << 16)
        if not data:
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > LINE_LIMIT:
            return False
        for line in lines:
            command = decode(line)
            try:
                reply = self._do(command)
            except NoPortLeft as error:
                reply = {"error": "no_port_left", "cause": str(error)}
            except OSError as error:
                reply = {"error": "os", "cause": f"{error.strerror}: {error.filename or ''}"}
            self._tell({"id": command["id"], **reply})
        return True

    def _do(self, command: dict[str, object]) -> dict[str, object]:
        match command:
            case {"do": "configure", "configuration": dict(configuration)}:
                return self._configure(Configuration.from_json(configuration))
            case {"do": "bind", "ports": list(ports)}:
                return self._bind([(str(host), int(port)) for host, port in ports])
            case {"do": "open", "spec": dict(spec), "port": port, "rollovers": list(rollovers)}:
                wanted = port if isinstance(port, int) else None
                return self._open(StreamSpec.from_json(spec), wanted, dict(rollovers))
            case {"do": "update", "spec": dict(spec)}:
                return self._update(StreamSpec.from_json(spec))
            case {"do": "pause", "stream": str(name), "paused": bool(paused), "at_ns": int(at_ns)}:
                return self._pause(name, paused, at_ns)
            case {"do": "close", "streams": list(names)}:
                return {"reports": [one.to_json() for one in self._close(names)]}
            case _:
                raise ValueError(f"unknown command {command.get('do')}")

    def _configure(self, configuration: Configuration) -> dict[str, object]:
        self._rtp_timeout = configuration.rtp_timeout
        self._ports = PortRange(configuration.first, configuration.last)
        self._sources = configuration.sources
        self._receiver = best_receiver(self._arena, fast=configuration.fast)
        return {"receiver": type(self._receiver).__name__}

    def _bind(self, ports: list[tuple[str, int]]) -> dict[str, object]:
        """Have sockets ready for streams that are about to be opened."""
        for place in ports:
            with contextlib.suppress(NoPortLeft, OSError):  # its opening tries again, and tells
                self._bound[place] = rtp, rtcp = self._ports.bind(*place)
                prepare(rtp)
                prepare_rtcp(rtcp)
        return {}

    def _open(
        self, spec: StreamSpec, port: int | None, rollovers: dict[int, int]
    ) -> dict[str, object]:
        known = self._streams.get(spec.stream_id)
        if known is None:
            bound = self._bound.pop((spec.host, port), None)
            rtp, rtcp = bound or self._ports.bind(spec.host, port)
            try:
                prepare(rtp)
                prepare_rtcp(rtcp)
                spool = open_spool(spec, time.time_ns())
            except OSError:
                rtp.close()
                rtcp.close()
                raise
            srtp = srtp_receiver(spec, rollovers)
            now = time.monotonic()
            known = _Stream(spec, spool, srtp, rtp=rtp, rtcp=rtcp, room=room(rtp), heard_at=now)
            self._streams[spec.stream_id] = known
            self._rtcp.register(rtcp, selectors.EVENT_READ, known)
            self._follow(known, None)
            self._schedule(known, now)
        number = known.rtp.getsockname()[1]
        return {"port": [known.spec.host, number, number + 1]}

    def _update(self, spec: StreamSpec) -> dict[str, object]:
        stream = self._streams.get(spec.stream_id)
        if stream is not None:
            self._sweep([stream])
            old = stream.spec
            stream.take_over(spec, time.time_ns())
            self._follow(stream, old)
        return {}

    def _pause(self, name: str, paused: bool, at_ns: int) -> dict[str, object]:
        stream = self._streams.get(name)
        if stream is not None and stream.paused != paused:
            self._sweep([stream])
            stream.pause(paused, at_ns)
            stream.heard_at = time.monotonic()
        return {}

    def _close(self, names: list[str]) -> list[StreamReport]:
        streams = [self._streams[name] for name in names if name in self._streams]
        self._sweep(streams)
        self._tell_counters()
        self._read_rtcp()
        for stream in streams:
            if stream.has_reported:
                self._send_rtcp(stream, receiver_report(stream.ssrc, self._cname, bye=True))
            self._rtcp.unregister(stream.rtcp)
            stream.rtp.close()
            stream.rtcp.close()
            stream.spool.close()
            del self._streams[stream.spec.stream_id]
        return [stream.report() for stream in streams]

    # The sweep

    def _sweep(self, streams: list[_Stream]) -> None:
        """Take everything that waits, in as many rounds as the arena needs."""
        waiting = streams
        while waiting:
            taken: list[tuple[_Stream, int, int]] = []
            used, left = 0, iter(waiting)
            for stream in left:
                count = self._receiver.receive(stream.rtp, self._arena, used)
                if count:
                    taken.append((stream, used, used + count))
                used += count
                if used == SLOTS:
                    waiting = [stream, *left]
                    break
            else:
                waiting = []
            if used:
                self._store(taken, used)

    def _store(self, taken: list[tuple[_Stream, int, int]], used: int) -> None:
        arena = self._arena
        self._receiver.complete(arena, used)
        lengths = arena.lengths[:used]
        # As a clock tells it that nobody sets: a call keeps its length when the wall clock steps.
        arena.arrivals_ns[:used] -= time.time_ns() - time.monotonic_ns() - self._clock_offset_ns
        dropped = {
            start: self._decrypt(stream, stream.srtp, start, stop)
            for stream, start, stop in taken
            if stream.srtp is not None
        }
        batch = read_headers(arena.data, arena.offsets[:used], lengths)
        for start, count in self._turn_away(taken, batch, used).items():
            dropped[start] = dropped.get(start, 0) + count
        rates = [float(clock_rate(stream.spec.codecs)) for stream, _, _ in taken]
        counts = [stop - start for _, start, stop in taken]
        times = of_arrivals(
            arena.arrivals_ns[:used], batch.timestamp, batch.ssrc, np.repeat(rates, counts)
        )
        any_rtcp = bool(batch.rtcp.any())
        write_records(arena.heads[:used], lengths, arena.arrivals_ns[:used])
        now = time.monotonic()
        for stream, start, stop in taken:
            self._take_drops(stream, int(arena.drops[start:stop].max()), stop - start)
            reports = self._take_muxed(stream, batch, start, stop) if any_rtcp else 0
            if stream.paused:
                continue  # nothing of a paused stream is kept
            slots = np.flatnonzero(batch.valid[start:stop]) + start
            bad = stop - start - len(slots) - dropped.get(start, 0) - reports
            stream.malformed += bad
            self._counters.malformed += bad
            if not len(slots):
                continue
            self._note(stream, now)
            before = stream.sequence.duplicates
            octets = stream.count(batch, slots, arena.arrivals_ns, lengths, times)
            self._counters.packets += len(slots)
            self._counters.octets += octets
            self._counters.duplicates += stream.sequence.duplicates - before
            records = [
                arena.record(slot, length)
                for slot, length in zip(slots.tolist(), lengths[slots].tolist(), strict=True)
            ]
            self._write(stream, records)

    def _decrypt(self, stream: _Stream, srtp: SrtpReceiver, start: int, stop: int) -> int:
        """Put RTP in the place of SRTP; what is none is emptied. Returns how many these were.

        What is no RTP at all stays, and so does RTCP. The order of arrival is kept, and a paused
        stream is decrypted too: roll-over counters follow what is sent, not what is recorded.
        """
        arena, view = self._arena, self._arena.view
        lengths = arena.lengths[start:stop].tolist()
        repeated = unauthenticated = 0
        for slot, at, length in zip(
            range(start, stop), arena.offsets[start:stop].tolist(), lengths, strict=True
        ):
            if length < HEADER_SIZE or view[at] >> 6 != 2 or 192 <= view[at + 1] <= 223:
                continue
            try:
                plain = srtp.unprotect(bytes(view[at : at + length]))
            except Replayed:
                repeated += 1
                plain = b""
            except NotAuthentic:
                unauthenticated += 1
                plain = b""
            view[at : at + len(plain)] = plain
            arena.lengths[slot] = len(plain)
        for ssrc, rollovers in srtp.turned:
            self._tell_of(stream, "turned", ssrc=ssrc, rollovers=rollovers)
        srtp.turned.clear()
        if not stream.paused:
            stream.sequence.duplicates += repeated
            self._counters.duplicates += repeated
        if unauthenticated:
            if not stream.unauthenticated:
                self._tell_of(stream, "not_authentic")
            stream.unauthenticated += unauthenticated
            self._counters.unauthenticated += unauthenticated
        return repeated + unauthenticated

    def _note(self, stream: _Stream, now: float) -> None:
        """Tell of a stream that is heard, ahead of the counting of its packets."""
        stream.heard_at = now
        if stream.first_ns is None:
            self._tell_of(stream, "started")
        elif stream.silent:
            self._tell_of(stream, "heard_again")
        stream.silent = False

    def _write(self, stream: _Stream, records: list[memoryview]) -> None:
        cause = stream.spool.write(records)
        if (cause is not None) != stream.write_failed:
            stream.write_failed = cause is not None
            self._tell_of(stream, "write_failed" if cause else "written_again", cause=cause)

    def _look_for_silence(self, now: float) -> None:
        for stream in self._streams.values():
            quiet = now - stream.heard_at
            if quiet >= self._rtp_timeout and not stream.silent and not stream.paused:
                stream.silent = True
                self._take_only(stream, NOBODY)  # it may have moved
                self._tell_of(stream, "silent", seconds=round(quiet, 1))

    # Who may send

    def _expect(self, stream: _Stream) -> None:
        """Take over where the SRC says that it is; what was learned holds until it says more."""
        spec = stream.spec
        hosts = [spec.rtcp[0] if spec.rtcp is not None else None]
        if self._sources == "learned":
            hosts.append(spec.peer)
        homes = frozenset(
            one for host in hosts if host is not None and (one := source_of(host)) is not None
        )
        if homes != stream.homes:
            stream.homes = homes
            self._take_only(stream, NOBODY)

    def _take_only(self, stream: _Stream, source: Source) -> None:
        """Lock a stream to a source, or (nobody) to none."""
        stream.source = source
        guests: frozenset[Source] = frozenset()
        if self._sources != "any" and (source != NOBODY or self._is_strict(stream)):
            guests = stream.homes | ({source} - {NOBODY})
        if guests != stream.guests:
            stream.guests = guests
            # Kept out by the kernel, a flood takes none of the room of what is to be recorded.
            shield(stream.rtp, guests)

    def _is_strict(self, stream: _Stream) -> bool:
        """Whether it comes from home only. Without one it cannot: it is learned then."""
        return self._sources == "signalled" and bool(stream.homes)

    def _takes(self, stream: _Stream, source: Source) -> bool:
        return not stream.guests or source in stream.guests

    def _turn_away(
        self, taken: list[tuple[_Stream, int, int]], batch: Batch, used: int
    ) -> dict[int, int]:
        """Mark what strangers sent as not valid; how many of each stream, by its first slot."""
        if self._sources == "any":
            return {}
        sources = self._arena.sources[:used]
        counts = [stop - start for _, start, stop in taken]
        usual = np.array([stream.source for stream, _, _ in taken], np.uint64)
        other = (sources != np.repeat(usual, counts, axis=0)).any(axis=1)
        if not other.any():
            return {}
        found = np.logical_or.reduceat(other, [start for _, start, _ in taken])
        return {
            taken[index][1]: self._turn_away_from(*taken[index], batch)
            for index in np.flatnonzero(found).tolist()
        }

    def _turn_away_from(self, stream: _Stream, start: int, stop: int, batch: Batch) -> int:
        """Learn from the sources of a stream's packets which is its own; the others' go.

        Home comes first. Elsewhere a source is believed when it sends two packets in sequence
        (RFC 3550 A.1); as long as none is, all are taken.
        """
        sources = [(high, low) for high, low in self._arena.sources[start:stop].tolist()]
        valid = batch.valid[start:stop]
        by_source: dict[Source, list[int]] = {}
        for at in np.flatnonzero(valid).tolist():
            by_source.setdefault(sources[at], []).append(start + at)
        home = next((one for one in by_source if one in stream.homes), None)
        if home is not None:
            if stream.source not in stream.homes:
                self._take_only(stream, home)
        elif stream.source == NOBODY and not self._is_strict(stream):
            for one, slots in by_source.items():
                if bool((np.diff(batch.sequence[slots]) == 1).any()):
                    self._take_only(stream, one)
                    self._tell_of(stream, "learned", cause=address_of(one))
                    break
        if not stream.guests:
            return 0
        # What failed to decrypt is counted already.
        lengths = self._arena.lengths[start:stop].tolist()
        strange = [
            at
            for at, one in enumerate(sources)
            if one not in stream.guests and (lengths[at] or stream.srtp is None)
        ]
        if strange:
            places = np.array(strange) + start
            batch.valid[places] = batch.rtcp[places] = False
            self._count_strangers(stream, sources[strange[0]], len(strange))
        return len(strange)

    def _count_strangers(self, stream: _Stream, source: Source, count: int) -> None:
        if not stream.strangers:
            self._tell_of(stream, "stranger", cause=address_of(source))
        stream.strangers += count
        self._counters.strangers += count

    def _take_drops(self, stream: _Stream, told: int, waiting: int) -> None:
        """Tell what the kernel had no room for from what it kept out.

        It counts both in one; but only where many were waiting can there have been no room.
        """
        waited, stream.waited = stream.waited, waiting
        if told < 0 or told == stream.drops:
            return
        more = (told - stream.drops) & 0xFFFFFFFF
        stream.drops = told
        if stream.guests and max(waited, waiting) < stream.room:
            stream.strangers += more
            self._counters.strangers += more
        else:
            stream.kernel_drops += more
            self._counters.kernel_drops += more

    # RTCP. RFC 3550 §6

    def _follow(self, stream: _Stream, old: StreamSpec | None) -> None:
        """Take over where it comes from, where its RTCP goes, and with which key."""
        spec = stream.spec
        self._expect(stream)
        stream.target = _target(spec.rtcp, spec.host)
        keys, before = spec.keys, old.keys if old is not None else None
        if keys is None:
            stream.sender = None
        elif before is None or before.local != keys.local:
            stream.sender = SrtpSender(keys.suite, keys.local)

    def _read_rtcp(self) -> None:
        for key, _ in self._rtcp.select(0):
            stream: _Stream = key.data
            for _ in range(_MOST_RTCP):
                received = receive_stamped(stream.rtcp)
                if received is None:
                    break
                data, arrival_ns, source = received
                if not self._takes(stream, source):
                    self._count_strangers(stream, source, 1)
                    continue
                arrival_ns -= time.time_ns() - time.monotonic_ns() - self._clock_offset_ns
                self._take_rtcp(stream, data, arrival_ns)

    def _take_muxed(self, stream: _Stream, batch: Batch, start: int, stop: int) -> int:
        """RTCP among the RTP (RFC 5761), agreed on or not; returns how much there was."""
        arena = self._arena
        slots = (np.flatnonzero(batch.rtcp[start:stop]) + start).tolist()
        for slot in slots:
            at = int(arena.offsets[slot])
            data = bytes(arena.view[at : at + int(arena.lengths[slot])])
            self._take_rtcp(stream, data, int(arena.arrivals_ns[slot]))
        return len(slots)

    def _take_rtcp(self, stream: _Stream, data: bytes, arrival_ns: int) -> None:
        if stream.srtp is not None:
            try:
                data = stream.srtp.unprotect_rtcp(data)
            except Replayed:
                return
            except NotAuthentic:
                stream.unauthenticated += 1
                self._counters.unauthenticated += 1
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
            stream.spool.rtcp(arrival_ns, data)

    def _schedule(self, stream: _Stream, now: float) -> None:
        due = now + _REPORT_S * (0.5 + random.random())
        heapq.heappush(self._reports, (due, next(self._numbers), stream))

    def _send_reports(self, now: float) -> None:
        """Report on the streams that are due and were heard since their last report."""
        for _ in range(min(_MOST_REPORTS, len(self._reports))):
            if self._reports[0][0] > now:
                return
            _, _, stream = heapq.heappop(self._reports)
            if self._streams.get(stream.spec.stream_id) is not stream:
                continue
            self._schedule(stream, now)
            reception = stream.sequence.reception
            if reception is None or reception == stream.reported or stream.target is None:
                continue
            block = self._block(stream, reception)
            stream.reported, stream.has_reported = reception, True
            self._send_rtcp(stream, receiver_report(stream.ssrc, self._cname, (block,)))

    def _block(self, stream: _Stream, reception: Reception) -> ReportBlock:
        last = stream.reported
        expected, received = reception.expected, reception.received
        if last is not None and last.ssrc == reception.ssrc and last.expected <= expected:
            expected, received = expected - last.expected, received - last.received
        lost = max(0, expected - received)
        ntp, arrival_ns = stream.clocks.get(reception.ssrc, (0, 0))
        # Both by the clock that arrivals are told with.
        age_ns = time.monotonic_ns() + self._clock_offset_ns - arrival_ns
        return ReportBlock(
            ssrc=reception.ssrc,
            fraction=min(255, 256 * lost // expected) if expected else 0,
            lost=reception.expected - reception.received,
            highest=reception.highest,
            jitter=round(stream.jitter.now),
            last_report=ntp >> 16 & 0xFFFFFFFF,
            delay=max(0, (age_ns << 16) // 1_000_000_000) if ntp else 0,
        )

    def _send_rtcp(self, stream: _Stream, packet: bytes) -> None:
        if stream.target is None:
            return
        if stream.sender is not None:
            packet = stream.sender.protect_rtcp(packet)
        one = stream.rtp if stream.spec.rtcp_mux else stream.rtcp
        with contextlib.suppress(OSError):  # no way there: nobody misses a report
            one.sendto(packet, stream.target)

    # Telling

    def _tell_counters(self) -> None:
        if counted := self._counters.to_json():
            self._tell({"event": "counters", "counters": counted})
            self._counters = Counters()

    def _tell_of(self, stream: _Stream, event: str, **more: object) -> None:
        spec = stream.spec
        self._tell(
            {
                "event": event,
                "stream_id": spec.stream_id,
                "session_id": spec.session_id,
                "label": spec.label,
                **more,
            }
        )

    def _tell(self, message: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # the bridge is gone: the next read says so
            self._control.sendall(encode(message))


def _target(rtcp: tuple[str, int] | None, ours: str) -> tuple[str, int] | None:
    """Where to send RTCP. SDP is a stranger's text: a name would be looked up in the loop."""
    if rtcp is None or not rtcp[1]:
        return None
    try:
        address = ip_address(rtcp[0])
    except ValueError:
        return None
    if address.is_multicast or address.is_unspecified or (address.version == 6) != (":" in ours):
        return None
    return rtcp


def _allow_many_sockets() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Serve the socket whose number is the first argument."""
    # A terminal's Ctrl-C goes to the whole group; the bridge says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        control.setblocking(True)
        _allow_many_sockets()
        Worker(control).run()


if __name__ == "__main__":
    main()
