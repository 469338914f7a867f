"""Where a sweep's datagrams lie, and how they get out of there, all at once."""

import contextlib
import mmap
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from siprec_bridge.receiver.spool import RECORD, write_records

SLOTS = 4096
LARGEST = 2048  # octets of a datagram; RTP keeps below the MTU
_STRIDE = LARGEST + 64  # an odd number of cache lines: at 2048 datagrams push each other out
_HEAD = RECORD.itemsize

Ints = npt.NDArray[np.int64]


class Arena:
    """Datagrams: in `data`, at `offsets`, each of `lengths` octets. Arrays have shape (n,).

    There is room for a record head ahead of each. `sources` has shape (n, 2). They lie in SLOTS of
    the arena's own, for sockets, or where they are laid.
    """

    def __init__(self) -> None:
        buffer = mmap.mmap(-1, (SLOTS + 1) * _STRIDE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(AttributeError, OSError):  # fewer pages, fewer misses
            buffer.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(buffer)
        self.data: npt.NDArray[np.uint8] = np.frombuffer(buffer, np.uint8)
        self.offsets = np.arange(SLOTS, dtype=np.int64) * _STRIDE + 64
        self.lengths = np.zeros(SLOTS, np.int64)
        self.arrivals_ns = np.zeros(SLOTS, np.int64)
        self.drops = np.zeros(SLOTS, np.int64)  # the kernel's count; -1: it told none
        self.sources = np.zeros((SLOTS, 2), np.uint64)
        self._slots = vars(self).copy()

    def use_slots(self) -> None:
        """Have the datagrams of sockets in it."""
        vars(self).update(self._slots)

    def hold(
        self,
        packed: npt.NDArray[np.uint8],
        places: Ints,
        lengths: Ints,
        arrivals_ns: Ints,
        sources: npt.NDArray[np.uint64],
    ) -> None:
        """Have datagrams in it as `lay` has laid them."""
        self.data, self.view = packed, packed.data
        self.offsets, self.lengths = places[:-1] + _HEAD, lengths
        self.arrivals_ns, self.sources = arrivals_ns, sources
        self.drops = np.full(len(lengths), -1)

    def pack(self, count: int) -> tuple[memoryview, Ints]:
        """The first `count` datagrams as records, as they go to the spool, end to end.

        Also where each begins, and the last one ends, shape (count + 1,).
        """
        lengths, arrivals_ns = self.lengths[:count], self.arrivals_ns[:count]
        places = _places(lengths)
        if len(self.data) == places[-1] and bool((self.offsets == places[:-1] + _HEAD).all()):
            packed = self.data  # it was laid so
        else:
            packed, places = lay(self.data, self.offsets[:count], lengths)
        if bool((lengths == lengths[0]).all()):
            size = _HEAD + int(lengths[0])
            heads: npt.NDArray[np.void] = np.ndarray((count,), RECORD, packed, strides=(size,))
            write_records(heads, lengths, arrivals_ns)
        else:
            heads = np.zeros(count, RECORD)
            write_records(heads, lengths, arrivals_ns)
            strings(packed, _HEAD)[places[:-1]] = heads.view(f"V{_HEAD}")
        return packed.data, places


def lay(
    data: npt.NDArray[np.uint8], offsets: Ints, lengths: Ints
) -> tuple[npt.NDArray[np.uint8], Ints]:
    """Copy datagrams, one at least, end to end, each with room for a record head ahead of it.

    Also where each one's room begins, and the last one ends, shape (n + 1,).
    """
    places, befores = _places(lengths), offsets - _HEAD
    if bool((lengths == lengths[0]).all()):
        return strings(data, _HEAD + int(lengths[0]))[befores].view(np.uint8), places
    packed = np.empty(int(places[-1]), np.uint8)
    for length, some in _by_length(lengths):
        size = _HEAD + length
        strings(packed, size)[places[some]] = strings(data, size)[befores[some]]
    return packed, places


def _places(lengths: Ints) -> Ints:
    places = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths + _HEAD, out=places[1:])
    return places


def strings(data: npt.NDArray[np.uint8], length: int) -> npt.NDArray[np.void]:
    """All strings of so many octets in `data`, by their offsets; a view."""
    return np.ndarray((len(data) - length + 1,), f"V{length}", data, strides=(1,))


def take_out(data: npt.NDArray[np.uint8], offsets: Ints, lengths: Ints) -> list[bytes]:
    """Copies of datagrams, as bytes, in their order."""
    packets = [b""] * len(lengths)
    for length, some in _by_length(lengths):
        found: list[bytes] = strings(data, length)[offsets[some]].tolist()
        if len(found) == len(packets):
            return found
        for index, packet in zip(some.tolist(), found, strict=True):
            packets[index] = packet
    return packets


def put_back(data: npt.NDArray[np.uint8], offsets: Ints, packets: list[bytes]) -> Ints:
    """Lay datagrams down at `offsets`, where there is room for them; returns their lengths."""
    lengths = np.fromiter(map(len, packets), np.int64, len(packets))
    for length, some in _by_length(lengths):
        chosen = packets if len(some) == len(packets) else [packets[one] for one in some.tolist()]
        strings(data, length)[offsets[some]] = np.frombuffer(b"".join(chosen), f"V{length}")
    return lengths


def _by_length(lengths: Ints) -> Iterator[tuple[int, Ints]]:
    """The places of each length that there is, but 0."""
    alike = bool((lengths == lengths[:1]).all())
    for length in lengths[:1].tolist() if alike else np.unique(lengths).tolist():
        if length:
            yield length, np.flatnonzero(lengths == length)
