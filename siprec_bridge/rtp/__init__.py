"""RTP: headers of a batch, sequence numbers, time line, payloads, keys; SRTP.

RFC 3550, 3551, 3711, 4733.

Refuses to know sockets, files and clocks. At 50 packets a second and stream an object for each
packet would cost too much, so functions take all packets of a sweep or of a chunk of a file.
"""

from siprec_bridge.rtp.dtmf import KeyEvent, KeyReader
from siprec_bridge.rtp.g711 import decode_g711, encode_g711
from siprec_bridge.rtp.packet import HEADER_SIZE, Batch, build_packet, read_headers
from siprec_bridge.rtp.payload import (
    Frame,
    MalformedPayload,
    Unpacker,
    g726_bits,
    unpacker,
)
from siprec_bridge.rtp.sequence import SequenceTracker
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
    "Batch",
    "Frame",
    "KeyEvent",
    "KeyReader",
    "MalformedPayload",
    "NotAuthentic",
    "Replayed",
    "SequenceTracker",
    "SrtpReceiver",
    "SrtpSender",
    "Timeline",
    "Unpacker",
    "available_suites",
    "build_packet",
    "decode_g711",
    "encode_g711",
    "g726_bits",
    "read_headers",
    "unpacker",
]
