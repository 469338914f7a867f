#!/usr/bin/env python3
"""CPU time of finishing a leg, by codec: spool to WAV at 16 kHz and stereo file.

    benchmarks/decode.py [--minutes 10] [--rate 16000] [--write build/bench/decode.json]

A tone where this FFmpeg has an encoder, else frames of random bits, whose noise at full scale costs
the resampler more than speech does. Each codec is finished three times; the least counts.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness.codecs import Stream, spool, streams
from siprec_bridge.media import finish_session
from siprec_bridge.rtp import build_packet

_RUNS = 3


def _long(stream: Stream, seconds: float) -> list[tuple[float, bytes]]:
    """The stream's payloads again and again."""
    length = stream.ticks / stream.codec.clock_rate
    return [
        (
            number * length,
            build_packet(
                stream.codec.payload_type,
                number,
                number * stream.ticks,
                7,
                stream.payloads[number % len(stream.payloads)],
            ),
        )
        for number in range(round(seconds / length))
    ]


def _measure(stream: Stream, seconds: float, rate: int) -> float:
    """CPU seconds of the best run."""
    best = float("inf")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spool(folder, _long(stream, seconds), (stream.codec,))
        for _ in range(_RUNS):
            (folder / "s.audio.json").unlink(missing_ok=True)
            began = time.process_time()
            audio = finish_session(folder, "s", rate)
            best = min(best, time.process_time() - began)
            if abs(audio.duration - seconds) > 0.1 or audio.legs[0].undecoded:
                sys.exit(f"{stream.codec.name}: not finished as it should be: {audio}")
    return best


def main() -> None:
    """Measure each codec and print the table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--rate", type=int, default=16000)
    options.add_argument("--write", type=Path)
    chosen = options.parse_args()

    results: list[dict[str, object]] = []
    print(f"{'codec':<20} {'CPU s per hour':>15} {'times real time':>16}")
    for name, stream in streams().items():
        spent = _measure(stream, 60 * chosen.minutes, chosen.rate)
        per_hour = spent * 60 / chosen.minutes
        print(f"{name:<20} {per_hour:>15.2f} {3600 / per_hour:>16.0f}", flush=True)
        how = f"{chosen.minutes:g} min to {chosen.rate} Hz, best of {_RUNS}"
        results.append(
            {"name": f"decode {name}", "value": round(per_hour, 3), "unit": "CPU s per h",
             "goal": None, "ok": None, "how": how}
        )  # fmt: skip
    if chosen.write is not None:
        chosen.write.parent.mkdir(parents=True, exist_ok=True)
        chosen.write.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
