"""Coded speech for tests: payloads as a sender packs them, and what FFmpeg itself hears in them."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import soxr

from harness.rtp import Pcm, tone
from siprec_bridge.caller.audio import RATE, sample_call
from siprec_bridge.receiver.spool import RTP, SpoolHeader, SpoolWriter, _record
from siprec_bridge.rtp import build_packet, encode_g711
from siprec_bridge.sdp import Codec

SECOND = 1_000_000_000
AMR_BITS = {"AMR": (95, 103, 118, 134, 148, 159, 204, 244), "AMR-WB": (132, 177, 253)}


@dataclass(frozen=True)
class Stream:
    """Payloads of `ticks` of the RTP clock each, and the PCM at `rate` that FFmpeg makes of them."""

    codec: Codec
    payloads: list[bytes]
    ticks: int
    rate: int
    pcm: Pcm

    def packet(self, index: int, ssrc: int = 7, first: int = 100) -> bytes:
        return build_packet(
            self.codec.payload_type,
            first + index,
            5000 + index * self.ticks,
            ssrc,
            self.payloads[index],
        )

    @property
    def packets(self) -> list[bytes]:
        return [self.packet(index) for index in range(len(self.payloads))]


def spool(
    folder: Path,
    datagrams: list[tuple[float, bytes]],
    codecs: tuple[Codec, ...],
    index: int = 0,
) -> None:
    """A stream's spool: datagrams with the seconds at which they came."""
    header = SpoolHeader(f"s-{index}", "s", index, str(index + 1), codecs, 5 * SECOND)
    writer = SpoolWriter(folder / f"s-{index}.spool", header)
    writer.write([_record(RTP, round((10 + at) * SECOND), data) for at, data in datagrams])
    writer.close()


def paced(stream: Stream, packets: list[bytes] | None = None) -> list[tuple[float, bytes]]:
    length = stream.ticks / stream.codec.clock_rate
    return [
        (length * number, one)
        for number, one in enumerate(stream.packets if packets is None else packets)
    ]


def context(
    name: str, rate: int, mode: Literal["r", "w"] = "r", layout: str = "mono", **more: Any
) -> Any:
    made: Any = av.CodecContext.create(av.codec.Codec(name, mode))
    made.sample_rate, made.layout = rate, layout
    for key, value in more.items():
        setattr(made, key, value)
    if mode == "w":
        made.format = "s16"
    made.open()
    return made


def through_file(demuxer: str, start: bytes, **options: str) -> Any:
    with av.open(io.BytesIO(start), format=demuxer, options=options) as file:
        return file.streams.audio[0].codec_context


def encode(encoder: Any, pcm: Pcm, size: int, layout: str = "mono") -> Iterator[bytes]:
    for start in range(0, pcm.shape[0] - size + 1, size):
        piece = pcm[start : start + size].reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(piece, format="s16", layout=layout)
        frame.sample_rate, frame.pts = encoder.sample_rate, start
        for packet in encoder.encode(frame):
            yield bytes(packet)


def hear(decoder: Any, frames: list[bytes]) -> Pcm:
    parts = [
        one.to_ndarray().reshape(-1) for data in frames for one in decoder.decode(av.Packet(data))
    ]
    return np.concatenate(parts).astype(np.int16)


def noise(size: int, count: int, start: bytes = b"") -> list[bytes]:
    random = np.random.default_rng(7)
    return [start + random.bytes(size - len(start)) for _ in range(count)]


def amr_payload(name: str, frames: list[bytes], aligned: bool) -> bytes:
    """Frames of an AMR file as an RTP payload, bit by bit. RFC 4867 §4.3 and §4.4."""
    toc, speech = "", ""
    for number, frame in enumerate(frames):
        more = "1" if number + 1 < len(frames) else "0"
        kind = frame[0] >> 3 & 15
        toc += more + f"{kind:04b}" + f"{frame[0] >> 2 & 1}" + ("00" if aligned else "")
        bits = "".join(f"{octet:08b}" for octet in frame[1:])
        speech += bits if aligned else bits[: AMR_BITS[name][kind]]
    text = ("11110000" if aligned else "1111") + toc + speech
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")


