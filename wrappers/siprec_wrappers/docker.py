"""`whisper-docker`: a Whisper command line in a running container.

The audio goes in and the outputs come out through `docker exec`, or lie on a volume that both
sides see. When this ends, for whatever reason, the program in the container is ended, too, which
`docker exec` by itself does not do, and what it was given there is removed.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from siprec_wrappers.contract import Arguments, Failure, check_audio, parse_arguments
from siprec_wrappers.far import Started, far_names, far_script, run_far, tar_size
from siprec_wrappers.lifetime import run_to_end, words_of
from siprec_wrappers.outputs import read_folder, take, wanted

_PROGRAM = "whisper-docker"
_INSIST_S = 1.5
_EPILOG = """\
Further options go to the program as they are. --model and --model_dir are names and paths of the
container.

environment:
  WHISPER_DOCKER_CONTAINER  name or id of the container, which must be running (needed)
  WHISPER_DOCKER_PROGRAM    the program in it, quoted as in a shell (default: whisper)
  WHISPER_DOCKER_VOLUME     /on/the/host:/in/the/container: nothing is copied; the bridge's TMPDIR
                            must lie under the first (default: everything is copied)
  WHISPER_DOCKER_OPTIONS    options for docker exec, quoted as in a shell: --user 1000
  WHISPER_DOCKER_CLI        the client (default: docker; podman takes the same)
  WHISPER_DOCKER_TIMEOUT    longest run, such as 90s or 20m (default: WHISPER_TIMEOUT, else 20m)

The image needs a POSIX shell, tail and mktemp, and without a volume tar and head; setsid and timeout
are used where they are.

exit codes: the program's own (127: it is not there); 126 when the engine is not reached or the
container does not run, and docker says why; 124 out of time; 128+n ended by signal n.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program in the container; see `--help`."""
    arguments = parse_arguments(_PROGRAM, (__doc__ or "").strip(), argv, epilog=_EPILOG)
    return run_to_end(
        _PROGRAM,
        lambda timeout_s: _transcribe(arguments, os.environ, timeout_s),
        timeout="WHISPER_DOCKER_TIMEOUT",
    )


def _transcribe(arguments: Arguments, environment: Mapping[str, str], timeout_s: float) -> None:
    check_audio(arguments.audio)
    client = environment.get("WHISPER_DOCKER_CLI") or "docker"
    container = environment.get("WHISPER_DOCKER_CONTAINER", "").strip()
    if not container or container.startswith("-"):
        raise Failure("WHISPER_DOCKER_CONTAINER: must name the container", 126)
    program = words_of("WHISPER_DOCKER_PROGRAM", environment, default="whisper")
    options = words_of("WHISPER_DOCKER_OPTIONS", environment)
    enter = [client, "exec", "-i", *options, container, "sh", "-c"]

    def insist(started: Started) -> None:
        _end_inside(enter, started)

    if environment.get("WHISPER_DOCKER_VOLUME"):
        volume = volume_of(environment["WHISPER_DOCKER_VOLUME"])
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".whisper-docker-", dir=arguments.output_dir, ignore_cleanup_errors=True
        ) as room:
            script = far_script(
                program,
                [inside(file, volume) for file in arguments.audio],
                arguments,
                timeout_s=timeout_s,
                size=None,
                output_dir=inside(Path(room), volume),
            )
            run_far([*enter, script], arguments, copies=False, insist=insist)
            take(arguments, read_folder(Path(room), wanted(arguments)))
        return
    script = far_script(
        program,
        far_names(arguments),
        arguments,
        timeout_s=timeout_s,
        size=tar_size(arguments.audio),
    )
    run_far([*enter, script], arguments, copies=True, insist=insist)


def volume_of(written: str) -> tuple[Path, PurePosixPath]:
    """The two ends of WHISPER_DOCKER_VOLUME. Raises Failure (126)."""
    host, colon, container = written.rpartition(":")
    if not colon or not host.startswith("/") or not container.startswith("/"):
        raise Failure(
            f"WHISPER_DOCKER_VOLUME={written}: must be /on/the/host:/in/the/container", 126
        )
    return Path(host).resolve(), PurePosixPath(container)


def inside(path: Path, volume: tuple[Path, PurePosixPath]) -> str:
    """What the container calls a path of the host. Raises Failure (126) for one it cannot see."""
    host, container = volume
    try:
        return str(container / path.resolve().relative_to(host))
    except ValueError as error:
        raise Failure(
            f"{path.resolve()} is not under {host} (WHISPER_DOCKER_VOLUME): set TMPDIR", 126
        ) from error


def _end_inside(enter: Sequence[str], started: Started) -> None:
    """End the group in the container ourselves: some engines do not pass on that stdin ended."""
    script = (
        'kill -TERM "-$1" 2>/dev/null && { sleep 0.5; kill -KILL "-$1" 2>/dev/null; };rm -rf "$2"'
    )
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [*enter, script, "end", str(started.group), started.room],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_INSIST_S,
            start_new_session=True,  # what ends us is not to end this
            check=False,
        )


if __name__ == "__main__":
    sys.exit(main())
