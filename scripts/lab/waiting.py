"""Waiting for a condition that announces itself by no event."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from lab.errors import LabError

T = TypeVar("T")

INTERVAL_S = 0.02
SLOWNESS_VARIABLE = "VELA_LAB_SLOWNESS"
"""Set in the environment of an emulated machine: how many times slower than others it is."""
EMULATED = SLOWNESS_VARIABLE in os.environ
PATIENCE = 3.0 * float(os.environ.get(SLOWNESS_VARIABLE, "1"))
"""How many times as long a wait may take where others keep the machine busy.

What waits says how long is enough on a machine of its own; nothing is asserted by it.
"""


def eventually(
    predicate: Callable[[], T], timeout_s: float, what: str, interval_s: float = INTERVAL_S
) -> T:
    """Return the first true value of predicate, asked again every interval_s.

    The predicate is asked at least once, and once more at the deadline, which
    is after PATIENCE times timeout_s.

    Raises LabError, naming what was waited for.
    """
    limit_s = PATIENCE * timeout_s
    deadline = time.monotonic() + limit_s
    while True:
        late = time.monotonic() >= deadline
        value = predicate()
        if value:
            return value
        if late:
            raise LabError(f"waited {limit_s:g} s in vain for {what}")
        time.sleep(min(interval_s, max(0.0, deadline - time.monotonic())))
