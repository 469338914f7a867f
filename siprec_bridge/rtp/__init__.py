"""RTP: headers of a batch, sequence numbers, time line, payloads, keys; SRTP, RTCP.

RFC 3550, 3551, 3711, 4733.

Refuses to know sockets, files and clocks. At 50 packets a second and stream an object for each
packet would cost too much, so functions take all packets of a sweep or of a chunk of a file.
"""

from siprec_bridge.rtp.clock import ClockFault, SourceClock, source_clock
from siprec_bridge.rtp.dtmf import KeyEvent, KeyReader
from siprec_bridge.rtp.g711 import decode_g711, encode_g711
from siprec_bridge.rtp.ledger import Ledger
from siprec_bridge.rtp.packet import HEADER_SIZE, Batch, build_packet, read_headers
from siprec_bridge.rtp.payload import (
    Frame,
    MalformedPayload,
    Unpacker,
    g726_bits,
    unpacker,
)
from siprec_bridge.rtp.quality import Arrivals, Jitter, arrivals, mean_opinion
from siprec_bridge.rtp.rtcp import ReportBlock, Rtcp, SenderReport, read_rtcp, receiver_report
from siprec_bridge.rtp.sequence import Reception, SequenceTracker
from siprec_bridge.rtp.srtp import (
    NotAuthentic,
    Replayed,
    SrtpReceiver,
    SrtpSender,
    available_suites,
)
from siprec_bridge.rtp.timeline import Timeline

__all__ = [
    "HEADER_SIZE",
    "Arrivals",
    "Batch",
    "ClockFault",
    "Frame",
    "Jitter",
    "KeyEvent",
    "KeyReader",
    "Ledger",
    "MalformedPayload",
    "NotAuthentic",
    "Reception",
    "Replayed",
    "ReportBlock",
    "Rtcp",
    "SenderReport",
    "SequenceTracker",
    "SourceClock",
    "SrtpReceiver",
    "SrtpSender",
    "Timeline",
    "Unpacker",
    "arrivals",
    "available_suites",
    "build_packet",
    "decode_g711",
    "encode_g711",
    "g726_bits",
    "mean_opinion",
    "read_headers",
    "read_rtcp",
    "receiver_report",
    "source_clock",
    "unpacker",
]
