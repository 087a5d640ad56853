"""Configures structlog. All other modules only call structlog.get_logger()."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable, Mapping

import structlog

_STDERR = 2


class _Stderr:
    """Writes to stderr without ever waiting for its reader: a pipe or terminal can be full.

    stderr is shared with other programs, so it stays as it is: pipes and terminals are opened once
    more, and a socket is told each time not to wait.
    """

    def __init__(self) -> None:
        self._own: int | None = None
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Find out what stderr is. Where it cannot be opened once more, it is waited for."""
        self.forget()
        try:
            mode = os.fstat(_STDERR).st_mode
            if stat.S_ISSOCK(mode):
                self._socket = socket.socket(fileno=os.dup(_STDERR))
            elif not stat.S_ISREG(mode):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
                self._own = os.open(f"/proc/self/fd/{_STDERR}", flags)
        except OSError:
            self.forget()

    def forget(self) -> None:
        """Use the descriptor that every process has, as a child may close all others."""
        self._own = self._socket = None

    def write(self, data: bytes) -> int:
        """Write what there is room for; return how many bytes. Raises OSError."""
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._own is not None:
            return os.write(self._own, data)
        return os.write(_STDERR, data)


_stderr = _Stderr()
os.register_at_fork(after_in_child=_stderr.forget)


class _Lines:
    """Writes one line by one write. A line that finds no room, or too little, is lost and counted.

    sys.stderr would keep such a line in its buffer and fail again with each later one.
    """

    lost = 0
    # The line before was cut.
    _cut = False

    def __init__(self, *_: object) -> None:
        pass

    def msg(self, line: str) -> None:
        data = f"{line}\n".encode(errors="backslashreplace")
        if _Lines._cut:
            data = b"\n" + data
        try:
            written = _stderr.write(data)
        except OSError as err:
            _Lines.lost += err.errno == errno.EAGAIN
            return
        _Lines._cut = written < len(data)
        # Where only the end of the line is missing, nothing is lost: the next line begins with it.
        if written < len(data) - 1:
            _Lines.lost += 1
        elif _Lines.lost:
            self._report()

    @staticmethod
    def _report() -> None:
        """Say how many lines were lost. Where that finds no room itself, it is said later."""
        count, _Lines.lost = _Lines.lost, 0
        structlog.get_logger().warning("log_lines_lost", lines=count)
        if _Lines.lost:
            _Lines.lost = count

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

    One write for each line, so that lines of several processes do not mix. This process never
    waits for the reader of stderr; processes that are forked from it do.
    """
    _stderr.open()
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
