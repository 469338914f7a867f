"""How a wrapper ends: in time, in order when it is told to, and never without its children."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

from siprec_wrappers.contract import Failure, seconds_in

_DEFAULT_TIMEOUT = "20m"  # the caller's own default
# The caller sends KILL three seconds after TERM: what is to be done by then is done in two.
GRACE_S = 2.0
TIMED_OUT = 124  # as coreutils' timeout has it


class Ended(BaseException):
    """A signal that asks to end. No Exception, so that nothing on the way takes it for a fault."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_to_end(program: str, work: Callable[[float], None], *, timeout: str) -> int:
    """Do the work and return the exit code: 0, a Failure's, 124 out of time, 128 + signal.

    `timeout` is the variable with the longest run, see `timeout_of`; `work` is told the seconds.
    TERM, INT and HUP arrive in `work` as Ended, the deadline as TimeoutError: `finally` runs, and
    nothing interrupts it any more. Each way to fail leaves one line on stderr.
    """
    try:
        timeout_s = timeout_of(timeout, os.environ)
    except Failure as failure:
        _say(program, str(failure))
        return failure.code
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    signal.signal(signal.SIGALRM, _time_out)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        work(timeout_s)
    except Failure as failure:
        if str(failure):
            _say(program, str(failure))
        return failure.code
    except TimeoutError:
        _say(program, f"no result within {timeout_s:g} s")
        return TIMED_OUT
    except Ended as ended:
        _say(program, f"ended by {signal.Signals(ended.number).name}")
        return 128 + ended.number
    except OSError as error:
        _say(program, f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return 0


def timeout_of(name: str, environment: Mapping[str, str]) -> float:
    """Seconds from the variable `name`, else WHISPER_TIMEOUT, else 20 minutes.

    Raises Failure for what is no time.
    """
    name = name if environment.get(name) else "WHISPER_TIMEOUT"
    written = environment.get(name) or _DEFAULT_TIMEOUT
    try:
        return seconds_in(written)
    except ValueError as error:
        raise Failure(f"{name}={written}: must be a time such as 90s or 20m", 126) from error


def words_of(name: str, environment: Mapping[str, str], default: str = "") -> list[str]:
    """The variable `name`, which is quoted as in a shell. Raises Failure (126)."""
    import shlex  # only here: most wrappers have no such variable

    try:
        words = shlex.split(environment.get(name) or default)
    except ValueError as error:
        raise Failure(f"{name}: {error}", 126) from error
    if default and not words:
        raise Failure(f"{name}: must name a program", 126)
    return words


@contextlib.contextmanager
def child(
    command: Sequence[str],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that is gone when the block is left, however it is left.

    It stays in our process group, which the caller ends as a whole. Raises Failure, 126 or 127,
    when it cannot be started.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            env=environment,
            preexec_fn=_die_with_parent(),
        )
    except OSError as error:
        code = 127 if isinstance(error, FileNotFoundError) else 126
        raise Failure(f"{command[0]}: {error.strerror}", code) from error
    try:
        yield process
    finally:
        _end_child(process)


def _end(number: int, _: object) -> None:
    _hear_no_more()
    raise Ended(number)


def _time_out(*_: object) -> None:
    _hear_no_more()
    raise TimeoutError


def _hear_no_more() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _end_child(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what is still unsent can go nowhere
                pipe.close()
    if process.poll() is None:
        # A wrapper that leads its group ends all of it: the program may be a script with children.
        _hear_no_more()
        if os.getpgid(0) == os.getpid():
            os.killpg(0, signal.SIGTERM)
        else:
            process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _die_with_parent() -> Callable[[], None]:
    """What makes a child get KILL when we do: nobody else would end it then. Linux."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    import ctypes  # only here: it costs milliseconds

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before we asked
            os._exit(128 + signal.SIGKILL)

    return ask


def _say(program: str, message: str) -> None:
    with contextlib.suppress(OSError):
        print(f"{program}: {message}", file=sys.stderr, flush=True)
