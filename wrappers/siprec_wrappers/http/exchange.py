"""One file's way to a server and back."""

import http.client
import os
import random
import re
import secrets
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from siprec_wrappers.contract import Arguments
from siprec_wrappers.http.options import PROGRAM, Options, Target
from siprec_wrappers.http.results import Recognised, complaint_of, read_result
from siprec_wrappers.languages import code_of
from siprec_wrappers.service import Away, Failed

_CHUNK = 64 * 1024
_LARGEST_ANSWER = 64 << 20
_LARGEST_COMPLAINT = 16 * 1024
_REDIRECTS = 3
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0  # a server that asks for more is away: the job waits instead of us
# What the audio or the recogniser is to blame for; every other refusal (401, 403, 404 …) would
# meet any audio alike.
_BLAMED_ON_AUDIO = frozenset({400, 408, 413, 415, 422, 500, 501, 504})
_CLOSED = (BrokenPipeError, ConnectionResetError)
_TRIED_AGAIN = frozenset({429, 502, 503, 504})


def ask(audio: Path, arguments: Arguments, options: Options, deadline: float) -> Recognised:
    """One file's result, asked for again while that may help. Raises Failed, OSError."""
    fields, target, name = _request(arguments, options)
    for turn in range(options.retries + 1):
        try:
            body = _follow(audio, name, fields, target, options, deadline)
            return read_result(body, options.api, audio, arguments.language)
        except Failed as error:
            pause = error.pause
            if pause is None:
                pause = _FIRST_PAUSE_S * 2**turn * random.uniform(0.8, 1.2)
            late = time.monotonic() + pause >= deadline or pause > _LONGEST_PAUSE_S
            if not error.retryable or turn == options.retries or late:
                raise
        time.sleep(pause)
    raise AssertionError("the last turn returns or raises")


def _request(arguments: Arguments, options: Options) -> tuple[list[tuple[str, str]], Target, str]:
    """Form fields, address, and the name of the field that the file goes into."""
    target = options.target
    language = code_of(arguments.language) if arguments.language else None
    if options.api == "asr":
        query = {"output": "json", "encode": "true", "task": arguments.task}
        query["word_timestamps"] = str(options.word_times).lower()
        if options.vad_filter:
            query["vad_filter"] = "true"
        if language:
            query["language"] = language
        if options.prompt:
            query["initial_prompt"] = options.prompt
        joint = "&" if "?" in target.path else "?"
        path = f"{target.path}{joint}{urllib.parse.urlencode(query)}"
        return [], Target(target.scheme, target.host, target.port, path), "audio_file"
    fields = [("response_format", options.response_format)]
    if options.prompt:
        fields.append(("prompt", options.prompt))
    if options.temperature is not None:
        fields.append(("temperature", options.temperature))
    if options.api == "cpp":
        # Without a word its server takes English for granted.
        fields.append(("language", language or "auto"))
        fields.append(("translate", str(arguments.task == "translate").lower()))
        return fields, target, "file"
    fields.append(("model", arguments.model))
    if arguments.task == "transcribe":  # a translation takes neither
        if language:
            fields.append(("language", language))
        if options.response_format == "verbose_json":
            fields.append(("timestamp_granularities[]", "segment"))
            if options.word_times:
                fields.append(("timestamp_granularities[]", "word"))
    return fields, target, "file"


def _follow(
    audio: Path,
    name: str,
    fields: Sequence[tuple[str, str]],
    target: Target,
    options: Options,
    deadline: float,
) -> bytes:
    """The body of a good answer, after redirects. Raises Failed, and OSError of the file."""
    home = target.origin
    for _ in range(_REDIRECTS + 1):
        # Another host gets the audio that it is meant to get, but neither token nor certificate.
        at_home = target.origin == home
        answer = _exchange(audio, name, fields, target, options, deadline, at_home=at_home)
        if isinstance(answer, bytes):
            return answer
        if target.scheme == "https" and answer.scheme != "https":
            raise Away(f"{target} sends us on to {answer}, which is not encrypted")
        target = answer
    raise Away(f"{target}: sends us on and on")


