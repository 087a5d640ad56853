"""When a worker that ended is started again. Pure: monotonic times in, delays out."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

# A worker that lived this long had begun to carry frames; its end is news,
# and the circuit must not wait.
RAN_WELL_S = 1.0
# One that did not may have been killed for lack of memory, or by hand, right after its
# predecessor was; the circuit is back as soon. More of that in a row is a crash loop.
EARLY_DEATHS_AT_ONCE = 2
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
JITTER = 0.2  # of the delay, both ways: many circuits must not come back in step


@dataclass(slots=True)
class RestartPolicy:
    """At once after a worker that ran well, and after EARLY_DEATHS_AT_ONCE that did not.

    Then twice as late each time. Never gives up.
    """

    randomness: random.Random
    _early_deaths: int = field(default=0, init=False)

    def delay_s(self, uptime_s: float) -> float:
        """Return how long to wait, in seconds, after a worker that lived uptime_s."""
        if uptime_s >= RAN_WELL_S:
            self._early_deaths = 0
            return 0.0
        # Capped before it is raised to a power: years of deaths must not overflow.
        doublings = min(self._early_deaths - EARLY_DEATHS_AT_ONCE, 16)
        self._early_deaths += 1
        if doublings < 0:
            return 0.0
        delay = min(FIRST_DELAY_S * (1 << doublings), LONGEST_DELAY_S)
        return delay * self.randomness.uniform(1 - JITTER, 1 + JITTER)
