"""The log pipeline: an event and fields, as JSON lines or for a terminal, secrets masked."""

import contextlib
import logging
import re
import sys
import threading
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_SECRET_FIELDS = re.compile(
    r"(password|passwd|secret|token|authorization|crypto|inline|master_key|private_key)", re.I
)
# From the start of a word and possessive: peers' texts come here, so it must be linear.
_URL_PASSWORD = re.compile(r"(\b\w++://[^:/@\s]*+):[^@/\s]++@")
_SDES_KEY = re.compile(r"(inline:)[A-Za-z0-9+/=]+", re.I)
_DIGEST = re.compile(r'((?:response|cnonce|nonce)=")[^"]*"', re.I)
# What the bridge gives out (tokens, tickets, logins), and whatever somebody sends for a token.
_OUR_SECRET = re.compile(r"siprec_[A-Za-z0-9_-]{43}")
_WEBHOOK_SECRET = re.compile(r"whsec_[A-Za-z0-9+/=]+")
_BEARER = re.compile(r"(bearer\s+)[^\s\"',]+", re.I)
_HEAD_END = re.compile(r"\r?\n\r?\n")
_KEYS = re.compile(r"^(?:content-type|c)[ \t]*:[ \t]*application/dtmf", re.I | re.M)  # pressed
MASK = "***"


def configure_logs(
    level: Literal["debug", "info", "warning", "error"],
    form: Literal["json", "console", "auto"],
    stream: TextIO | None = None,
) -> None:
    """Set up structlog for this process; libraries' own logging goes the same way.

    `auto`: for a terminal console lines, else JSON. Lines go to stderr unless told otherwise.
    """
    out = stream or sys.stderr
    console = form == "console" or (form == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        # As text, so that it is masked, and without the frames' variables: there may be keys in them.
        structlog.processors.format_exc_info,
        mask_secrets,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(
            colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        if console
        else structlog.processors.JSONRenderer(default=str, skipkeys=True)
    )
    # Not by way of the library's records, which cost as much again, and let nothing raise here.
    structlog.configure(
        processors=[*shared, renderer],
        logger_factory=_Lines(out),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[tell_causes_alone, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Libraries tell at INFO what only their authors want to know.
    for name in ("aio_pika", "aiormq", "websockets", "aiohttp", "alembic", "asyncio"):
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    # What it raises in the end is ours to tell; it tells each with its traceback before.
    logging.getLogger("gcsfs").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)


class _Lines:
    """A logger of rendered lines, and its factory. Who reads them no more ends nothing else."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()

    def __call__(self, *names: object) -> "_Lines":
        return self

    def msg(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._out.write(f"{line}\n")
            self._out.flush()

    debug = info = warning = error = critical = msg


def tell_causes_alone(_: WrappedLogger, level: str, event: EventDict) -> EventDict:
    """Put the cause in place of a traceback, in what a library only warns of: a lost connection."""
    exc_info = event.get("exc_info")
    if level not in ("error", "critical") and isinstance(exc_info, tuple) and exc_info[1]:
        del event["exc_info"]
        event["cause"] = f"{type(exc_info[1]).__name__}: {exc_info[1]}"
    return event


def mask_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Replace what must not be logged: passwords, keys, digests. A structlog processor."""
    for name, value in event.items():
        if _SECRET_FIELDS.search(name) and value is not None:
            event[name] = MASK
        elif isinstance(value, str):
            event[name] = masked(value)
    return event


def masked(text: str) -> str:
    """The text without passwords in URLs, tokens, webhooks' secrets, SDES keys, digests, pressed keys."""
    lower = text.lower()  # a look for a word is a hundredth of a look for a pattern
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1:{MASK}@", text)
    if "inline:" in lower:
        text = _SDES_KEY.sub(rf"\1{MASK}", text)
    if "siprec_" in text:
        text = _OUR_SECRET.sub(MASK, text)
    if "whsec_" in text:
        text = _WEBHOOK_SECRET.sub(MASK, text)
    if "bearer" in lower:
        text = _BEARER.sub(rf"\1{MASK}", text)
    if 'nonce="' in lower or 'response="' in lower:
        text = _DIGEST.sub(rf'\1{MASK}"', text)
    if "application/dtmf" in lower:  # of INFO: people type card numbers
        head = _HEAD_END.search(text)
        if head is not None and _KEYS.search(text, 0, head.start()):
            text = text[: head.end()] + MASK
    return text
