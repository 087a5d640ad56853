"""How a worker makes way for another one: it ends what it has in hand, and takes nothing more.

A byte for each direction of a queue, and one more, in the page that worker and supervisor share. A
frame that a worker has read and not written yet is lost when the worker is killed. So a worker that
is to be replaced is asked first; it has no chance to refuse, as it is killed in any case. The
supervisor trusts nothing in the page.

A thread that waits for a frame does not see that it is asked. One of the native engine comes back
from its wait by a signal. One of the Python engine cannot (PEP 475); it waits without taking
anything, says so, and looks before it takes what it has waited for.

That a thread sleeps does not show that it has nothing in hand: a frame may wake it between the look
and the kill. On a busy host the kill may then come a batch later (16 frames were lost).
"""

from __future__ import annotations

import signal
from enum import IntEnum

from vela.wire import MAX_QUEUES

SIZE = 1 + 2 * MAX_QUEUES
_ASKED = 0

WAKE = signal.SIGURG
"""Ends the wait of a thread of the native engine that has not stopped. The others ignore it."""


class ThreadState(IntEnum):
    """Of a thread: the value of its byte."""

    FORWARDS = 0
    STOPPED = 1
    WAITS = 2  # has nothing in hand, and looks whether it is asked before it takes anything


class Direction(IntEnum):
    """A thread of a worker; the number is its byte, of the first queue."""

    EGRESS = 1
    INGRESS = 2


class Handover:
    """The bytes of one circuit's workers."""

    def __init__(self, memory: memoryview) -> None:
        """Use this shared memory: SIZE bytes, all zero."""
        self._memory = memory
        self._queues = 1

    # For the supervisor.

    def ask(self) -> None:
        """Ask all threads to stop after their present batch."""
        self._memory[_ASKED] = 1

    @property
    def done(self) -> bool:
        """Whether all threads have stopped, or will before they take anything."""
        return all(self._memory[1 : 1 + 2 * self._queues])

    def clear(self, queues: int = 1) -> None:
        """Prepare for another worker, with two threads for each queue."""
        self._memory[:] = bytes(len(self._memory))
        self._queues = queues

    # For a worker.

    @property
    def asked(self) -> memoryview:
        """One byte: not 0 when the worker is asked to stop."""
        return self._memory[_ASKED : _ASKED + 1]

    def states(self, queue: int = 0) -> memoryview:
        """Return the bytes of a queue, to be written: of Direction.EGRESS, and of INGRESS."""
        start = Direction.EGRESS + 2 * queue
        return self._memory[start : start + 2]

    def stop(self, direction: Direction, queue: int = 0) -> None:
        """Take note that a thread has stopped."""
        self._memory[direction + 2 * queue] = ThreadState.STOPPED
