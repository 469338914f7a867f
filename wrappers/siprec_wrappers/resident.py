"""`whisper-resident`: the CLI contract over a running `siprec-asr`, which keeps its models loaded.

Standard library only, and of that little: this starts once for each run, so it must start fast.
"""

import argparse
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from siprec_wrappers.contract import Arguments, parse_arguments, seconds_in
from siprec_wrappers.languages import code_of

_PROGRAM = "whisper-resident"
_SOCKETS = ("/run/siprec-asr/asr.sock", "{XDG_RUNTIME_DIR}/siprec-asr.sock")
_TCP = "http://127.0.0.1:9300"
_CONNECT_S = 5.0
_LONGEST_HEAD = 1 << 16

# The contract's way to say that the recogniser is not there: the job waits.
_UNAVAILABLE = 127
_NOT_CONFIGURED = 126
_EPILOG = """\
Of openai-whisper's further options --beam_size, --batch_size, --word_timestamps, --initial_prompt,
--temperature, --condition_on_previous_text and --vad_filter are passed on.

environment:
  WHISPER_RESIDENT_URL      unix:///path or http://host:port (default: /run/siprec-asr/asr.sock,
                            $XDG_RUNTIME_DIR/siprec-asr.sock, then http://127.0.0.1:9300)
  WHISPER_RESIDENT_TOKEN    the server's ASR_TOKEN
  WHISPER_RESIDENT_TIMEOUT  longest run, such as 90s or 20m (default: WHISPER_TIMEOUT, else 20m)
  WHISPER_RESIDENT_SEND     bytes, or paths where the server reads the same files (default: bytes)

exit codes: 1 when the server says no; 2 for wrong arguments; 126 for wrong variables; 127 when the
server is away, stops, or cannot have its model.
"""


def _timeout() -> float:
    """Seconds that the run may take. Raises _Failed."""
    own = "WHISPER_RESIDENT_TIMEOUT"
    name = own if os.environ.get(own) else "WHISPER_TIMEOUT"
    text = os.environ.get(name) or "20m"
    try:
        return seconds_in(text)
    except ValueError as error:
        raise _Failed(_NOT_CONFIGURED, f"{name}={text}: {error}") from error


