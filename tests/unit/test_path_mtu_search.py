"""The search for a path's MTU, against paths of each size that may lose, and change."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vela.signaling.path_mtu import (
    BUSY_INTERVAL_S,
    IDLE_INTERVAL_S,
    SMALL,
    WIDEN_INTERVAL_S,
    PathMtu,
)


class Path:
    """A path whose answers come at once, but for those that are lost."""

    def __init__(self, mtu: int, ceiling: int = 1500, floor: int = 1280) -> None:
        self.mtu = mtu
        self.now = 0.0
        self.sent: list[int] = []
        self.carries: Callable[[int], bool] = lambda size: size <= self.mtu
        self.found = PathMtu()
        self.found.start(ceiling, floor, None, self.now)

    def pass_s(self, seconds: float, *, busy: bool = False) -> None:
        until = self.now + seconds
        traffic_at = self.now if busy else math.inf
        while (at := min(self.found.next_timer(), traffic_at)) <= until:
            self.now = max(self.now, at)
            if traffic_at <= self.now:
                traffic_at += 1.0
                self.found.note_traffic(self.now)
            self.found.handle_timer(self.now)
            self._send()
        self.now = until

    def _send(self) -> None:
        for size in self.found.sizes_to_probe():
            self.sent.append(size)
            if self.carries(size):
                self.found.answered(size)


@given(st.integers(1280, 1500))
def test_narrow_path_is_found_to_the_byte_within_five_seconds(mtu: int) -> None:
    path = Path(mtu)

    path.pass_s(5)

    assert path.found.mtu == mtu


@given(st.integers(1280, 9000))
def test_jumbo_path_is_found_too(mtu: int) -> None:
    path = Path(mtu, ceiling=9000)

    path.pass_s(8)

    assert path.found.mtu == mtu


@given(st.integers(1280, 1499), st.integers(1280, 1500))
def test_path_that_narrows_under_traffic_and_widens_is_followed(narrow: int, wide: int) -> None:
    path = Path(1500)
    path.pass_s(100, busy=True)
    assert path.found.mtu == 1500

    path.mtu = narrow
    path.pass_s(5, busy=True)
    assert path.found.mtu == narrow

    path.mtu = max(narrow, wide)
    path.pass_s(10 * WIDEN_INTERVAL_S)
    assert path.found.mtu == path.mtu
    path.mtu = 1500
    path.pass_s(WIDEN_INTERVAL_S + 1)
    assert path.found.mtu == 1500


@pytest.mark.parametrize("loss", [0.1, 0.3, 0.5])
def test_path_that_loses_whatever_the_size_keeps_its_mtu(loss: float) -> None:
    """Or gets it back: a few losses in a row look like a narrower path."""
    chance = random.Random(7)
    path = Path(1500)
    path.carries = lambda size: chance.random() >= loss
    narrowed_s = 0.0
    for _ in range(600):
        path.pass_s(1, busy=True)
        narrowed_s += path.found.mtu < 1500

    assert narrowed_s <= {0.1: 6, 0.3: 60, 0.5: 300}[loss]


def test_path_that_carries_nothing_is_not_taken_for_a_narrow_one() -> None:
    path = Path(1500)
    path.pass_s(10, busy=True)

    path.mtu = 0
    path.pass_s(60, busy=True)
    assert path.found.mtu == 1500

    path.mtu = 1400
    path.pass_s(5, busy=True)
    assert path.found.mtu == 1400


def test_path_that_breaks_in_the_middle_of_a_search_ends_at_the_right_size() -> None:
    path = Path(1400)
    while path.found.mtu == 1500 and len(path.sent) < 12:
        path.pass_s(0.1)
    path.mtu = 0
    path.pass_s(30)
    path.mtu = 1400
    path.pass_s(5)

    assert path.found.mtu == 1400


def test_idle_circuit_asks_once_in_two_minutes_and_a_busy_one_each_second_and_a_half() -> None:
    idle, busy = Path(1500), Path(1500)

    idle.pass_s(10 * IDLE_INTERVAL_S + 1)
    busy.pass_s(100 * BUSY_INTERVAL_S, busy=True)

    assert len(idle.sent) <= 2 * 11
    assert 2 * 50 <= len(busy.sent) <= 2 * 101


def test_stopped_search_asks_nothing_and_keeps_what_it_found() -> None:
    path = Path(1400)
    path.pass_s(5)
    path.found.stop()
    path.sent.clear()

    path.pass_s(1000, busy=True)

    assert (path.sent, path.found.mtu) == ([], 1400)


def test_path_at_the_floor_is_not_searched_below() -> None:
    path = Path(1000)

    path.pass_s(60, busy=True)

    assert path.found.mtu == 1280
    assert min(size for size in path.sent if size != SMALL) >= 1280
