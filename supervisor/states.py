"""The words for the states of circuits, and how many circuits are in which. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

WELL = ("up", "unmonitored")
# Trouble first. What an operator took down is none.
STATES = ("failed", "rejected", "down", "resolving", "connecting", *WELL, "disabled")


def total(states: Iterable[str]) -> str:
    """Return how many there are of each: "3 circuits: 2 up, 1 connecting"."""
    counts = Counter(states)
    count = counts.total()
    if not count:
        return "no circuits"
    known = [f"{counts.pop(state)} {state}" for state in reversed(STATES) if state in counts]
    known += [f"{each} {state}" for state, each in counts.items()]
    return f"{count} circuit{'s' if count != 1 else ''}: {', '.join(known)}"
