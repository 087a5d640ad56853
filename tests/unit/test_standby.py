"""Which remote of a list carries a circuit: every pair of phase and input, and some walks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from vela.reasons import Reason
from vela.supervisor.circuit.standby import (
    DOUBT_S,
    GOOD_S,
    LONGEST_GOOD_S,
    PACE_S,
    TRY_S,
    Phase,
    Standby,
)

T = 1000.0
WHY = Reason("no answer")


def resting(count: int = 2) -> Standby:
    return Standby(count)


def trying(count: int = 2) -> Standby:
    standby = Standby(count)
    standby.begin(T)
    return standby


def up(count: int = 2) -> Standby:
    """The primary carries the circuit."""
    standby = trying(count)
    standby.up(T)
    return standby


def stood_in(count: int = 2) -> Standby:
    """The first standby carries the circuit since T."""
    standby = up(count)
    standby.fail(WHY, T)
    standby.up(T)
    return standby


def on_trial(count: int = 2) -> Standby:
    """The primary is tried since T, while the standby could carry the circuit."""
    standby = stood_in(count)
    standby.answered(T - GOOD_S)
    standby.handle_timer(T)
    return standby


BEGINNINGS: dict[str, Callable[[], Standby]] = {
    "resting": resting,
    "trying": trying,
    "up": up,
    "stood in": stood_in,
    "trial": on_trial,
}
INPUTS: dict[str, Callable[[Standby], None]] = {
    "begin": lambda standby: standby.begin(T),
    "rest": lambda standby: standby.rest(),
    "begin anew": lambda standby: standby.begin_anew(),
    "up": lambda standby: standby.up(T),
    "fail": lambda standby: standby.fail(WHY, T),
    "doubt": lambda standby: standby.doubt(WHY, T),
    "answered": lambda standby: standby.answered(T),
    "unanswered": lambda standby: standby.unanswered(WHY),
    "switch": lambda standby: standby.switch(1, T),
    "switch back": lambda standby: standby.switch(0, T),
    "timer": lambda standby: standby.handle_timer(T),
}
R, TR, U = Phase.RESTING, Phase.TRYING, Phase.UP
# The remote to use, the phase, whether the primary is watched, and when to look again after T.
Outcome = tuple[int, Phase, bool, float]
NEVER = math.inf
EXPECTED: dict[str, dict[str, Outcome]] = {
    "resting": {
        "begin": (0, TR, False, TRY_S),
        "rest": (0, R, False, NEVER),
        "begin anew": (0, R, False, NEVER),
        "up": (0, U, False, NEVER),
        "fail": (0, R, False, NEVER),
        "doubt": (0, R, False, NEVER),
        "answered": (0, R, False, NEVER),
        "unanswered": (0, R, False, NEVER),
        "switch": (1, R, False, NEVER),
        "switch back": (0, R, False, NEVER),
        "timer": (0, R, False, NEVER),
    },
    "trying": {
        "begin": (0, TR, False, TRY_S),
        "rest": (0, R, False, NEVER),
        "begin anew": (0, R, False, NEVER),
        "up": (0, U, False, NEVER),
        "fail": (0, TR, False, PACE_S),
        "doubt": (0, TR, False, DOUBT_S),
        "answered": (0, TR, False, TRY_S),
        "unanswered": (0, TR, False, TRY_S),
        "switch": (1, TR, False, TRY_S),
        "switch back": (0, TR, False, TRY_S),
        "timer": (0, TR, False, TRY_S),
    },
    "up": {
        "begin": (0, TR, False, TRY_S),
        "rest": (0, R, False, NEVER),
        "begin anew": (0, R, False, NEVER),
        "up": (0, U, False, NEVER),
        "fail": (1, TR, False, TRY_S),
        "doubt": (0, U, False, NEVER),
        "answered": (0, U, False, NEVER),
        "unanswered": (0, U, False, NEVER),
        "switch": (1, TR, False, TRY_S),
        "switch back": (0, U, False, NEVER),
        "timer": (0, U, False, NEVER),
    },
    "stood in": {
        "begin": (1, TR, False, TRY_S),
        "rest": (1, R, False, NEVER),
        "begin anew": (0, R, False, NEVER),
        "up": (1, U, True, NEVER),
        "fail": (0, TR, False, TRY_S),
        "doubt": (1, U, True, NEVER),
        "answered": (1, U, True, GOOD_S),
        "unanswered": (1, U, True, NEVER),
        "switch": (1, U, False, NEVER),
        "switch back": (0, TR, False, TRY_S),
        "timer": (1, U, True, NEVER),
    },
    "trial": {
        "begin": (0, TR, False, TRY_S),
        "rest": (0, R, False, NEVER),
        "begin anew": (0, R, False, NEVER),
        "up": (0, U, False, NEVER),
        "fail": (0, TR, False, PACE_S),
        "doubt": (0, TR, False, DOUBT_S),
        "answered": (0, TR, False, TRY_S),
        "unanswered": (0, TR, False, TRY_S),
        "switch": (1, TR, False, TRY_S),
        "switch back": (0, TR, False, TRY_S),
        "timer": (0, TR, False, TRY_S),
    },
}


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_every_pair(beginning: str, given: str) -> None:
    standby = BEGINNINGS[beginning]()

    INPUTS[given](standby)

    outcome = standby.current, standby.phase, standby.watches_primary, standby.next_timer() - T
    assert outcome == EXPECTED[beginning][given]


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("beginning", [resting, trying, up])
def test_single_remote_stays_in_use_and_wants_no_timer(
    beginning: Callable[[int], Standby], given: str
) -> None:
    standby = beginning(1)
    if given == "switch":
        return

    INPUTS[given](standby)

    assert (standby.current, standby.watches_primary, standby.next_timer()) == (0, False, math.inf)


def test_remotes_are_tried_in_turn_and_each_has_its_reason() -> None:
    standby, tried, now = trying(3), [], T

    for _ in range(4):
        standby.doubt(Reason(f"{standby.current} is silent"), now)
        now = standby.next_timer()
        standby.handle_timer(now)
        tried.append((standby.current, now - T))

    assert tried == [(1, DOUBT_S), (2, 2 * DOUBT_S), (0, 3 * DOUBT_S), (1, 4 * DOUBT_S)]
    assert standby.failures == ["0 is silent", "1 is silent", "2 is silent"]


def test_remote_that_says_nothing_wrong_and_does_not_come_up_is_left() -> None:
    standby = trying()

    standby.handle_timer(T + TRY_S - 0.1)
    assert standby.current == 0
    standby.handle_timer(T + TRY_S)

    assert (standby.current, standby.failures) == (1, ["not up after 5 s", ""])


def test_remotes_that_refuse_are_not_tried_faster_than_one_in_a_second() -> None:
    standby, moves = trying(), 0
    for tenth in range(100):
        now, before = T + tenth / 10, standby.current
        standby.fail(Reason("refused"), now)
        if standby.next_timer() <= now:
            standby.handle_timer(now)
        moves += standby.current != before

    assert 9 <= moves <= 10 / PACE_S


def test_primary_gets_the_circuit_back_when_it_was_good_for_a_while() -> None:
    standby = stood_in()
    standby.answered(T + 5)
    standby.answered(T + 8)

    standby.handle_timer(T + 5 + GOOD_S - 0.1)
    assert standby.current == 1
    standby.handle_timer(T + 5 + GOOD_S)

    assert (standby.current, standby.phase) == (0, TR)


def test_one_missing_answer_is_forgiven_and_two_begin_anew() -> None:
    standby = stood_in()
    standby.answered(T)
    standby.unanswered(WHY)
    assert standby.primary_answers
    standby.answered(T + 6)
    standby.unanswered(WHY)
    standby.unanswered(Reason("silent"))

    assert (standby.primary_answers, standby.failures[0]) == (False, "silent")
    standby.answered(T + 20)
    assert standby.next_timer() == T + 20 + GOOD_S


def test_primary_that_does_not_come_up_loses_the_circuit_to_the_one_that_carried_it() -> None:
    standby = up(3)
    standby.fail(WHY, T)
    standby.fail(WHY, T)
    standby.handle_timer(T + PACE_S)
    standby.up(T + PACE_S)
    assert standby.current == 2

    standby.answered(T + 10)
    standby.handle_timer(T + 10 + GOOD_S)
    standby.handle_timer(T + 10 + GOOD_S + TRY_S)

    assert (standby.current, standby.phase, standby.good_s) == (2, TR, 2 * GOOD_S)


def test_each_failed_return_doubles_the_wait_up_to_a_limit_and_a_good_one_ends_that() -> None:
    standby, now, waits = stood_in(), T, []
    for _ in range(6):
        standby.answered(now)
        now = standby.next_timer()
        standby.handle_timer(now)
        standby.fail(WHY, now + PACE_S)
        now = standby.next_timer()
        standby.handle_timer(now)
        standby.up(now)
        waits.append(standby.good_s)
    assert waits == [60, 120, 240, 480, LONGEST_GOOD_S, LONGEST_GOOD_S]

    standby.answered(now)
    now = standby.next_timer()
    standby.handle_timer(now)
    standby.up(now)
    standby.fail(WHY, now + LONGEST_GOOD_S + 1)
    assert standby.good_s == GOOD_S


def test_primary_that_is_lost_soon_after_its_return_has_to_be_good_for_longer() -> None:
    standby = on_trial()
    standby.up(T + 1)

    standby.fail(WHY, T + 1 + GOOD_S / 2)

    assert (standby.current, standby.good_s) == (1, 2 * GOOD_S)


def test_remote_of_a_command_stays_until_it_is_lost() -> None:
    standby = up(3)
    standby.switch(2, T)
    standby.up(T + 1)
    assert standby.held
    assert not standby.watches_primary

    standby.fail(WHY, T + 2)

    assert (standby.current, standby.held) == (0, False)


def test_command_to_the_primary_ends_what_a_command_chose() -> None:
    standby = up()
    standby.switch(1, T)
    standby.switch(0, T + 1)

    assert (standby.current, standby.held) == (0, False)


@pytest.mark.parametrize(
    ("numbers", "current", "phase"),
    [
        ([0, 1], 1, U),
        ([1, 0], 0, U),  # now the primary
        ([None, 0, 1], 2, U),
        ([0], 0, TR),  # it is gone
        ([None, None], 0, TR),
    ],
)
def test_other_list_keeps_the_remote_in_use_if_it_is_still_there(
    numbers: list[int | None], current: int, phase: Phase
) -> None:
    standby = stood_in()

    standby.relist(numbers, T + 1)

    assert (standby.current, standby.phase) == (current, phase)
    assert len(standby.failures) == len(numbers)
