"""A stand-in for the docker client and its engine, because no engine runs where tests run.

It is faithful in what `docker exec` does to processes: the process inside is no child of the
client, is in a session of its own, gets no signal that the client gets, and sees its stdin end when
the client is gone; its output is drained whether or not anybody listens; the exit code is passed
on; an unknown or stopped container, and a program that is not there, are told in the engine's
words. "Inside" is this machine with another TMPDIR: paths are not separated.
"""

import sys
from pathlib import Path

_CLIENT = """\
#!{python}
import os, shutil, socket, subprocess, sys, threading

CONTAINERS = {{"whisper": True, "stopped": False}}
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(repr(arguments) + "\\n")
if arguments[:1] != ["exec"]:
    sys.exit(f"docker: {{arguments[:1]}} is not a docker command.")
arguments = arguments[1:]
interactive = False
environment = dict(os.environ, TMPDIR={tmp!r})
while arguments and arguments[0].startswith("-"):
    option = arguments.pop(0)
    if option in ("-i", "--interactive"):
        interactive = True
    elif option in ("-e", "--env"):
        name, _, value = arguments.pop(0).partition("=")
        environment[name] = value
    elif option in ("-u", "--user", "-w", "--workdir"):
        arguments.pop(0)
    else:
        print(f"unknown flag: {{option}}", file=sys.stderr)
        sys.exit(125)
container, *command = arguments
if container not in CONTAINERS:
    print(f"Error response from daemon: No such container: {{container}}", file=sys.stderr)
    sys.exit(1)
if not CONTAINERS[container]:
    print(f"Error response from daemon: container {{container}} is not running", file=sys.stderr)
    sys.exit(1)
if shutil.which(command[0]) is None:
    print(f'OCI runtime exec failed: exec failed: unable to start container process: exec: '
          f'"{{command[0]}}": executable file not found in $PATH: unknown', file=sys.stderr)
    sys.exit(127)

ours, theirs = socket.socketpair()
out, err, code = os.pipe(), os.pipe(), os.pipe()
if os.fork() == 0:  # the engine
    os.setsid()
    if {passes_on_end_of_stdin}:
        ours.close()
    for one in (out[0], err[0], code[0]):
        os.close(one)
    quiet = os.open(os.devnull, os.O_RDWR)
    for one in (0, 1, 2):
        os.dup2(quiet, one)
    inside = subprocess.Popen(
        command, stdin=theirs if interactive else subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=environment, start_new_session=True, cwd="/",
    )
    theirs.close()

    def drain(source, target):
        while data := os.read(source.fileno(), 65536):
            try:
                os.write(target, data)
            except OSError:
                pass  # nobody listens
        os.close(target)

    readers = [threading.Thread(target=drain, args=pair)
               for pair in ((inside.stdout, out[1]), (inside.stderr, err[1]))]
    for reader in readers:
        reader.start()
    status = inside.wait()
    for reader in readers:
        reader.join()
    try:
        os.write(code[1], str(status if status >= 0 else 128 - status).encode())
    except OSError:
        pass
    os._exit(0)

theirs.close()
for one in (out[1], err[1], code[1]):
    os.close(one)

def feed():
    try:
        while data := os.read(0, 65536):
            ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # what was inside has ended

def show(source, target):
    try:
        while data := os.read(source, 65536):
            view = memoryview(data)
            while view:
                view = view[os.write(target, view):]
    except OSError:
        pass  # nobody listens any more

if interactive:
    threading.Thread(target=feed, daemon=True).start()
readers = [threading.Thread(target=show, args=pair) for pair in ((out[0], 1), (err[0], 2))]
for reader in readers:
    reader.start()
for reader in readers:
    reader.join()
sys.stdout.flush()
os._exit(int(os.read(code[0], 16) or b"137"))
"""


class Docker:
    """The client's path, and what is inside. It knows the containers `whisper` and `stopped`."""

    def __init__(self, folder: Path, *, passes_on_end_of_stdin: bool = True) -> None:
        self.tmp = folder / "inside"
        self.tmp.mkdir()
        self.log = folder / "docker.log"
        self.client = folder / "docker"
        self.client.write_text(
            _CLIENT.format(
                python=sys.executable,
                log=str(self.log),
                tmp=str(self.tmp),
                passes_on_end_of_stdin=passes_on_end_of_stdin,
            )
        )
        self.client.chmod(0o755)
