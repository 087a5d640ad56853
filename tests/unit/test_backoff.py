"""Delays that double: how long, how far apart, and after years."""

from __future__ import annotations

import itertools
import random

import pytest

from vela.backoff import Backoff, Jitter


class Latest(random.Random):
    """Draws the largest number that may be drawn."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Earliest(random.Random):
    """Draws the smallest number that may be drawn."""

    def uniform(self, a: float, b: float) -> float:
        return a


def test_delay_doubles_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 3.0)

    assert [backoff.next_delay_s() for _ in range(6)] == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]


def test_delay_begins_again_with_the_first_one() -> None:
    backoff = Backoff(1.0, 30.0)
    for _ in range(4):
        backoff.next_delay_s()

    backoff.reset()

    assert [backoff.next_delay_s() for _ in range(2)] == [1.0, 2.0]


def test_delay_after_a_century_is_the_longest() -> None:
    backoff = Backoff(1.0, 30.0)

    assert {backoff.next_delay_s() for _ in range(100_000)} == {1.0, 2.0, 4.0, 8.0, 16.0, 30.0}


@pytest.mark.parametrize(
    ("randomness", "delays"),
    [(Earliest(), [8.0, 16.0, 24.0]), (Latest(), [11.0, 22.0, 33.0])],
)
def test_jitter_is_a_share_of_the_delay_and_changes_no_later_one(
    randomness: random.Random, delays: list[float]
) -> None:
    backoff = Backoff(10.0, 30.0, Jitter(randomness, shorter=0.2, longer=0.1))

    assert [backoff.next_delay_s() for _ in range(3)] == pytest.approx(delays)


def test_those_that_fail_together_try_again_apart() -> None:
    jitters = [Jitter(random.Random(seed), shorter=0.2) for seed in range(100)]

    delays = sorted(Backoff(1.0, 30.0, each).next_delay_s() for each in jitters)

    assert 0.8 <= delays[0] < 0.82
    assert 0.98 < delays[-1] <= 1.0
    assert max(b - a for a, b in itertools.pairwise(delays)) < 0.02
