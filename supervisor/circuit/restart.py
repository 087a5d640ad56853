"""When a dead worker is started again, and when its circuit has failed.

Pure: monotonic times in, delays out.
"""

from __future__ import annotations

import random

from vela.backoff import Backoff, Jitter

# This many deaths within this time: the circuit has failed. After the earlier ones a worker is
# started at once: it may have been killed by hand, or for lack of memory.
DEATHS = 3
WITHIN_S = 10.0

# Of a failed circuit, a worker that lives this long has proved to live. What is wrong with one
# shows when it starts, or with the frames that wait for it: within milliseconds.
PROOF_S = 1.0

FIRST_DELAY_S = 0.5
# With the proof, 10 s: workers start no further apart, and a circuit whose cause of failure is gone
# is back in that time.
LONGEST_DELAY_S = 9.0
JITTER = 0.2  # of the delay, downward: many circuits must not come back in step


class RestartPolicy:
    """The deaths of one circuit's workers. Never gives up.

    A circuit that recovered is on probation for WITHIN_S: the next death within that time fails
    it again, and the delays go on doubling. All times are monotonic seconds.
    """

    def __init__(self, randomness: random.Random) -> None:
        self.failed = False
        """Whether the circuit has no worker that proved to live."""
        self._deaths: list[float] = []
        self._backoff = Backoff(FIRST_DELAY_S, LONGEST_DELAY_S, Jitter(randomness, shorter=JITTER))

    def delay_s(self, now: float) -> float:
        """Take note that a worker died. Return how long to wait with the next one, in seconds."""
        self._deaths = [at for at in self._deaths if now - at < WITHIN_S]
        if not (self.failed or self._deaths):
            self._backoff.reset()
        self._deaths.append(now)
        if len(self._deaths) >= DEATHS:
            self.failed = True
        if not self.failed:
            return 0.0
        return self._backoff.next_delay_s()

    def proved(self, now: float) -> None:
        """Take note that a worker of a failed circuit has lived for PROOF_S."""
        self.failed = False
        self._deaths = [now] * (DEATHS - 1)
