"""Configures structlog. All other modules only call structlog.get_logger()."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping

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


class _Admission:
    """Leaves out lines that somebody says are too many."""

    def __init__(self) -> None:
        self.admits: Callable[[Mapping[str, object]], bool] = lambda _: True

    def __call__(
        self, _logger: object, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        # What is asked for with "debug" is wanted whole.
        if method != "debug" and not self.admits(event):
            raise structlog.DropEvent
        return event


_admission = _Admission()


class _Logger(structlog.make_filtering_bound_logger(logging.NOTSET)):  # type: ignore[misc]
    """Leaves out what is below the level. set_level() replaces its methods.

    structlog's own class has its level for good, and bound loggers keep their class.
    """


_level = "debug"


def level() -> str:
    """Return the level from which on lines are logged."""
    return _level


def set_level(level: str) -> None:
    """Log from this level ("info") on, in this process, also by loggers that exist already."""
    global _level
    _level = level
    filtering = structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()])
    for method in ("debug", "info", "warning", "error", "exception", "critical"):
        setattr(_Logger, method, getattr(filtering, method))


def limit(admits: Callable[[Mapping[str, object]], bool]) -> None:
    """Let the log take only lines that this admits, by their event and keys."""
    _admission.admits = admits


def configure(level: str, log_format: str) -> None:
    """Log to stderr from this level ("info") on, as "console" lines or as "json".

    One write for each line, so that lines of several processes do not mix.
    """
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    set_level(level)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _admission,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=_Logger,
        logger_factory=_Lines,
        cache_logger_on_first_use=True,
    )
