"""The event loop: readable and writable descriptors, timers on the monotonic clock, signals."""

from __future__ import annotations

import heapq
import itertools
import math
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from vela.backoff import Backoff

# A single failure may be transient, such as a lack of memory. A descriptor whose callback fails
# this often in a row would be ready again at once and keep the loop busy.
FAILURES_BEFORE_REST = 3
FIRST_REST_S = 1.0
LONGEST_REST_S = 30.0

# Cancelled timers are removed when they are as many as the others, and at least this many: a
# flood of datagrams, each of which resets a timer, must not fill memory.
TIMERS_BEFORE_SWEEP = 1024

SLACK_S = 0.05
"""Of what each of many circuits does every second or so: all that is due does it in one wake-up of
velad, and so most of the answers are read. Measured with 255 circuits: docs/performance.md."""

TIMERS_AT_ONCE = 16
"""Before the loop looks at what has arrived. On a host without CPU to spare hundreds are due at
once. If all were called first, sessions would be given up whose KEEPALIVE waits to be read."""

Callback = Callable[[], object]
"""Its result is ignored."""


Ready = list[tuple[selectors.SelectorKey, int]]


class Clock(Protocol):
    """The source of the loop's time."""

    def now(self) -> float:
        """Return monotonic seconds."""

    def wait(self, selector: selectors.BaseSelector, timeout_s: float | None) -> Ready:
        """Wait until a descriptor is ready, for at most timeout_s; None: without limit."""


class MonotonicClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, selector: selectors.BaseSelector, timeout_s: float | None) -> Ready:
        return selector.select(timeout_s)


