"""What circuits have carried in the last minutes, for the status page. Bounded. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from ..status import CircuitStatus

PERIOD_S = 10.0
SAMPLES = 60
"""Ten minutes."""

Sample = tuple[float, float]
"""Bits per second sent and received."""


class RateHistory:
    """The rates of each circuit that there is, the oldest sample first."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[Sample]] = {}

    def add(self, circuits: Iterable[CircuitStatus]) -> None:
        """Add a sample of each; circuits that are gone are forgotten."""
        kept = {}
        for circuit in circuits:
            samples = self._samples.get(circuit.name, deque(maxlen=SAMPLES))
            samples.append((circuit.rates.tx_bps or 0.0, circuit.rates.rx_bps or 0.0))
            kept[circuit.name] = samples
        self._samples = kept

    def of(self, name: str) -> Sequence[Sample]:
        return self._samples.get(name, ())