def _exchange(
    audio: Path,
    name: str,
    fields: Sequence[tuple[str, str]],
    target: Target,
    options: Options,
    deadline: float,
    *,
    at_home: bool,
) -> bytes | Target:
    boundary = secrets.token_hex(16)
    head, tail = _form(boundary, fields, name, audio)
    with audio.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        connection = _connect(target, options, deadline, at_home=at_home)
        refused = False  # it stopped taking the audio
        try:
            connection.putrequest("POST", target.path)
            connection.putheader("Content-Type", f"multipart/form-data; boundary={boundary}")
            connection.putheader("Content-Length", str(len(head) + size + len(tail)))
            connection.putheader("Accept", "application/json, text/plain;q=0.9, */*;q=0.1")
            connection.putheader("User-Agent", PROGRAM)
            if options.token is not None and at_home:
                connection.putheader("Authorization", options.token)
            connection.endheaders()
            try:
                for chunk in _body(head, file, size, tail):
                    connection.send(chunk)
            except OSError as error:
                # It has seen enough: what it says about that is waiting to be read.
                refused = True
                if not isinstance(error, _CLOSED) and type(error).__name__ != "SSLEOFError":
                    raise
            return _answer(connection.getresponse(), target, options)
        except TimeoutError as error:
            raise Failed(f"{target}: no answer within {options.timeout:g} s") from error
        except (http.client.HTTPException, OSError) as error:
            cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if target.scheme == "https" and (refused or type(error).__module__ == "ssl"):
                # Since TLS 1.3 a client hears only now that its certificate is missing or wrong.
                hint = "; does it want a certificate of ours?"
                raise Away(f"{target}: {cause}{hint}") from error
            raise Failed(f"{target}: no answer ({cause})") from error
        finally:
            connection.close()


def _form(
    boundary: str, fields: Sequence[tuple[str, str]], name: str, audio: Path
) -> tuple[bytes, bytes]:
    """What goes before and after the file. RFC 7578."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
        for field, value in fields
    ]
    suffix = audio.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", audio.suffix) else ".wav"
    kind = "audio/wav" if suffix.lower() == ".wav" else "application/octet-stream"
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; '
        f'filename="audio{suffix}"\r\nContent-Type: {kind}\r\n\r\n'
    )
    return "".join(parts).encode(), f"\r\n--{boundary}--\r\n".encode()


def _body(head: bytes, file: BinaryIO, size: int, tail: bytes) -> Iterator[bytes]:
    yield head
    left = size
    while left:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            raise Failed("the file became shorter while it was sent")
        left -= len(chunk)
        yield chunk
    yield tail


def _connect(
    target: Target, options: Options, deadline: float, *, at_home: bool
) -> http.client.HTTPConnection:
    left = max(0.001, deadline - time.monotonic())
    patience = min(options.connect_timeout, left)
    connection: http.client.HTTPConnection
    if target.scheme == "https":
        tls = options.tls if at_home else options.tls_elsewhere
        connection = http.client.HTTPSConnection(
            target.host, target.port, timeout=patience, context=tls
        )
    else:
        connection = http.client.HTTPConnection(target.host, target.port, timeout=patience)
    try:
        connection.connect()
    except OSError as error:
        connection.close()
        in_tls = type(error).__module__ == "ssl"
        cause = error.strerror or str(error)
        if isinstance(error, TimeoutError):
            cause = f"no connection within {patience:g} s"
        raise Away(f"{target}: {cause}", retryable=not in_tls) from error
    connection.sock.settimeout(max(0.001, deadline - time.monotonic()))
    return connection


def _answer(response: http.client.HTTPResponse, target: Target, options: Options) -> bytes | Target:
    status = response.status
    if status in (307, 308):
        return _location(response, target)
    if status == 200:
        return _read_all(response, target)
    complaint = complaint_of(response.read(_LARGEST_COMPLAINT), options.token)
    text = f"{target}: {status} {response.reason}{complaint}"
    kind = Failed if status in _BLAMED_ON_AUDIO else Away
    pause = _retry_after(response.getheader("Retry-After"))
    raise kind(text, retryable=status in _TRIED_AGAIN, pause=pause)


def _location(response: http.client.HTTPResponse, target: Target) -> Target:
    place = urllib.parse.urljoin(
        f"{target.scheme}://{_host_and_port(target)}{target.path}",
        response.getheader("Location", ""),
    )
    parts = urllib.parse.urlsplit(place)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        port = 0
    host = parts.hostname
    if parts.scheme not in ("http", "https") or not host or not port:
        raise Away(f"{target}: sends us to a place that is none")
    if re.search(r"[^\x21-\x7e]", place):
        raise Away(f"{target}: sends us to a place that is none")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port, path)


def _host_and_port(target: Target) -> str:
    return (
        f"[{target.host}]:{target.port}" if ":" in target.host else f"{target.host}:{target.port}"
    )


def _read_all(response: http.client.HTTPResponse, target: Target) -> bytes:
    declared = response.length
    if declared is not None and declared > _LARGEST_ANSWER:
        raise Failed(f"{target}: an answer of {declared} octets is beyond any reason")
    body = bytearray()
    while chunk := response.read(_CHUNK):
        body += chunk
        if len(body) > _LARGEST_ANSWER:
            raise Failed(f"{target}: its answer is beyond any reason in size")
    if declared is not None and len(body) < declared:
        raise Failed(f"{target}: its answer was cut off after {len(body)} of {declared} octets")
    return bytes(body)


def _retry_after(value: str | None) -> float | None:
    """Seconds. RFC 9110 §10.2.3: a number of them, or a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
