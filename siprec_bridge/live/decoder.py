"""A stream's packets to PCM while the call is on: in order, within a bounded window. No I/O, no clock.

What comes too late is left out and counted; the recording, which waits for the end, has it.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import soxr

from siprec_bridge.media.decode import can_decode, decoder_of
from siprec_bridge.media.decoder import Decoder, Pcm, Undecodable
from siprec_bridge.media.odd_clock import OddClocks
from siprec_bridge.receiver.spool import ControlPacket, Packets, SpoolEvent
from siprec_bridge.rtp import Frame, MalformedPayload, read_headers
from siprec_bridge.sdp import EVENTS, NOISE, STATIC, Codec

RATE: Final = 16000  # Hz, of all that comes out
_PATIENCE_NS = 120_000_000  # so long is a missing packet waited for
_MOST_WAITING = 100  # packets
_MOST_MISORDER, _MOST_DROPOUT = 100, 3000  # RFC 3550 A.1: beyond, the sender began anew
_LONGEST_FILL_S = 2.0  # a longer silence is a new piece
_PAUSE_S = 1.2  # silence that shows a recogniser that an utterance is over
_EARLY = 50  # packets of a piece among which the least late one is looked for
_EARLIER_NS, _LATER_NS = 1_000_000_000, 5_000_000_000  # timestamps may say so, against arrivals
_FIRST_JITTER_NS = 200_000_000  # by at most so much is the first one taken to be late


@dataclass(eq=False, slots=True)
class Piece:
    """A stretch of unbroken sound; `at_ns`: when its first sample was said, as far as is known."""

    at_ns: int
    samples: int = 0

    def when(self, sample: int) -> int:
        """When a sample was said: ns since 1970."""
        return self.at_ns + round(sample * 1e9 / RATE)


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """Samples of a piece from `offset` on: int16, shape (samples,), at RATE."""

    pcm: Pcm
    piece: Piece
    offset: int

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return len(self.pcm) / RATE


@dataclass(frozen=True, slots=True)
class _Packet:
    arrival_ns: int
    sequence: int
    timestamp: int
    codec: Codec | None  # None: keys or noise, which take a number and are not heard
    payload: bytes


class LiveDecoder:
    """Takes what a spool has got, gives sound. Pieces end where recording pauses or nothing comes.

    `late`: packets that came after their turn, `undecoded`: those that their codec refused.
    """

    def __init__(self, codecs: Sequence[Codec]) -> None:
        self.late = 0
        self.undecoded = 0
        self._codecs: dict[int, Codec] = {}
        self._learn(codecs)
        self._ssrc: int | None = None
        self._next = 0  # sequence number, without wrapping
        self._waiting: dict[int, _Packet] = {}
        self._newest_ns = 0
        self._codec: Codec | None = None
        self._decoder: Decoder | None = None
        self._odd_clocks = OddClocks()
        self._timestamp, self._lasted = 0, 0.0  # of what was decoded last; seconds
        self._resampler: soxr.ResampleStream | None = None
        self._rate = 0  # of what goes into it
        self._piece: Piece | None = None
        self._early = 0
        self._first_ns = 0
        # The latest piece of this source, the timestamp of its first packet, and its clock.
        self._before: tuple[Piece, int, int] | None = None
        self._out: list[Sound] = []

    def take(
        self, parts: Sequence[Packets | SpoolEvent | ControlPacket], *, after_ns: int = 0
    ) -> list[Sound]:
        """What is to be heard next; packets that came before `after_ns` are left out."""
        for part in parts:
            match part:
                case SpoolEvent(name="codecs", codecs=new):
                    self._learn(new)
                case SpoolEvent(codecs=new):
                    self._learn(new)
                    self._break_off()
                case Packets():
                    self._take(part, after_ns)
                case ControlPacket():
                    pass
        self._release()
        return self._given()

    def rest(self) -> list[Sound]:
        """Nothing came for a while, or nothing more will: what waits, and a silence after it."""
        self._break_off()
        return self._given()

    @property
    def speaking(self) -> bool:
        """Whether a piece has been begun and not ended."""
        return self._piece is not None or bool(self._waiting)

    def _given(self) -> list[Sound]:
        out, self._out = self._out, []
        return out

    def _learn(self, codecs: Sequence[Codec]) -> None:
        if not self._codecs:
            # Some SRCs send a static type that was not in the answer: it means what it always means.
            self._codecs = {number: one for number, one in STATIC.items() if can_decode(one)}
        self._codecs |= {one.payload_type: one for one in codecs}

    def _take(self, packets: Packets, after_ns: int) -> None:
        batch = read_headers(packets.data, packets.offsets, packets.lengths)
        for at in np.flatnonzero(batch.valid & (packets.arrivals_ns >= after_ns)).tolist():
            codec = self._codecs.get(int(batch.payload_type[at]))
            if codec is None or not (codec.name in (EVENTS, NOISE) or can_decode(codec)):
                continue
            ssrc, number = int(batch.ssrc[at]), int(batch.sequence[at])
            step = (number - self._next + 0x8000) % 0x10000 - 0x8000
            if ssrc != self._ssrc or not -_MOST_MISORDER <= step <= _MOST_DROPOUT:
                self._release(all_of_it=True)
                self._end_piece()
                self._ssrc, self._next, step = ssrc, number, 0
                self._decoder = self._before = None
            if step < 0:
                self.late += 1
                continue
            start = int(batch.payload_offset[at])
            payload = packets.data[start : start + int(batch.payload_length[at])].tobytes()
            silent = codec.name in (EVENTS, NOISE) or not payload
            self._newest_ns = int(packets.arrivals_ns[at])
            self._waiting.setdefault(
                self._next + step,
                _Packet(
                    self._newest_ns,
                    number,
                    int(batch.timestamp[at]),
                    None if silent else codec,
                    payload,
                ),
            )
            self._release()

    def _release(self, *, all_of_it: bool = False) -> None:
        """Decode what is in order, and what has waited long enough for what is missing."""
        waiting = self._waiting
        while waiting:
            lost = self._next not in waiting
            if lost:
                first = min(waiting)
                patient = self._newest_ns - waiting[first].arrival_ns < _PATIENCE_NS
                if patient and len(waiting) < _MOST_WAITING and not all_of_it:
                    return
                self._next = first
            packet = waiting.pop(self._next)
            self._next += 1
            if packet.codec is not None:
                self._decode(packet, packet.codec, lost=lost)

    def _decode(self, packet: _Packet, codec: Codec, *, lost: bool) -> None:
        if self._decoder is None or codec != self._codec:
            if self._codec is not None and codec.clock_rate != self._codec.clock_rate:
                self._end_piece()  # RFC 7160: timestamps of two clocks cannot be compared
            self._codec, self._decoder = codec, decoder_of(codec)
        decoder = self._decoder
        try:
            frames = decoder.frames(packet.payload)
        except MalformedPayload:
            self.undecoded += 1
            return
        samples = sum(one.samples for one in frames)
        clock = codec.clock_rate * self._ratio(packet, codec, samples / decoder.rate)
        if self._piece is not None:
            ahead = (packet.timestamp - self._timestamp + (1 << 31)) % (1 << 32) - (1 << 31)
            gap = ahead / clock - self._lasted
            if not -_LONGEST_FILL_S < gap <= _LONGEST_FILL_S:
                self._end_piece()
            elif gap > 0:
                self._fill(decoder, gap, frames[0] if lost and frames else None)
        if self._piece is None:
            self._begin(packet, codec, clock)
        else:
            self._place(self._piece, packet.arrival_ns)
        for frame in frames:
            try:
                self._say(decoder.decode(frame), decoder.rate)
            except Undecodable:
                self.undecoded += 1
                self._say(np.zeros(frame.samples, np.int16), decoder.rate)
        self._timestamp, self._lasted = packet.timestamp, samples / decoder.rate

    def _ratio(self, packet: _Packet, codec: Codec, seconds: float) -> float:
        if self._ssrc is None or not seconds:
            return 1.0
        return self._odd_clocks.ratio(
            self._ssrc,
            codec.payload_type,
            timestamp=packet.timestamp,
            sequence=packet.sequence,
            arrival_ns=packet.arrival_ns,
            seconds=seconds,
            rate=codec.clock_rate,
        )

    def _begin(self, packet: _Packet, codec: Codec, clock: float) -> None:
        """Begin a piece: where its timestamp goes on from the one before, by that, else by arrival.

        What was held up on its way comes in a burst, which was not said all at once. `clock`: Hz.
        """
        self._early, self._first_ns, at_ns = 0, packet.arrival_ns, packet.arrival_ns
        if self._before is not None and self._before[2] == codec.clock_rate:
            before, timestamp, _ = self._before
            ticks = (packet.timestamp - timestamp + (1 << 31)) % (1 << 32) - (1 << 31)
            goes_on = before.at_ns + round(ticks * 1e9 / clock)
            if -_EARLIER_NS < at_ns - goes_on < _LATER_NS:
                at_ns, self._early = goes_on, _EARLY
        self._piece = Piece(at_ns)
        self._before = self._piece, packet.timestamp, codec.clock_rate

    def _place(self, piece: Piece, arrival_ns: int) -> None:
        """Move a piece's beginning to where its least late packet says that it was."""
        if self._early < _EARLY:
            self._early += 1
            began = arrival_ns - round(piece.samples * 1e9 / RATE)
            piece.at_ns = min(piece.at_ns, max(began, self._first_ns - _FIRST_JITTER_NS))

    def _fill(self, decoder: Decoder, gap: float, following: Frame | None) -> None:
        """Fill a gap: by the codec where packets ahead of the one that follows were lost."""
        samples = round(gap * decoder.rate)
        made = np.zeros(0, np.int16)
        if following is not None:
            with contextlib.suppress(Undecodable):  # then it is silence
                made = decoder.conceal(samples, following)[:samples]
        silence = np.zeros(samples - len(made), np.int16)
        self._say(np.concatenate((made, silence)), decoder.rate)

    def _say(self, pcm: Pcm, rate: int) -> None:
        piece = self._piece
        assert piece is not None
        if rate != RATE:
            if self._resampler is None or rate != self._rate:
                self._drain(piece)
                self._resampler, self._rate = (
                    soxr.ResampleStream(rate, RATE, 1, "int16", "LQ"),
                    rate,
                )
            pcm = self._resampler.resample_chunk(pcm)
        self._give(piece, pcm)

    def _give(self, piece: Piece, pcm: npt.NDArray[np.int16]) -> None:
        if not len(pcm):
            return
        if self._out and self._out[-1].piece is piece:
            before = self._out.pop()
            sound = Sound(np.concatenate((before.pcm, pcm)), piece, before.offset)
        else:
            sound = Sound(pcm, piece, piece.samples)
        self._out.append(sound)
        piece.samples += len(pcm)

    def _drain(self, piece: Piece) -> None:
        if self._resampler is not None:
            resampler, self._resampler = self._resampler, None
            self._give(piece, resampler.resample_chunk(np.zeros(0, np.int16), last=True))

    def _end_piece(self) -> None:
        if self._piece is not None:
            self._drain(self._piece)
            self._piece = None

    def _break_off(self) -> None:
        self._release(all_of_it=True)
        if (piece := self._piece) is not None:
            self._drain(piece)
            self._give(piece, np.zeros(round(_PAUSE_S * RATE), np.int16))
            self._piece = None
