"""A program that velad runs for somebody: its output, its end, and a limit of its time.

Nothing here waits. The program has the descriptors 0 to 2 alone, a session of its own, and the
environment that it is given, nothing else of velad's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from .loop import EventLoop, Timer
from .process import Child, fork

# What one run writes into the log.
MOST_LINES = 50
MOST_CHARACTERS = 500
# One that writes more is ended: each byte costs the event loop time.
MOST_OUTPUT = 1 << 20

_READ = 1 << 16
_NOT_EXECUTED = 127  # as shells say it

# Python ignores some, velad's children others, and whoever started velad perhaps further ones, as
# a shell does with SIGQUIT of what runs in the background; a program would inherit that.
_DEFAULT = frozenset(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}

OnLine = Callable[[str], None]
OnEnd = Callable[[str], None]
"""Gets why it failed; empty: it did what it was to do."""


class Program:
    """A program that runs. A descendant that outlives it loses standard output and error."""

    def __init__(
        self,
        loop: EventLoop,
        path: Path,
        environment: Mapping[str, str],
        limit_s: float,
        on_line: OnLine,
        on_end: OnEnd,
    ) -> None:
        """Start it. Raises OSError if the kernel has no process or descriptor left.

        on_line is called with each line of its output, on_end when it has ended; neither
        from here. After limit_s seconds it is killed, and all of its session.
        """
        self._loop = loop
        self._limit_s = limit_s
        self._on_end = on_end
        self._output = _Lines(on_line)
        self._why_killed = ""
        self._reading = True
        self._reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(writer, True)
            self._child: Child | None = fork(lambda: _execute(path, environment, writer), (writer,))
        except OSError:
            os.close(self._reader)
            raise
        finally:
            os.close(writer)  # the child has its own
        loop.watch(self._reader, self._on_output)
        loop.watch(self._child.pidfd, self._on_exit)
        self._limit: Timer | None = loop.call_later(limit_s, self._on_limit)

    def kill(self, why: str) -> None:
        """Kill it, and all of its session. Its end follows."""
        if self._child is None:
            return
        self._why_killed = self._why_killed or why
        # It may not have begun its session.
        self._child.signal(signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def _on_limit(self) -> None:
        self._limit = None
        self.kill(f"did not end within {self._limit_s:g} s, and was killed")

    def _on_output(self) -> None:
        try:
            data = os.read(self._reader, _READ)
        except BlockingIOError:
            return
        self._output.take(data)
        if not data:
            self._stop_reading()
        elif self._output.size > MOST_OUTPUT:
            self.kill(f"wrote more than {MOST_OUTPUT >> 20} MiB, and was killed")

    def _on_exit(self) -> None:
        assert self._child is not None
        child, self._child = self._child, None
        self._loop.unwatch(child.pidfd)
        status = child.reap()
        if self._limit is not None:
            self._limit.cancel()
        # What it wrote last. A descendant may go on for ever.
        if self._reading:
            self._on_output()
        self._stop_reading()
        self._output.end()
        self._on_end(self._why_killed or ("" if status.code == 0 else f"failed: {status}"))

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.unwatch(self._reader)
            os.close(self._reader)


class _Lines:
    """Bytes to lines, not too many and not too long, that may be shown anywhere."""

    def __init__(self, on_line: OnLine) -> None:
        self.size = 0
        """Bytes so far."""
        self._on_line = on_line
        self._rest = b""
        self._lines = 0

    def take(self, data: bytes) -> None:
        self.size += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._put(line)
        # The rest of a line that is too long anyway.
        self._rest = self._rest[: 4 * MOST_CHARACTERS]

    def end(self) -> None:
        if self._rest:
            self._put(self._rest)
        if self._lines > MOST_LINES:
            self._on_line(f"... and {self._lines - MOST_LINES} more lines")

    def _put(self, line: bytes) -> None:
        self._lines += 1
        if self._lines <= MOST_LINES:
            self._on_line(printable(line.decode(errors="replace")))


def printable(text: str) -> str:
    """Return text that can stand in a log line and in an environment."""
    shown = "".join(each if each.isprintable() else "?" for each in text[:MOST_CHARACTERS])
    return shown if len(text) <= MOST_CHARACTERS else f"{shown}..."


def _execute(path: Path, environment: Mapping[str, str], output: int) -> None:
    """In the child: become the program."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    for number in _DEFAULT:
        signal.signal(number, signal.SIG_DFL)
    os.chdir("/")
    try:
        os.execve(path, [str(path)], environment)
    except OSError as err:
        os.write(2, f"cannot be executed: {err.strerror}\n".encode())
        os._exit(_NOT_EXECUTED)
