"""The highest rate at which little is lost, found by trials. Pure: the trials are given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lab.blast import Trial
from lab.errors import LabError

MAX_LOSS = 0.01
# A sender that falls behind, and sends no more when asked for more and more, has
# reached its own limit, or that of a tunnel which works on the sender's time.
KEEPING_UP = 0.95
GAIN = 1.03
STALLS = 2
# A pause of the machine loses that much, and must not pass for the tunnel's limit.
DOUBTFUL_LOSS = 0.2
GROWTH = 1.6
SHRINKING = 0.5
STEP_DOWN = 0.96
LOWEST_PER_S = 100.0
MAX_CONFIRMATIONS = 12


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to search: seconds of a trial and of the confirming one; the share left unknown."""

    trial_s: float = 0.2
    confirmation_s: float = 0.8
    tolerance: float = 0.05


def highest_rate(
    trial: Callable[[float, float], Trial], start: float, effort: Effort, growth: float = GROWTH
) -> Trial:
    """Return a confirming trial at the highest rate of which less than MAX_LOSS was lost.

    trial takes frames a second and seconds. start is a first guess, growth how
    far it may be off. The rate that was delivered in an overloaded trial is a
    better guess than the middle, but not a bound: under overload a tunnel may
    deliver less than it can.

    Raises LabError if even LOWEST_PER_S loses more.
    """
    low, high, rate = 0.0, math.inf, start
    most_sent, stalled = 0.0, 0
    while low == 0 or high / low > 1 + effort.tolerance:
        tried = trial(rate, effort.trial_s)
        if MAX_LOSS <= tried.loss < DOUBTFUL_LOSS:
            tried = trial(rate, effort.trial_s)
        if tried.loss < MAX_LOSS:
            low = rate
            behind = tried.sent_per_s < KEEPING_UP * rate
            stalled = stalled + 1 if behind and tried.sent_per_s < GAIN * most_sent else 0
            if stalled == STALLS:
                break
            most_sent = max(most_sent, tried.sent_per_s)
            rate = low * growth if high == math.inf else math.sqrt(low * high)
        else:
            high = max(low, min(rate, tried.sent_per_s))
            rate = tried.delivered_per_s
            if not low * (1 + effort.tolerance) < rate < high / (1 + effort.tolerance):
                rate = math.sqrt(low * high) if low else high * SHRINKING
        if rate < LOWEST_PER_S:
            raise LabError(f"{tried.loss:.0%} lost of {tried.sent} frames")
    return _confirmed(trial, low, effort)


def _confirmed(trial: Callable[[float, float], Trial], rate: float, effort: Effort) -> Trial:
    for _ in range(MAX_CONFIRMATIONS):
        tried = trial(rate, effort.confirmation_s)
        if tried.loss < MAX_LOSS:
            return tried
        rate = min(rate, tried.sent_per_s) * max(SHRINKING, min(STEP_DOWN, 1 - tried.loss))
    raise LabError(f"more than {MAX_LOSS:.0%} lost again and again, down to {rate:.0f} frames/s")
