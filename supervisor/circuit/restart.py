"""When a dead worker is replaced, and when its circuit has failed. Pure.

Monotonic times in, delays out.
"""

from __future__ import annotations

import random

from vela.backoff import Backoff, Jitter

# After this many deaths within this time the circuit has failed. After earlier deaths a worker
# is started at once: the dead one may have been killed by hand or for lack of memory.
DEATHS = 3
WITHIN_S = 10.0

# A failed circuit recovers when a worker has lived this long. A faulty worker dies when it
# starts or with the frames that wait for it, within milliseconds.
PROOF_S = 1.0

FIRST_DELAY_S = 0.5
# Together with PROOF_S, 10 s: the longest time until a circuit recovers after the cause is gone.
LONGEST_DELAY_S = 9.0
JITTER = 0.2  # part of the delay, downward, so that many circuits do not restart in step


class RestartPolicy:
    """Decides on restarts by the deaths of one circuit's workers. It never gives up.

    For WITHIN_S after a recovery, one more death fails the circuit again, and the delays
    continue to double. All times are monotonic seconds.
    """

    def __init__(self, randomness: random.Random) -> None:
        self.failed = False
        """Whether the circuit has failed and no worker has lived for PROOF_S since."""
        self._deaths: list[float] = []
        self._backoff = Backoff(FIRST_DELAY_S, LONGEST_DELAY_S, Jitter(randomness, shorter=JITTER))

    def delay_s(self, now: float) -> float:
        """Record a death. Return the delay before the next worker, in seconds."""
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
        """Record that a worker of a failed circuit has lived for PROOF_S."""
        self.failed = False
        self._deaths = [now] * (DEATHS - 1)
