"""vela.supervisor.circuit.restart: a table of lives and waits."""

from __future__ import annotations

import random

import pytest

from vela.supervisor.circuit.restart import RestartPolicy


class Middle(random.Random):
    """The middle of every range."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def test_worker_that_ran_well_is_replaced_at_once_every_time() -> None:
    policy = RestartPolicy(random.Random(1))

    assert [policy.delay_s(1.0) for _ in range(100)] == [0.0] * 100


def test_worker_that_dies_early_is_replaced_at_once_twice_then_ever_later_up_to_30_s() -> None:
    policy = RestartPolicy(Middle())

    assert [policy.delay_s(0.99) for _ in range(11)] == [0, 0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_one_good_run_forgets_the_early_deaths() -> None:
    policy = RestartPolicy(Middle())
    lives = [0.1, 0.1, 0.1, 0.1, 5.0, 0.1, 0.1, 0.1]

    assert [policy.delay_s(life) for life in lives] == [0, 0, 0.5, 1.0, 0, 0, 0, 0.5]


def test_years_of_early_deaths_end_in_no_overflow() -> None:
    policy = RestartPolicy(Middle())

    assert {policy.delay_s(0.0) for _ in range(5000)} == {0, 0.5, 1, 2, 4, 8, 16, 30}


@pytest.mark.parametrize("seed", range(5))
def test_waits_of_several_circuits_spread_by_a_fifth_both_ways(seed: int) -> None:
    policies = [RestartPolicy(random.Random(1000 * seed + number)) for number in range(200)]
    for policy in policies:
        for _ in range(2):
            policy.delay_s(0.0)
    first = [policy.delay_s(0.0) for policy in policies]

    assert all(0.4 <= delay <= 0.6 for delay in first)
    assert min(first) < 0.43
    assert max(first) > 0.57
