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


def clock_rate(codecs: Sequence[Codec], payload_type: int | None = None) -> int:
    """Ticks a second of the time stamps: of what is sent, or else may be."""
    known = _codec_of(codecs, payload_type)
    if known is None and codecs:
        known = codecs[0]
    return known.clock_rate if known is not None else _DEFAULT_RATE


def quality(
    codecs: Sequence[Codec], payload_type: int | None, jitter: Jitter, sequence: SequenceTracker
) -> Quality:
    """`payload_type`: of the last packets of voice."""
    codec = _codec_of(codecs, payload_type)
    total = sequence.packets + sequence.lost
    mos = mean_opinion(codec.name, sequence.lost / total) if codec is not None and total else None
    ticks = jitter.mean
    return Quality(
        jitter_ms=round(1000 * ticks / clock_rate(codecs, payload_type), 3)
        if ticks is not None
        else None,
        codec=codec.name if codec is not None else None,
        mos=round(mos, 2) if mos is not None else None,
    )


def _codec_of(codecs: Sequence[Codec], payload_type: int | None) -> Codec | None:
    if payload_type is None:
        return None
    known = {one.payload_type: one for one in codecs}
    return known.get(payload_type) or STATIC.get(payload_type)
