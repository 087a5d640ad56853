"""Batches work: the first item runs at once, later ones together after a pause."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .loop import Callback, EventLoop, Timer

AT_ONCE_S = 0.2
"""How long a burst takes at most before the loop looks at what has arrived; it then goes on. A fork
takes 3 ms, and on a host without CPU to spare ten times as long. Measured: docs/performance.md."""


@dataclass(frozen=True, slots=True)
class Pause:
    """How long work waits after a burst: the longer, the more that was."""

    shortest_s: float
    each_s: float = 0.0
    """For each callback of the burst."""
    longest_s: float = 0.0

    def after(self, number: int) -> float:
        """Return the seconds to wait after a burst of so many callbacks."""
        return max(self.shortest_s, min(self.each_s * number, self.longest_s))


class Burst:
    """Runs the first callback in this turn of the loop, and those that come in a pause behind it.

    After one or few the pause is short. Where many come one after the other, as when velad starts,
    the bursts grow.
    """

    def __init__(self, loop: EventLoop, pause: Pause) -> None:
        self._loop = loop
        self._pause = pause
        self._waiting: deque[Timer] = deque()
        self._due: Timer | None = None
        self._next_at = loop.now()
        self._number = 0

    def add(self, callback: Callback) -> Timer:
        """Call back in the next burst. The timer can be cancelled until then."""
        pending = Timer(self._loop.now(), callback)
        self._waiting.append(pending)
        if self._due is None:
            delay_s = self._next_at - self._loop.now()
            if delay_s > 0:
                self._due = self._loop.call_later(delay_s, self._fire)
            else:
                self._due = self._loop.call_soon(self._fire)
        return pending

    def _fire(self) -> None:
        began = self._loop.now()
        while self._waiting:
            if self._loop.now() - began >= AT_ONCE_S:
                self._due = self._loop.call_later(0.0, self._fire)
                return
            self._loop.guard(self._waiting.popleft().fire)
            self._number += 1
        self._due = None
        self._next_at = began + self._pause.after(self._number)
        self._number = 0
