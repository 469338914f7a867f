"""Voice for tests: tones, the packets that carry them, and what came out at the other end."""

import socket
import wave
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from siprec_bridge.rtp import build_packet, encode_g711

Pcm = npt.NDArray[np.int16]


def tone(frequency: float, seconds: float, rate: int = 8000) -> Pcm:
    """A sine at half of full scale."""
    time = np.arange(round(seconds * rate)) / rate
    return (16000 * np.sin(2 * np.pi * frequency * time)).astype(np.int16)


def packets(
    pcm: Pcm,
    *,
    codec: str = "PCMU",
    ssrc: int = 0x1234,
    first_sequence: int = 100,
    first_timestamp: int = 1000,
    samples: int = 160,
) -> list[bytes]:
    """The audio as 20 ms packets of G.711."""
    payload_type = {"PCMU": 0, "PCMA": 8}[codec]
    return [
        build_packet(
            payload_type,
            first_sequence + number,
            first_timestamp + start,
            ssrc,
            encode_g711(codec, pcm[start : start + samples]),
            marker=number == 0,
        )
        for number, start in enumerate(range(0, len(pcm), samples))
    ]


def send(datagrams: Iterable[bytes], port: int, host: str = "127.0.0.1") -> None:
    """Send datagrams as fast as they go."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        for datagram in datagrams:
            one.sendto(datagram, (host, port))


def read_wav(path: Path) -> tuple[int, Pcm]:
    """Rate and samples, shape (n,) or (n, channels)."""
    with wave.open(str(path)) as wav:
        pcm = np.frombuffer(wav.readframes(wav.getnframes()), "<i2")
        channels = wav.getnchannels()
        return wav.getframerate(), pcm if channels == 1 else pcm.reshape(-1, channels)


def loudest_frequency(pcm: Pcm, rate: int) -> float:
    """Of a stretch of audio, in Hz; 0 when it is silent."""
    if len(pcm) == 0 or int(np.abs(pcm.astype(np.int32)).max()) < 200:
        return 0.0
    spectrum = np.abs(np.fft.rfft(pcm * np.hanning(len(pcm))))
    return float(np.fft.rfftfreq(len(pcm), 1 / rate)[int(spectrum.argmax())])
