"""One wall clock for the legs of a session, from what their sender reports tell."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from siprec_bridge.receiver.spool import ControlPacket, Packets, SpoolEvent, SpoolReader
from siprec_bridge.rtp import (
    ClockFault,
    SenderReport,
    SourceClock,
    read_headers,
    read_rtcp,
    source_clock,
)
from siprec_bridge.sdp import EVENTS, NOISE, Codec

WallFault = ClockFault | Literal["no_reports", "other_leg", "other_clock"]

_SAME_CLOCK_NS = (
    500_000_000  # reports may be late by so much: clocks of two machines differ by more
)
_MOST_REPORTS = 100_000  # of a source: days of them


@dataclass(frozen=True, slots=True)
class LegClocks:
    """Clocks by source; without any, `fault` says why the arrivals have to do.

    `other_leg`: that one's reports are no help; `other_clock`: their times come from another clock.
    """

    sources: dict[int, SourceClock] = field(default_factory=dict)
    fault: WallFault | None = None
    heard: bool = True


def wall_clocks(spools: Sequence[SpoolReader]) -> list[LegClocks]:
    """The clocks of these streams, on one wall clock: ours, by the least late report of all.

    All legs that were heard by their reports, or none: one of them alone would drift away from the
    other. Raises OSError.
    """
    legs = [_leg_clocks(one) for one in spools]
    heard = [one for one in legs if one.heard]
    faulty = [one for one in heard if not one.sources]
    offsets = [clock.offset_ns for one in heard for clock in one.sources.values()]
    if faulty:
        return [LegClocks({}, one.fault or "other_leg", one.heard) for one in legs]
    if not offsets or max(offsets) - min(offsets) > _SAME_CLOCK_NS:
        return [LegClocks({}, "other_clock" if offsets else one.fault, one.heard) for one in legs]
    least = min(offsets)
    return [
        LegClocks({ssrc: clock.shifted(least) for ssrc, clock in one.sources.items()})
        for one in legs
    ]


def _leg_clocks(spool: SpoolReader) -> LegClocks:
    reports: dict[int, list[tuple[int, SenderReport]]] = {}
    heard: set[int] = set()
    codecs: list[Codec] = list(spool.header.codecs)
    for part in spool:
        match part:
            case Packets():
                batch = read_headers(part.data, part.offsets, part.lengths)
                heard.update(np.unique(batch.ssrc[batch.valid]).tolist())
            case SpoolEvent():
                codecs += part.codecs
            case ControlPacket():
                rtcp = read_rtcp(part.data)
                for one in rtcp.reports if rtcp is not None else ():
                    known = reports.setdefault(one.ssrc, [])
                    if len(known) < _MOST_REPORTS:
                        known.append((part.at_ns, one))
    voices = [one for one in codecs if one.name not in (EVENTS, NOISE)]
    rates = list(dict.fromkeys(one.clock_rate for one in voices))
    fault: WallFault = "no_reports"
    sources: dict[int, SourceClock] = {}
    for ssrc in heard & reports.keys():
        clock = source_clock(reports[ssrc], rates)
        if isinstance(clock, SourceClock):
            sources[ssrc] = clock
        else:
            fault = clock
    return LegClocks(sources, None if sources else fault, bool(heard))
