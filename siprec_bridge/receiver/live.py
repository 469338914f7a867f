"""A stream as a worker has it: its sockets, its source, its RTCP, its row of the ledger."""

import random
import socket
from dataclasses import dataclass, field, replace

from siprec_bridge.receiver.control import StreamReport, StreamSpec
from siprec_bridge.receiver.stream import Ints, ReceivedStream
from siprec_bridge.receiver.sweep import NOBODY, Source
from siprec_bridge.rtp import Arrivals, Batch, Ledger, Reception, SrtpReceiver, SrtpSender
from siprec_bridge.sdp import StreamKeys


@dataclass(eq=False, slots=True, kw_only=True)
class LiveStream(ReceivedStream):
    """What passes the ledger is brought to the stream's own counts before anybody looks at them."""

    rtp: socket.socket
    rtcp: socket.socket | None  # none where RTCP comes to the port of the RTP
    room: int  # for datagrams that wait
    by_ring: bool = False  # its RTP comes out of the ring, and its socket takes none
    ledger: Ledger
    row: int = field(init=False)
    rtcp_srtp: SrtpReceiver | None = None  # of the RTCP port, where that has its own keys
    sender: SrtpSender | None = None
    _own: tuple[str, bytes] | None = field(default=None, repr=False)  # suite and key of the sender
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
    drops: int = 0  # the kernel's count, for want of room or by our filter
    kernel_drops: int = 0  # of these, for want of room
    silent: bool = False
    told_not_authentic: bool = False
    told_handshake_failed: bool = False

    def __post_init__(self) -> None:
        ReceivedStream.__post_init__(self)
        self.row = self.ledger.open()

    def take_over(self, spec: StreamSpec, now_ns: int) -> None:
        self._settle()
        self.ledger.refuse(self.row)
        ReceivedStream.take_over(self, spec, now_ns)

    def pause(self, paused: bool, at_ns: int) -> None:
        self._settle()
        self.ledger.refuse(self.row)
        ReceivedStream.pause(self, paused, at_ns)

    def count(
        self, batch: Batch, slots: Ints, arrivals_ns: Ints, lengths: Ints, times: Arrivals
    ) -> int:
        self._settle()
        octets = ReceivedStream.count(self, batch, slots, arrivals_ns, lengths, times)
        self.ledger.expect(
            self.row, self.sequence, self.jitter, self.payload_type, float(self.rate)
        )
        return octets

    def keep_rtcp(self, at_ns: int, data: bytes) -> None:
        """Have a datagram of RTCP in the spool; what waits for the disk goes ahead of packets."""
        if self.spool.rtcp(at_ns, data) is not None:
            self.ledger.refuse(self.row)

    def encrypt_with(self, keys: StreamKeys | None) -> None:
        """Have what is sent to its source encrypted so; with the keys of before it goes on.

        A sender that is new counts from the start: under another SSRC, since no number of a key is to
        be used twice (RFC 3711 §9.1), and a source drops what it takes for repeated.
        """
        own = (keys.suite, keys.local) if keys is not None else None
        if own != self._own:
            self._own = own
            self.sender = SrtpSender(*own) if own is not None else None
            self.ssrc, self.has_reported = random.getrandbits(32), False

    def note_silence(self) -> None:
        """Take its next packet as a thing to tell."""
        self.silent = True
        self.ledger.refuse(self.row)

    def reception(self) -> Reception | None:
        """What a receiver report tells of the source that is heard now."""
        self._settle()
        return self.sequence.reception

    def report(self) -> StreamReport:
        self._settle()
        return replace(
            ReceivedStream.report(self),
            sender_reports=self.sender_reports,
            said_bye=self.said_bye,
            kernel_drops=self.kernel_drops,
        )

    def close(self) -> int:
        """Give back what it holds but its spool's file, which is to be synced and closed."""
        self._settle()
        self.ledger.close(self.row)
        self.rtp.close()
        if self.rtcp is not None:
            self.rtcp.close()
        return self.spool.detach()

    def _settle(self) -> None:
        octets, last_ns = self.ledger.settle(self.row, self.sequence, self.jitter)
        if octets:
            self.octets += octets
            self.last_ns = last_ns
