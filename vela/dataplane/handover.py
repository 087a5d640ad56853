"""How a worker makes way for another one: it ends what it has in hand, and takes nothing more.

A byte for each thread, and one more, in the page that worker and supervisor share. A frame that a
worker has read and not written yet is lost when the worker is killed. So a worker that is to be
replaced is asked first; it has no chance to refuse, as it is killed in any case. The supervisor
trusts nothing in the page.
"""

from __future__ import annotations

from enum import IntEnum

from vela.wire import MAX_QUEUES

SIZE = 1 + 2 * MAX_QUEUES
_ASKED = 0


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
        """Whether all threads have stopped. One that waits for a frame has not."""
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

    def stop(self, direction: Direction, queue: int = 0) -> None:
        """Take note that a thread has stopped."""
        self._memory[direction + 2 * queue] = 1
