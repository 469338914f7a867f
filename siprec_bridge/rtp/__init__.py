"""RTP as arrays: headers of a batch, sequence numbers, time line, G.711. RFC 3550, RFC 3551.

Refuses to know sockets, files and clocks. At 50 packets a second and stream an object for each
packet would cost too much, so functions take all packets of a sweep or of a chunk of a file.
"""

from siprec_bridge.rtp.g711 import decode_g711, encode_g711
from siprec_bridge.rtp.packet import HEADER_SIZE, Batch, build_packet, read_headers
from siprec_bridge.rtp.sequence import SequenceTracker
from siprec_bridge.rtp.timeline import Timeline

__all__ = [
    "HEADER_SIZE",
    "Batch",
    "SequenceTracker",
    "Timeline",
    "build_packet",
    "decode_g711",
    "encode_g711",
    "read_headers",
]
