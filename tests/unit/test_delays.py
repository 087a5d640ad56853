from __future__ import annotations

import random

import pytest

from vela.percentile import percentile
from vela.supervisor.circuit.delays import SAMPLES, DelayMeter, JitterMeter
from vela.supervisor.status import DelayStatus


def test_nothing_is_known_before_an_answer() -> None:
    assert DelayMeter().status() == DelayStatus(None, None, None)


def test_delays_are_those_of_the_last_answers() -> None:
    dice, meter = random.Random(3), DelayMeter()
    delays = [dice.choice((0.001, 0.002, dice.random())) for _ in range(5 * SAMPLES)]

    for number, delay in enumerate(delays, 1):
        meter.add(delay)
        last = sorted(delays[:number][-SAMPLES:])
        status = meter.status()
        assert status.p50 == round(1000 * percentile(last, 50), 3)
        assert status.p99 == round(1000 * percentile(last, 99), 3)


@pytest.mark.parametrize(
    ("round_trips", "jitter"),
    [
        ([0.020], 0.0),
        # The formula of RFC 3550, 6.4.1, by hand: J += (|D| - J) / 16.
        ([0.020, 0.036], 0.001),
        ([0.020, 0.036, 0.020], 0.001 + (0.016 - 0.001) / 16),
        ([0.020, 0.020, 0.004], 0.001),
        ([0.020] * 50, 0.0),
    ],
)
def test_jitter_is_that_of_rfc_3550(round_trips: list[float], jitter: float) -> None:
    meter = JitterMeter()
    for each in round_trips:
        meter.add(each)

    assert meter.seconds == pytest.approx(jitter)


@pytest.mark.parametrize("seed", range(5))
def test_jitter_of_an_even_spread_is_two_thirds_of_it(seed: int) -> None:
    """Two values out of -s..s differ by 2 s / 3 in the mean, here 3.33 ms.

    The estimate moves about that by a standard deviation of a tenth of it or so.
    """
    dice, meter = random.Random(seed), JitterMeter()
    for _ in range(500):
        meter.add(0.020 + dice.uniform(-0.005, 0.005))

    assert meter.seconds == pytest.approx(0.00333, abs=0.0015)


def test_another_path_begins_anew() -> None:
    meter = DelayMeter()
    for delay in (0.1, 0.2, 0.3):
        meter.add(delay)

    meter.clear()
    assert meter.status() == DelayStatus(None, None, None)
    meter.add(0.001)
    assert meter.status() == DelayStatus(1.0, 1.0, 0.0)
