"""vela.supervisor.circuit.transitions and rates: what the status says of the recent past."""

from __future__ import annotations

from vela.supervisor.circuit.lifecycle import State
from vela.supervisor.circuit.rates import RateMeter, Traffic
from vela.supervisor.circuit.transitions import MAX_COUNTED, Transitions
from vela.supervisor.status import RateStatus


def test_transitions_count_the_beginnings_and_ends_of_carrying_frames() -> None:
    of = Transitions(State.RESOLVING, 0.0)
    for now, state in ((1.0, State.CONNECTING), (2.0, State.UP), (3.0, State.UP)):
        of.record(state, now)
    assert (of.count(4.0), of.since_s(4.0)) == (1, 2.0)

    of.record(State.DOWN, 10.0)
    of.record(State.REJECTED, 11.0)
    of.record(State.UP, 12.0)
    assert (of.count(13.0), of.since_s(13.0)) == (3, 1.0)


def test_transitions_forget_what_is_older_than_an_hour() -> None:
    of = Transitions(State.RESOLVING, 0.0)
    of.record(State.UP, 10.0)
    of.record(State.DOWN, 20.0)

    assert of.count(3610.0) == 2
    assert of.count(3611.0) == 1
    assert of.count(9999.0) == 0
    assert of.since_s(9999.0) == 9979.0


def test_transitions_of_a_circuit_that_flaps_for_ever_take_bounded_memory() -> None:
    of = Transitions(State.RESOLVING, 0.0)
    for number in range(2 * MAX_COUNTED):
        of.record(State.UP if number % 2 else State.DOWN, 1.0)
        of.record(State.DOWN if number % 2 else State.UP, 1.0)

    assert of.count(2.0) == MAX_COUNTED


def test_transitions_of_both_kinds_of_failure_are_one_state() -> None:
    of = Transitions(State.FAILED, 0.0)
    of.record(State.BROKEN, 5.0)

    assert of.since_s(6.0) == 6.0


def test_rates_are_unknown_until_there_are_two_samples() -> None:
    meter = RateMeter()
    assert meter.rates() == RateStatus.unknown()
    meter.sample(Traffic(1, 2, 3, 4), 0.0)
    assert meter.rates() == RateStatus.unknown()


def test_rates_are_those_of_the_last_five_seconds() -> None:
    meter = RateMeter()
    for second in range(20):
        busy = max(second - 10, 0)
        meter.sample(Traffic(100 * busy, 1000 * busy, busy, 50 * busy), float(second))

    assert meter.rates() == RateStatus(tx_bps=8000, rx_bps=400, tx_pps=100, rx_pps=1)

    for second in range(20, 26):
        meter.sample(Traffic(900, 9000, 9, 450), float(second))
    assert meter.rates() == RateStatus(0, 0, 0, 0)
