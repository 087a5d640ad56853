"""Round trips between the workers of both ends, as echo requests find them. Pure."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from vela.percentile import percentile

from ..status import DelayStatus, milliseconds

SAMPLES = 64


class DelayMeter:
    """Keeps the last round trips of one circuit."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=SAMPLES)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def clear(self) -> None:
        """Forget them: the path is another one."""
        self._seconds.clear()

    def status(self) -> DelayStatus:
        """Return percentiles, and the mean difference of one from the next, in milliseconds."""
        if not self._seconds:
            return DelayStatus(None, None, None)
        ordered = sorted(self._seconds)
        steps = [abs(later - earlier) for earlier, later in pairwise(self._seconds)]
        jitter = sum(steps) / len(steps) if steps else 0.0
        return DelayStatus(
            p50=milliseconds(percentile(ordered, 50)),
            p99=milliseconds(percentile(ordered, 99)),
            jitter=milliseconds(jitter),
        )
