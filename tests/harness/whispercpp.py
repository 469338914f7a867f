"""A double of whisper.cpp's `whisper-cli` that behaves as told, for tests without its binary.

Its flags and JSON are the real program's: an option that it does not know, and a file that it cannot
read, are told on stderr with exit code 0 and no output; a model that is none is exit code 3; `-l`
is English unless it is told otherwise. What it says comes from a recogniser of harness.recognisers,
or from the stand-in. tests/real runs the real program.
"""

import sys
from pathlib import Path

_PROGRAM = """\
#!{python}
import ctypes, json, os, pathlib, subprocess, sys, tempfile

FLAGS = {{"-tr": "translate", "--translate": "translate", "-ojf": "full", "--output-json-full": "full",
         "-oj": "json", "-fa": "flash_attn", "--flash-attn": "flash_attn", "-np": "no_prints"}}
VALUES = {{"-m": "model", "-l": "language", "-t": "threads", "--threads": "threads",
          "--beam-size": "beam_size", "--prompt": "prompt", "--language": "language"}}
given, files, targets = {{"language": "en"}}, [], []
arguments = sys.argv[1:]
while arguments:
    one = arguments.pop(0)
    if one in ("-f", "--file"):
        files.append(arguments.pop(0))
    elif one in ("-of", "--output-file"):
        targets.append(arguments.pop(0))
    elif one in FLAGS:
        given[FLAGS[one]] = True
    elif one in VALUES:
        given[VALUES[one]] = arguments.pop(0)
    elif not one.startswith("-"):
        files.append(one)
    else:
        print(f"error: unknown argument: {{one}}", file=sys.stderr)
        sys.exit(0)
here = pathlib.Path(__file__)
with open(here.with_suffix(".flags"), "w") as log:
    json.dump(given | {{"files": files}}, log)
if pathlib.Path(given["model"]).read_bytes()[:4] != b"lmgg":
    print("error: failed to initialize whisper context", file=sys.stderr)
    sys.exit(3)
with tempfile.TemporaryDirectory(dir=here.parent) as room:
    command = [{recogniser!r}, *files, "--model", given["model"], "--output_dir", room,
               "--output_format", "json"]
    os.chdir(here.parent)
    # The real program is one process: what it says ends with it.
    die_with_us = lambda: ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
    run = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_us)
    code = run.wait()
    if code:
        sys.exit(code)
    for file, target in zip(files, targets):
        said = pathlib.Path(room, pathlib.Path(file).stem + ".json")
        if not said.is_file():
            print(f"error: failed to read audio file '{{file}}'", file=sys.stderr)
            continue
        try:
            document = json.loads(said.read_text())
        except ValueError:
            pathlib.Path(target + ".json").write_text(said.read_text())
            continue

        def token(text, start, end, number):
            return {{"text": text, "offsets": {{"from": round(1000 * start), "to": round(1000 * end)}},
                    "id": number, "p": 0.9, "t_dtw": -1}}

        def tokens(segment):
            words = segment.get("words") or [
                {{"word": word, "start": segment["start"], "end": segment["end"]}}
                for word in segment["text"].split()]
            yield token("[_BEG_]", segment["start"], segment["start"], 50364)
            for number, word in enumerate(words):
                text, middle = " " + word["word"], (word["start"] + word["end"]) / 2
                cut = max(2, len(text) // 2)  # words of several tokens are what it has
                yield token(text[:cut], word["start"], middle, 2 * number)
                if text[cut:]:
                    yield token(text[cut:], middle, word["end"], 2 * number + 1)

        pathlib.Path(target + ".json").write_text(json.dumps({{
            "systeminfo": "none", "model": {{"type": "base"}},
            "params": {{"model": given["model"], "language": given["language"],
                       "translate": bool(given.get("translate"))}},
            "result": {{"language": "en" if given["language"] == "auto" else given["language"]}},
            "transcription": [
                {{"offsets": {{"from": round(1000 * one["start"]), "to": round(1000 * one["end"])}},
                 "text": " " + one["text"], "tokens": list(tokens(one))}}
                for one in document["segments"]],
        }}))
"""


def whisper_cli(folder: Path, recogniser: Path) -> Path:
    """Write the program, which asks `recogniser` what to say, and a model; returns its path."""
    path = folder / "whisper-cli"
    path.write_text(_PROGRAM.format(python=sys.executable, recogniser=str(recogniser)))
    path.chmod(0o755)
    (folder / "ggml-base.bin").write_bytes(b"lmgg")
    return path
