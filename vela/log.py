"""Configures structlog. All other modules only call structlog.get_logger()."""

from __future__ import annotations

import contextlib
import logging
import os
import sys

import structlog

_STDERR = 2


class _Lines:
    """Writes to stderr, one write for each line. A line that cannot be written is lost.

    sys.stderr would keep such a line in its buffer and fail again with each later one.
    """

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(_STDERR, f"{line}\n".encode(errors="backslashreplace"))

    debug = info = warning = error = critical = exception = msg


def configure(level: str, log_format: str) -> None:
    """Log to stderr from this level ("info") on, as "console" lines or as "json".

    One write for each line, so that lines of several processes do not mix.
    """
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=_Lines,
        cache_logger_on_first_use=True,
    )
