"""DTLS-SRTP of a worker's streams: who may agree on their keys, and what comes of it. RFC 5764.

RTP and, where it has a port of its own, RTCP: an association each. Anybody can begin a handshake,
only the certificate of the SDP ends one; until then the keys stay as they are.
"""

import contextlib
import selectors
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from siprec_bridge.receiver.control import DtlsTask, StreamSpec, keys_to_json
from siprec_bridge.receiver.live import LiveStream
from siprec_bridge.receiver.sweep import Address
from siprec_bridge.receiver.uplink import Uplink
from siprec_bridge.rtp import SrtpReceiver
from siprec_bridge.sdp import StreamKeys

if TYPE_CHECKING:
    from siprec_bridge.dtls import Association, Server

_SHORTEST = 14  # octets: a record's header, and something in it
_MOST_PENDING = 4  # handshakes of a side at once
_GIVE_UP_S = 30.0
_EAGER_S = 10.0  # so long a stream without keys is attended to at once, and not with the sweep


def is_dtls(datagram: bytes | memoryview) -> bool:
    """Whether it is DTLS among RTP, by its first octet. RFC 7983 §7."""
    return len(datagram) >= _SHORTEST and 20 <= datagram[0] <= 63


@dataclass(eq=False, slots=True)
class _Pending:
    association: "Association"
    greeting: bytes
    since: float


@dataclass(eq=False, slots=True)
class _Side:
    """One port of a stream. `done`: the association whose keys are used, and with whom."""

    stream: LiveStream
    rtcp: bool
    pending: dict[Address, _Pending] = field(default_factory=dict)
    done: "tuple[Address, Association] | None" = None


