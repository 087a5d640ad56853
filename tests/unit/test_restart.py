"""vela.supervisor.circuit.restart: tables of deaths and delays."""

from __future__ import annotations

import random

import pytest

from vela.supervisor.circuit.restart import RestartPolicy


class Longest(random.Random):
    """The upper end of every range."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


class Deaths:
    """A policy, and a clock that starts where no real one does."""

    def __init__(self) -> None:
        self.policy = RestartPolicy(Longest())
        self.now = 1000.0

    def after(self, uptime_s: float) -> float:
        """Let the worker die after this time; return the delay, and let it pass."""
        self.now += uptime_s
        delay = self.policy.delay_s(self.now)
        self.now += delay
        return delay

    def prove(self) -> None:
        """Let the worker of a failed circuit live for the second that proves it."""
        self.now += 1.0
        self.policy.proved(self.now)


@pytest.mark.parametrize(
    ("uptimes", "failed"),
    [
        ((0.0,), False),
        ((0.0, 0.0), False),
        ((0.0, 0.0, 0.0), True),
        ((3600.0, 0.01, 0.01), True),
        ((3600.0, 4.9, 4.9), True),
        ((3600.0, 9.9, 0.0), True),
        ((3600.0, 5.0, 5.0), False),
        ((3600.0, 10.0, 0.0), False),
        ((0.0, 0.0, 10.0), False),
        ((0.0, 0.0, 10.0, 0.0), False),
        ((0.0, 0.0, 10.0, 0.0, 0.0), True),
        ((5.0,) * 100, False),
    ],
)
def test_third_death_within_ten_seconds_fails_the_circuit(
    uptimes: tuple[float, ...], failed: bool
) -> None:
    deaths = Deaths()
    delays = [deaths.after(each) for each in uptimes]

    assert deaths.policy.failed is failed
    assert delays[:-1] == [0.0] * (len(uptimes) - 1)
    assert (delays[-1] > 0) is failed


def test_failed_circuit_is_tried_ever_later_up_to_9_s() -> None:
    deaths = Deaths()

    assert [deaths.after(0.1) for _ in range(9)] == [0, 0, 0.5, 1, 2, 4, 8, 9, 9]


def test_failed_circuit_stays_failed_however_rare_deaths_become() -> None:
    deaths = Deaths()
    for _ in range(20):
        deaths.after(0.9)

    assert deaths.policy.failed
    assert deaths.after(0.9) == 9


def test_worker_that_proved_to_live_ends_the_failure() -> None:
    deaths = Deaths()
    for _ in range(3):
        deaths.after(0.0)
    deaths.prove()

    assert not deaths.policy.failed


@pytest.mark.parametrize("later_s", [0.0, 9.9])
def test_one_death_soon_after_recovery_fails_the_circuit_and_delays_go_on_doubling(
    later_s: float,
) -> None:
    deaths = Deaths()
    for _ in range(3):
        deaths.after(0.0)
    found = []
    for _ in range(6):
        deaths.prove()
        found.append(deaths.after(later_s))
        assert deaths.policy.failed

    assert found == [1, 2, 4, 8, 9, 9]


def test_death_long_after_recovery_is_like_the_first() -> None:
    deaths = Deaths()
    for _ in range(8):
        deaths.after(0.0)
    deaths.prove()

    assert [deaths.after(each) for each in (10.0, 0.0, 0.0, 0.0)] == [0, 0, 0.5, 1]


def test_years_of_deaths_end_in_no_overflow_and_fill_no_memory() -> None:
    deaths = Deaths()

    assert {deaths.after(0.0) for _ in range(5000)} == {0, 0.5, 1, 2, 4, 8, 9}
    assert len(deaths.policy._deaths) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_delays_of_several_circuits_spread_by_a_fifth_downward(seed: int) -> None:
    policies = [RestartPolicy(random.Random(1000 * seed + number)) for number in range(200)]
    for policy in policies:
        for _ in range(2):
            policy.delay_s(0.0)
    first = [policy.delay_s(0.0) for policy in policies]

    assert all(0.4 <= delay <= 0.5 for delay in first)
    assert min(first) < 0.415
    assert max(first) > 0.485
