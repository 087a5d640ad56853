"""Delays before something is tried again: longer each time, and not in step with others. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Jitter:
    """Makes delays shorter or longer at random, by a share of them at most.

    Without it, circuits that fail together try again together.
    """

    randomness: random.Random
    shorter: float = 0.0
    longer: float = 0.0

    def apply(self, delay_s: float) -> float:
        return delay_s * self.randomness.uniform(1 - self.shorter, 1 + self.longer)


class Backoff:
    """The first delay, then twice as long each time, up to the longest. It never gives up."""

    def __init__(self, first_s: float, longest_s: float, jitter: Jitter | None = None) -> None:
        """The jitter applies to each delay, so a delay with it may exceed longest_s."""
        self._first_s = first_s
        self._longest_s = longest_s
        self._jitter = jitter
        self._next_s = first_s

    def next_delay_s(self) -> float:
        """Return how long to wait before the next try, in seconds."""
        delay_s = self._next_s
        # Not a power of the number of tries: that would overflow after some years.
        self._next_s = min(delay_s * 2, self._longest_s)
        return delay_s if self._jitter is None else self._jitter.apply(delay_s)

    def reset(self) -> None:
        """Begin again with the first delay: a try succeeded."""
        self._next_s = self._first_s
