"""A recogniser on the far side of a pipe: another host's shell, or a container's.

One connection carries everything. To the far side: the audio, as a tar of known size, then nothing,
but it stays open: its end tells the far side that we are gone, however we went, and it ends the
program and removes what it has there. From the far side: a line that the program runs, its exit
code, the outputs as a tar; stderr is the program's own. Its stdout, where recognisers print what was
said and some of them why they failed, comes only after a failure, and to our stdout. It needs `sh`,
`tar`, `head`, `tail` and `mktemp` there, and uses `setsid` and `timeout` where it finds them.
"""

import contextlib
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from siprec_wrappers.contract import Arguments, Failure
from siprec_wrappers.lifetime import GRACE_S, child
from siprec_wrappers.outputs import take, wanted

_STARTED = b"whisper-far-side "  # login scripts may print things before it
_LATER_S = 5.0  # the far side's own limit comes after ours, for when it cannot hear of us
_NO_ROOM = 73  # the far side's own code for a full disk or a cut-off tar
_LARGEST = 64 << 20  # octets of one output; hours of words stay far below
_BLOCK = 512
_RECORD = 20 * _BLOCK

_OPENING = """\
umask 077
program= guard= room=
end_program() {
    kill -TERM "-$program" 2>/dev/null || return 0
    tries=0
    while kill -0 "-$program" 2>/dev/null; do
        if [ $tries -ge 10 ]; then kill -KILL "-$program" 2>/dev/null; return 0; fi
        tries=$((tries + 1))
        sleep 0.1
    done
}
leave() {
    trap - EXIT
    trap '' HUP INT TERM
    # KILL: a shell that has just forked may lose TERM, and we would wait for it for ever.
    [ -z "$guard" ] || { kill -KILL "$guard"; wait "$guard"; } 2>/dev/null
    [ -z "$program" ] || end_program
    [ -z "$room" ] || rm -rf "$room"
}
trap leave EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
trap : PIPE
"""
_ROOM = """\
room=$(mktemp -d "${{TMPDIR:-/tmp}}/whisper.XXXXXXXX") || exit {no_room}
"""
_COPY_IN = """\
mkdir "$room/in" "$room/out" && cd "$room/in" || exit {no_room}
head -c {size} | tar xf - || {{ echo 'the audio did not arrive whole' >&2; exit {no_room}; }}
"""
_RUN = """\
limit=
command -v timeout >/dev/null 2>&1 && limit='timeout -k 3 {limit}'
exec 3<&0 </dev/null
if command -v setsid >/dev/null 2>&1; then
    setsid $limit {words} >"$room/said" 3<&- &
else
    set -m
    $limit {words} >"$room/said" 3<&- &
    set +m
fi
program=$!
(
    trap - EXIT HUP INT TERM PIPE
    while read -r ignored <&3; do :; done
    end_program
) >/dev/null 2>&1 &
guard=$!
echo "{started}$program $room"
wait "$program"
code=$?
echo "$code"
[ "$code" = 0 ] || {{ tail -c 4096 "$room/said"; exit 0; }}
"""
_COPY_OUT = """\
cd "$room/out" && tar cf - .
"""


@dataclass(frozen=True, slots=True)
class Started:
    """What runs on the far side: the group of the program, and its folder."""

    group: int
    room: str


def far_script(
    program: Sequence[str],
    audio: Sequence[str],
    arguments: Arguments,
    *,
    timeout_s: float,
    size: int | None,
    output_dir: str = "",
) -> str:
    """The far side's part, for a POSIX shell. `size`: octets of the tar of audio that comes first.

    None: nothing is copied; `audio` and `output_dir` are paths that the far side sees, too.
    """
    form = arguments.output_formats[0] if len(arguments.output_formats) == 1 else "all"
    words = [shlex.quote(word) for word in (*program, *audio)]
    words += ["--model", shlex.quote(arguments.model), "--output_dir"]
    words += [shlex.quote(output_dir) if size is None else '"$room/out"']
    words += ["--output_format", form, "--task", arguments.task]
    if arguments.language is not None:
        words += ["--language", shlex.quote(arguments.language)]
    if arguments.model_dir is not None:
        words += ["--model_dir", shlex.quote(arguments.model_dir)]
    words += map(shlex.quote, arguments.ignored)
    run = _RUN.format(
        limit=max(1, round(timeout_s + _LATER_S)), words=" ".join(words), started=_STARTED.decode()
    )
    opening = _OPENING + _ROOM.format(no_room=_NO_ROOM)
    if size is None:
        return opening + run
    return opening + _COPY_IN.format(size=size, no_room=_NO_ROOM) + run + _COPY_OUT


