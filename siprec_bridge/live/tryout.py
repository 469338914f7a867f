"""A live recogniser tried with a few seconds of speech, as a stream of a call would have it."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace

from siprec_bridge.live.decoder import RATE, Piece, Sound
from siprec_bridge.live.recogniser import Conversation, Line, NotHeard, Wanted
from siprec_bridge.media.decoder import Pcm

_MOST_SOUND_S = 60.0  # it may be sent at once, which no call does
_STEP = RATE // 5


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of it. `text`: of the lines that were settled."""

    model: str | None
    growing: int
    settled: int
    text: str
    seconds: float


class Broken(Exception):
    """It did not go well: `step` is connect, or sound."""

    def __init__(self, step: str, cause: str) -> None:
        super().__init__(cause)
        self.step = step


async def try_out(wanted: Wanted, pcm: Pcm) -> Heard:
    """Say something and wait for its lines. `pcm`: int16, shape (samples,), at RATE. Raises Broken."""
    lines: list[Line] = []
    answered = asyncio.Event()
    troubles: list[NotHeard] = []

    def note(trouble: NotHeard | None) -> None:
        if trouble is not None:
            troubles.append(trouble)
        answered.set()

    talk = Conversation(replace(wanted, max_lag=_MOST_SOUND_S), lines.append, note)
    begun = time.monotonic()
    running = asyncio.create_task(talk.run())
    try:
        await answered.wait()
        if troubles:
            raise Broken("connect", str(troubles[0]))
        piece = Piece(time.time_ns())
        for at in range(0, len(pcm), _STEP):
            part = pcm[at : at + _STEP]
            talk.hear(Sound(part, piece, at))
            piece.samples += len(part)
        talk.finish()
        await running
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    settled = [one for one in lines if one.settled]
    if not settled:
        told = f"{len(lines)} growing lines" if lines else "nothing"
        raise Broken("sound", f"it took {len(pcm) / RATE:.0f} s of speech and settled {told}")
    return Heard(
        model=settled[-1].model,
        growing=len(lines) - len(settled),
        settled=len(settled),
        text=" ".join(one.text for one in settled),
        seconds=time.monotonic() - begun,
    )
