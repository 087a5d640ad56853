"""Waiting for a condition that announces itself by no event."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from lab.errors import LabError

T = TypeVar("T")

INTERVAL_S = 0.02


def eventually(
    predicate: Callable[[], T], timeout_s: float, what: str, interval_s: float = INTERVAL_S
) -> T:
    """Return the first true value of predicate, asked again every interval_s.

    The predicate is asked at least once, and once more at the deadline.

    Raises LabError, naming what was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        late = time.monotonic() >= deadline
        value = predicate()
        if value:
            return value
        if late:
            raise LabError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(min(interval_s, max(0.0, deadline - time.monotonic())))
