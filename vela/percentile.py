"""Percentiles of a few measured values. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of all do not exceed: the nearest rank.

    ordered: the smallest value first; at least one.
    """
    rank = math.ceil(len(ordered) * percent / 100)
    return ordered[max(rank, 1) - 1]
