"""Long work in slices: the loop serves everything else between two of them."""

from __future__ import annotations

from collections.abc import Iterator

from .loop import Callback, EventLoop, Timer

# What else there is waits no longer than this and one step: a keepalive, the status.
SLICE_S = 0.01


class Slices:
    """Runs a generator to its end, some steps in each turn of the loop."""

    def __init__(self, loop: EventLoop, steps: Iterator[object], done: Callback) -> None:
        """Begin in the next turn. done is called after the last step, also if one failed."""
        self._loop = loop
        self._steps = steps
        self._done = done
        self._next: Timer | None = loop.call_later(0.0, self._take)

    def cancel(self) -> None:
        """Take no further step; done is not called."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _take(self) -> None:
        self._next = None
        end = self._loop.now() + SLICE_S
        over = True
        try:
            for _ in self._steps:
                if self._loop.now() >= end:
                    over = False
                    break
        finally:
            if over:
                self._done()
            else:
                # By way of the timers, so that those that are due come first.
                self._next = self._loop.call_later(0.0, self._take)
