"""What circuits have carried in the last minutes, for the status page. Bounded. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from ..status import RateStatus

PERIOD_S = 10.0
SAMPLES = 60
"""Ten minutes."""

Sample = tuple[float, float]
"""Bits per second sent and received."""


class RateHistory:
    """The rates of each circuit that there is, the oldest sample first."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[Sample]] = {}

    def add(self, rates: Iterable[tuple[str, RateStatus]]) -> None:
        """Add a sample of each circuit, by name; circuits that are gone are forgotten."""
        kept = {}
        for name, each in rates:
            samples = self._samples.get(name, deque(maxlen=SAMPLES))
            samples.append((each.tx_bps or 0.0, each.rx_bps or 0.0))
            kept[name] = samples
        self._samples = kept

    def of(self, name: str) -> Sequence[Sample]:
        return self._samples.get(name, ())
