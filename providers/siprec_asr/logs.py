"""Log lines: an event and fields, as JSON or for a terminal. Never what somebody said."""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor


def configure_logs(level: str, form: str, stream: TextIO | None = None) -> None:
    """Set up structlog and the libraries' logging; `form` is json, console or auto (by terminal)."""
    out = stream or sys.stderr
    console = form == "console" or (form == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(
            colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        if console
        else structlog.processors.JSONRenderer(default=str)
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # At INFO these tell of each request to themselves; faster_whisper logs languages and cuts.
    for name in ("aiohttp", "asyncio", "faster_whisper", "httpx", "huggingface_hub", "filelock"):
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
