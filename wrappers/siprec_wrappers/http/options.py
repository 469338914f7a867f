"""What `whisper-http` is told: where the server is, what it speaks, and how to be let in."""

import argparse
import math
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from siprec_wrappers.contract import Arguments
from siprec_wrappers.service import longest_run, seconds_of, setting

if TYPE_CHECKING:
    import ssl

PROGRAM = "whisper-http"
APIS = ("asr", "openai", "cpp")

OWN = {
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
    "timeout": "longest run (WHISPER_TIMEOUT, else 20m)",
    "retries": "further requests when the server is away or busy (3)",
    "parallel": "files under way at once (2)",
}


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


def options_of(own: argparse.Namespace, arguments: Arguments) -> Options:
    """What is configured. Raises ValueError with the wrong option."""
    if own.url is None:
        raise ValueError("no server: say --url or WHISPER_HTTP_URL")
    if own.api not in (None, *APIS):
        raise ValueError(f"--api {own.api}: one of {', '.join(APIS)} is needed")
    if own.response_format not in (None, "verbose_json", "json"):
        raise ValueError(f"--response_format {own.response_format}: verbose_json or json is needed")
    if own.temperature is not None:
        _number_option("temperature", own.temperature, float, 0)
    target, api = resolve(own.url, own.api, arguments.task)
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
        connect_timeout=seconds_of("connect_timeout", own.connect_timeout or "10s"),
        timeout=longest_run(own.timeout),
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
    token = setting(PROGRAM, "token")
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
    for name, file in (("ca", ca), ("cert", cert), ("key", key)):
        try:
            if file is not None:  # OpenSSL does not say which
                with open(file, "rb"):
                    pass
        except OSError as error:
            raise ValueError(f"--{name} {file}: {error.strerror}") from None
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
