"""What an end says of loss, by requests of which it knows when they were sent and answered.

Each expected value is counted by hand from the loss that a test puts in.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from vela.supervisor.circuit.losses import LATE_S, STEP_S, WINDOW_S, LossMeter, Step
from vela.supervisor.status import LossStatus

UNKNOWN = LossStatus(None, None, None)

Loses = Callable[[int], bool]
"""Tells whether the path loses the nth request, or the nth answer, counted from 0."""


def nothing(_: int) -> bool:
    return False


def every(period: int, first: int = 0) -> Loses:
    return lambda number: number % period == first


@dataclass
class Path:
    """A LossMeter on simulated time, a path, and a remote that says what reached it, or not."""

    loses_requests: Loses = nothing
    loses_answers: Loses = nothing
    delay_s: float = 0.02
    """One way."""
    keepalive_s: float = 5.0
    reports: bool = True
    arrived: int = 1000
    """What the remote has counted: it began to count long ago."""
    asked: int = 0
    answers: int = 0
    now: float = 500.0
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.meter = LossMeter(self.steps.append)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._ends = 0.0
        self._at(self.now, self._ask)
        self._at(self.now + 0.4, self._report)

    def run(self, seconds: float) -> LossStatus:
        end = self.now + seconds
        while self._due and min(self._due)[0] <= end:
            next_one = min(self._due)
            self._due.remove(next_one)
            self.now = next_one[0]
            next_one[2]()
        self.now = end
        return self.meter.status(end)

    def _at(self, when: float, what: Callable[[], None]) -> None:
        self._order += 1
        self._due.append((when, self._order, what))

    def _ask(self) -> None:
        probe, number = self.meter.asked(self.now), self.asked
        self.asked += 1
        self._at(self.now + 1.0, self._ask)
        # The first one is always answered, so that what is counted begins behind it.
        if number and self.loses_requests(number - 1):
            return

        def arrive() -> None:
            self.arrived += 1
            answer = self.answers
            self.answers += 1
            if not answer or not self.loses_answers(answer - 1):
                self._at(self.now + self.delay_s, lambda: self.meter.answered(probe, self.now))

        self._at(self.now + self.delay_s, arrive)

    def _report(self) -> None:
        """The remote sends a KEEPALIVE."""
        self._at(self.now + self.keepalive_s, self._report)
        if self.reports:
            arrived = self.arrived
            self._at(
                self.now + self.delay_s,
                lambda: self.meter.reported(arrived, self.keepalive_s, self.now),
            )


@pytest.mark.parametrize("delay_s", [0.0001, 0.02, 0.3, 1.2])
@pytest.mark.parametrize("keepalive_s", [0.5, 1.0, 5.0, 60.0])
@pytest.mark.parametrize(
    ("requests", "answers", "tx", "rx", "round_trip"),
    [
        (nothing, nothing, 0.0, 0.0, 0.0),
        (every(10), nothing, 10.0, 0.0, 10.0),
        (nothing, every(10), 0.0, 10.0, 10.0),
        # A fifth of what the first tenth leaves: 1 - 0.9 * 0.8.
        (every(10), every(5), 10.0, 20.0, 28.0),
        (every(2), nothing, 50.0, 0.0, 50.0),
    ],
    ids=["none", "out", "back", "both", "half"],
)
def test_loss_is_told_apart_by_direction(
    requests: Loses,
    answers: Loses,
    tx: float,
    rx: float,
    round_trip: float,
    keepalive_s: float,
    delay_s: float,
) -> None:
    path = Path(requests, answers, delay_s, keepalive_s)

    found = path.run(1000)

    assert found.tx_percent is not None
    assert found.rx_percent is not None
    assert found.round_trip_percent is not None
    # One request of 300, more or less, at the edges of the window.
    assert found.tx_percent == pytest.approx(tx, abs=0.7)
    assert found.rx_percent == pytest.approx(rx, abs=0.7)
    assert found.round_trip_percent == pytest.approx(round_trip, abs=0.7)
    if requests is nothing:
        assert found.tx_percent == 0.0
    if answers is nothing and delay_s < 1:
        assert found.rx_percent == 0.0


@pytest.mark.parametrize("seed", range(10))
def test_loss_by_chance_is_measured_within_its_own_uncertainty(seed: int) -> None:
    dice = random.Random(seed)
    path = Path(loses_requests=lambda _: dice.random() < 0.1)

    path.run(4 * WINDOW_S)

    shares = [step.arrived / step.asked for step in path.steps if step.arrived is not None]
    lost = sum(step.asked - step.answered for step in path.steps) / sum(
        step.asked for step in path.steps
    )
    # Four standard deviations of 1200 requests: sqrt(0.1 * 0.9 / 1200) = 0.87 %.
    assert lost == pytest.approx(0.1, abs=0.035)
    assert 1 - sum(shares) / len(shares) == pytest.approx(0.1, abs=0.035)


@pytest.mark.parametrize("lost", [nothing, every(10)])
def test_remote_that_does_not_say_what_reached_it_leaves_the_direction_open(lost: Loses) -> None:
    found = Path(lost, reports=False).run(1000)

    assert (found.tx_percent, found.rx_percent) == (None, None)
    assert found.round_trip_percent == pytest.approx(0 if lost is nothing else 10, abs=0.7)


def test_remote_that_never_answers_has_no_loss() -> None:
    meter = LossMeter()
    for second in range(100):
        meter.asked(float(second))
        meter.reported(second, 5.0, second + 0.5)

    assert meter.status(100.0) == UNKNOWN


def test_requests_before_the_first_answer_do_not_count() -> None:
    meter = LossMeter()
    for second in range(50):
        meter.asked(float(second))
    meter.answered(meter.asked(50.0), 50.1)
    for second in range(51, 61):
        meter.answered(meter.asked(float(second)), second + 0.1)

    assert meter.status(70.0) == LossStatus(None, None, 0.0)


def test_answers_that_cease_are_total_loss_though_the_remote_says_nothing_any_more() -> None:
    path = Path()
    path.run(100)
    path.loses_requests, path.reports = (lambda _: True), False

    # The last KEEPALIVE is up to 5 s old, 2.5 intervals end the step, 3 s settle it.
    after = path.run(5 + 12.5 + 1 + LATE_S)
    assert after.round_trip_percent is not None
    assert after.round_trip_percent > 10

    assert path.run(WINDOW_S + 20).round_trip_percent == 100.0


def test_loss_is_forgotten_after_the_window() -> None:
    path = Path()
    path.run(60)
    path.loses_requests = lambda _: True
    path.run(10)
    path.loses_requests = nothing
    seen = path.run(20)
    assert seen.tx_percent == pytest.approx(11.8, abs=1)
    assert seen.rx_percent == 0.0

    assert path.run(WINDOW_S - 50).tx_percent != 0.0
    assert path.run(60) == LossStatus(0.0, 0.0, 0.0)


def test_request_under_way_counts_with_the_keepalive_that_can_know_of_it() -> None:
    steps: list[Step] = []
    meter = LossMeter(steps.append)
    meter.answered(meter.asked(0.0), 0.5)
    meter.reported(10, 5.0, 1.0)
    meter.answered(meter.asked(2.0), 2.5)
    # Sent before the KEEPALIVE came, which left before it could arrive.
    late = meter.asked(5.9)
    meter.reported(11, 5.0, 6.0)
    meter.answered(late, 6.4)
    meter.reported(12, 5.0, 11.0)
    meter.status(11.0 + LATE_S)

    assert [(each.asked, each.answered, each.arrived) for each in steps] == [
        (0, 0, None),
        (1, 1, 1),
        (1, 1, 1),
    ]


def test_interval_between_keepalives_that_is_longer_than_the_window_is_shown_whole() -> None:
    path = Path(every(10), keepalive_s=3600.0)
    path.run(3610)

    for _ in range(7):
        found = path.run(500)
        assert found.tx_percent == pytest.approx(10, abs=0.1)
        assert found.rx_percent == 0.0


@pytest.mark.parametrize(("late_s", "lost"), [(LATE_S - 0.1, 0.0), (LATE_S + 0.1, 100.0)])
def test_answer_that_comes_too_late_is_lost(late_s: float, lost: float) -> None:
    meter = LossMeter()
    meter.answered(meter.asked(0.0), 0.1)
    probe = meter.asked(1.0)
    meter.answered(probe, 1.0 + late_s)
    for second in range(5, 20):
        meter.status(float(second))

    assert meter.status(20.0).round_trip_percent == lost


def test_answer_counts_once() -> None:
    meter = LossMeter()
    meter.answered(meter.asked(0.0), 0.1)
    answered, _ = meter.asked(1.0), meter.asked(1.1)
    for _ in range(2):
        meter.answered(answered, 1.2)

    assert meter.status(STEP_S + LATE_S + 2).round_trip_percent is None
    meter.status(STEP_S + 1)
    assert meter.status(STEP_S + 2 * LATE_S + 2).round_trip_percent == 50.0


@pytest.mark.parametrize(
    "claim", [0, 10**6, 2**64 - 1], ids=["nothing arrived", "too much", "most"]
)
def test_remote_that_lies_moves_loss_and_makes_none(claim: int) -> None:
    path = Path(every(10))
    path.run(50)
    step, path.reports = 0, False

    def lie() -> None:
        nonlocal step
        step += claim
        path.meter.reported(step % 2**64, 5.0, path.now)

    for _ in range(100):
        path.run(5)
        lie()

    found = path.run(LATE_S)
    assert found.round_trip_percent == pytest.approx(10, abs=0.7)
    for value in (found.tx_percent, found.rx_percent):
        assert value is None or 0 <= value <= 10.7


def test_remote_that_counts_anew_costs_one_step() -> None:
    path = Path(every(10))
    path.run(100)
    path.arrived = 0

    found = path.run(500)

    assert found.tx_percent == pytest.approx(10, abs=0.7)
    assert found.rx_percent == 0.0
    assert [step.arrived for step in path.steps].count(None) == 2  # with the first one


def test_another_path_begins_anew_and_what_was_lost_on_the_former_one_is_settled() -> None:
    path = Path()
    path.run(100.5)
    path.loses_requests = lambda _: True
    path.run(10)
    settled = sum(step.asked for step in path.steps)

    path.meter.clear(path.now)

    assert path.meter.status(path.now) == UNKNOWN
    asked = sum(step.asked for step in path.steps)
    answered = sum(step.answered for step in path.steps)
    assert asked > settled
    # Those of the last seconds may yet have been answered.
    assert asked - answered == 10 - LATE_S


def test_what_is_kept_is_bounded() -> None:
    path = Path(keepalive_s=0.01)

    path.run(3 * WINDOW_S)

    meter = path.meter
    assert len(meter._in_window) <= WINDOW_S + 2
    assert len(meter._ended) + len(meter._young) < 20
