"""`whisper-http`: the CLI contract over a speech server's HTTP API.

Speaks whisper-asr-webservice (`asr`), OpenAI's audio API and what is compatible with it (`openai`),
and whisper.cpp's server (`cpp`).
"""

import argparse
import http.client
import json
import math
import os
import queue
import random
import re
import secrets
import signal
import sys
import threading
import time
import urllib.parse
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from siprec_wrappers.contract import Arguments, Segment, Word, parse_arguments, write_outputs
from siprec_wrappers.languages import code_of

if TYPE_CHECKING:
    import ssl

PROGRAM = "whisper-http"
APIS = ("asr", "openai", "cpp")

_WRONG_ARGUMENTS = 2
_FAILED = 1
_AWAY = 127  # the contract's way to say that the job should wait

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


class Failed(Exception):
    """No result, with the cause. `retryable`: another request may do better."""

    exit_code = _FAILED

    def __init__(self, cause: str, *, retryable: bool = False, pause: float | None = None) -> None:
        super().__init__(cause)
        self.retryable = retryable
        self.pause = pause  # seconds that the server asks for


class Away(Failed):
    """The server is not there, or serves nobody like us: the job should wait."""

    exit_code = _AWAY


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go."""

    scheme: str
    host: str
    port: int
    path: str  # with the query

    @property
    def origin(self) -> tuple[str, str, int]:
        """What decides whether credentials may go along."""
        return self.scheme, self.host, self.port

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path.partition('?')[0]}"


@dataclass(frozen=True, slots=True)
class Options:
    """What is configured. Times are seconds."""

    target: Target
    api: str
    token: str | None
    tls: "ssl.SSLContext | None"
    tls_elsewhere: "ssl.SSLContext | None"  # without our certificate: for other hosts
    prompt: str | None
    temperature: str | None
    word_times: bool
    vad_filter: bool
    response_format: str
    connect_timeout: float
    timeout: float
    retries: int
    parallel: int


def main(argv: Sequence[str] | None = None) -> int:
    """Transcribe the files.

    Exit code 0; 1 when the server has no result for a file; 2 for wrong arguments; 127 when the
    server is away or does not let us in.
    """
    signal.signal(signal.SIGTERM, _end)
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    own, rest = parser.parse_known_args(given)
    about = f"{(__doc__ or '').splitlines()[0]} Own options: {parser.format_usage()}"
    arguments = parse_arguments(PROGRAM, about, rest)
    try:
        options = _options(own, arguments.task)
    except ValueError as error:
        _complain(str(error))
        return _WRONG_ARGUMENTS
    if arguments.ignored:
        _complain(f"ignored: {' '.join(arguments.ignored)}")
    try:
        transcribe(arguments, options)
    except Failed as error:
        _complain(str(error))
        return error.exit_code
    except OSError as error:
        _complain(f"{error.filename or arguments.output_dir}: {error.strerror or error}")
        return _FAILED
    return 0


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _complain(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr)


_OWN = {
    "url": "server, such as http://gpu:9000/asr",
    "api": f"{', '.join(APIS)}; else the URL's path tells",
    "token_file": "file with the bearer token",
    "ca": "PEM file of the CAs that the server's certificate must come from",
    "cert": "our certificate (PEM), for servers that want one",
    "key": "its key, when it is not in the same file",
    "initial_prompt": "text that the recogniser should expect to go before",
    "temperature": "sampling temperature (openai, cpp)",
    "word_timestamps": "False: no times of words",
    "vad_filter": "True: the server cuts silence (asr)",
    "response_format": "verbose_json; json for models that have no other (openai)",
    "connect_timeout": "longest wait for a connection (10s)",
    "timeout": "longest run (20m)",
    "retries": "further requests when the server is away or busy (3)",
    "parallel": "files under way at once (2)",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, allow_abbrev=False, add_help=False)
    for name, about in _OWN.items():
        parser.add_argument(f"--{name}", default=_setting(name), help=about)
    return parser


def _setting(name: str) -> str | None:
    return os.environ.get(f"WHISPER_HTTP_{name.upper()}", "").strip() or None


def _options(own: argparse.Namespace, task: str) -> Options:
    """Raises ValueError with the wrong option."""
    if own.url is None:
        raise ValueError("no server: say --url or WHISPER_HTTP_URL")
    if own.api not in (None, *APIS):
        raise ValueError(f"--api {own.api}: one of {', '.join(APIS)} is needed")
    if own.response_format not in (None, "verbose_json", "json"):
        raise ValueError(f"--response_format {own.response_format}: verbose_json or json is needed")
    if own.temperature is not None:
        _number_option("temperature", own.temperature, float, 0)
    target, api = resolve(own.url, own.api, task)
    tls = tls_elsewhere = None
    if target.scheme == "https" or own.ca or own.cert:
        tls = _tls(own.ca, own.cert, own.key)
        tls_elsewhere = _tls(own.ca, None, None)
    return Options(
        target=target,
        api=api,
        token=_token(own.token_file),
        tls=tls,
        tls_elsewhere=tls_elsewhere,
        prompt=own.initial_prompt,
        temperature=own.temperature,
        word_times=_flag("word_timestamps", own.word_timestamps, default=True),
        vad_filter=_flag("vad_filter", own.vad_filter, default=False),
        response_format=own.response_format or "verbose_json",
        connect_timeout=_seconds("connect_timeout", own.connect_timeout or "10s"),
        timeout=_seconds("timeout", own.timeout or "20m"),
        retries=int(_number_option("retries", own.retries or "3", int, 0)),
        parallel=int(_number_option("parallel", own.parallel or "2", int, 1)),
    )


def resolve(url: str, api: str | None, task: str) -> tuple[Target, str]:
    """Where to send requests, and which API is spoken there.

    A base (`https://api.example.com/v1`) is as good as the whole address. Raises ValueError.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("--url: credentials belong into WHISPER_HTTP_TOKEN, not into the address")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"--url {url}: no port number") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"--url {url}: http://… or https://… is needed")
    if re.search(r"[^\x21-\x7e]", url):
        raise ValueError(f"--url {url}: only printable ASCII without spaces can be sent")
    path = parts.path.rstrip("/")
    spoken = ("/audio/transcriptions", "/audio/translations")
    if api is None:
        if path.endswith("/asr"):
            api = "asr"
        elif path.endswith("/inference"):
            api = "cpp"
        elif path.endswith((*spoken, "/v1")):
            api = "openai"
        else:
            raise ValueError(f"--url {url}: its path tells no API; say --api {'|'.join(APIS)}")
    match api:
        case "asr":
            path = path if path.endswith("/asr") else f"{path}/asr"
        case "cpp":
            path = path or "/inference"
        case _:
            base = path.removesuffix(spoken[0]).removesuffix(spoken[1])
            if base == path and not path.endswith("/v1"):
                base = f"{path}/v1"
            path = base + spoken[task == "translate"]
    query = f"?{parts.query}" if parts.query else ""
    port = port or (443 if parts.scheme == "https" else 80)
    return Target(parts.scheme, parts.hostname, port, path + query), api