@dataclass(eq=False, slots=True)
class Timer:
    """A callback at a given time. cancel() may be called at any time, also after the callback."""

    when: float
    """Monotonic seconds."""
    _callback: Callback | None

    def cancel(self) -> None:
        self._callback = None

    @property
    def over(self) -> bool:
        """Whether it has fired or was cancelled."""
        return self._callback is None

    def fire(self) -> None:
        """Call back now, unless it has fired or was cancelled."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


@dataclass(frozen=True, slots=True, eq=False)
class _Watch:
    readable: Callback | None
    writable: Callback | None

    @property
    def events(self) -> int:
        return (selectors.EVENT_READ if self.readable else 0) | (
            selectors.EVENT_WRITE if self.writable else 0
        )


@dataclass(frozen=True, slots=True)
class _Rest:
    watch: _Watch
    end: Timer


@dataclass(slots=True)
class _Failures:
    """Consecutive failures of the callbacks of a descriptor."""

    count: int = 0
    rests: Backoff = field(default_factory=lambda: Backoff(FIRST_REST_S, LONGEST_REST_S))


class EventLoop:
    """Runs callbacks, one at a time, in the thread that called run().

    An exception in a callback is a bug. It is logged, and all other callbacks go on.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        """clock: for tests; None: the machine's."""
        self._clock = MonotonicClock() if clock is None else clock
        self._log = structlog.get_logger()
        self._failures: dict[int, _Failures] = {}
        self._resting: dict[int, _Rest] = {}
        self._selector = selectors.DefaultSelector()
        # What the selector has, without its detours.
        self._watches: dict[int, _Watch] = {}
        # (when, order of making, timer): tuples of numbers are compared without a call of Python.
        self._timers: list[tuple[float, int, Timer]] = []
        self._sweep_at = TIMERS_BEFORE_SWEEP
        self._soon: deque[Timer] = deque()
        self._order = itertools.count()
        self._began_at = self._clock.now()
        self._running = False
        self._signals: dict[int, Callback] = {}
        self._wakeup_reader, self._wakeup_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # A byte in this pipe ends the wait at once. A flag set by a handler would be
        # noticed only at the next timeout (PEP 475).
        signal.set_wakeup_fd(self._wakeup_writer, warn_on_full_buffer=False)
        self.watch(self._wakeup_reader, self._on_wakeup)

    def close(self) -> None:
        """Close its own descriptors, and leave signals to Python. It cannot be used any more."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        os.close(self._wakeup_reader)
        os.close(self._wakeup_writer)

    def now(self) -> float:
        """Return monotonic seconds."""
        return self._clock.now()

    def watch(self, fd: int, callback: Callback) -> None:
        """Call back whenever fd is readable, until unwatch.

        If the callback fails FAILURES_BEFORE_REST times in a row, fd is ignored for a while.
        """
        self._register(fd, _Watch(callback, None))

    def unwatch(self, fd: int) -> None:
        self._failures.pop(fd, None)
        rest = self._resting.pop(fd, None)
        if rest is None:
            self._unregister(fd)
        else:
            rest.end.cancel()

    def watch_writable(self, fd: int, readable: Callback | None, writable: Callback | None) -> None:
        """Replace the callbacks of a watched fd. None: do not wait for that; not both None."""
        watch = _Watch(readable, writable)
        rest = self._resting.get(fd)
        if rest is None:
            self._selector.modify(fd, watch.events, watch)
            self._watches[fd] = watch
        else:
            self._resting[fd] = _Rest(watch, rest.end)

    def call_later(self, delay_s: float, callback: Callback) -> Timer:
        return self.call_at(self.now() + delay_s, callback)

    def call_at(self, when: float, callback: Callback, slack_s: float = 0.0) -> Timer:
        """Call back at a time, in monotonic seconds; at once if it is past.

        slack_s: it may be that much later. All with the same slack are called together then: each
        time that a process wakes up costs more than most callbacks do.
        """
        if slack_s:
            when = self._began_at + slack_s * math.ceil((when - self._began_at) / slack_s)
        timer = Timer(when, callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        if len(self._timers) >= self._sweep_at:
            self._timers = [each for each in self._timers if not each[2].over]
            heapq.heapify(self._timers)
            self._sweep_at = max(2 * len(self._timers), TIMERS_BEFORE_SWEEP)
        return timer

    def call_soon(self, callback: Callback) -> Timer:
        """Call back after the present callbacks, before any descriptor is served again.

        A call_soon() from such a callback is also served first, but not one from that.
        """
        timer = Timer(self.now(), callback)
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
            for key, events in self._clock.wait(self._selector, self._timeout()):
                self._serve(key.fd, key.data, events)
            self._fire_timers()
            self._fire_soon()

    def stop(self) -> None:
        """Let run() return after the present callbacks."""
        self._running = False

    def guard(self, callback: Callback) -> bool:
        """Call back now, and log an exception. Return whether there was none."""
        try:
            callback()
        except Exception:
            self._log.exception("callback_failed")
            return False
        return True

    def _serve(self, fd: int, watch: _Watch, events: int) -> None:
        well, watches = True, self._watches
        # An earlier callback of this round may have removed it.
        if events & selectors.EVENT_READ and watch.readable and watches.get(fd) is watch:
            well = self.guard(watch.readable)
        if events & selectors.EVENT_WRITE and watch.writable and watches.get(fd) is watch:
            well = self.guard(watch.writable) and well
        if well:
            self._failures.pop(fd, None)
        elif fd in watches:
            failures = self._failures.setdefault(fd, _Failures())
            failures.count += 1
            if failures.count >= FAILURES_BEFORE_REST:
                self._let_rest(fd, failures)

    def _register(self, fd: int, watch: _Watch) -> None:
        self._selector.register(fd, watch.events, watch)
        self._watches[fd] = watch

    def _unregister(self, fd: int) -> _Watch:
        self._selector.unregister(fd)
        return self._watches.pop(fd)

    def _let_rest(self, fd: int, failures: _Failures) -> None:
        """Ignore a descriptor for a while, longer each time."""
        rest_s = failures.rests.next_delay_s()
        watch = self._unregister(fd)

        def resume() -> None:
            self._register(fd, self._resting.pop(fd).watch)

        self._resting[fd] = _Rest(watch, self.call_later(rest_s, resume))
        self._log.error(
            "descriptor_ignored", fd=fd, failures=failures.count, for_s=round(rest_s, 3)
        )

    def _timeout(self) -> float | None:
        if self._soon:
            return 0.0
        return max(0.0, self._timers[0][0] - self.now()) if self._timers else None

    def _fire_timers(self) -> None:
        now = self.now()
        # Only those due now: a timer that sets itself again must not keep the loop here.
        due: list[Timer] = []
        while self._timers and self._timers[0][0] <= now and len(due) < TIMERS_AT_ONCE:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            self.guard(timer.fire)

    def _fire_soon(self) -> None:
        # Two rounds: a callback that asks for itself again must not keep the loop here.
        for _ in range(2):
            for _ in range(len(self._soon)):
                self.guard(self._soon.popleft().fire)

    def _on_wakeup(self) -> None:
        for number in os.read(self._wakeup_reader, 4096):
            callback = self._signals.get(number)
            if callback is not None:
                self.guard(callback)
