"""How payloads are put together: the codec frames in them and how long each lasts. Pure.

RFC 3551 §4.5 for the static types, RFC 4867 (AMR), RFC 3952 (iLBC), RFC 6716 §3 (Opus). What a
decoder gets is one frame at a time, in the form that it knows; packing that only RTP has is undone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


class MalformedPayload(Exception):
    """Octets that are no payload of their codec."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Coded speech of `samples` at the codec's audio rate; no data: silence of that length."""

    data: bytes
    samples: int


Unpacker = Callable[[bytes], list[Frame]]

_AMR_BITS = {
    "AMR": (95, 103, 118, 134, 148, 159, 204, 244, 39),
    "AMR-WB": (132, 177, 253, 285, 317, 365, 397, 461, 477, 40),
}
_AMR_SPEECH_LOST = 14  # AMR-WB only
_AMR_NO_DATA = 15
_AMR_LONGEST = 50  # frames: a second
_G7231_SIZES = (24, 20, 4, 1)  # by the two lowest bits of the first octet
_OPUS_LONGEST = 5760  # samples: 120 ms. RFC 6716 §3.2.5


def unpacker(name: str, parameters: Mapping[str, str]) -> Unpacker | None:
    """How to take payloads of an encoding apart; None: it is none of these.

    `parameters` are those of its a=fmtp. The unpacker returns the frames of a payload and raises
    MalformedPayload, for any octets.
    """
    width = g726_bits(name)
    if width is not None:
        return lambda payload: [Frame(payload, 8 * len(payload) // width)]
    match name:
        case "G722":  # two samples of 16 kHz an octet, whatever its clock says
            return lambda payload: [Frame(payload, 2 * len(payload))]
        case "GSM":
            return lambda payload: _of_one_size(payload, 33, 160)
        case "G729":
            return _g729
        case "G723":
            return _g7231
        case "ILBC":
            mode = parameters.get("mode", "30")
            return lambda payload: _ilbc(payload, mode)
        case "OPUS":
            return _opus
        case "AMR" | "AMR-WB":
            aligned = parameters.get("octet-align") == "1"
            samples = 160 if name == "AMR" else 320
            bits = _AMR_BITS[name]
            return lambda payload: _amr(payload, bits, samples, aligned)
        case _:
            return None


def g726_bits(name: str) -> int | None:
    """Bits a sample of a G.726 encoding; None: it is none. RFC 3551 §4.5.4."""
    rate = name.removeprefix("AAL2-").removeprefix("G726-")
    widths = {"16": 2, "24": 3, "32": 4, "40": 5}
    return widths.get(rate) if name in (f"G726-{rate}", f"AAL2-G726-{rate}") else None


def _of_one_size(payload: bytes, size: int, samples: int) -> list[Frame]:
    if not payload or len(payload) % size:
        raise MalformedPayload(f"{len(payload)} octets are no frames of {size}")
    return [Frame(payload[at : at + size], samples) for at in range(0, len(payload), size)]


def _g729(payload: bytes) -> list[Frame]:
    """Frames of 10 ms; a last one of two octets describes noise (annex B). RFC 3551 §4.5.6."""
    size = len(payload) // 10 * 10
    if len(payload) - size not in (0, 2):
        raise MalformedPayload(f"{len(payload)} octets of G.729")
    frames = [Frame(payload[at : at + 10], 80) for at in range(0, size, 10)]
    if len(payload) > size:
        frames.append(Frame(b"", 80))
    return frames


def _g7231(payload: bytes) -> list[Frame]:
    """Frames of 30 ms of 24, 20 or (noise) 4 octets. RFC 3551 §4.5.3."""
    frames: list[Frame] = []
    at = 0
    while at < len(payload):
        size = _G7231_SIZES[payload[at] & 3]
        if at + size > len(payload):
            raise MalformedPayload("G.723.1 ends within a frame")
        frames.append(Frame(payload[at : at + size] if size > 4 else b"", 240))
        at += size
    return frames


def _ilbc(payload: bytes, mode: str) -> list[Frame]:
    """Frames of 38 octets (20 ms) or 50 (30 ms); the length decides where `mode` does not fit."""
    twenty, thirty = (38, 160), (50, 240)
    for size, samples in (twenty, thirty) if mode == "20" else (thirty, twenty):
        if payload and len(payload) % size == 0:
            return _of_one_size(payload, size, samples)
    raise MalformedPayload(f"{len(payload)} octets of iLBC")


def _opus(payload: bytes) -> list[Frame]:
    """One frame: a decoder takes the whole packet. RFC 6716 §3.1 says how long it lasts."""
    if not payload:
        raise MalformedPayload("no Opus")
    configuration, code = payload[0] >> 3, payload[0] & 3
    if configuration < 12:
        samples = (480, 960, 1920, 2880)[configuration % 4]
    elif configuration < 16:
        samples = (480, 960)[configuration % 2]
    else:
        samples = (120, 240, 480, 960)[configuration % 4]
    if code == 3:
        samples *= payload[1] & 0x3F if len(payload) > 1 else 0
    elif code:
        samples *= 2
    if not 0 < samples <= _OPUS_LONGEST:
        raise MalformedPayload("an Opus packet of no length or of more than 120 ms")
    return [Frame(payload, samples)]


def _amr(payload: bytes, bits: tuple[int, ...], samples: int, aligned: bool) -> list[Frame]:
    """Frames in the form of AMR files: an octet of type and quality, then the speech bits.

    RFC 4867 §4.3 (bandwidth-efficient), §4.4 (octet-aligned), §5.3 (files). Several channels,
    interleaving and CRCs are never agreed to.
    """
    number = int.from_bytes(payload, "big")
    total = 8 * len(payload)
    at = 8 if aligned else 4  # behind the mode request
    width = 8 if aligned else 6
    types: list[tuple[int, int]] = []
    more = True
    while more:
        if at + width > total or len(types) == _AMR_LONGEST:
            raise MalformedPayload("an AMR table of contents that does not end")
        entry = number >> (total - at - width) & ((1 << width) - 1)
        entry >>= width - 6
        at += width
        more = bool(entry & 0x20)
        types.append((entry >> 1 & 0x0F, entry & 1))
    frames: list[Frame] = []
    for kind, good in types:
        if kind in (_AMR_NO_DATA, _AMR_SPEECH_LOST):
            frames.append(Frame(b"", samples))
            continue
        if kind >= len(bits):
            raise MalformedPayload(f"AMR frame type {kind}")
        size = bits[kind]
        octets = (size + 7) // 8
        if at + size > total:
            raise MalformedPayload("AMR ends within a frame")
        speech = number >> (total - at - size) & ((1 << size) - 1)
        at += 8 * octets if aligned else size
        head = kind << 3 | good << 2
        data = (speech << (8 * octets - size)).to_bytes(octets, "big")
        frames.append(Frame(bytes([head]) + data, samples))
    return frames