class Handshakes:
    """Answers DTLS. `wake` is told the sockets that are not to wait for the sweep.

    Its data there is the stream, and whether it is the socket of RTCP.
    """

    def __init__(self, uplink: Uplink, wake: selectors.BaseSelector) -> None:
        self._uplink = uplink
        self._wake = wake
        self._servers: dict[bytes, Server] = {}  # by certificate
        self._sides: dict[tuple[LiveStream, bool], _Side] = {}
        self._busy: set[_Side] = set()
        self._eager: dict[LiveStream, float] = {}  # until when

    def open(self, stream: LiveStream) -> None:
        """Get ready for a stream's handshake, or go on with the keys of one."""
        spec = stream.spec
        if spec.dtls is None:
            return
        self._server(spec.dtls)
        for rtcp in (False, True):
            self._sides[stream, rtcp] = _Side(stream, rtcp)
        if spec.rtcp_keys is not None:
            stream.rtcp_srtp = _receiver(spec.rtcp_keys)
        self._choose_sender(stream)
        if not _is_keyed(spec):
            self._hurry(stream)

    def follow(self, stream: LiveStream, old: StreamSpec) -> None:
        """Take over a certificate that is another now; keys hold until there are new ones."""
        spec = stream.spec
        if spec.dtls is None or old.dtls is None:
            self.close(stream)
            stream.rtcp_srtp = None
            self.open(stream)
        elif spec.dtls != old.dtls:
            for rtcp in (False, True):
                side = self._sides[stream, rtcp]
                side.pending.clear()
                self._busy.discard(side)
            self._hurry(stream)
        if spec.dtls is not None and spec.rtcp_mux != old.rtcp_mux:
            self._choose_sender(stream)
            if not _is_keyed(spec):
                self._hurry(stream)

    def close(self, stream: LiveStream) -> None:
        """Forget a stream."""
        self.rest(stream)
        for rtcp in (False, True):
            side = self._sides.pop((stream, rtcp), None)
            if side is not None:
                self._busy.discard(side)

    def take(
        self, stream: LiveStream, datagram: bytes, address: Address, *, rtcp: bool = False
    ) -> None:
        """Take a datagram of DTLS, and answer it."""
        side = self._sides[stream, rtcp]
        self._send(side, address, self._answer(side, datagram, address))
        self._settle(side, address)

    def advance(self, now: float) -> None:
        """Send again what is overdue; `now` is monotonic."""
        for side in list(self._busy):
            for address, one in list(side.pending.items()):
                self._send(side, address, one.association.advance())
                if now - one.since > _GIVE_UP_S:
                    one.association.failure = one.association.failure or "it does not end"
                self._settle(side, address)
        for stream in [one for one, until in self._eager.items() if now > until]:
            self.rest(stream)

    def _answer(self, side: _Side, datagram: bytes, address: Address) -> list[bytes]:
        from siprec_bridge.dtls import greeting_of, is_first

        task, greeting = side.stream.spec.dtls, greeting_of(datagram)
        known = side.pending.get(address)
        is_new = known is None or known.greeting != greeting
        if task is not None and greeting is not None and (is_first(datagram) or is_new):
            peer = f"{address[0]} {address[1]}".encode()
            begun, answer = self._server(task).greet(datagram, peer, task.fingerprints)
            if begun is not None:
                side.pending.pop(address, None)
                if len(side.pending) >= _MOST_PENDING:
                    del side.pending[next(iter(side.pending))]
                side.pending[address] = _Pending(begun, greeting, time.monotonic())
                self._busy.add(side)
            return answer
        if known is not None:
            return known.association.receive(datagram)
        if side.done is not None and side.done[0] == address:
            return side.done[1].receive(datagram)
        return []

    def _settle(self, side: _Side, address: Address) -> None:
        """See whether a handshake has come to its end."""
        known = side.pending.get(address)
        if known is None:
            return
        stream, association = side.stream, known.association
        if association.keys is not None:
            side.done = address, association
            self._uplink.counters.handshakes += 1
            self._use(side, association.keys)
        elif association.failure is not None:
            self._uplink.counters.handshakes_failed += 1
            if not stream.told_handshake_failed:
                stream.told_handshake_failed = True
                self._uplink.tell_of(stream, "handshake_failed", cause=association.failure)
        else:
            return
        del side.pending[address]
        if not side.pending:
            self._busy.discard(side)

    def _use(self, side: _Side, keys: StreamKeys) -> None:
        """Decrypt with new keys; what is on its way under the old ones is still opened."""
        stream = side.stream
        known = stream.rtcp_srtp if side.rtcp else stream.srtp
        if known is not None:
            known.rekey(keys.suite, keys.remote)
        elif side.rtcp:
            stream.rtcp_srtp = _receiver(keys)
        else:
            stream.srtp = _receiver(keys)
        if side.rtcp:
            stream.spec = replace(stream.spec, rtcp_keys=keys)
        else:
            stream.spec = replace(stream.spec, keys=keys)
        self._choose_sender(stream)
        # To the bridge, which has them in memory for a worker after this one.
        self._uplink.tell_of(
            stream, "keyed", cause=keys.suite, keys=keys_to_json(keys), rtcp=side.rtcp
        )
        if _is_keyed(stream.spec):
            self.rest(stream)

    def _choose_sender(self, stream: LiveStream) -> None:
        spec = stream.spec
        stream.encrypt_with(spec.keys if spec.rtcp_mux else spec.rtcp_keys)

    def _server(self, task: DtlsTask) -> "Server":
        # Here and not above: most workers never need OpenSSL, and start sooner without.
        from siprec_bridge.dtls import Server

        server = self._servers.get(task.certificate)
        if server is None:
            server = self._servers[task.certificate] = Server(task.certificate)
        return server

    def _hurry(self, stream: LiveStream) -> None:
        """Attend to a stream at once for a while: each message would cost a sweep else."""
        if stream not in self._eager:
            self._wake.register(stream.rtp, selectors.EVENT_READ, (stream, False))
            if stream.rtcp is not None:
                self._wake.register(stream.rtcp, selectors.EVENT_READ, (stream, True))
        self._eager[stream] = time.monotonic() + _EAGER_S

    def rest(self, stream: LiveStream) -> None:
        """Let a stream wait for the sweep, as others do."""
        if self._eager.pop(stream, None) is not None:
            self._wake.unregister(stream.rtp)
            if stream.rtcp is not None:
                self._wake.unregister(stream.rtcp)

    def _send(self, side: _Side, address: Address, datagrams: list[bytes]) -> None:
        one = side.stream.rtcp if side.rtcp else side.stream.rtp
        if one is None:
            return
        for datagram in datagrams:
            with contextlib.suppress(OSError):  # no way there: it is sent again
                one.sendto(datagram, address)


def _is_keyed(spec: StreamSpec) -> bool:
    return spec.keys is not None and (spec.rtcp_mux or spec.rtcp_keys is not None)


def _receiver(keys: StreamKeys) -> SrtpReceiver:
    return SrtpReceiver(keys.suite, keys.remote)
