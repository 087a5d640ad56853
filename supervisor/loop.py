"""The one event loop: descriptors that become readable, timers on the monotonic clock, signals."""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

Callback = Callable[[], object]
"""What it returns is ignored."""


@dataclass(order=True, slots=True)
class Timer:
    """A call at a time. cancel() is safe at any moment, also after the call."""

    when: float
    """Monotonic seconds."""
    _order: int
    _callback: Callback | None = field(compare=False)

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        """Call back now, unless that was done or cancelled."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


@dataclass(frozen=True, slots=True, eq=False)
class _Watch:
    readable: Callback | None
    writable: Callback | None


class EventLoop:
    """Runs callbacks, one at a time, in the thread that called run()."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._soon: deque[Timer] = deque()
        self._order = itertools.count()
        self._running = False
        self._signals: dict[int, Callback] = {}
        self._wakeup_reader, self._wakeup_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A handler that only sets a flag would be seen at the next timeout
        # (PEP 475); a byte in this pipe ends the wait at once.
        signal.set_wakeup_fd(self._wakeup_writer, warn_on_full_buffer=False)
        self.watch(self._wakeup_reader, self._on_wakeup)

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def watch(self, fd: int, callback: Callback) -> None:
        """Call back whenever fd is readable, until unwatch."""
        self._selector.register(fd, selectors.EVENT_READ, _Watch(callback, None))

    def unwatch(self, fd: int) -> None:
        self._selector.unregister(fd)

    def watch_writable(self, fd: int, readable: Callback | None, writable: Callback | None) -> None:
        """Let a watched fd call back when it is writable, too; None: no longer. Not both None."""
        events = (selectors.EVENT_READ if readable else 0) | (
            selectors.EVENT_WRITE if writable else 0
        )
        self._selector.modify(fd, events, _Watch(readable, writable))

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        timer = Timer(self.now() + delay_s, next(self._order), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def call_soon(self, callback: Callback) -> Timer:
        """Call back after all that is going on now, and before anything is read again.

        So does what is asked for by such a call, but what that asks for may come later.
        """
        timer = Timer(self.now(), next(self._order), callback)
        self._soon.append(timer)
        return timer

    def on_signal(self, number: signal.Signals, callback: Callback) -> None:
        self._signals[number] = callback
        # Without a Python handler nothing is written to the wake-up pipe.
        signal.signal(number, lambda _number, _frame: None)

    def run(self) -> None:
        """Run until stop()."""
        self._running = True
        while self._running:
            for key, events in self._selector.select(self._timeout()):
                watch: _Watch = key.data
                for event, callback in (
                    (selectors.EVENT_READ, watch.readable),
                    (selectors.EVENT_WRITE, watch.writable),
                ):
                    # An earlier callback of this round may have taken it off.
                    current = self._selector.get_map().get(key.fd)
                    if events & event and callback and current and current.data is watch:
                        callback()
            self._fire_timers()
            self._fire_soon()

    def stop(self) -> None:
        """Let run() return after what is going on now."""
        self._running = False

    def _timeout(self) -> float | None:
        if self._soon:
            return 0.0
        return max(0.0, self._timers[0].when - self.now()) if self._timers else None

    def _fire_timers(self) -> None:
        now = self.now()
        # Only those due now: one that sets itself again must not keep the loop here.
        due = []
        while self._timers and self._timers[0].when <= now:
            due.append(heapq.heappop(self._timers))
        for timer in due:
            timer.fire()

    def _fire_soon(self) -> None:
        # Two rounds: one that asks for itself again must not keep the loop here.
        for _ in range(2):
            for _ in range(len(self._soon)):
                self._soon.popleft().fire()

    def _on_wakeup(self) -> None:
        for number in os.read(self._wakeup_reader, 4096):
            callback = self._signals.get(number)
            if callback is not None:
                callback()
