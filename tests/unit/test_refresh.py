"""When something is looked at again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from simulation import StrictLoop

from vela.supervisor.runtime.refresh import Refresh


@pytest.fixture
def loop() -> Iterator[StrictLoop]:
    made = StrictLoop()
    yield made
    made.close()


def test_failures_are_looked_at_after_a_doubling_delay_until_one_look_succeeds(
    loop: StrictLoop,
) -> None:
    times: list[float] = []

    def look() -> None:
        times.append(loop.now())
        if len(times) == 8:
            refresh.succeed()
        refresh.soon()

    refresh = Refresh(loop, look)
    look()
    loop.run_for(150.0)

    delays = [later - earlier for earlier, later in pairwise(times)]
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 1.0, 2.0, 4.0, 8.0, 16.0]


def test_only_the_last_of_several_times_counts(loop: StrictLoop) -> None:
    times: list[float] = []
    refresh = Refresh(loop, lambda: times.append(loop.now()))
    begin = loop.now()

    refresh.soon()
    refresh.later()
    loop.run_for(200.0)

    assert times == [begin + 60.0]


def test_nothing_is_looked_at_once_it_is_cancelled(loop: StrictLoop) -> None:
    times: list[float] = []
    refresh = Refresh(loop, lambda: times.append(loop.now()))

    refresh.soon()
    refresh.cancel()
    loop.run_for(200.0)

    assert times == []
