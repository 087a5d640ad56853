"""Round trips between the workers of both ends, as echo requests find them. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

from vela.percentile import percentile

from ..status import DelayStatus, milliseconds

SAMPLES = 300
"""As many as there are in five minutes, at one a second."""


class JitterMeter:
    """The interarrival jitter of RFC 3550, section 6.4.1, of round trips instead of one way.

    Its clocks are one clock, so no offset is to be cancelled. It is about the last minute: each
    difference counts 1/16, and those before it that much less.
    """

    GAIN = 1 / 16

    def __init__(self) -> None:
        self.seconds: float | None = None
        """None: nothing was answered."""
        self._last_s = 0.0

    def add(self, round_trip_s: float) -> None:
        """Take a round trip, in the order of the answers."""
        if self.seconds is None:
            self.seconds = 0.0
        else:
            self.seconds += (abs(round_trip_s - self._last_s) - self.seconds) * self.GAIN
        self._last_s = round_trip_s


class DelayMeter:
    """Keeps the last round trips of one circuit."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque()
        # The same, the smallest one first: a status of many circuits sorts nothing.
        self._ordered: list[float] = []
        self._jitter = JitterMeter()

    def add(self, seconds: float) -> None:
        if len(self._seconds) == SAMPLES:
            del self._ordered[bisect_left(self._ordered, self._seconds.popleft())]
        self._seconds.append(seconds)
        insort(self._ordered, seconds)
        self._jitter.add(seconds)

    def clear(self) -> None:
        """Forget them: the path is another one."""
        self._seconds.clear()
        self._ordered.clear()
        self._jitter = JitterMeter()

    def status(self) -> DelayStatus:
        """Return percentiles, and the jitter, in milliseconds."""
        if not self._ordered:
            return DelayStatus(None, None, None)
        return DelayStatus(
            p50=milliseconds(percentile(self._ordered, 50)),
            p99=milliseconds(percentile(self._ordered, 99)),
            jitter=milliseconds(self._jitter.seconds),
        )