def _truth(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise ValueError("True or False is needed")


# Options of openai-whisper and whisper-ctranslate2 that the server heeds, and how they are read.
_HEEDED: dict[str, Callable[[str], object]] = {
    "beam_size": int,
    "batch_size": int,
    "word_timestamps": _truth,
    "initial_prompt": str,
    "temperature": float,
    "condition_on_previous_text": _truth,
    "vad_filter": _truth,
}


class _Failed(Exception):
    """The run failed; the exit code and what stderr is told."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Busy(Exception):
    """The server's queue is full; `wait` in seconds is when it expects room."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 when the server says no; 2 for wrong arguments, 126 for
    wrong variables; 127 when it is away."""
    # Python's own answer to TERM is to end at once, which is right: the closed connection tells
    # the server, and outputs are complete or not there. INT would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    own = argparse.ArgumentParser(
        _PROGRAM,
        add_help=False,
        allow_abbrev=False,
        formatter_class=partial(argparse.HelpFormatter, width=100),
    )
    for name, kind in _HEEDED.items():
        own.add_argument(f"--{name}", type=kind)
    heeded, rest = own.parse_known_args(argv)
    arguments = parse_arguments(
        _PROGRAM,
        (__doc__ or "").partition("\n\n")[0],
        rest,
        epilog=_EPILOG,
    )
    try:
        order = _order(arguments, heeded)
        timeout = _timeout()
        order["deadline"] = timeout
        _write(arguments, _ask_until(time.monotonic() + timeout, order, arguments.audio))
    except _Failed as failed:
        print(f"{_PROGRAM}: {failed}", file=sys.stderr)
        return failed.code
    except ValueError as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{_PROGRAM}: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _order(arguments: Arguments, heeded: argparse.Namespace) -> dict[str, object]:
    stems = [audio.stem for audio in arguments.audio]
    if len(set(stems)) != len(stems):
        raise ValueError("two audio files would have the same output")
    order: dict[str, object] = {
        "model": arguments.model,
        "task": arguments.task,
        "formats": arguments.output_formats,
    }
    if arguments.language is not None:
        order["language"] = code_of(arguments.language)
    order.update((name, value) for name, value in vars(heeded).items() if value is not None)
    if arguments.ignored:
        print(f"{_PROGRAM}: ignored: {' '.join(arguments.ignored)}", file=sys.stderr)
    return order


def _ask_until(
    deadline: float, order: dict[str, object], audio: Sequence[Path]
) -> list[dict[str, str]]:
    """Ask, and ask again when the server had no room."""
    while True:
        try:
            return _ask(order, audio, deadline)
        except _Busy as busy:
            if time.monotonic() + busy.wait >= deadline:
                raise _Failed(1, f"{busy}; no time is left to wait") from busy
            time.sleep(busy.wait)


def _ask(order: dict[str, object], audio: Sequence[Path], deadline: float) -> list[dict[str, str]]:
    """Send the files, wait for all outputs. Raises _Failed, OSError for a file."""
    send = os.environ.get("WHISPER_RESIDENT_SEND") or "bytes"
    if send not in ("bytes", "paths"):
        raise _Failed(_NOT_CONFIGURED, f"WHISPER_RESIDENT_SEND={send}: bytes or paths is needed")
    by_path = send == "paths"
    files: list[dict[str, object]] = []
    opened = []
    try:
        for one in audio:
            file = one.open("rb")
            opened.append(file)
            where: dict[str, object] = (
                {"path": str(one.absolute())}
                if by_path
                else {"size": os.fstat(file.fileno()).st_size}
            )
            files.append({"name": one.stem, **where})
        order["files"] = files
        head = json.dumps(order).encode() + b"\n"
        length = len(head) + sum(int(str(one.get("size", 0))) for one in files)
        connection, host, url = _connect()
        with connection:
            try:
                connection.settimeout(_left(deadline))
                connection.sendall(_request(host, length) + head)
                for file in opened if not by_path else ():
                    connection.sendfile(file)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it may have answered before it had read all: the answer says why
            except TimeoutError as error:
                raise _Failed(1, f"{url}: not sent in time") from error
            status, headers, body = _response(connection, deadline, url)
    finally:
        for file in opened:
            file.close()
    if status == 429:
        wait = headers.get("retry-after", "")
        raise _Busy(f"{url}: 429 {_message(body)}", float(wait) if _is_number(wait) else 5.0)
    if status != 200:
        # Stopping, starting, or a proxy without its server: as good as away.
        raise _Failed(
            _UNAVAILABLE if status in (502, 503) else 1, f"{url}: {status} {_message(body)}"
        )
    try:
        outputs = json.loads(body)["outputs"]
        given = {
            one["name"]: {form: one[form] for form in order["formats"]}  # type: ignore[attr-defined]
            for one in outputs
        }
        if not all(isinstance(text, str) for one in given.values() for text in one.values()):
            raise TypeError("an output is no text")
        return [{"name": one.stem, **given[one.stem]} for one in audio]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Failed(1, f"{url}: the answer is none of siprec-asr's: {error!r}") from error


def _connect() -> tuple[socket.socket, str, str]:
    url = os.environ.get("WHISPER_RESIDENT_URL") or _find()
    scheme, _, rest = url.partition("://")
    try:
        if scheme == "unix":
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(_CONNECT_S)
            connection.connect(rest)
            return connection, "localhost", url
        if scheme == "http":
            authority = rest.split("/", 1)[0]
            host, _, port = authority.rpartition(":")
            if not (host and port.isdigit()):
                host, port = authority, "80"
            pair = (host.strip("[]"), int(port))
            return socket.create_connection(pair, _CONNECT_S), authority, url
    except OSError as error:
        raise _Failed(_UNAVAILABLE, f"{url}: {error.strerror or error}") from error
    raise _Failed(
        _NOT_CONFIGURED, f"WHISPER_RESIDENT_URL={url}: unix:///path or http://host:port is needed"
    )


def _find() -> str:
    for pattern in _SOCKETS:
        path = pattern.format(XDG_RUNTIME_DIR=os.environ.get("XDG_RUNTIME_DIR", ""))
        if os.path.exists(path):
            return f"unix://{path}"
    return _TCP


def _request(host: str, length: int) -> bytes:
    lines = [
        "POST /transcribe HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/octet-stream",
        f"Content-Length: {length}",
        "Connection: close",
    ]
    token = os.environ.get("WHISPER_RESIDENT_TOKEN")
    if token:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode()


def _response(
    connection: socket.socket, deadline: float, url: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by lower-case name, body. http.client would do it for twice the time that all else here takes."""
    octets = bytearray()
    try:
        while True:
            connection.settimeout(_left(deadline))
            chunk = connection.recv(1 << 18)
            if not chunk:
                break
            octets += chunk
            if len(octets) > _LONGEST_HEAD and b"\r\n\r\n" not in octets[:_LONGEST_HEAD]:
                break
    except TimeoutError as error:
        raise _Failed(1, f"{url}: no answer in time") from error
    except OSError as error:
        raise _Failed(_UNAVAILABLE, f"{url}: {error.strerror or error}") from error
    head, end, body = bytes(octets).partition(b"\r\n\r\n")
    if not octets:
        raise _Failed(_UNAVAILABLE, f"{url}: the connection was closed without an answer")
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines[1:])
    }
    length = headers.get("content-length", "")
    if not (end and version.startswith("HTTP/1.") and _is_number(rest[:3]) and _is_number(length)):
        raise _Failed(1, f"{url}: the answer is none of siprec-asr's")
    if len(body) < int(length):
        raise _Failed(_UNAVAILABLE, f"{url}: the connection was closed within the answer")
    return int(rest[:3]), headers, body[: int(length)]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return body[:500].decode("utf-8", "replace")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _write(arguments: Arguments, outputs: list[dict[str, str]]) -> None:
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for one in outputs:
        for form in arguments.output_formats:
            target = arguments.output_dir / f"{one['name']}.{form}"
            part = target.with_name(f".{target.name}.part")
            part.write_text(one[form], encoding="utf-8", errors="replace")  # half a character
            part.replace(target)


if __name__ == "__main__":
    sys.exit(main())