def _token(file: str | None) -> str | None:
    """The value of the Authorization header."""
    token = _setting("token")
    if token is None and file is not None:
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--token_file {file}: {error}") from None
        if not token:
            raise ValueError(f"--token_file {file}: is empty")
    if token is None:
        return None
    if re.search(r"[^\x20-\x7e]", token):
        raise ValueError("WHISPER_HTTP_TOKEN: has characters that no header can carry")
    return token if " " in token else f"Bearer {token}"  # "Basic dXNlcjpwYXNz" is whole already


def _tls(ca: str | None, cert: str | None, key: str | None) -> "ssl.SSLContext":
    import ssl

    if key is not None and cert is None:
        raise ValueError(f"--key {key}: needs --cert too")
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key, password=_refuse_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ValueError(f"--ca, --cert, --key: {error}") from None
    return context


def _refuse_password() -> NoReturn:
    raise ValueError("the key is encrypted")  # else OpenSSL would ask the terminal


def _flag(name: str, value: str | None, *, default: bool) -> bool:
    if value is None:
        return default
    if value.lower() in ("true", "1", "yes", "on"):
        return True
    if value.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError(f"--{name} {value}: True or False is needed")


def _number_option(name: str, value: str, kind: type[int] | type[float], least: int) -> float:
    try:
        number = kind(value)
    except ValueError:
        number = -1
    if not math.isfinite(number) or number < least:
        raise ValueError(f"--{name} {value}: a number of at least {least} is needed")
    return number


