"""Whether the two threads of a worker share its CPU, or have one each. Pure.

On one CPU they wake each other soonest. While that CPU is saturated and another one is idle, a
circuit carries more with its ingress thread there: docs/performance.md. Whether it does is tried,
as nothing else tells: where frames are cut and joined nowhere, it carries less.
"""

from __future__ import annotations

from typing import NamedTuple

from vela.backoff import Backoff

SATURATED_IDLE = 0.1
"""A CPU that is idle for less of its time is saturated."""
ROOM = 0.2
"""One that is idle for more has room for a thread."""
BUSY_USED, QUIET_USED = 0.25, 0.15
"""Of one CPU: a worker that takes more may gain by another one, one that takes less does not."""

PERIOD_S = 0.25
"""From look to look. The kernel counts CPU time in steps of 10 ms."""
CONFIRM_LOOKS = 4
SETTLE_LOOKS = 2
"""Left out behind a move, as they are of both."""
TRIAL_LOOKS = 6
QUIET_LOOKS = 8

REST_S, LONGEST_REST_S = 60.0, 3600.0
"""Before the next trial, after one that did not pay."""


class Look(NamedTuple):
    """What a worker did in the last period."""

    rate: float
    """Bytes per second, in both directions together."""
    used: float
    """CPU time, of one CPU."""
    idle: float
    """The share of its CPU that is idle."""
    other: int | None
    """The idlest of the other CPUs."""
    other_idle: float


class Placement:
    """One worker's. To be told of each period that it is busy, and of those after it is."""

    def __init__(self) -> None:
        self.apart: int | None = None
        """Where the ingress thread is to run; None: on the worker's own CPU."""
        self._rests = Backoff(REST_S, LONGEST_REST_S)
        self._rest_until = 0.0
        self._before: list[float] = []
        self._after: list[float] | None = None
        self._quiet = 0

    def look(self, look: Look, now: float) -> None:
        """Decide anew."""
        if self.apart is None:
            self._look_for_room(look, now)
        elif look.used < QUIET_USED:
            self._quiet += 1
            if self._quiet >= QUIET_LOOKS:
                self.join()
        else:
            self._quiet = 0
            if self._after is not None:
                self._try(self._after, look, now)

    def join(self) -> None:
        """Have both threads on one CPU again: there is another worker, or nothing to do."""
        self.apart = self._after = None
        self._before.clear()

    def _look_for_room(self, look: Look, now: float) -> None:
        saturated = look.used >= BUSY_USED and look.idle < SATURATED_IDLE
        if not saturated or look.other is None or look.other_idle < ROOM or now < self._rest_until:
            self._before.clear()
            return
        self._before.append(look.rate)
        if len(self._before) == CONFIRM_LOOKS:
            self.apart, self._after, self._quiet = look.other, [], 0

    def _try(self, after: list[float], look: Look, now: float) -> None:
        after.append(look.rate)
        if len(after) < SETTLE_LOOKS + TRIAL_LOOKS:
            return
        before = sum(self._before) / CONFIRM_LOOKS
        if sum(after[SETTLE_LOOKS:]) / TRIAL_LOOKS >= before:
            self._after = None
            self._rests.reset()
        else:
            self._rest_until = now + self._rests.next_delay_s()
            self.join()
