"""vela.linux.idle_cpus: how idle each CPU was of late."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import pytest

from vela.linux.idle_cpus import LEAST_PERIOD_S, LONGEST_PERIOD_S, IdleCpus, cpu_times


def test_times_of_the_machine_are_those_of_each_cpu_and_grow() -> None:
    before = cpu_times()
    assert set(before) >= os.sched_getaffinity(0)
    end = time.monotonic() + 10.0
    while sum(total for _, total in cpu_times().values()) == sum(
        total for _, total in before.values()
    ):
        assert time.monotonic() < end
    for cpu, (idle, total) in cpu_times().items():
        assert idle <= total
        assert total >= before[cpu][1]


class Machine:
    """Two CPUs: the first is idle for a quarter of the time, the second always."""

    def __init__(self) -> None:
        self.now = 50.0
        self.reads = 0
        self.error: Exception | None = None

    def read(self) -> Mapping[int, tuple[int, int]]:
        self.reads += 1
        if self.error is not None:
            raise self.error
        ticks = round(100 * self.now)
        return {0: (ticks // 4, ticks), 5: (ticks, ticks)}


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def idle(machine: Machine) -> IdleCpus:
    return IdleCpus(machine.read)


def test_share_that_is_idle_is_that_of_the_time_since_the_last_look(
    machine: Machine, idle: IdleCpus
) -> None:
    assert idle.shares(machine.now) == {}
    machine.now += 1
    assert idle.shares(machine.now) == {0: pytest.approx(0.25, abs=0.02), 5: 1.0}
    # All who ask within a second share a look.
    machine.now += LEAST_PERIOD_S - 0.01
    assert set(idle.shares(machine.now)) == {0, 5}
    assert machine.reads == 2


def test_look_that_is_long_ago_says_nothing_of_now(machine: Machine, idle: IdleCpus) -> None:
    idle.shares(machine.now)
    machine.now += LONGEST_PERIOD_S + 1
    assert idle.shares(machine.now) == {}
    machine.now += 1
    assert set(idle.shares(machine.now)) == {0, 5}


def test_cpu_that_is_taken_is_idle_for_nobody_else_until_the_next_look(
    machine: Machine, idle: IdleCpus
) -> None:
    idle.shares(machine.now)
    machine.now += 1
    assert idle.shares(machine.now)[5] == 1.0
    idle.take(5)
    assert idle.shares(machine.now)[5] == 0.0
    machine.now += 1
    assert idle.shares(machine.now)[5] == 1.0


def test_cpu_that_is_set_aside_is_idle_for_nobody_as_long(machine: Machine, idle: IdleCpus) -> None:
    idle.shares(machine.now)
    idle.keep((5, 7), machine.now + 1.5)
    machine.now += 1
    assert idle.shares(machine.now) == {0: pytest.approx(0.25, abs=0.02), 5: 0.0}
    machine.now += 1
    assert idle.shares(machine.now)[5] == 1.0


@pytest.mark.parametrize("error", [OSError("no descriptor"), ValueError("not a number")])
def test_machine_that_cannot_be_looked_at_is_idle_nowhere(
    machine: Machine, idle: IdleCpus, error: Exception
) -> None:
    idle.shares(machine.now)
    machine.error = error
    machine.now += 1
    assert idle.shares(machine.now) == {}
