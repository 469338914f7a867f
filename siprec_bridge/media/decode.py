"""Codecs to PCM: G.711 and L16 by table, Opus by libopus, the others by FFmpeg through PyAV.

A decoder of speech has state: it gets its packets in order and is made anew where they break off.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import av
import numpy as np
import numpy.typing as npt

from siprec_bridge.media.decoder import LONGEST_CONCEALMENT_S, Decoder, Pcm, Undecodable
from siprec_bridge.media.opus import Opus, has_libopus
from siprec_bridge.rtp import Frame, MalformedPayload, decode_g711, g726_bits, unpacker
from siprec_bridge.sdp import RECORDABLE, Codec, recordable

PLAIN: Final = ("PCMU", "PCMA", "L16")  # each sample stands for itself: no state, no frames


@dataclass(frozen=True, slots=True)
class _Kind:
    """FFmpeg's decoders of an encoding, the best one first.

    `container` is a file (demuxer, option, start) through which a decoder learns what PyAV has no
    attribute for; `erased` is a frame that the decoder takes for a lost one.
    """

    decoders: tuple[str, ...]
    rate: int = 8000
    container: tuple[str, dict[str, str], bytes] | None = None
    erased: Frame | None = None
    # The sender's frames of no data are the decoder's to fill, with the noise that it was told.
    fills_silence: bool = False


_KINDS: dict[str, _Kind] = {
    "G722": _Kind(("g722",), 16000),
    "OPUS": _Kind(("libopus", "opus"), 48000),
    # FFmpeg's own AMR decoders know no comfort noise.
    "AMR": _Kind(("libopencore_amrnb", "amrnb"), 8000, None, Frame(b"\x7c", 160), True),
    "AMR-WB": _Kind(("libopencore_amrwb", "amrwb"), 16000, None, Frame(b"\x7c", 320), True),
    "G729": _Kind(("g729",), 8000, None, Frame(bytes(10), 80)),
    "GSM": _Kind(("gsm",)),
    "G723": _Kind(("g723_1",)),
    "ILBC": _Kind(("ilbc",), 8000, ("ilbc", {}, b"#!iLBC20\n" + bytes(38))),
}
_ILBC_30 = _Kind(("ilbc",), 8000, ("ilbc", {}, b"#!iLBC30\n" + bytes(50)))
for _name in RECORDABLE:
    if (_bits := g726_bits(_name)) is not None:
        # The names without AAL2 pack from the lowest bit on. RFC 3551 §4.5.4
        _format = "g726" if _name.startswith("AAL2") else "g726le"
        _KINDS[_name] = _Kind((_format,), 8000, (_format, {"code_size": str(_bits)}, bytes(1024)))


@cache
def decodable() -> tuple[str, ...]:
    """Names of the encodings that this machine can decode, in order of our preference."""
    return tuple(name for name in RECORDABLE if name in PLAIN or _there(_KINDS[name]))


def can_decode(codec: Codec) -> bool:
    """Whether packets of a codec as negotiated become audio."""
    return recordable(codec) and codec.name in decodable()


def audio_rate(codec: Codec) -> int:
    """Of a codec's audio, in Hz; its RTP clock may be another (G.722)."""
    return codec.clock_rate if codec.name in PLAIN else _KINDS[codec.name].rate


def plain_width(codec: Codec) -> int:
    """Octets of a moment of a plain codec, over all its channels."""
    return 2 * codec.channels if codec.name == "L16" else 1


def decode_plain(codec: Codec, data: bytes) -> Pcm:
    """PCM of whole moments of a plain codec: int16, shape (moments,); channels are averaged."""
    if codec.name != "L16":
        return decode_g711(codec.name, data)
    audio = np.frombuffer(data, ">i2")
    if codec.channels > 1:
        audio = audio.reshape(-1, codec.channels).mean(axis=1)
    return audio.astype(np.int16)


def decoder_of(codec: Codec) -> Decoder:
    """A decoder in its first state, for a codec that `can_decode` says yes to."""
    if codec.name in PLAIN:
        return _Plain(codec)
    return Opus() if codec.name == "OPUS" and has_libopus() else _Framed(codec)


