"""The lab's waiting for counters: what is reached, what is exceeded, what would show nothing."""

from __future__ import annotations

from typing import Any

import pytest

from lab.counters import AtLeast, Expectation, Wanted

COUNTERS: dict[str, Any] = {
    "tx_frames": 5,
    "tx_errors": 0,
    "rx_frames": 3,
    "rx_dropped": {"short": 2, "oversized": 0},
}


@pytest.mark.parametrize(
    ("wanted", "reached", "exceeded"),
    [
        ({"tx_frames": 5}, True, False),
        ({"tx_frames": 6}, False, False),
        ({"tx_frames": 4}, True, True),
        ({"tx_frames": AtLeast(4)}, True, False),
        ({"tx_frames": AtLeast(6), "tx_errors": 0}, False, False),
        ({"tx_frames": 5, "rx_frames": 4}, False, False),
        ({"rx_dropped": {"short": 2}}, True, False),
        ({"rx_dropped": {"short": 3}}, False, False),
        ({"rx_dropped": {"short": 1}}, True, True),
        ({"rx_dropped": {"oversized": 1}}, False, True),
        ({"rx_frames": AtLeast(9), "rx_dropped": {}}, False, True),
    ],
)
def test_counters_are_compared_with_what_is_wanted(
    wanted: dict[str, Wanted], reached: bool, exceeded: bool
) -> None:
    expectation = Expectation(wanted)

    assert expectation.is_reached(COUNTERS) is reached
    assert expectation.is_exceeded(COUNTERS) is exceeded


@pytest.mark.parametrize(
    "wanted",
    [
        {"tx_errors": 0},
        {"rx_dropped": {}},
        {"tx_frames": AtLeast(0), "tx_errors": 0},
        {"tx_frames": 5, "rx_dropped": {}},
    ],
)
def test_counters_that_may_all_be_zero_in_a_direction_are_refused(
    wanted: dict[str, Wanted],
) -> None:
    with pytest.raises(ValueError, match="counter shows that it was counted"):
        Expectation(wanted)
