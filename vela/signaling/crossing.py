"""Whether frames cross to the remote and back, by echo requests in the circuit. Pure.

docs/protocol.md, section 5.

    in    start, stop, answered, handle_timer     times in monotonic seconds
    out   crosses, blocked, next_timer()
"""

from __future__ import annotations

import math

from vela.backoff import Jitter

# As with keepalives: after three that are missed, and half of one for delay.
MISSED_INTERVALS = 3.5
TRIES_PER_INTERVAL, LONGEST_PACE_S, LOST_TRIES = 4, 1.0, 4
"""Requests go on at one pace, answered or not: else what gets lost would be counted more often. A
busy path may lose many, and none of them is urgent to it."""

FIRST_S, LONGEST_REPEAT_S = 0.1, 1.0
"""After which the first request is repeated, and then twice as long each time: the remote's worker
may just be starting."""
RARE_REPEAT_S = 30.0
"""The longest where the remote may be one that never answers."""

BLOCKED_S, BLOCKED_TRIES = 2.0, 4
"""Without an answer from the beginning: then something on the way lets no frames pass."""


class Crossing:
    """What one end knows of the path that frames take."""

    def __init__(self, jitter: Jitter) -> None:
        """jitter: of the interval, so that circuits that begin together do not ask together."""
        self.crosses = False
        """Frames cross both ways, as far as is known."""
        self._jitter = jitter
        self._interval_s = math.inf
        self._rarely = False
        self._ask_at = self._lost_at = math.inf  # both are looked at when a request is due
        self._repeat_s = FIRST_S
        self._blocked_at = math.inf
        self._tries = 0

    @property
    def running(self) -> bool:
        return self._ask_at < math.inf

    @property
    def unanswered(self) -> int:
        """How many requests in a row have had no answer so far, the last one included."""
        return self._tries

    @property
    def blocked(self) -> bool:
        """Whether all requests since start() were in vain, for so long that it is no chance."""
        return self._blocked_at == -math.inf

    def start(
        self,
        interval_s: float,
        now: float,
        *,
        crosses: bool,
        delay_s: float = 0.0,
        rarely: bool = False,
    ) -> None:
        """Begin to ask after a delay.

        interval_s: between keepalives. crosses: assume that frames cross until answers are
        missing. rarely: the remote may be one that never answers; ask such a one rarely.
        """
        self.crosses = crosses
        self._interval_s = interval_s
        self._rarely = rarely
        self._ask_at, self._tries = now + delay_s, 0
        self._repeat_s = LONGEST_REPEAT_S if rarely else FIRST_S
        self._lost_at = now + MISSED_INTERVALS * interval_s if crosses else math.inf
        self._blocked_at = math.inf if crosses else now + BLOCKED_S

    def stop(self) -> None:
        """Ask no more; nothing is known then."""
        self.crosses = False
        self._ask_at = self._lost_at = self._blocked_at = math.inf

    def answered(self, asked_at: float, now: float) -> None:
        """Take an answer to a request of asked_at."""
        if not self.running:
            return
        lost_at = asked_at + MISSED_INTERVALS * self._interval_s
        if self.crosses:
            self._lost_at = max(lost_at, self._lost_at)
        else:
            self._lost_at = lost_at
            self._ask_at = max(now, asked_at + self._jitter.apply(self._pace_s()))
        self.crosses, self._tries = True, 0
        self._blocked_at = math.inf

    def handle_timer(self, now: float, *, carries: bool = True) -> bool:
        """Do what is due, at next_timer() or later. Return whether to send a request now.

        carries: this end, at least, can carry frames. Before that nothing is blocked.
        """
        if self._ask_at > now:
            return False
        if not carries and self._blocked_at < math.inf:
            self._blocked_at = now + BLOCKED_S
        # By the number, too: nothing was asked while this machine slept, or velad was stopped.
        if self._lost_at <= now and self._tries >= LOST_TRIES:
            self.start(self._interval_s, now, crosses=False, rarely=self._rarely)
        elif self._blocked_at <= now and self._tries >= BLOCKED_TRIES:
            self._blocked_at = -math.inf
        self._tries += 1
        self._ask_at = now + self._wait_s()
        return True

    def next_timer(self) -> float:
        """Return when to call handle_timer; infinite: not until another call."""
        return self._ask_at

    def _wait_s(self) -> float:
        """Return how long to wait after a request before the next one."""
        if self.crosses:
            return self._jitter.apply(self._pace_s())
        wait_s = self._repeat_s
        longest_s = RARE_REPEAT_S if self._rarely else min(LONGEST_REPEAT_S, self._pace_s())
        self._repeat_s = min(wait_s * 2, longest_s)
        return wait_s

    def _pace_s(self) -> float:
        return min(max(self._interval_s / TRIES_PER_INTERVAL, FIRST_S), LONGEST_PACE_S)
