"""`whisper-local`: openai-whisper's `whisper` or `whisper-ctranslate2` from a virtual environment.

Both keep the contract by themselves. What this adds: it finds them where they are installed, turns
the model into what the one at hand takes, allows no half-written output, and owns a deadline.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from siprec_wrappers.contract import (
    Arguments,
    Failure,
    check_audio,
    parse_arguments,
)
from siprec_wrappers.lifetime import child, run_to_end
from siprec_wrappers.outputs import read_folder, take, wanted

_PROGRAM = "whisper-local"
_CTRANSLATE2 = "whisper-ctranslate2"
_KNOWN = ("whisper", _CTRANSLATE2)
_EPILOG = """\
Further options go to the program as they are (--word_timestamps True, --beam_size 5 ...).

environment:
  WHISPER_LOCAL_PROGRAM  path or name of the program
  WHISPER_LOCAL_VENV     virtual environment that has it; whisper is preferred to
                         whisper-ctranslate2
                         with neither: the first of the two on PATH
  WHISPER_LOCAL_TIMEOUT  longest run, such as 90s or 20m (default: WHISPER_TIMEOUT, else 20m)

model: a name, or a path: of a .pt file for whisper, of a folder with a CTranslate2 model for
whisper-ctranslate2 (it is handed over as --model_directory); also relative to --model_dir.

exit codes: the program's own; 1 also when it skipped a file; 124 out of time; 126 or 127 when
it cannot be run, or needs ffmpeg and there is none; 128+n ended by signal n.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; see `--help`."""
    arguments = parse_arguments(_PROGRAM, (__doc__ or "").strip(), argv, epilog=_EPILOG)
    return run_to_end(
        _PROGRAM, lambda _: _transcribe(arguments, os.environ), timeout="WHISPER_LOCAL_TIMEOUT"
    )


def _transcribe(arguments: Arguments, environment: Mapping[str, str]) -> None:
    check_audio(arguments.audio)
    program = choose_program(environment)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    # In the caller's folder: it is removed with that, whatever becomes of us.
    with tempfile.TemporaryDirectory(
        prefix=".whisper-local-", dir=arguments.output_dir, ignore_cleanup_errors=True
    ) as room:
        with child([program, *command_line(program, arguments, room)]) as running:
            code = running.wait()
        if code:
            code = code if code > 0 else 128 - code
            raise Failure(f"{program}: exit code {code}", code)
        found = read_folder(Path(room), wanted(arguments))
    if not found and Path(program).name == "whisper" and shutil.which("ffmpeg") is None:
        raise Failure("openai-whisper reads audio through ffmpeg, which is not on PATH", 127)
    take(arguments, found)


def choose_program(environment: Mapping[str, str]) -> str:
    """The program to run. Raises Failure (127) when there is none."""
    named = environment.get("WHISPER_LOCAL_PROGRAM")
    if named:
        found = shutil.which(os.path.expanduser(named))
        if found is None:
            raise Failure(f"WHISPER_LOCAL_PROGRAM={named}: not found, or not executable", 127)
        return found
    venv = environment.get("WHISPER_LOCAL_VENV")
    place = str(Path(venv).expanduser() / "bin") if venv else None
    for name in _KNOWN:
        if (found := shutil.which(name, path=place)) is not None:
            return found
    where = f"in {place} (WHISPER_LOCAL_VENV)" if place else "on PATH (WHISPER_LOCAL_PROGRAM)"
    raise Failure(f"neither {' nor '.join(_KNOWN)} {where}", 127)


def command_line(program: str, arguments: Arguments, output_dir: str) -> list[str]:
    """The program's own arguments."""
    form = arguments.output_formats[0] if len(arguments.output_formats) == 1 else "all"
    line = [str(file.absolute()) for file in arguments.audio]
    line += ["--output_dir", output_dir, "--output_format", form, "--task", arguments.task]
    model = find_model(arguments.model, arguments.model_dir)
    is_folder = Path(model).is_dir()
    if is_folder and Path(program).name == _CTRANSLATE2:
        line += ["--model_directory", model]
    else:
        line += ["--model", arguments.model if is_folder else model]
        if arguments.model_dir is not None:
            line += ["--model_dir", arguments.model_dir]
    if arguments.language is not None:
        line += ["--language", arguments.language]
    return [*line, *arguments.ignored]


def find_model(name: str, model_dir: str | None) -> str:
    """A path where the model is one's own file or folder, else the name."""
    for place in (Path(name).expanduser(), Path(model_dir or ".") / name):
        if (os.sep in name or model_dir) and (place.is_file() or (place / "model.bin").is_file()):
            return str(place.absolute())
    return name


if __name__ == "__main__":
    sys.exit(main())
