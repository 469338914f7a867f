"""What the wrappers of speech servers share: options of their own, and how they end."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

from siprec_wrappers.contract import Arguments, Failure, parse_arguments

AWAY = 127  # the contract's way to say that the job should wait

_WRONG_ARGUMENTS = 2
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

    0; 1 when the server has no result for a file; 2 for wrong arguments; 127 when it is away or
    does not let us in. `options` are the wrapper's own, each with what it means: `--name`, else
    the variable that `setting` reads. `read` raises ValueError for a wrong one.
    """
    signal.signal(signal.SIGTERM, _end)
    parser = argparse.ArgumentParser(program, allow_abbrev=False, add_help=False)
    for name, meaning in options.items():
        parser.add_argument(f"--{name}", default=setting(program, name), help=meaning)
    own, rest = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    first_line = about.splitlines()[0]
    arguments = parse_arguments(program, f"{first_line} Own options: {parser.format_usage()}", rest)
    try:
        known = read(own, arguments)
    except ValueError as error:
        complain(program, str(error))
        return _WRONG_ARGUMENTS
    if arguments.ignored:
        complain(program, f"ignored: {' '.join(arguments.ignored)}")
    try:
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
    variable = f"{program}_{name}".replace("-", "_").upper()
    return os.environ.get(variable, "").strip() or None


def seconds_of(name: str, value: str) -> float:
    """What `90s`, `20m`, `1h` are. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", value)
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not seconds:
        raise ValueError(f"--{name} {value}: a duration such as 90s or 20m is needed")
    return seconds


def complain(program: str, text: str) -> None:
    """One line on stderr."""
    print(f"{program}: {text}", file=sys.stderr)


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)
