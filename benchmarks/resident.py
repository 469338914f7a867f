#!/usr/bin/env python3
"""What it costs to have short calls transcribed: a process a leg against whisper-resident.

    benchmarks/resident.py [--calls 5] [--seconds 20]

Both ways run the same tiny model (it always says one text) through the same faster-whisper, so what
is compared is start-up: imports, model load, warm-up. A real model adds its own time to each run,
and seconds of loading to each process. The process a leg is a script with openai-whisper's command
line over faster-whisper. Prints CPU seconds and writes build/bench/resident.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "providers"), str(ROOT / "wrappers")]

from harness.asr import wav  # noqa: E402 - found by the line above
from harness.tiny_whisper import make_ctranslate2  # noqa: E402

_CLIENT = Path(sys.executable).with_name("whisper-resident")
_SERVER = Path(sys.executable).with_name("siprec-asr")
_PER_LEG = """
import json, sys
from pathlib import Path
from faster_whisper import WhisperModel
audio, model, out = sys.argv[1:]
found, info = WhisperModel(model, device="cpu", cpu_threads=1).transcribe(
    audio, beam_size=5, word_timestamps=True
)
segments = [{"start": one.start, "end": one.end, "text": one.text} for one in found]
text = "".join(one["text"] for one in segments)
Path(out, Path(audio).stem + ".json").write_text(json.dumps({"text": text, "segments": segments}))
"""


def children_cpu() -> float:
    """CPU seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def process_cpu(pid: int) -> float:
    """CPU seconds of a running process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """CPU and wall seconds of a command."""
    cpu, wall = children_cpu(), time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return children_cpu() - cpu, time.perf_counter() - wall


def main() -> int:
    """Run both ways side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        rows = _measure(Path(name), arguments.calls, arguments.seconds)
    for row in rows:
        goal = f"   goal {row['goal']}" if row["goal"] is not None else ""
        print(f"{row['name']:44} {row['value']:8.3f} {row['unit']}{goal}")
    target = ROOT / "build" / "bench" / "resident.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def _measure(folder: Path, calls: int, seconds: float) -> list[dict[str, object]]:
    model = make_ctranslate2(folder / "models" / "tiny", "Good morning how can I help you")
    script = folder / "per_leg.py"
    script.write_text(_PER_LEG)
    legs = []
    for name in ("alice", "bob"):
        audio = folder / f"{name}.wav"
        audio.write_bytes(wav(seconds))
        legs.append(str(audio))
    out = folder / "out"
    out.mkdir()
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "WHISPER_RESIDENT_URL": f"unix://{folder / 'asr.sock'}",
        "ASR_SOCKET": str(folder / "asr.sock"),
        "ASR_PORT": "0",
        "ASR_WYOMING_PORT": "0",
        "ASR_MODELS_DIR": str(folder / "models"),
        "ASR_MODEL": "tiny",
        "ASR_PRELOAD": "tiny",
        "ASR_CPU_THREADS": "1",
        "ASR_COMPUTE_TYPE": "float32",
    }
    log = folder / "log"
    with log.open("wb") as errors:
        server = subprocess.Popen([str(_SERVER)], env=environment, stderr=errors)
    try:
        while "model.loaded" not in log.read_text():
            if server.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.05)
        resident = [str(_CLIENT), *legs, "--model", "tiny", "--output_dir", str(out), "-f", "json"]
        per_leg_cpu = per_leg_wall = client_cpu = server_cpu = resident_wall = 0.0
        for _ in range(calls):  # by turns, so that a busy machine is busy for both
            for leg in legs:
                cpu, wall = timed(
                    [sys.executable, str(script), leg, str(model), str(out)], environment
                )
                per_leg_cpu, per_leg_wall = per_leg_cpu + cpu, per_leg_wall + wall
            before = process_cpu(server.pid)
            cpu, wall = timed(resident, environment)
            client_cpu, resident_wall = client_cpu + cpu, resident_wall + wall
            server_cpu += process_cpu(server.pid) - before
    finally:
        server.terminate()
        server.wait(60)
    idle, _ = timed([sys.executable, "-c", "pass"], environment)
    ratio = per_leg_cpu / (client_cpu + server_cpu)
    how = f"benchmarks/resident.py --calls {calls} --seconds {seconds:g}"

    def row(name: str, value: float, unit: str, goal: float | None = None, less: bool = False) -> dict[str, object]:  # fmt: skip
        ok = goal is None or (value <= goal if less else value >= goal)
        return {"name": name, "value": round(value, 4), "unit": unit, "goal": goal, "ok": ok, "how": how}  # fmt: skip

    return [
        row("a process a leg, CPU a call", per_leg_cpu / calls, "s"),
        row("whisper-resident, CPU a call", (client_cpu + server_cpu) / calls, "s"),
        row("  of that the client's", client_cpu / calls, "s", 0.05, less=True),
        row("  of that python -c pass", idle, "s"),
        row("  of that the server's", server_cpu / calls, "s"),
        row("CPU, times less", ratio, "x", 5),
        row("wall, times less", per_leg_wall / resident_wall, "x"),
    ]


if __name__ == "__main__":
    sys.exit(main())
