"""What a stream's report tells of its quality, wherever its packets came from."""

from collections.abc import Sequence
from typing import TypedDict

from siprec_bridge.rtp import Jitter, SequenceTracker, mean_opinion
from siprec_bridge.sdp import STATIC, Codec

_DEFAULT_RATE = 8000  # Hz


class Quality(TypedDict):
    """The fields of a StreamReport that this module fills."""

    jitter_ms: float | None
    codec: str | None
    mos: float | None


def clock_rate(codecs: Sequence[Codec]) -> int:
    """Ticks a second of the time stamps."""
    return codecs[0].clock_rate if codecs else _DEFAULT_RATE


def quality(
    codecs: Sequence[Codec], payload_type: int | None, jitter: Jitter, sequence: SequenceTracker
) -> Quality:
    """`payload_type`: of the last packets of voice."""
    known = {one.payload_type: one for one in codecs}
    codec = (
        known.get(payload_type) or STATIC.get(payload_type) if payload_type is not None else None
    )
    total = sequence.packets + sequence.lost
    mos = mean_opinion(codec.name, sequence.lost / total) if codec is not None and total else None
    ticks = jitter.mean
    return Quality(
        jitter_ms=round(1000 * ticks / clock_rate(codecs), 3) if ticks is not None else None,
        codec=codec.name if codec is not None else None,
        mos=round(mos, 2) if mos is not None else None,
    )
