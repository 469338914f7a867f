"""One stream on its time line: packets of its spool to PCM in sparse files, one a rate.

The line is measured in a unit that every audio rate and RTP clock divides, so that a call may go
from one codec to another. Memory does not grow with the length of the call.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from siprec_bridge.media.coverage import CELLS, Coverage
from siprec_bridge.media.decode import (
    PLAIN,
    audio_rate,
    can_decode,
    decode_plain,
    decoder_of,
    plain_width,
)
from siprec_bridge.media.decoder import Decoder, Pcm, Undecodable
from siprec_bridge.media.odd_clock import OddClocks
from siprec_bridge.receiver.spool import ControlPacket, Packets, SpoolEvent, SpoolReader
from siprec_bridge.rtp import (
    Batch,
    Frame,
    KeyEvent,
    KeyReader,
    MalformedPayload,
    SourceClock,
    Timeline,
    read_headers,
)
from siprec_bridge.sdp import EVENTS, NOISE, STATIC, Codec

UNIT: Final = 14_112_000  # Hz: the least multiple of all rates from 8 to 48 kHz
_WINDOW = UNIT  # a second: so late may a packet be whose decoder needs it in order
_MOST_WAITING = 4096  # packets in that window; more of them are none of a call
_MOST_LOST = 50  # packets; after a longer gap a decoder begins anew
_SOURCES = 8  # whose decoders are kept
_SLIP = 2  # samples: what a source's clock leaves between two packets that belong together

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class _Waiting:
    """A packet on its way to a decoder."""

    position: int
    sequence: int
    ssrc: int
    codec: Codec
    frames: list[Frame]


@dataclass(slots=True)
class _Voice:
    """A sender's decoder, behind its last packet."""

    codec: Codec
    decoder: Decoder
    sequence: int
    end: int = 0
    duration: int = 0


