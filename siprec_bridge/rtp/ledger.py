"""Counting the packets of many streams at once, as long as each one's flow is unbroken.

`SequenceTracker` and `Jitter` hold a stream's counts and know every case. Here a row stands for
each stream, and a sweep's packets are held against all rows by a few array operations: next
number, same source, same payload type, no jump in time. What passes is only added up; the rest
goes to the two classes, packet by packet.
"""

import numpy as np
import numpy.typing as npt

from siprec_bridge.rtp.packet import Batch
from siprec_bridge.rtp.quality import Arrivals, Jitter, wrapped
from siprec_bridge.rtp.sequence import SequenceTracker

Ints = npt.NDArray[np.int64]

_LONGEST = 4096  # packets of one stream in one sweep
_POWERS = (15 / 16) ** np.arange(_LONGEST)
_NEVER = -1
_ROW = np.dtype(
    [
        ("next", "i8"), ("ssrc", "i8"), ("payload_type", "i8"), ("rate", "f8"),
        ("timestamp", "i8"), ("transit", "f8"), ("jitter", "f8"), ("jitter_sum", "f8"),
        ("packets", "i8"), ("octets", "i8"), ("last_ns", "i8"),
    ]
)  # fmt: skip
_OCTETS = f"V{_ROW.itemsize}"


class Ledger:
    """A row for each stream. `take` adds to rows; `settle` brings that to the stream's own counts."""

    def __init__(self) -> None:
        self._rows = np.zeros(0, _ROW)
        self._free: list[int] = []

    def open(self) -> int:
        """A new row, which lets nothing pass until it is told what to expect."""
        if not self._free:
            old = len(self._rows)
            more = np.zeros(max(64, old), _ROW)
            self._rows = np.concatenate((self._rows, more))
            self._free = list(range(len(self._rows) - 1, old - 1, -1))
        row = self._free.pop()
        self._rows[row] = np.zeros((), _ROW)
        self.refuse(row)
        return row

    def close(self, row: int) -> None:
        """Give a row back."""
        self._free.append(row)

    def refuse(self, row: int) -> None:
        """Let nothing pass until `expect` is called again."""
        self._rows["next"][row] = _NEVER

    def expect(
        self,
        row: int,
        sequence: SequenceTracker,
        jitter: Jitter,
        payload_type: int | None,
        rate: float,
    ) -> None:
        """Go on from a stream's own counts; `rate` in Hz. Without a payload type nothing passes.

        What the row counted must be settled.
        """
        source = sequence.reception
        if source is None or payload_type is None or jitter.ssrc != source.ssrc:
            self.refuse(row)
            return
        one = self._rows[row]
        one["next"], one["ssrc"] = source.highest + 1, source.ssrc
        one["payload_type"], one["rate"] = payload_type, rate
        one["timestamp"], one["transit"] = jitter.timestamp, jitter.transit
        one["jitter"] = jitter.now

    def take(
        self, rows: Ints, starts: Ints, batch: Batch, times: Arrivals, octets: Ints, at_ns: Ints
    ) -> npt.NDArray[np.bool_]:
        """Count the packets of the streams whose flow is unbroken; returns which ones these are.

        `rows` and `starts` have shape (m,): stream i has the packets from starts[i] to the next
        one's start, one at least; `octets` and `at_ns` (of arrival) have shape (n,), as the batch.
        No row may be there twice.
        """
        # As octets: field by field numpy takes ten times as long to pick rows, and to put them back.
        whole = self._rows.view(_OCTETS)
        all_rows = whole[rows].view(_ROW)
        total = len(octets)
        counts = np.diff(starts, append=total)
        ends = starts + counts - 1

        # A stream's first packet is held against its row, each other one against the one before.
        passes = batch.valid.copy()
        follows = batch.sequence[1:] == batch.sequence[:-1] + np.uint16(1)
        follows &= batch.ssrc[1:] == batch.ssrc[:-1]
        follows &= batch.payload_type[1:] == batch.payload_type[:-1]
        begins = batch.sequence[starts] == all_rows["next"] & 0xFFFF
        begins &= batch.ssrc[starts] == all_rows["ssrc"]
        begins &= batch.payload_type[starts] == all_rows["payload_type"]
        passes[1:] &= follows
        passes[starts] = batch.valid[starts] & begins
        step = np.abs(wrapped(times.transit[starts] - all_rows["transit"]))
        orderly: npt.NDArray[np.bool_] = np.logical_and.reduceat(passes, starts)
        orderly &= (all_rows["next"] != _NEVER) & (times.odd[ends] == times.odd[starts])
        orderly &= (step <= all_rows["rate"]) & (times.timestamp[starts] != all_rows["timestamp"])

        # RFC 3550 A.8 packet by packet, J += (|D| - J) / 16, summed up.
        first = all_rows["jitter"] + (step - all_rows["jitter"]) / 16
        weighed = times.deviation * _POWERS[np.repeat(ends, counts) - np.arange(total)]
        weighed[starts] = 0.0
        last = first * _POWERS[counts - 1] + np.add.reduceat(weighed, starts) / 16

        all_rows["next"] += counts
        all_rows["timestamp"], all_rows["transit"] = times.timestamp[ends], times.transit[ends]
        all_rows["jitter"] = last
        all_rows["jitter_sum"] += first + last * (counts - 1)
        all_rows["packets"] += counts
        all_rows["octets"] += np.add.reduceat(octets, starts)
        all_rows["last_ns"] = at_ns[ends]
        whole[rows[orderly]] = all_rows.view(_OCTETS)[orderly]
        return orderly

    def settle(self, row: int, sequence: SequenceTracker, jitter: Jitter) -> tuple[int, int]:
        """Bring what has passed to a stream's own counts; returns its octets and last arrival, ns.

        Both 0: nothing has passed since.
        """
        one = self._rows[row]
        count, octets, last_ns = int(one["packets"]), int(one["octets"]), int(one["last_ns"])
        if not count:
            return 0, 0
        sequence.advance(count)
        jitter.advance(
            count,
            now=float(one["jitter"]),
            total=float(one["jitter_sum"]),
            transit=float(one["transit"]),
            timestamp=int(one["timestamp"]),
        )
        one["packets"] = one["octets"] = 0
        one["jitter_sum"] = 0.0
        return octets, last_ns