def streams() -> dict[str, Stream]:
    """One stream of a codec each, two seconds or so."""
    found: dict[str, Stream] = {}
    voice8, voice16 = tone(440, 2.0), tone(440, 2.0, 16000) + tone(5000, 2.0, 16000)

    found["PCMU"] = _plain("PCMU", voice8)
    wide = list(encode(context("g722", 16000, "w"), voice16, 320))
    found["G722"] = Stream(
        Codec(9, "G722", 8000), wide, 160, 16000, hear(context("g722", 16000), wide)
    )
    for name, form in (("G726-32", "g726le"), ("AAL2-G726-32", "g726")):
        whole = b"".join(encode(context(form, 8000, "w", bit_rate=32000), voice8, 160))
        coded = [whole[at : at + 80] for at in range(0, len(whole) // 80 * 80, 80)]
        decoder = through_file(form, bytes(800), code_size="4")
        found[name] = Stream(Codec(97, name, 8000), coded, 160, 8000, hear(decoder, coded))
    for name, size, samples, start in (
        ("G729", 10, 80, b""),
        ("GSM", 33, 160, b"\xd1"),
    ):
        frames = noise(size, 100, start)
        number = {"G729": 18, "GSM": 3}[name]
        found[name] = Stream(
            Codec(number, name, 8000),
            frames,
            samples,
            8000,
            hear(context(name.lower(), 8000), frames),
        )
    pairs = found["G729"]
    found["G729 of 20 ms"] = Stream(
        pairs.codec,
        [a + b for a, b in zip(pairs.payloads[::2], pairs.payloads[1::2], strict=True)],
        160,
        8000,
        pairs.pcm,
    )
    for mode, size in (("20", 38), ("30", 50)):
        frames = [frame[:-1] + bytes([frame[-1] & 0xFE]) for frame in noise(size, 60)]
        decoder = through_file("ilbc", b"#!iLBC" + mode.encode() + b"\n" + bytes(size))
        found[f"iLBC {mode}"] = Stream(
            Codec(98, "ILBC", 8000, fmtp=f"mode={mode}"), frames, 8 * int(mode), 8000,
            hear(decoder, frames),
        )  # fmt: skip
    coded = list(encode(context("g723_1", 8000, "w", bit_rate=6300), voice8, 240))
    found["G723"] = Stream(
        Codec(4, "G723", 8000), coded, 240, 8000, hear(context("g723_1", 8000), coded)
    )
    narrow = list(encode(context("libopencore_amrnb", 8000, "w", bit_rate=12200), voice8, 160))
    broad = noise(33, 100, b"\x14")
    broad = [frame[:-1] + bytes([frame[-1] & 0xF8]) for frame in broad]
    for name, frames, samples, rate in (
        ("AMR", narrow, 160, 8000),
        ("AMR-WB", broad, 320, 16000),
    ):
        library = "libopencore_amrnb" if name == "AMR" else "libopencore_amrwb"
        pcm = hear(context(library, rate), frames)
        for aligned in (True, False):
            form = "octet-align=1" if aligned else ""
            codec = Codec(99, name, rate, fmtp=form)
            alone = [amr_payload(name, [one], aligned) for one in frames]
            kind = "octets" if aligned else "bits"
            found[f"{name} in {kind}"] = Stream(codec, alone, samples, rate, pcm)
        couples = [
            amr_payload(name, frames[at : at + 2], False)
            for at in range(0, len(frames) - len(frames) % 2, 2)
        ]
        found[f"{name} by two"] = Stream(
            Codec(99, name, rate), couples, 2 * samples, rate, pcm[: 2 * samples * len(couples)]
        )
    opus = Codec(111, "OPUS", 48000, 2, "stereo=1;useinbandfec=1")
    voice48 = tone(440, 2.0, 48000)
    mono = list(encode(context("libopus", 48000, "w"), voice48, 960))
    found["Opus"] = Stream(opus, mono, 960, 48000, hear(context("libopus", 48000), mono))
    both = np.stack((voice48, tone(880, 2.0, 48000)), axis=1)
    two = list(encode(context("libopus", 48000, "w", "stereo"), both, 960, "stereo"))
    found["Opus in stereo"] = Stream(opus, two, 960, 48000, hear(context("libopus", 48000), two))
    found["L16"] = Stream(
        Codec(100, "L16", 16000),
        [voice16[at : at + 320].astype(">i2").tobytes() for at in range(0, 32000, 320)],
        320,
        16000,
        voice16,
    )
    found["L16 in stereo"] = Stream(
        Codec(10, "L16", 44100, 2),
        [
            np.repeat(tone(440, 2.0, 44100)[at : at + 882, None], 2, axis=1).astype(">i2").tobytes()
            for at in range(0, 88200, 882)
        ],
        882,
        44100,
        tone(440, 2.0, 44100),
    )
    return found


def speech_with_copies() -> Stream:
    """Somebody speaking Opus whose packets carry a copy of the frame before. RFC 7587 §3.3"""
    codec = Codec(111, "OPUS", 48000, 2, "useinbandfec=1")
    alice, _ = sample_call()
    pcm = soxr.resample(alice.pcm, RATE, 48000).astype(np.int16)
    told = {"fec": "1", "packet_loss": "25", "application": "voip"}
    encoder = context("libopus", 48000, "w", bit_rate=24000, options=told)
    payloads = list(encode(encoder, pcm, 960))
    return Stream(codec, payloads, 960, 48000, hear(context("libopus", 48000), payloads))


def _plain(name: str, pcm: Pcm) -> Stream:
    payloads = [encode_g711(name, pcm[at : at + 160]) for at in range(0, len(pcm), 160)]
    return Stream(
        Codec(0, name, 8000), payloads, 160, 8000, hear(context("pcm_mulaw", 8000), payloads)
    )
