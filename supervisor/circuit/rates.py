"""The rates of one circuit over the last seconds. Pure."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ..status import RateStatus

PERIOD_S = 5.0


class Traffic(NamedTuple):
    """What a circuit has carried in all.

    A tuple: each circuit makes one a second.
    """

    tx_frames: int
    tx_bytes: int
    rx_frames: int
    rx_bytes: int


class RateMeter:
    """Compares counters with those of a few seconds ago."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Traffic]] = deque()

    def sample(self, traffic: Traffic, now: float) -> None:
        """Take the present counters; to be called once a second."""
        self._samples.append((now, traffic))
        # The oldest one is the last that is not younger than the period.
        while len(self._samples) > 2 and self._samples[1][0] <= now - PERIOD_S:
            self._samples.popleft()

    def rates(self) -> RateStatus:
        """Return rates per second; null as long as there is nothing to compare with."""
        if len(self._samples) < 2:
            return RateStatus.unknown()
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        seconds = ended - began

        def per_second(before: int, after: int) -> int:
            return round((after - before) / seconds)

        return RateStatus(
            tx_bps=per_second(8 * first.tx_bytes, 8 * last.tx_bytes),
            rx_bps=per_second(8 * first.rx_bytes, 8 * last.rx_bytes),
            tx_pps=per_second(first.tx_frames, last.tx_frames),
            rx_pps=per_second(first.rx_frames, last.rx_frames),
        )
