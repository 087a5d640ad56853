"""vela.supervisor.circuit.placement: when the threads of a worker have a CPU each."""

from __future__ import annotations

import pytest

from vela.supervisor.circuit.placement import (
    BUSY_USED,
    CONFIRM_LOOKS,
    LONGEST_REST_S,
    QUIET_LOOKS,
    QUIET_USED,
    REST_S,
    ROOM,
    SATURATED_IDLE,
    SETTLE_LOOKS,
    TRIAL_LOOKS,
    Look,
    Placement,
)

OTHER = 3
BUSY = Look(rate=1e9, used=0.6, idle=0.0, other=OTHER, other_idle=0.5)
QUIET = Look(rate=1e6, used=0.01, idle=0.9, other=OTHER, other_idle=0.9)


class Seconds:
    """A placement, a look each second: how long a period is makes no difference."""

    def __init__(self) -> None:
        self.placement = Placement()
        self.now = 1000.0

    def look(self, look: Look, times: int = 1) -> int | None:
        for _ in range(times):
            self.now += 1.0
            self.placement.look(look, self.now)
        return self.placement.apart

    def try_apart(self, rate: float) -> int | None:
        """Let a trial come to its end at this rate."""
        assert self.look(BUSY, CONFIRM_LOOKS) == OTHER
        # Looks right behind the move are of both.
        assert self.look(BUSY._replace(rate=0.0), SETTLE_LOOKS) == OTHER
        return self.look(BUSY._replace(rate=rate), TRIAL_LOOKS)


def test_threads_have_a_cpu_each_once_theirs_is_saturated_and_another_is_idle() -> None:
    seconds = Seconds()
    assert seconds.look(BUSY, CONFIRM_LOOKS - 1) is None
    assert seconds.look(BUSY) == OTHER


@pytest.mark.parametrize(
    "look",
    [
        BUSY._replace(used=BUSY_USED - 0.01),
        BUSY._replace(idle=SATURATED_IDLE),
        BUSY._replace(other_idle=ROOM - 0.01),
        BUSY._replace(other=None),
    ],
)
def test_threads_stay_together_where_one_thing_is_missing(look: Look) -> None:
    seconds = Seconds()
    assert seconds.look(look, 20) is None
    # And seconds before one that lacks something do not count.
    assert seconds.look(BUSY, CONFIRM_LOOKS - 1) is None
    assert seconds.look(look) is None
    assert seconds.look(BUSY, CONFIRM_LOOKS - 1) is None


def test_threads_that_carry_more_apart_stay_apart_as_long_as_there_is_load() -> None:
    seconds = Seconds()
    assert seconds.try_apart(BUSY.rate) == OTHER
    # Whatever else becomes of the rate: others' demand changes, too.
    assert seconds.look(BUSY._replace(rate=1.0, other_idle=0.0), 100) == OTHER
    almost = QUIET._replace(used=QUIET_USED)
    assert seconds.look(QUIET, QUIET_LOOKS - 1) == OTHER
    assert seconds.look(almost) == OTHER
    assert seconds.look(QUIET, QUIET_LOOKS - 1) == OTHER
    assert seconds.look(QUIET) is None


def test_threads_that_carry_less_apart_are_together_again_and_rest_longer_each_time() -> None:
    seconds = Seconds()
    rest_s = REST_S
    while rest_s < 2 * LONGEST_REST_S:
        assert seconds.try_apart(0.99 * BUSY.rate) is None
        ended = seconds.now
        while seconds.look(BUSY) is None:
            assert seconds.now - ended < LONGEST_REST_S + CONFIRM_LOOKS
        wanted = min(rest_s, LONGEST_REST_S) + CONFIRM_LOOKS - 1
        assert seconds.now - ended == pytest.approx(wanted, abs=1.0)
        # As if the load had ended: no trial, no verdict.
        assert seconds.look(QUIET, QUIET_LOOKS) is None
        rest_s *= 2


def test_success_makes_the_next_rest_short_again() -> None:
    seconds = Seconds()
    for _ in range(3):
        assert seconds.try_apart(0.5 * BUSY.rate) is None
        seconds.now += LONGEST_REST_S
    assert seconds.try_apart(1.2 * BUSY.rate) == OTHER
    assert seconds.look(QUIET, QUIET_LOOKS) is None

    assert seconds.try_apart(0.5 * BUSY.rate) is None

    seconds.now += REST_S
    assert seconds.look(BUSY, CONFIRM_LOOKS) == OTHER


def test_load_that_ends_within_a_trial_leaves_no_verdict() -> None:
    seconds = Seconds()
    assert seconds.look(BUSY, CONFIRM_LOOKS) == OTHER
    assert seconds.look(QUIET, QUIET_LOOKS) is None
    assert seconds.look(BUSY, CONFIRM_LOOKS) == OTHER


def test_another_worker_begins_with_both_threads_on_its_cpu() -> None:
    seconds = Seconds()
    assert seconds.look(BUSY, CONFIRM_LOOKS) == OTHER
    seconds.placement.join()
    assert seconds.placement.apart is None
    assert seconds.look(BUSY, CONFIRM_LOOKS - 1) is None
    assert seconds.look(BUSY) == OTHER
