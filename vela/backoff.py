"""Delays between tries: doubling, with jitter. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Jitter:
    """Makes delays shorter or longer at random, by at most a share of them.

    Without it, circuits that fail together try again together.
    """

    randomness: random.Random
    shorter: float = 0.0
    longer: float = 0.0

    def apply(self, delay_s: float) -> float:
        return delay_s * self.randomness.uniform(1 - self.shorter, 1 + self.longer)


class Backoff:
    """The first delay, then twice as long each time, up to the longest."""

    def __init__(self, first_s: float, longest_s: float, jitter: Jitter | None = None) -> None:
        """The jitter applies to each delay, which may then exceed longest_s."""
        self._first_s = first_s
        self._longest_s = longest_s
        self._jitter = jitter
        self._next_s = first_s

    def next_delay_s(self) -> float:
        """Return the delay before the next try, in seconds."""
        delay_s = self._next_s
        # A power of the number of tries would overflow after some years.
        self._next_s = min(delay_s * 2, self._longest_s)
        return delay_s if self._jitter is None else self._jitter.apply(delay_s)

    def reset(self) -> None:
        """Begin again with the first delay, after a success."""
        self._next_s = self._first_s