def _seconds(name: str, value: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", value)
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not seconds:
        raise ValueError(f"--{name} {value}: a duration such as 90s or 20m is needed")
    return seconds


def transcribe(arguments: Arguments, options: Options) -> None:
    """Send every file, some at a time, and write each result as it comes.

    Raises Failed with the first failure; what is under way then is given up.
    """
    deadline = time.monotonic() + options.timeout
    for audio in arguments.audio:
        with audio.open("rb"):  # a wrong name is told before anything is sent
            pass
    waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[Path, Recognised | Exception]] = queue.SimpleQueue()
    for audio in arguments.audio:
        waiting.put(audio)

    def work() -> None:
        while True:
            try:
                audio = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                outcome: Recognised | Exception = ask(audio, arguments, options, deadline)
            except Exception as error:  # noqa: BLE001  it is raised again, where it is waited for
                outcome = error
            results.put((audio, outcome))

    # Threads of this kind never keep the program: what hangs in a server's slow answer, however
    # slowly it drips, ends with it.
    for _ in range(min(options.parallel, len(arguments.audio))):
        threading.Thread(target=work, daemon=True).start()
    for _ in arguments.audio:
        try:
            audio, outcome = results.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise Failed(f"{options.target}: no result within {options.timeout:g} s") from None
        if isinstance(outcome, Failed):
            raise type(outcome)(f"{audio.name}: {outcome}")
        if isinstance(outcome, Exception):
            raise outcome
        model = arguments.model if options.api == "openai" else None  # others choose themselves
        write_outputs(
            arguments, audio, outcome.segments, language=outcome.language,
            model=outcome.model or model,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a server heard in a file."""

    segments: tuple[Segment, ...]
    language: str | None
    model: str | None


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
    target, language = options.target, arguments.language
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
    complaint = _complaint(response.read(_LARGEST_COMPLAINT), options.token)
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


def _complaint(body: bytes, token: str | None) -> str:
    """What the server says about it: on one line, from JSON or from a page."""
    text = body.decode("utf-8", "replace")
    try:
        text = _reason(json.loads(text)) or text
    except (ValueError, RecursionError):
        text = _plain(text)
    text = " ".join(text.split())[:500]
    if token is not None:
        text = text.replace(token, "…").replace(token.partition(" ")[2], "…")
    return f": {text}" if text else ""


def _plain(text: str) -> str:
    """A page's words, on one line."""
    return " ".join(re.sub(r"(?is)<(script|style|head)\b.*?</\1>|<[^>]*>", " ", text).split())


def _reason(value: object) -> str | None:
    """The text in {"error": …}, {"error": {"message": …}}, {"detail": …}."""
    if isinstance(value, dict):
        for name in ("error", "detail", "message"):
            if value.get(name):
                inner = value[name]
                return _reason(inner) or (inner if isinstance(inner, str) else json.dumps(inner))
    return None


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


def read_result(body: bytes, api: str, audio: Path, language: str | None) -> Recognised:
    """A server's answer. Raises Failed for anything that is no result, a page above all."""
    # The type that is declared tells nothing: whisper-asr-webservice calls its JSON text/plain.
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        start = _plain(body[:_LARGEST_COMPLAINT].decode("utf-8", "replace"))[:120]
        raise Failed(f"200, but no JSON: {start or 'nothing at all'}") from None
    if not isinstance(value, dict):
        raise Failed("200, but its JSON is no result")
    listed, text = value.get("segments"), value.get("text")
    reason = _reason(value)
    if reason or not (isinstance(listed, list) or isinstance(text, str)):
        raise Failed(f"200, but no result: {reason or 'neither text nor segments'}")
    spoken = value.get("language")
    spoken = code_of(spoken) if isinstance(spoken, str) and spoken else language
    model = value.get("model")
    words = [word for each in _list(value.get("words")) if (word := _word(each)) is not None]
    if isinstance(listed, list):
        segments = [one for each in listed if (one := _segment(each, api)) is not None]
        if words and not any(one.words for one in segments):
            segments = [_with_words(one, words) for one in segments]
    else:
        plain = " ".join(str(text).split())
        end = max(_duration(audio), words[-1].end if words else 0.0)
        segments = [Segment(plain, 0.0, end, tuple(words))] if plain else []
    return Recognised(tuple(segments), spoken, model if isinstance(model, str) and model else None)


def _segment(value: object, api: str) -> Segment | None:
    if isinstance(value, list) and len(value) >= 5:
        # whisper-asr-webservice over a faster-whisper whose segments are tuples: id, seek, start,
        # end, text, …; the words are the one list of lists.
        words = next((one for one in value[5:] if one and isinstance(one, list)
                      and isinstance(one[0], list)), [])  # fmt: skip
        named = [dict(zip(("start", "end", "word", "probability"), one, strict=False))
                 for one in words if isinstance(one, list)]  # fmt: skip
        value = {"start": value[2], "end": value[3], "text": value[4], "words": named}
    if not isinstance(value, dict):
        return None
    text = " ".join(str(value.get("text") or "").split())
    start = _number(value.get("start")) or 0.0
    if not text:
        return None
    pieces = _list(value.get("words"))
    spoken = _joined(pieces) if api == "cpp" else [_word(one) for one in pieces]
    return Segment(
        text,
        start,
        max(start, _number(value.get("end")) or 0.0),
        tuple(one for one in spoken if one is not None),
        _number(value.get("avg_logprob")),
        _number(value.get("no_speech_prob")),
        _number(value.get("compression_ratio")),
    )


def _word(value: object) -> Word | None:
    if not isinstance(value, dict):
        return None
    text = str(value.get("word") or value.get("text") or "").strip()
    start, end = _number(value.get("start")), _number(value.get("end"))
    if not text or start is None or end is None:
        return None
    probability = _number(value.get("probability", value.get("score")))
    if probability is not None:
        probability = min(1.0, max(0.0, probability))
    return Word(text, start, max(start, end), probability)


def _joined(pieces: Sequence[object]) -> list[Word]:
    """whisper.cpp's "words" are tokens; one that begins with a space begins a word."""
    words: list[Word] = []
    for piece in pieces:
        one = _word(piece)
        if one is None:
            continue
        begins = isinstance(piece, dict) and str(piece.get("word", "")).startswith(" ")
        if begins or not words:
            words.append(one)
            continue
        last = words[-1]
        known = [p for p in (last.probability, one.probability) if p is not None]
        words[-1] = Word(
            last.text + one.text, last.start, max(last.end, one.end), min(known, default=None)
        )
    return words


def _with_words(segment: Segment, words: Sequence[Word]) -> Segment:
    own = tuple(one for one in words if segment.start <= (one.start + one.end) / 2 < segment.end)
    return Segment(
        segment.text, segment.start, segment.end, own,
        segment.avg_logprob, segment.no_speech_prob, segment.compression_ratio,
    )  # fmt: skip


def _duration(audio: Path) -> float:
    try:
        with wave.open(str(audio), "rb") as file:
            return file.getnframes() / file.getframerate()
    except (OSError, EOFError, wave.Error, ZeroDivisionError):
        return 0.0


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
