"""A media worker: owns RTP and RTCP sockets, sweeps them on a timer, appends to the spools.

`python -m siprec_bridge.receiver.worker FD`, where FD is its end of a socket pair to the bridge.
It ends when the other end is gone, after a last sweep.
"""

import contextlib
import ctypes
import errno
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from siprec_bridge.receiver import descriptors
from siprec_bridge.receiver.arena import Arena
from siprec_bridge.receiver.control import (
    LINE_LIMIT,
    SWEEP_S,
    Configuration,
    StreamReport,
    StreamSpec,
    decode,
)
from siprec_bridge.receiver.durable import Durable
from siprec_bridge.receiver.feedback import Feedback
from siprec_bridge.receiver.handshakes import Handshakes
from siprec_bridge.receiver.intake import Intake
from siprec_bridge.receiver.live import LiveStream
from siprec_bridge.receiver.ports import NoPortLeft, PortRange, bind_one, bind_pair
from siprec_bridge.receiver.sources import Sources
from siprec_bridge.receiver.stream import open_spool, srtp_receiver
from siprec_bridge.receiver.sweep import (
    WorkerClock,
    best_receiver,
    prepare,
    prepare_rtcp,
    room,
    stamping,
)
from siprec_bridge.receiver.uplink import Uplink

if TYPE_CHECKING:
    from siprec_bridge.receiver.ring import Ring

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_SWEPT_FIRST = ("update", "pause", "close")