def far_names(arguments: Arguments) -> list[str]:
    """What the audio files are called there: nothing that a shell could trip over."""
    return [f"{number:03d}{_plain(file)}" for number, file in enumerate(arguments.audio)]


def tar_size(audio: Sequence[Path]) -> int:
    """Octets of the tar that `run_far` sends. Raises OSError."""
    blocks = sum(1 + -(-file.stat().st_size // _BLOCK) for file in audio) + 2
    return -(-blocks * _BLOCK // _RECORD) * _RECORD


def run_far(
    command: Sequence[str],
    arguments: Arguments,
    *,
    opening: bytes = b"",
    copies: bool,
    insist: Callable[[Started], None] = lambda _: None,
) -> None:
    """Run the command that leads to the far side's script, and take over what comes back.

    `opening` goes ahead of the audio, which is sent if `copies`. When it is over before the far
    side is, `insist` may end that by another way. Raises Failure with the program's exit code, 126
    when the far side was not reached, 1 when the connection broke in mid-run.
    """
    with child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as link:
        if link.stdin is None or link.stdout is None:
            raise AssertionError("asked for pipes")
        with contextlib.suppress(BrokenPipeError):  # the other end's code says why
            link.stdin.write(opening)
            if copies:
                _send(link.stdin, arguments)
            link.stdin.flush()
        started = _hear_of_start(link.stdout)
        if started is None:
            raise Failure("nothing was started there", _not_started(_close(link)))
        over = False
        try:
            code = _number(link.stdout.readline())
            with contextlib.suppress(OSError):
                link.stdin.close()  # the program is over: nothing is left to guard
            found = _receive(link.stdout, arguments) if copies and code == 0 else {}
            if code:
                sys.stdout.buffer.write(link.stdout.read())
                sys.stdout.flush()
            over = code is not None
        finally:
            if not over:
                with contextlib.suppress(OSError):
                    link.stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    link.wait(GRACE_S / 2)
                insist(started)
        if code is None:
            raise Failure("the connection broke while the recogniser ran")
        _close(link)
    if code:
        raise Failure(f"exit code {code} there", code)
    if copies:
        take(arguments, found)


def _plain(file: Path) -> str:
    return file.suffix if file.suffix[1:].isalnum() and file.suffix.isascii() else ".wav"


def _send(pipe: IO[bytes], arguments: Arguments) -> None:
    with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        for file, name in zip(arguments.audio, far_names(arguments), strict=True):
            about = tarfile.TarInfo(name)
            with file.open("rb") as content:
                about.size = file.stat().st_size
                about.mode = 0o600
                tar.addfile(about, content)


def _hear_of_start(pipe: IO[bytes]) -> Started | None:
    while line := pipe.readline(1 << 16):
        _, marker, rest = line.partition(_STARTED)
        group, _, room = rest.decode("utf-8", "replace").rstrip("\n").partition(" ")
        if marker and group.isdigit():
            return Started(int(group), room)
    return None


def _number(line: bytes) -> int | None:
    return int(line) if line.strip().isdigit() else None


def _receive(pipe: IO[bytes], arguments: Arguments) -> dict[str, bytes]:
    """The outputs under the names that the caller looks for. A cut-off tar gives what is whole."""
    names = {
        f"{Path(far).stem}.{form}": f"{file.stem}.{form}"
        for file, far in zip(arguments.audio, far_names(arguments), strict=True)
        for form in arguments.output_formats
    }
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=pipe, mode="r|") as tar:
            for member in tar:
                name = names.get(member.name.removeprefix("./"))
                if name is None or not member.isfile() or member.size > _LARGEST:
                    continue
                content = tar.extractfile(member)
                data = content.read() if content is not None else b""
                if len(data) == member.size:
                    found[name] = data
    except tarfile.TarError as error:
        if len(found) < len(wanted(arguments)):
            raise Failure(f"the outputs did not arrive whole: {error}") from error
    return found


def _close(link: subprocess.Popen[bytes]) -> int:
    if link.stdin is not None:
        with contextlib.suppress(OSError):
            link.stdin.close()
    return link.wait()


def _not_started(code: int) -> int:
    if code == _NO_ROOM:
        return 1
    return 127 if code == 127 else 126