class Line:
    """Reads a spool; `files` has the PCM by rate, `end` the length in units: beyond is silence.

    `packets` counts those placed, `foreign` those of a payload type that is no voice, `undecoded`
    those that their codec refused: they are silence. `coverage` says what is there and what is not.
    `clocks`: as for Timeline.
    """

    def __init__(
        self,
        reader: SpoolReader,
        folder: Path,
        name: str,
        longest_s: float,
        clocks: Mapping[int, SourceClock] | None = None,
    ) -> None:
        self.reader = reader
        self.timeline = Timeline(UNIT, clocks or {})
        self.coverage = Coverage(UNIT, longest_s)
        self.files: dict[int, Path] = {}
        self.packets = 0
        self.foreign = 0
        self.undecoded = 0
        self.end = 0
        self.heard: dict[str, None] = {}  # names of codecs, in order of their first packet
        self._folder, self._name = folder, name
        self._longest = round(longest_s * UNIT)
        self._open: dict[int, int] = {}
        self._edges: dict[int, tuple[int, np.int16]] = {}  # by rate: behind what was written last
        self._last: dict[int, tuple[int, int]] = {}  # by source: last number, end of its packet
        self._codecs = _by_payload_type(reader.header.codecs)
        self._decoders: dict[Codec, Decoder] = {}  # to take payloads apart
        self._voices: dict[int, _Voice] = {}
        self._waiting: list[_Waiting] = []
        self._in_order = False
        self._beside: dict[tuple[int, int], None] = {}  # sequence numbers of keys and noise
        self._keys = KeyReader()
        self._odd_clocks = OddClocks()
        self._unplaced: list[KeyEvent] = []

    @property
    def started_ns(self) -> int:
        """Time of the line's first sample."""
        return self.timeline.origin_ns or self.reader.header.opened_ns

    @property
    def keys(self) -> list[tuple[str, float, float]]:
        """Keys that were pressed, with start and duration in seconds."""
        return [
            (one.key, max(0.0, one.position / UNIT), one.duration / one.clock_rate)
            for one in sorted(self._keys.events, key=lambda one: one.position)
        ]

    def fill(self) -> None:
        """Decode the whole spool. Raises OSError."""
        interrupted = False
        try:
            for part in self.reader:
                match part:
                    case SpoolEvent(name="codecs", codecs=new):
                        self._codecs |= _by_payload_type(new)
                    case SpoolEvent():
                        interrupted = True
                    case ControlPacket():
                        pass
                    case Packets():
                        if self._take(part, interrupted):
                            interrupted = False
            self._release(None)
            self.end = min(self.timeline.end, self._longest)
        finally:
            for file in self._open.values():
                os.close(file)
            self._open = {}

    def _take(self, packets: Packets, interrupted: bool) -> bool:
        """Place a run of packets; False when there was no voice among them."""
        batch = read_headers(packets.data, packets.offsets, packets.lengths)
        kinds = {number: self._codecs.get(number) for number in set(batch.payload_type.tolist())}
        voices = {number: codec for number, codec in kinds.items() if codec and can_decode(codec)}
        beside = [
            number for number, codec in kinds.items() if codec and codec.name in (EVENTS, NOISE)
        ]
        known = np.isin(batch.payload_type, [*voices, *beside])
        self.foreign += int((batch.valid & ~known).sum())
        voice = batch.valid & (batch.payload_length > 0)  # others keep a way open. RFC 6263 §4.1
        voice &= np.isin(batch.payload_type, list(voices))
        chosen, lengths, frames = self._measure(packets, batch, np.flatnonzero(voice), voices)
        for at in np.flatnonzero(batch.valid & np.isin(batch.payload_type, beside)).tolist():
            self._beside[int(batch.ssrc[at]), int(batch.sequence[at])] = None
            if len(self._beside) > _MOST_WAITING:
                del self._beside[next(iter(self._beside))]
        if len(chosen):
            self._place(packets, batch, chosen, lengths, frames, voices, interrupted)
        for number in beside:
            codec = kinds[number]
            if codec is not None and codec.name == EVENTS:
                self._take_keys(packets, batch, number, codec.clock_rate)
        return bool(len(chosen))

    def _measure(
        self, packets: Packets, batch: Batch, chosen: Ints, voices: dict[int, Codec]
    ) -> tuple[Ints, Ints, dict[int, list[Frame]]]:
        """The packets whose payloads are whole, their lengths in units, and frames by packet."""
        lengths = np.zeros(len(chosen), np.int64)
        frames: dict[int, list[Frame]] = {}
        types = batch.payload_type[chosen]
        for number in set(types.tolist()):
            codec = voices[number]
            self.heard.setdefault(codec.name)
            at = np.flatnonzero(types == number)
            unit = UNIT // audio_rate(codec)
            if codec.name in PLAIN:
                whole = batch.payload_length[chosen[at]]
                width = plain_width(codec)
                lengths[at] = np.where(whole % width == 0, whole // width * unit, 0)
                continue
            self._in_order = True
            if codec not in self._decoders:
                self._decoders[codec] = decoder_of(codec)
            for index in at.tolist():
                try:
                    found = self._decoders[codec].frames(_payload(packets, batch, chosen[index]))
                except MalformedPayload:
                    continue
                frames[int(chosen[index])] = found
                lengths[index] = sum(one.samples for one in found) * unit
        good = lengths > 0
        self.undecoded += int((~good).sum())
        return chosen[good], lengths[good], frames

    def _place(
        self,
        packets: Packets,
        batch: Batch,
        chosen: Ints,
        lengths: Ints,
        frames: dict[int, list[Frame]],
        voices: dict[int, Codec],
        interrupted: bool,
    ) -> None:
        types = batch.payload_type[chosen]
        clocks = np.zeros(128, np.int64)
        for number, codec in voices.items():
            clocks[number] = codec.clock_rate
        timestamps = self._odd_clocks.correct(
            batch.timestamp[chosen],
            batch.sequence[chosen],
            batch.ssrc[chosen],
            types,
            packets.arrivals_ns[chosen],
            lengths / UNIT,
            clocks[types],
        )
        positions = np.zeros(len(chosen), np.int64)
        changes = (np.flatnonzero(np.diff(clocks[types])) + 1).tolist()
        for start, stop in zip([0, *changes], [*changes, len(chosen)], strict=True):
            run = slice(start, stop)
            positions[run] = self.timeline.place(
                timestamps[run],
                batch.sequence[chosen[run]],
                batch.ssrc[chosen[run]],
                packets.arrivals_ns[chosen[run]],
                lengths[run],
                interrupted=interrupted and start == 0,
                rtp_clock=int(clocks[types[start]]),
            )
        self.packets += len(chosen)
        self.coverage.receive(positions, lengths)
        self._note_left_out(batch, chosen, positions, positions + lengths)
        if not self._in_order:
            self._write_plain(packets, batch, chosen, positions, lengths, voices)
            return
        for at, position in zip(chosen.tolist(), positions.tolist(), strict=True):
            codec = voices[int(batch.payload_type[at])]
            if at not in frames:
                data = _payload(packets, batch, at)
                frames[at] = [Frame(data, len(data) // plain_width(codec))]
            self._waiting.append(
                _Waiting(position, int(batch.sequence[at]), int(batch.ssrc[at]), codec, frames[at])
            )
        self._release(_MOST_WAITING)

    def _note_left_out(self, batch: Batch, chosen: Ints, positions: Ints, ends: Ints) -> None:
        """Note where a source sent nothing: there its numbers go on, so that nothing was lost.

        It may have sent comfort noise or keys meanwhile.
        """
        sources = batch.ssrc[chosen]
        for ssrc in np.unique(sources).tolist():
            at = np.flatnonzero(sources == ssrc)
            numbers = batch.sequence[chosen[at]].astype(np.int64)
            last = self._last.get(ssrc, (int(numbers[0]), int(positions[at[0]])))
            before = np.concatenate(([last[1]], ends[at[:-1]]))
            earlier = np.concatenate(([last[0]], numbers[:-1]))
            for index in np.flatnonzero(positions[at] - before > UNIT // CELLS // 2).tolist():
                number = int(earlier[index])
                step = (int(numbers[index]) - number) & 0xFFFF
                if 0 < step <= _MOST_WAITING and all(
                    (ssrc, (number + one) & 0xFFFF) in self._beside for one in range(1, step)
                ):
                    self.coverage.leave_out(int(before[index]), int(positions[at[index]]))
            self._last[ssrc] = int(numbers[-1]), int(ends[at[-1]])
        while len(self._last) > _SOURCES:
            del self._last[next(iter(self._last))]

    def _write_plain(
        self,
        packets: Packets,
        batch: Batch,
        chosen: Ints,
        positions: Ints,
        lengths: Ints,
        voices: dict[int, Codec],
    ) -> None:
        """Write packets whose samples stand for themselves, in whatever order they came."""
        types = batch.payload_type[chosen]
        # In samples: a source's own pace moves places by less, which is no break.
        samples = np.zeros(128, np.int64)
        for number, codec in voices.items():
            samples[number] = codec.clock_rate
        rates = samples[types]
        starts = positions * rates // UNIT
        ends = starts + lengths * rates // UNIT
        breaks = np.flatnonzero((starts[1:] != ends[:-1]) | (types[1:] != types[:-1])) + 1
        for run in np.split(np.arange(len(chosen)), breaks):
            codec = voices[int(types[run[0]])]
            data = b"".join(_payload(packets, batch, at) for at in chosen[run].tolist())
            self._write(codec.clock_rate, int(positions[run[0]]), decode_plain(codec, data))

    # Speech that is decoded in order

    def _release(self, keep: int | None) -> None:
        """Decode what can wait no longer; `keep` at most so many packets, None: none at all."""
        waiting = self._waiting
        waiting.sort(key=lambda one: one.position)
        ready = len(waiting)
        if keep is not None and waiting:
            latest = waiting[-1].position - _WINDOW
            ready = sum(one.position < latest for one in waiting)
            ready = max(ready, len(waiting) - keep)
        for one in waiting[:ready]:
            self._decode(one)
        del waiting[:ready]

    def _decode(self, packet: _Waiting) -> None:
        voice = self._voices.pop(packet.ssrc, None)
        step = 0
        if voice is not None:
            step = (packet.sequence - voice.sequence + 0x8000) % 0x10000 - 0x8000
        if voice is not None and voice.codec == packet.codec and -_MOST_WAITING < step <= 0:
            self._voices[packet.ssrc] = voice
            return  # it came before, or too late
        if voice is None or voice.codec != packet.codec or not 0 < step <= _MOST_LOST:
            voice = _Voice(packet.codec, decoder_of(packet.codec), packet.sequence)
        elif step > 1:
            # Keys and noise took numbers, too: what they left out was not lost.
            numbers = ((voice.sequence + one) & 0xFFFF for one in range(1, step))
            lost = sum((packet.ssrc, one) not in self._beside for one in numbers)
            self._conceal(voice, packet, lost)
        rate = voice.decoder.rate
        unit = UNIT // rate
        position = packet.position
        refused = False
        for frame in packet.frames:
            try:
                self._write(rate, position, voice.decoder.decode(frame))
            except Undecodable:
                refused = True
            position += frame.samples * unit
        self.undecoded += refused
        voice.sequence = packet.sequence
        voice.end, voice.duration = position, position - packet.position
        self._voices[packet.ssrc] = voice
        if len(self._voices) > _SOURCES:
            del self._voices[next(iter(self._voices))]  # the one not heard for longest

    def _conceal(self, voice: _Voice, packet: _Waiting, lost: int) -> None:
        """Have the codec itself fill a short gap that lost packets left."""
        rate = voice.decoder.rate
        whole = packet.position - voice.end
        gap = min(whole, lost * voice.duration) * rate // UNIT
        if gap <= 0:
            return
        # What lies between a loss and the packet is a pause, of which that has no copy.
        following = packet.frames[0] if gap == whole * rate // UNIT else None
        try:
            self._write(rate, voice.end, voice.decoder.conceal(gap, following))
        except Undecodable:
            return  # then it is silence

    def _write(self, rate: int, position: int, audio: Pcm) -> None:
        at = position * rate // UNIT
        if at < 0:
            audio, at = audio[-at:], 0
        end, sample = self._edges.get(rate, (at, np.int16(0)))
        if 0 < at - end <= _SLIP and len(audio):
            audio, at = np.concatenate((np.full(at - end, sample, audio.dtype), audio)), end
        room = self._longest * rate // UNIT - at
        if not len(audio) or room <= 0:
            return
        file = self._open.get(rate)
        if file is None:
            path = self.files[rate] = self._folder / f"{self._name}.{rate}.pcm"
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
            self._open[rate] = file
        _write_all(file, audio[:room].astype("<i2").tobytes(), 2 * at)
        self._edges[rate] = at + len(audio), audio[-1]

    # Keys

    def _take_keys(self, packets: Packets, batch: Batch, number: int, clock: int) -> None:
        for at in np.flatnonzero(batch.valid & (batch.payload_type == number)).tolist():
            event = self._keys.take(
                int(batch.ssrc[at]),
                int(batch.timestamp[at]),
                int(packets.arrivals_ns[at]),
                _payload(packets, batch, at),
                clock,
            )
            if event is not None:
                self._unplaced.append(event)
        if self.timeline.origin_ns is not None:
            for one in self._unplaced:
                one.position = self.timeline.locate(
                    one.timestamp, one.ssrc, one.arrival_ns, one.clock_rate
                )
            self._unplaced = []


def _write_all(file: int, data: bytes, at: int) -> None:
    """Raises OSError also where a disk that fills up takes a part: what is left out is silence."""
    while data:
        written = os.pwrite(file, data, at)
        data, at = data[written:], at + written


def _payload(packets: Packets, batch: Batch, at: int) -> bytes:
    start = int(batch.payload_offset[at])
    return packets.data[start : start + int(batch.payload_length[at])].tobytes()


def _by_payload_type(codecs: tuple[Codec, ...]) -> dict[int, Codec]:
    # Some SRCs send a static type that was not in the answer: it means what it always means.
    static = {number: codec for number, codec in STATIC.items() if can_decode(codec)}
    return static | {codec.payload_type: codec for codec in codecs}
