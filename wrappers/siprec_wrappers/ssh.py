"""`whisper-ssh`: a Whisper command line on another host, over one SSH connection a run.

The audio goes there and the outputs come back over that connection. When it ends, for whatever
reason, the other host ends the program with all its children and removes the audio.
"""

import os
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from siprec_wrappers.contract import Arguments, Failure, check_audio, parse_arguments
from siprec_wrappers.far import far_names, far_script, run_far, tar_size
from siprec_wrappers.lifetime import run_to_end, timeout_of, words_of

_PROGRAM = "whisper-ssh"
_EPILOG = """\
Further options go to the program as they are, whatever is in them. --model and --model_dir are
names and paths of the other host.

environment:
  WHISPER_SSH_HOST     [user@]host, or an alias of your SSH configuration (needed)
  WHISPER_SSH_PROGRAM  the program there, quoted as in a shell (default: whisper)
  WHISPER_SSH_OPTIONS  options for ssh, quoted as in a shell: -p 2222 -i /etc/siprec/id_ed25519
  WHISPER_SSH_KEEP     keep the connection open for the next run, such as 5m (default: no)
  WHISPER_SSH_TIMEOUT  longest run, such as 90s or 20m (default: WHISPER_TIMEOUT, else 20m)
  TMPDIR, of the other host's login, is where the audio lies there

ssh asks nothing (BatchMode): the key, and the host's key in known_hosts, must be there. Your SSH
configuration decides what else holds; WHISPER_SSH_OPTIONS goes before it. The other host needs
a POSIX shell, tar, head, tail and mktemp; setsid and timeout are used where they are.

exit codes: the program's own (127: it is not there); 126 when the host is not reached or turns us
away, and ssh says why; 1 when the connection breaks in mid-run; 124 out of time; 128+n ended by
signal n.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program on the other host; see `--help`."""
    arguments = parse_arguments(_PROGRAM, (__doc__ or "").strip(), argv, epilog=_EPILOG)
    return run_to_end(
        _PROGRAM,
        lambda timeout_s: _transcribe(arguments, os.environ, timeout_s),
        timeout="WHISPER_SSH_TIMEOUT",
    )


def _transcribe(arguments: Arguments, environment: Mapping[str, str], timeout_s: float) -> None:
    check_audio(arguments.audio)
    program = words_of("WHISPER_SSH_PROGRAM", environment, default="whisper")
    script = far_script(
        program,
        far_names(arguments),
        arguments,
        timeout_s=timeout_s,
        size=tar_size(arguments.audio),
    ).encode()
    run_far(ssh_command(environment, len(script)), arguments, opening=script, copies=True)


def ssh_command(environment: Mapping[str, str], script_size: int) -> list[str]:
    """The ssh command that runs a script of so many octets, which comes first on its stdin.

    Raises Failure (126) for settings that cannot be.
    """
    host = environment.get("WHISPER_SSH_HOST", "").strip()
    if not host or host.startswith("-"):
        raise Failure("WHISPER_SSH_HOST: must name the host", 126)
    command = ["ssh", "-T", *words_of("WHISPER_SSH_OPTIONS", environment)]
    options = [
        "BatchMode=yes",
        "ConnectTimeout=10",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=3",
        "EscapeChar=none",
    ]
    if environment.get("WHISPER_SSH_KEEP"):
        keep = round(timeout_of("WHISPER_SSH_KEEP", environment))
        options += ["ControlMaster=auto", f"ControlPath={control_folder()}/%C"]
        options += [f"ControlPersist={keep}"]
    for option in options:
        command += ["-o", option]
    # The login shell may be any: it sees nothing of ours but this. dd reads no octet too many.
    start = f"exec sh -c 'eval \"$(dd bs=1 count={script_size} 2>/dev/null)\"'"
    return [*command, "--", host, start]


def control_folder() -> Path:
    """Where connections that are kept have their sockets: ours, and nobody else's.

    Raises Failure (126) when somebody else has it.
    """
    # Not TMPDIR: a socket's path may have only 100 octets.
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(base if len(base) < 40 else "/tmp") / f"whisper-ssh-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise Failure(f"{folder}: must be a folder of ours that is closed to others", 126)
    return folder


if __name__ == "__main__":
    sys.exit(main())
