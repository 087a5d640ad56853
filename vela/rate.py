"""Rates of frames, in bits per second: as text, and their bounds. Pure."""

from __future__ import annotations

import re
from fractions import Fraction

# Below, one frame of 1500 bytes takes a fifth of a second; above, no interface is as fast.
MIN_RATE, MAX_RATE = 64_000, 1_000_000_000_000
STEP = 1000

_FORM = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([kMGT]?)")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_rate(text: str) -> int:
    """Return the bits per second of "100M" or "1.5G". Raises ValueError."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a rate in bits per second; '100M' would be right")
    rate = Fraction(found[1]) * _UNITS[found[2]]
    if rate % STEP:
        raise ValueError(f"{text!r} is not a whole number of kilobits per second")
    if not MIN_RATE <= rate <= MAX_RATE:
        low, high = format_rate(MIN_RATE), format_rate(MAX_RATE)
        raise ValueError(f"{text!r} is outside {low}..{high} bits per second")
    return int(rate)


def format_rate(rate: int) -> str:
    """Return the shortest text that parse_rate() takes for this rate."""
    for unit, size in reversed(_UNITS.items()):
        if rate % size == 0:
            return f"{rate // size}{unit}"
    raise AssertionError("the last unit divides every rate")
