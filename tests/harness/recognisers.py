"""Recognisers that misbehave, each in its way, and one that says what it is told to."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_PREAMBLE = f"""#!{sys.executable}
import json, os, pathlib, subprocess, sys, time
arguments = sys.argv[1:]
audio = [pathlib.Path(one) for one in arguments[: arguments.index("--model")]]
out = pathlib.Path(arguments[arguments.index("--output_dir") + 1])
here = pathlib.Path(__file__)
if here.name == "ignores_term":  # before anybody can know that it runs
    import signal
    signal.signal(signal.SIGTERM, lambda *_: here.with_suffix(".told").touch())
with open(here.with_suffix(".calls"), "a") as calls:
    calls.write(json.dumps({{"arguments": arguments, "pid": os.getpid(),
                            "threads": os.environ.get("OMP_NUM_THREADS")}}) + "\\n")

def write(file, text):
    out.mkdir(exist_ok=True)
    (out / (file.stem + ".json")).write_text(text)

def say(text):
    for file in audio:
        segment = {{"id": 0, "start": 0.2, "end": 0.8, "text": text}}
        write(file, json.dumps({{"text": text, "language": "en", "segments": [segment]}}))
"""

BEHAVIOURS = {
    "speaks": "say('hello there')",
    "takes_one_file": ("sys.exit(2) if len(audio) > 1 else say('hello there')"),
    "fails_the_second_time": (
        "times = len(here.with_suffix('.calls').read_text().splitlines())\n"
        "sys.exit(3) if times == 2 else say('hello there')"
    ),
    "names_outputs_as_early_versions_did": (
        "[(out / (f.name + '.json')).write_text(json.dumps({'text': 'hello there'})) for f in audio]"
    ),
    "is_silent": "[write(f, json.dumps({'text': '', 'segments': [], 'language': 'en'})) for f in audio]",
    "hangs": "time.sleep(600)",
    "ignores_term": "time.sleep(600)",
    "leaves_a_child_that_hangs": (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "here.with_suffix('.child').write_text(str(child.pid)); say('hello there')"
    ),
    "hangs_in_a_child": (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "here.with_suffix('.child').write_text(str(child.pid)); child.wait()"
    ),
    "exits_1": "print('out of memory on GPU 3', file=sys.stderr); sys.exit(1)",
    "prints_garbage": "sys.stdout.buffer.write(os.urandom(100000)); sys.exit(0)",
    "writes_bad_json": '[write(f, \'{"text": "half of\') for f in audio]',
    "writes_nothing": "pass",
    "writes_a_pipe": "[os.mkfifo(out / (f.stem + '.json')) for f in audio]",
    "tells_and_exits_1": "print('my card number is'); sys.exit(1)",
    "floods_stderr": (
        "chunk = b'x' * 65536\n"
        "for _ in range(1600): os.write(2, chunk)\n"
        "os.write(2, b'the last words'); say('hello there')"
    ),
    "fails_until_told": (
        "sys.exit(3) if not here.with_suffix('.works').exists() else say('hello there')"
    ),
    "waits_for_leave": (
        "while not here.with_suffix('.go').exists(): time.sleep(0.02)\nsay('hello there')"
    ),
    "hears_a_card": (
        "while not here.with_suffix('.go').exists(): time.sleep(0.02)\n"
        "number = 'it is 4242 4242 four two four two 4242'\n"
        "print(number, file=sys.stderr); say(number)"
    ),
    "hears_a_card_and_exits_1": "print('4242 4242 4242 4242', file=sys.stderr); sys.exit(1)",
    "fails_at_calls": "sys.exit(6) if len(audio) > 1 else say('a tone')",
    "fails_with_company": "sys.exit(5) if len(audio) > 2 else say('hello there')",
}


def recogniser(folder: Path, behaviour: str) -> Path:
    """Write an executable of this behaviour; returns its path."""
    path = folder / behaviour
    path.write_text(_PREAMBLE + BEHAVIOURS[behaviour] + "\n")
    path.chmod(0o755)
    return path


def wrapped(program: Path, folder: Path, variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a wrapper as the bridge would, for one file of `folder`."""
    audio = folder / "a.wav"
    audio.write_bytes(bytes(100_000))
    return subprocess.Popen(
        [program, audio, "--model", "base", "--output_dir", folder / "out", "--output_format", "json"],
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr of a wrapper that is to end by itself."""
    _, err = process.communicate(timeout=30)
    return process.returncode, err


def calls(path: Path) -> list[dict[str, object]]:
    """How the recogniser was called: arguments and pid, once a run."""
    log = path.with_suffix(".calls")
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
