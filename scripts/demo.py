"""`make demo`: a bridge, a listener and a caller, each the real command, for one sample call.

Everything runs on loopback with free ports and a data folder of its own, `build/demo`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

COMMAND = [str(Path(sys.executable).with_name("siprec-bridge"))]
DATA = Path("build/demo").absolute()
PATIENCE_S = 60


def main() -> int:
    """Return the exit code: 0 when the conversation arrived."""
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "AMQP_URL"} | {
        "DATA_DIR": str(DATA),
        "SIP_HOST": "127.0.0.1",
        "PORTS": "0",
        "HTTP_PORT": "0",
        "LOG_FORMAT": "json",
        "MIN_FREE_DISK": "0",
    }
    log = DATA / "bridge.log"
    with log.open("wb") as sink:
        bridge = subprocess.Popen([*COMMAND, "serve"], env=environment, stderr=sink, stdout=sink)
    listener: subprocess.Popen[str] | None = None
    try:
        ready = _wait_for(log, bridge, "bridge.ready")
        for line in _entries(log, "bridge.chose"):
            print(f"bridge   {line['what']}")
        listener = subprocess.Popen(
            [*COMMAND, "listen", f"ws://{ready['http']}/ws/transcripts", "--once"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert listener.stdout is not None
        print(f"listener {listener.stdout.readline().strip()}", flush=True)
        print(
            f"caller   dials sip:{ready['sip_udp'][0]} over UDP, two streams of G.711", flush=True
        )
        subprocess.run([*COMMAND, "call", f"sip:{ready['sip_udp'][0]}", "--brief"], check=True)
        print("\nThe conversation, as the WebSocket listener receives it:\n", flush=True)
        for line in listener.stdout:
            print(f"  {line.rstrip()}", flush=True)
        if listener.wait(timeout=PATIENCE_S) != 0:
            _give_up(log, "the transcript did not arrive")
        _show_where(ready["http"])
    finally:
        for process in (listener, bridge):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        code = bridge.wait(timeout=PATIENCE_S)
    print(f"\nThe bridge ended with exit code {code}. `make run` starts one that stays.")
    return code


def _wait_for(log: Path, bridge: subprocess.Popen[bytes], event: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and bridge.poll() is None:
        for entry in _entries(log, event):
            return entry
        time.sleep(0.1)
    _give_up(log, f"the bridge did not say {event}")


def _entries(log: Path, event: str) -> Iterator[dict[str, Any]]:
    for line in log.read_text().splitlines():
        if line.startswith("{") and (entry := json.loads(line)).get("event") == event:
            yield entry


def _show_where(http: str) -> None:
    with urllib.request.urlopen(f"http://{http}/api/sessions?limit=1", timeout=5) as answer:
        session = json.load(answer)["sessions"][0]["id"]
    print("\nRecorded audio (one file per party, and both in stereo):")
    for path in sorted(DATA.rglob("*.wav")):
        print(f"  {path.relative_to(Path.cwd())}  {path.stat().st_size:,} bytes")
    print("\nWhile a bridge runs, it shows the same under (ports of this demo):")
    print(f"  page      http://{http}/")
    print(f"  API       http://{http}/api/sessions/{session}/transcript")
    print(f"  metrics   http://{http}/metrics")


def _give_up(log: Path, reason: str) -> NoReturn:
    print(f"demo: {reason}; the bridge's log ends with:", file=sys.stderr)
    print("\n".join(log.read_text().splitlines()[-15:]), file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
