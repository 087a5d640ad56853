"""How a worker makes way for another one: it ends what it has in hand, and takes nothing more.

Three bytes of the page that worker and supervisor share. A frame that a worker has read and not
written yet is lost when the worker is killed. So a worker that is to be replaced is asked first; it
has no chance to refuse, as it is killed in any case. The supervisor trusts nothing in the page.
"""

from __future__ import annotations

from enum import IntEnum

SIZE = 3
_ASKED = 0


class Direction(IntEnum):
    """A thread of a worker; the number is its byte."""

    EGRESS = 1
    INGRESS = 2


class Handover:
    """The bytes of one circuit's workers."""

    def __init__(self, memory: memoryview) -> None:
        """Use this shared memory: SIZE bytes, all zero."""
        self._memory = memory

    # For the supervisor.

    def ask(self) -> None:
        """Ask both threads to stop after their present batch."""
        self._memory[_ASKED] = 1

    @property
    def done(self) -> bool:
        """Whether both threads have stopped. One that waits for a frame has not."""
        return all(self._memory[each] for each in Direction)

    def clear(self) -> None:
        """Prepare for another worker."""
        self._memory[:] = bytes(SIZE)

    # For a worker.

    @property
    def asked(self) -> memoryview:
        """One byte: not 0 when the worker is asked to stop."""
        return self._memory[_ASKED : _ASKED + 1]

    def stop(self, direction: Direction) -> None:
        """Take note that a thread has stopped."""
        self._memory[direction] = 1
