"""What a circuit's counters have to come to. A worker counts a batch after it was sent.

So whoever saw a frame arrive may look at the counters before it stands there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AtLeast:
    """Where the kernel may have sent something of its own."""

    number: int


Wanted = int | AtLeast | Mapping[str, int]
"""Of one counter; of one that is kept by reason, all reasons that are not zero."""


class Expectation:
    """Counters, by their names in the status, and what each has to come to."""

    def __init__(self, wanted: Mapping[str, Wanted]) -> None:
        """Take what is wanted.

        Raises ValueError where no counter of a direction has to grow: each has
        a thread of its own, and nothing would show that it has counted.
        """
        self._wanted = wanted
        growing = {name[:2] for name, each in wanted.items() if each not in (0, {}, AtLeast(0))}
        for name in wanted:
            if name[:2] not in growing:
                raise ValueError(f"{name}: no {name[:2]} counter shows that it was counted")

    def __str__(self) -> str:
        return ", ".join(
            f"{name} >= {each.number}" if isinstance(each, AtLeast) else f"{name} == {each}"
            for name, each in self._wanted.items()
        )

    def is_reached(self, counters: Mapping[str, Any]) -> bool:
        """Tell whether each has come as far as it has to, or farther."""
        return all(number >= least for number, least, _ in self._compared(counters))

    def is_exceeded(self, counters: Mapping[str, Any]) -> bool:
        """Tell whether one has come farther than it may. Counters never fall."""
        return any(number > most for number, _, most in self._compared(counters))

    def _compared(self, counters: Mapping[str, Any]) -> Iterator[tuple[int, int, float]]:
        """Yield each number, the least and the most that it may be."""
        for name, each in self._wanted.items():
            if isinstance(each, AtLeast):
                yield counters[name], each.number, float("inf")
            elif isinstance(each, int):
                yield counters[name], each, each
            else:
                for reason in counters[name].keys() | each.keys():
                    number = each.get(reason, 0)
                    yield counters[name][reason], number, number