class _Plain:
    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._width = plain_width(codec)

    @property
    def rate(self) -> int:
        return self._codec.clock_rate

    def frames(self, payload: bytes) -> list[Frame]:
        if len(payload) % self._width:
            raise MalformedPayload("half a sample")
        return [Frame(payload, len(payload) // self._width)]

    def decode(self, frame: Frame) -> Pcm:
        return decode_plain(self._codec, frame.data)

    def conceal(self, samples: int, following: Frame | None = None) -> Pcm:
        return np.zeros(0, np.int16)


class _Framed:
    def __init__(self, codec: Codec) -> None:
        unpack = unpacker(codec.name, codec.parameters)
        if unpack is None:
            raise ValueError(f"{codec.name} has no frames")
        self.frames = unpack
        self._codec = codec
        self._kind = _KINDS[codec.name]
        self._contexts: dict[int, Any] = {}
        self._erased = self._kind.erased

    @property
    def rate(self) -> int:
        return self._kind.rate

    def decode(self, frame: Frame) -> Pcm:
        data = frame.data
        if not data:
            if not (self._kind.fills_silence and self._erased is not None):
                return np.zeros(frame.samples, np.int16)
            data = self._erased.data
        if self._codec.name == "OPUS":
            # A packet of nothing but its first octet asks for concealment. RFC 6716 §3.2.1
            alone = bytes([data[0] & 0xFC])
            self._erased = Frame(alone, self.frames(alone)[0].samples)
        return self._run(data, frame.samples)

    def conceal(self, samples: int, following: Frame | None = None) -> Pcm:
        if self._erased is None:
            return np.zeros(0, np.int16)
        count = min(samples, round(LONGEST_CONCEALMENT_S * self.rate)) // self._erased.samples
        parts = [self._run(self._erased.data, self._erased.samples) for _ in range(count)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int16)

    def _run(self, data: bytes, samples: int) -> Pcm:
        """Decode: exactly `samples` come back."""
        thirty = self._codec.name == "ILBC" and samples == 240
        context = self._contexts.get(thirty)
        if context is None:
            context = self._contexts[thirty] = _open(_ILBC_30 if thirty else self._kind)
        try:
            heard = [_samples(one) for one in context.decode(av.Packet(data))]
        except av.FFmpegError as error:
            raise Undecodable(str(error)) from error
        audio = heard[0] if len(heard) == 1 else np.concatenate([np.zeros(0, np.int16), *heard])
        if len(audio) < samples:
            audio = np.concatenate((audio, np.zeros(samples - len(audio), np.int16)))
        return audio[:samples]


def _there(kind: _Kind) -> bool:
    """Whether this build of FFmpeg has what a kind needs: tried, since names alone prove little."""
    try:
        _open(kind)
    except (av.FFmpegError, ValueError):
        return False
    return True


def _open(kind: _Kind) -> Any:
    """A codec context. Raises ValueError or av.FFmpegError when the build has none."""
    context: Any
    if kind.container is not None:
        demuxer, options, start = kind.container
        with av.open(io.BytesIO(start), format=demuxer, options=options) as file:
            context = file.streams.audio[0].codec_context
            context.open(strict=False)
            return context
    context = av.CodecContext.create(_first(kind.decoders), "r")
    context.sample_rate = kind.rate
    context.layout = "mono"
    context.open()
    return context


@cache
def _first(names: Sequence[str]) -> str:
    for name in names:
        try:
            av.codec.Codec(name, "r")
        except ValueError:
            continue
        return name
    raise ValueError(f"no decoder {' or '.join(names)}")


def _samples(frame: Any) -> Pcm:
    """A frame's samples as mono PCM."""
    if frame.format.name in ("s16", "s16p") and frame.layout.nb_channels == 1:
        return np.frombuffer(bytes(frame.planes[0]), np.int16, frame.samples)
    audio: npt.NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        audio = audio.reshape(-1, frame.layout.nb_channels).T
    scale = 32767 if audio.dtype.kind == "f" else 1
    mono: Pcm = np.clip(np.round(audio.mean(axis=0) * scale), -32768, 32767).astype(np.int16)
    return mono
