"""Whether frames cross, as one end finds out by requests of which some are answered."""

from __future__ import annotations

import math
import random

import pytest

from vela.backoff import Jitter
from vela.signaling.crossing import BLOCKED_S, MISSED_INTERVALS, Crossing

BEGIN, ROUND_TRIP_S = 100.0, 0.02


class Path:
    """A Crossing on simulated time, and a path that answers requests, or does not."""

    def __init__(self, interval_s: float = 5.0, *, crosses: bool = False, seed: int = 1) -> None:
        self.dice = random.Random(seed)
        self.crossing = Crossing(Jitter(self.dice, shorter=0.1))
        self.now = BEGIN
        self.loss = 0.0
        self.asked: list[float] = []
        self.crossing.start(interval_s, self.now, crosses=crosses)

    def run(self, seconds: float) -> bool:
        """Let time pass; return whether frames crossed, as far as was known, all the time."""
        end, crossed = self.now + seconds, True
        answers: list[float] = []
        while True:
            at = min([self.crossing.next_timer(), *(each + ROUND_TRIP_S for each in answers)])
            if at > end:
                self.now = end
                return crossed
            self.now = max(self.now, at)
            for asked_at in [each for each in answers if each + ROUND_TRIP_S <= self.now]:
                answers.remove(asked_at)
                self.crossing.answered(asked_at, self.now)
            if self.crossing.handle_timer(self.now):
                self.asked.append(self.now)
                if self.dice.random() >= self.loss:
                    answers.append(self.now)
            crossed = crossed and self.crossing.crosses


@pytest.mark.parametrize(
    ("interval_s", "pace_s"),
    [(0.1, 0.1), (1.0, 0.25), (4.0, 1.0), (5.0, 1.0), (3600.0, 1.0)],
)
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_requests_go_on_at_one_pace_lost_or_not(
    interval_s: float, pace_s: float, loss: float
) -> None:
    path = Path(interval_s)
    path.run(0.05)
    assert path.crossing.crosses
    assert not path.crossing.blocked
    assert path.asked == [BEGIN]

    path.loss = loss
    path.run(600 * pace_s)

    # Each up to a tenth early.
    assert 600 <= len(path.asked) <= 600 / 0.9 + 10


@pytest.mark.parametrize(("rarely", "least", "most"), [(False, 3600, 3610), (True, 120, 140)])
def test_remote_that_may_never_answer_is_asked_rarely(rarely: bool, least: int, most: int) -> None:
    path = Path()
    path.crossing.start(5.0, path.now, crosses=False, rarely=rarely)
    path.loss = 1.0
    path.run(3600)
    assert least <= len(path.asked) <= most

    path.loss = 0.0
    path.run(31)
    assert path.crossing.crosses
    begun = len(path.asked)
    path.run(100)
    assert 100 <= len(path.asked) - begun <= 112


def test_requests_without_answers_are_repeated_soon_and_then_more_slowly() -> None:
    path = Path()
    path.loss = 1.0

    path.run(60)

    waits = [later - earlier for earlier, later in zip(path.asked, path.asked[1:], strict=False)]
    assert waits[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert waits[10:] == pytest.approx([1.0] * len(waits[10:]))


def test_path_that_never_answers_is_blocked_after_two_seconds_and_not_before() -> None:
    path = Path()
    path.loss = 1.0

    path.run(BLOCKED_S - 0.1)
    assert not path.crossing.blocked
    path.run(1.2)
    assert path.crossing.blocked
    assert not path.crossing.crosses

    path.loss = 0.0
    path.run(1.5)
    assert path.crossing.crosses
    assert not path.crossing.blocked


@pytest.mark.parametrize("interval_s", [0.1, 1.0, 5.0, 60.0])
def test_answers_that_cease_are_missed_with_the_patience_of_keepalives(interval_s: float) -> None:
    path = Path(interval_s)
    path.run(interval_s * 1.5)
    path.loss = 1.0
    patience = MISSED_INTERVALS * interval_s

    assert path.run(patience - 1.2 * interval_s)
    path.run(1.2 * interval_s + max(interval_s / 4, 0.2) + ROUND_TRIP_S)

    assert not path.crossing.crosses


@pytest.mark.parametrize("seed", range(20))
def test_path_that_loses_four_of_ten_round_trips_stays_up_for_an_hour(seed: int) -> None:
    path = Path(seed=seed)
    path.run(5)
    path.loss = 0.4

    assert path.run(3600)


def test_machine_that_slept_asks_again_before_it_says_that_frames_do_not_cross() -> None:
    path = Path()
    path.run(7)
    path.now += 3600

    assert path.run(30)


def test_path_that_is_assumed_to_carry_frames_is_given_time_to_answer() -> None:
    path = Path(1.0, crosses=True)
    path.loss = 1.0

    assert path.run(3.4)
    path.run(0.5)
    assert not path.crossing.crosses


def test_nothing_is_asked_after_the_end() -> None:
    path = Path()
    path.run(7)

    path.crossing.stop()

    assert path.crossing.next_timer() == math.inf
    path.crossing.answered(path.now, path.now)
    assert not path.crossing.crosses
