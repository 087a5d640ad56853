"""Batches work: the first item runs at once, later ones together after an interval."""

from __future__ import annotations

from collections import deque

from .loop import Callback, EventLoop, Timer


class Burst:
    """Runs the first callback in this turn of the loop, and later ones once each interval."""

    def __init__(self, loop: EventLoop, interval_s: float) -> None:
        self._loop = loop
        self._interval_s = interval_s
        self._waiting: deque[Timer] = deque()
        self._due: Timer | None = None
        self._done_at = loop.now() - interval_s

    def add(self, callback: Callback) -> Timer:
        """Call back in the next burst. The timer can be cancelled until then."""
        pending = Timer(self._loop.now(), callback)
        self._waiting.append(pending)
        if self._due is None:
            delay_s = self._done_at + self._interval_s - self._loop.now()
            if delay_s > 0:
                self._due = self._loop.call_later(delay_s, self._fire)
            else:
                self._due = self._loop.call_soon(self._fire)
        return pending

    def _fire(self) -> None:
        self._due = None
        self._done_at = self._loop.now()
        while self._waiting:
            self._loop.guard(self._waiting.popleft().fire)
