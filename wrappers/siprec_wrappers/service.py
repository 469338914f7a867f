"""What the wrappers of speech servers share: options of their own, and how they end."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

from siprec_wrappers.contract import Arguments, Failure, check_audio, parse_arguments, seconds_in

AWAY = 127  # the contract's way to say that the job should wait

_WRONG_ARGUMENTS = 2
_NOT_CONFIGURED = 126  # the job waits, too
_FAILED = 1

Options = TypeVar("Options")


class Failed(Failure):
    """No result, with the cause. `retryable`: another request may do better."""

    exit_code = _FAILED

    def __init__(self, cause: str, *, retryable: bool = False, pause: float | None = None) -> None:
        super().__init__(cause, self.exit_code)
        self.retryable = retryable
        self.pause = pause  # seconds that the server asks for


class Away(Failed):
    """The server is not there, or serves nobody like us: the job should wait."""

    exit_code = AWAY


def run(
    program: str,
    about: str,
    options: Mapping[str, str],
    argv: Sequence[str] | None,
    *,
    read: Callable[[argparse.Namespace, Arguments], Options],
    work: Callable[[Arguments, Options], None],
) -> int:
    """Read the arguments, do the work, and return the exit code.

    0; 1 when the server has no result for a file; 2 for wrong arguments; 126 for wrong variables;
    127 when it is away or does not let us in. `options` are the wrapper's own, each with what it means: `--name`, else
    the variable that `setting` reads. `read` raises ValueError for a wrong one.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    parser = argparse.ArgumentParser(program, allow_abbrev=False, add_help=False)
    for name in options:
        parser.add_argument(f"--{name}")
    own, rest = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    told = {name for name in options if getattr(own, name) is not None}
    for name in options.keys() - told:
        setattr(own, name, setting(program, name))
    arguments = parse_arguments(program, about.strip(), rest, epilog=_epilog(program, options))
    try:
        known = read(own, arguments)
    except ValueError as error:
        what, colon, why = str(error).partition(": ")
        named = set(re.findall(r"--(\w+)", what))
        if named & told or named - options.keys():
            complain(program, str(error))
            return _WRONG_ARGUMENTS
        for name in named:  # it came from the environment: that is where it must be mended
            what = what.replace(f"--{name} ", f"{_variable(program, name)}=")
            what = re.sub(rf"--{name}\b", _variable(program, name), what)
        complain(program, what + colon + why)
        return _NOT_CONFIGURED
    if arguments.ignored:
        complain(program, f"ignored: {' '.join(arguments.ignored)}")
    try:
        check_audio(arguments.audio)
        work(arguments, known)
    except Failure as failure:
        complain(program, str(failure))
        return failure.code
    except OSError as error:
        complain(program, f"{error.filename or arguments.output_dir}: {error.strerror or error}")
        return _FAILED
    return 0


def setting(program: str, name: str) -> str | None:
    """The variable of an option: WHISPER_HTTP_URL for whisper-http's --url."""
    return os.environ.get(_variable(program, name), "").strip() or None


def _variable(program: str, name: str) -> str:
    return f"{program}_{name}".replace("-", "_").upper()


def _epilog(program: str, options: Mapping[str, str]) -> str:
    names = {name: f"--{name}, {_variable(program, name)}" for name in options}
    width = max(map(len, names.values()))
    lines = "\n".join(f"  {names[name]:<{width}}  {options[name]}" for name in options)
    return (
        f"own options, or else environment (secrets only there, see wrappers/README.md):\n{lines}\n\n"
        "Further options of openai-whisper are accepted, and not heeded.\n\n"
        "exit codes: 1 when the server has no result for a file; 2 for wrong arguments; 126 for wrong\n"
        "or missing variables; 127 when the server is away or does not let us in."
    )


def seconds_of(name: str, value: str) -> float:
    """What `90s`, `20m`, `1h30m` are. Raises ValueError that names the option."""
    try:
        return seconds_in(value)
    except ValueError as error:
        raise ValueError(f"--{name} {value}: {error}") from error


def longest_run(timeout: str | None) -> float:
    """Seconds that a run may take: the option --timeout, else WHISPER_TIMEOUT, else 20 minutes.

    Raises ValueError.
    """
    if timeout is not None:
        return seconds_of("timeout", timeout)
    written = os.environ.get("WHISPER_TIMEOUT", "").strip() or "20m"
    try:
        return seconds_in(written)
    except ValueError as error:
        raise ValueError(f"WHISPER_TIMEOUT={written}: {error}") from error


def complain(program: str, text: str) -> None:
    """One line on stderr."""
    print(f"{program}: {text}", file=sys.stderr)


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)
