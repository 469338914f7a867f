"""The header fields of a batch of packets, and one packet's bytes. RFC 3550 §5.1."""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HEADER_SIZE = 12
_HEADER = np.dtype(
    [("first", "u1"), ("second", "u1"), ("sequence", ">u2"), ("timestamp", ">u4"), ("ssrc", ">u4")]
)
_BARE = 0x80  # first octet of nearly all: no padding, no extension, no CSRC
_RTCP_TYPES = (192, 223)  # second octet; as RTP these would be payload types 64-95. RFC 5761 §4


@dataclass(frozen=True, slots=True)
class Batch:
    """Headers of n datagrams: arrays of shape (n,).

    Where `valid` is False the datagram is no RTP and its other fields mean nothing; `rtcp` says
    whether it looks like RTCP.
    `payload_offset` counts from the start of the data, `payload_length` is without padding.
    """

    valid: npt.NDArray[np.bool_]
    rtcp: npt.NDArray[np.bool_]
    payload_type: npt.NDArray[np.uint8]
    marker: npt.NDArray[np.bool_]
    sequence: npt.NDArray[np.uint16]
    timestamp: npt.NDArray[np.uint32]
    ssrc: npt.NDArray[np.uint32]
    payload_offset: npt.NDArray[np.int64]
    payload_length: npt.NDArray[np.int64]


def read_headers(
    data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> Batch:
    """Read n datagrams that lie in `data` (shape (size,)) at `offsets`, each of `lengths` octets.

    Any bytes will do: what is no RTP comes back as not valid.
    """
    header = np.zeros(len(offsets), _HEADER)
    whole = lengths >= HEADER_SIZE
    if whole.any():
        # One at every octet: numpy takes them out of a view faster than it would as rows.
        places = np.ndarray((len(data) - HEADER_SIZE + 1,), f"V{HEADER_SIZE}", data, strides=(1,))
        if whole.all():
            header = places[offsets].view(_HEADER)
        else:
            header[whole] = places[offsets[whole]].view(_HEADER)
    first, second = header["first"], header["second"]
    rtcp = (second >= _RTCP_TYPES[0]) & (second <= _RTCP_TYPES[1])
    version = first >> 6 == 2
    valid = whole & version & ~rtcp
    rtcp &= whole & version
    payload, size = _payloads(data, offsets, lengths, first, valid)
    valid &= payload >= 0
    return Batch(
        valid=valid,
        rtcp=rtcp,
        payload_type=second & np.uint8(0x7F),
        marker=second & 0x80 > 0,
        sequence=header["sequence"].astype(np.uint16),
        timestamp=header["timestamp"].astype(np.uint32),
        ssrc=header["ssrc"].astype(np.uint32),
        payload_offset=offsets + size,
        payload_length=payload,
    )


def _payloads(
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    first: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | int]:
    """How long the payloads are, and how many octets are ahead of them; `valid` may shrink."""
    if bool((first == _BARE).all()):
        return lengths - HEADER_SIZE, HEADER_SIZE
    size = HEADER_SIZE + 4 * (first & 0x0F).astype(np.int64)
    extended = np.flatnonzero(valid & (first & 0x10 > 0))
    for index in extended:  # rare with G.711: not worth arrays
        at, end = int(offsets[index] + size[index]), int(offsets[index] + lengths[index])
        if at + 4 > end:
            valid[index] = False
        else:
            size[index] += 4 + 4 * (int(data[at + 2]) << 8 | int(data[at + 3]))
    payload = lengths - size
    for index in np.flatnonzero(valid & (first & 0x20 > 0)):
        payload[index] -= int(data[int(offsets[index] + lengths[index]) - 1])
    return payload, size


def build_packet(
    payload_type: int,
    sequence: int,
    timestamp: int,
    ssrc: int,
    payload: bytes,
    *,
    marker: bool = False,
) -> bytes:
    """One packet's bytes; numbers wrap around at their width."""
    head = struct.pack(
        "!BBHII",
        0x80,
        (payload_type & 0x7F) | (0x80 if marker else 0),
        sequence & 0xFFFF,
        timestamp & 0xFFFFFFFF,
        ssrc & 0xFFFFFFFF,
    )
    return head + payload