class Worker:
    """The loop: commands as they come, a sweep whenever one is due."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._streams: dict[str, LiveStream] = {}
        self._buffer = b""
        self._wake = (
            selectors.DefaultSelector()
        )  # data: a stream and whether its RTCP; None: control
        self._wake.register(control, selectors.EVENT_READ)
        self._sweep_s = SWEEP_S
        self._bound: dict[tuple[str, int | None], tuple[socket.socket, socket.socket | None]] = {}
        self._arena = Arena()
        self._clock = WorkerClock()
        self._stamping = stamping()
        self._uplink = Uplink(control)
        self._durable = Durable()
        self._configure(Configuration(16384, 32767, True, 30.0, "any"))

    def run(self) -> None:
        """Serve until the bridge is gone."""
        due = swept_at = time.monotonic()
        worked = time.process_time()
        while True:
            idle = not self._streams
            wait = None if idle else max(0.0, due - time.monotonic())
            if not self._wait(wait):
                break
            now = time.monotonic()
            if idle:  # there was nothing to be late with
                due, swept_at, worked = now + self._sweep_s, now, time.process_time()
            elif now >= due:
                self.sweep(now)
                spent = time.process_time()
                self._uplink.counters.late = round(now - due, 6)
                self._uplink.counters.busy = round((spent - worked) / (now - swept_at), 4)
                self._uplink.tell_counters()
                due, swept_at, worked = now + self._sweep_s, now, spent
        self.stop()

    def _wait(self, seconds: float | None) -> bool:
        """Until a sweep is due, or something does not want to wait. False: the bridge is gone."""
        ready = [key.data for key, _ in self._wake.select(seconds)]
        for data in ready:
            if data is not None:
                stream, rtcp = data
                if rtcp:
                    self._feedback.read_from(stream)
                else:
                    self._intake.sweep([stream])
        return None not in ready or self._take_commands()

    def sweep(self, now: float) -> None:
        """Do all that a sweep does; `now` is monotonic."""
        self._intake.sweep()
        self._feedback.read()
        self._handshakes.advance(now)
        self._feedback.send(now)
        self._look_for_silence(now)

    def stop(self) -> None:
        """Close all streams."""
        self._close(list(self._streams))
        self._feedback.stop()
        self._durable.stop()
        self._ports.close()
        self._stamping.close()
        self._wake.close()

    def _take_commands(self) -> bool:
        try:
            data = self._control.recv(1 << 16)
        except ConnectionResetError:  # the bridge died with answers of ours unread
            return False
        if not data:
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > LINE_LIMIT:
            return False
        commands = [decode(line) for line in lines]
        if any(command["do"] in _SWEPT_FIRST for command in commands):
            self._intake.settle()
        for command in commands:
            if command["do"] == "close":
                self._close(command["streams"], partial(self._tell_closed, command["id"]))
                continue
            try:
                reply = self._do(command)
            except NoPortLeft as error:
                reply = {"error": "no_port_left", "cause": str(error)}
            except OSError as error:
                # Without a file there is no port, here; another worker may have both.
                kind = "no_port_left" if error.errno == errno.EMFILE else "os"
                reply = {"error": kind, "cause": f"{error.strerror}: {error.filename or ''}"}
            except Exception as error:  # noqa: BLE001  ours, and this stream's alone
                # It would end all others, and again at each start: a new worker is told the same.
                sys.excepthook(type(error), error, error.__traceback__)
                reply = {"error": "os", "cause": f"{type(error).__name__}: {error}"}
            self._uplink.tell({"id": command["id"], **reply})
        return True

    def _do(self, command: dict[str, object]) -> dict[str, object]:
        match command:
            case {"do": "configure", "configuration": dict(configuration)}:
                return self._configure(Configuration.from_json(configuration))
            case {"do": "bind", "ports": list(ports)}:
                return self._bind(
                    [(str(host), int(port), mux is True) for host, port, mux in ports]
                )
            case {"do": "open", "spec": dict(spec), "port": port, "rollovers": list(rollovers)}:
                wanted = port if isinstance(port, int) else None
                paused = command.get("paused") is True
                return self._open(StreamSpec.from_json(spec), wanted, dict(rollovers), paused)
            case {"do": "update", "spec": dict(spec)}:
                return self._update(StreamSpec.from_json(spec))
            case {"do": "pause", "stream": str(name), "paused": bool(paused), "at_ns": int(at_ns)}:
                return self._pause(name, paused, at_ns)
            case {"do": "sweep", "every": float(seconds)}:
                self._sweep_s = seconds
                return {}
            case _:
                raise ValueError(f"unknown command {command.get('do')}")

    def _configure(self, configuration: Configuration) -> dict[str, object]:
        """Get ready; before the first stream is opened."""
        self._rtp_timeout = configuration.rtp_timeout
        self._ports = PortRange(configuration.first, configuration.last)
        receiver = best_receiver(self._arena, fast=configuration.fast)
        ring, refusal = _open_ring(configuration)
        self._sources = Sources(self._arena, self._uplink, configuration.sources)
        self._handshakes = Handshakes(self._uplink, self._wake)
        self._feedback = Feedback(
            self._arena, self._sources, self._handshakes, self._uplink, self._clock
        )
        self._intake = Intake(
            self._arena,
            receiver,
            self._sources,
            self._feedback,
            self._handshakes,
            self._uplink,
            self._clock,
            ring,
        )
        return {
            "receiver": receiver.name if ring is None else ring.name,
            "no_ring": refusal,
            "room": descriptors.allow(self._ports.pairs),
            "room_muxed": descriptors.room(self._ports.pairs, descriptors.OF_A_MUXED),
        }

    def _bind(self, ports: list[tuple[str, int, bool]]) -> dict[str, object]:
        """Have sockets ready for streams that are about to be opened."""
        for host, port, mux in ports:
            with contextlib.suppress(NoPortLeft, OSError):  # its opening tries again, and tells
                rtp, rtcp = self._sockets(host, port, mux)
                self._bound[host, port] = rtp, rtcp
                prepare(rtp)
                if rtcp is not None:
                    prepare_rtcp(rtcp)
        return {}

    def _sockets(
        self, host: str, port: int | None, mux: bool
    ) -> tuple[socket.socket, socket.socket | None]:
        """RTP's, and RTCP's where that has a port of its own.

        The other one's pair was free when it was chosen, and nobody else of ours gets its upper port.
        """
        if port is None:
            rtp, rtcp = self._ports.take(host)
            if mux:
                rtcp.close()
            return rtp, None if mux else rtcp
        return (bind_one(host, port), None) if mux else bind_pair(host, port)

    def _open(
        self, spec: StreamSpec, port: int | None, rollovers: dict[int, int], paused: bool
    ) -> dict[str, object]:
        known = self._streams.get(spec.stream_id)
        if known is None:
            if not self._streams:  # else calls would come to lie on two clocks
                self._clock.follow()
            bound = self._bound.pop((spec.host, port), None)
            rtp, rtcp = bound or self._sockets(spec.host, port, spec.rtcp_mux)
            try:
                prepare(rtp)
                if rtcp is not None:
                    prepare_rtcp(rtcp)
                srtp = srtp_receiver(spec, rollovers)
                spool = open_spool(spec, time.time_ns())
            except Exception:
                rtp.close()
                if rtcp is not None:
                    rtcp.close()
                raise
            known = LiveStream(
                spec,
                spool,
                srtp,
                rtp=rtp,
                rtcp=rtcp,
                room=room(rtp),
                ledger=self._intake.ledger,
            )
            self._streams[spec.stream_id] = known
            self._intake.open(known, time.monotonic())
            self._sources.open(known)
            self._feedback.open(known)
            self._handshakes.open(known)
            if paused:  # ahead of what waits at the socket: that is not to be kept either
                known.pause(True, time.time_ns())
            self._intake.follow_source(known)
        number = known.rtp.getsockname()[1]
        return {"port": [known.spec.host, number, number + 1]}

    def _update(self, spec: StreamSpec) -> dict[str, object]:
        stream = self._streams.get(spec.stream_id)
        if stream is not None:
            # What waits was sent before it, to what the stream was before.
            self._intake.sweep([stream])
            self._feedback.read_from(stream)
            old = stream.spec
            if spec.dtls is not None and old.dtls is not None:
                spec = replace(spec, keys=old.keys, rtcp_keys=old.rtcp_keys)
            stream.take_over(spec, time.time_ns())
            self._follow_mux(stream)
            self._intake.follow(stream)
            self._sources.expect(stream)
            self._feedback.follow(stream)
            self._handshakes.follow(stream, old)
            self._intake.follow_source(stream)
        return {}

    def _follow_mux(self, stream: LiveStream) -> None:
        """Have a socket for RTCP as long as that has a port of its own."""
        if stream.spec.rtcp_mux == (stream.rtcp is None):
            return
        self._handshakes.rest(stream)
        if stream.rtcp is not None:
            self._feedback.leave(stream)
            stream.rtcp.close()
            stream.rtcp = None
            return
        try:
            rtcp = bind_one(stream.spec.host, stream.rtp.getsockname()[1] + 1)
        except (NoPortLeft, OSError) as error:  # no reason to lose the voice, too
            self._uplink.tell_of(stream, "rtcp_lost", cause=str(error))
            return
        prepare_rtcp(rtcp)
        stream.rtcp = rtcp
        self._feedback.listen(stream)

    def _pause(self, name: str, paused: bool, at_ns: int) -> dict[str, object]:
        stream = self._streams.get(name)
        if stream is not None and stream.paused != paused:
            self._intake.sweep([stream])
            stream.pause(paused, at_ns)
            self._intake.note_heard(stream, time.monotonic())
        return {}

    def _close(
        self, names: list[str], then: Callable[[list[StreamReport]], None] | None = None
    ) -> list[StreamReport]:
        """Take what has come, give the ports back; `then` is told when what was taken is durable."""
        streams = [self._streams[name] for name in names if name in self._streams]
        self._intake.sweep(streams)
        self._uplink.tell_counters()
        self._feedback.read()
        reports = [stream.report() for stream in streams]
        files = []
        for stream in streams:
            self._intake.close(stream)
            self._feedback.close(stream)
            self._handshakes.close(stream)
            files.append(stream.close())
            del self._streams[stream.spec.stream_id]

        def tell(failed: dict[int, str]) -> None:
            for place, cause in failed.items():
                self._uplink.tell_of(streams[place], "write_failed", cause=cause)
            if then is not None:
                then(reports)

        self._durable.close(files, tell)
        return reports

    def _tell_closed(self, id: int, reports: list[StreamReport]) -> None:
        self._uplink.tell({"id": id, "reports": [one.to_json() for one in reports]})

    def _look_for_silence(self, now: float) -> None:
        for stream, heard_at in self._intake.quiet_since(now - self._rtp_timeout):
            if not stream.silent and not stream.paused:
                stream.note_silence()
                self._sources.forget(stream)  # it may have moved
                self._uplink.tell_of(stream, "silent", seconds=round(now - heard_at, 1))


def _open_ring(configuration: Configuration) -> "tuple[Ring | None, str | None]":
    """The ring where one is wanted, or why there is none."""
    if not configuration.ring:
        return None, None
    # Here and not above: most workers have none, and start sooner without.
    from siprec_bridge.receiver.ring import Ring

    try:
        first, last = configuration.first, configuration.last
        return Ring(first, last, configuration.interfaces, configuration.ring), None
    except OSError as error:
        return None, error.strerror or str(error)


def _keep_memory() -> None:
    """Have the C library keep what was freed: the next sweep needs it again, and as cleared pages
    it costs a tenth of the whole. Other C libraries than glibc do as they like.
    """
    with contextlib.suppress(AttributeError, OSError):
        tune = ctypes.CDLL(None).mallopt
        tune(_MMAP_THRESHOLD, 32 << 20)
        tune(_TRIM_THRESHOLD, 256 << 20)


def main() -> None:
    """Serve the socket whose number is the first argument."""
    # A terminal's Ctrl-C goes to the whole group; the bridge says when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as control:
        control.setblocking(True)
        _keep_memory()
        Worker(control).run()


if __name__ == "__main__":
    main()
