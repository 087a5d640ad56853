"""Forking: children by pidfd, and their exit statuses as text. No other module forks."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FunctionType

EXIT_BROKEN = 70  # sysexits.h, EX_SOFTWARE

_DEFAULT = (signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2)
_IGNORED = (signal.SIGINT, signal.SIGHUP)
# Only the signals that may have handlers here: Python creates an object for each signal whenever
# the mask changes. With all signals that took a third of the time of a fork.
_HANDLED = frozenset(_DEFAULT + _IGNORED)
# signal(2), as signal.signal() looks up each number and each handler in an enumeration, whose
# objects lie on so many pages that each worker had 0.2 MB more of its own.
_set_disposition = ctypes.CDLL(None).signal
_set_disposition.argtypes = (ctypes.c_int, ctypes.c_void_p)
_set_disposition.restype = ctypes.c_void_p
_DISPOSITIONS = (
    *((int(number), int(signal.SIG_DFL)) for number in _DEFAULT),
    *((int(number), int(signal.SIG_IGN)) for number in _IGNORED),
)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: with a code, or by a signal."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit status {self.code}"
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"


class Child:
    """A forked process. Its pidfd becomes readable when it has ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; safe against reuse of its pid until reap()."""
        signal.pidfd_send_signal(self.pidfd, number)

    def reap(self) -> ExitStatus:
        """Wait for its end, close the pidfd, and return the exit status."""
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        assert result is not None
        os.close(self.pidfd)
        if result.si_code == os.CLD_EXITED:
            return ExitStatus(code=result.si_status)
        return ExitStatus(signal=result.si_status)


def _nothing() -> None:
    pass


def _leave_locks_of_other_threads() -> None:
    """Let children of a process that has no threads not reset what only threads use.

    The hooks of threading and logging run first in each child, and their objects lie on so many
    pages that each worker had 0.5 MB more of its own. They cannot be unregistered; so they get
    another body. fork() makes sure that there are no threads.
    """
    for hook in (
        getattr(threading, "_after_fork", None),
        getattr(logging, "_after_at_fork_child_reinit_locks", None),
    ):
        if isinstance(hook, FunctionType):
            hook.__code__ = _nothing.__code__


def fork(body: Callable[[], None], descriptors: Iterable[int]) -> Child:
    """Run body in a child that has only these descriptors and the standard ones.

    In the child SIGTERM has its default action. SIGINT and SIGHUP, which a
    terminal sends to the whole group, are ignored. The child ends when body
    returns or raises; it never returns to the caller. Raises OSError if the
    kernel has no process or descriptor left.
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("a process with threads must not fork")
    for stream in (sys.stdout, sys.stderr):
        # The reader may be gone or the disk full. The circuit needs its worker all the same.
        with contextlib.suppress(OSError):
            stream.flush()
    closed = _all_but({0, 1, 2, *descriptors})
    # Until the child has set its own handlers, a signal to it would run ours.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    _leave_locks_of_other_threads()
    # The child's collector does not touch frozen objects, so their pages are not copied.
    gc.freeze()
    try:
        pid = os.fork()
        if pid == 0:
            _be_child(body, closed, before)
        try:
            return Child(pid)
        except OSError:  # no descriptor left for its pidfd
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    finally:
        # What becomes garbage later is to be found: frozen for good, each circuit that was
        # removed would leave 23 kB.
        gc.unfreeze()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def fork_with_channel(body: Callable[[socket.socket], None]) -> tuple[Child, socket.socket]:
    """Run body in a child, as fork() does, with one end of a SOCK_SEQPACKET pair.

    Return the child and the other end. Raises OSError as fork() does.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:  # the child has its own
        try:
            return fork(lambda: body(theirs), (theirs.fileno(),)), ours
        except OSError:
            ours.close()
            raise


def _be_child(
    body: Callable[[], None], closed: Sequence[tuple[int, int]], mask: Iterable[int]
) -> None:
    status = EXIT_BROKEN
    try:
        signal.set_wakeup_fd(-1)
        # It is the supervisor's: a child that crashes is to end by the signal that says why.
        faulthandler.disable()
        for number, disposition in _DISPOSITIONS:
            _set_disposition(number, disposition)
        for low, high in closed:
            os.closerange(low, high)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        body()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _all_but(kept: set[int]) -> list[tuple[int, int]]:
    """Return all ranges of descriptors without these, each from its first to behind its last."""
    ranges = []
    low = 0
    for fd in sorted(kept):
        # Not an empty range: closerange(0, 0) closes everything (CPython 3.11).
        if low < fd:
            ranges.append((low, fd))
        low = fd + 1
    return [*ranges, (low, os.sysconf("SC_OPEN_MAX"))]
