"""Since when a circuit has its state, and how often it went up or down lately. Pure."""

from __future__ import annotations

from collections import deque

from .lifecycle import State

PERIOD_S = 3600.0
# A circuit that flaps more often than this is not counted any further.
MAX_COUNTED = 1000

_CARRIES = frozenset({State.UP, State.UNMONITORED})


class Transitions:
    """Is told each state of one circuit."""

    def __init__(self, state: State, now: float) -> None:
        self._state = state
        self._since = now
        self._times: deque[float] = deque(maxlen=MAX_COUNTED)

    def record(self, state: State, now: float) -> None:
        """Take the present state, which may be that of before."""
        if state.word != self._state.word:
            self._since = now
        if (state in _CARRIES) != (self._state in _CARRIES):
            self._times.append(now)
        self._state = state

    def since_s(self, now: float) -> float:
        """Return for how many seconds it has its state."""
        return now - self._since

    def count(self, now: float) -> int:
        """Return how often it began or ceased to carry frames in the last hour."""
        while self._times and self._times[0] < now - PERIOD_S:
            self._times.popleft()
        return len(self._times)
