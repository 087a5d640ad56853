"""The replay window, both twins: against a set of the counters that came, and in what a worker that
is killed within it leaves."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from native_cipher import NativeWindow

from vela.dataplane.key_page import (
    BITMAP_WORDS,
    PHASES,
    SEQUENCES,
    SIZE,
    WINDOW,
    SlotWord,
    slot_start,
)
from vela.dataplane.window import Window

TWINS = (Window, NativeWindow)
Twin = type[Window] | type[NativeWindow]
LAST = 2**32 - 1


def page() -> memoryview:
    return memoryview(bytearray(SIZE)).cast("Q")


class Model:
    """All counters that came."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def accept(self, counter: int) -> bool:
        top = max(self.seen, default=0)
        if counter == 0 or counter in self.seen or counter <= top - WINDOW:
            return False
        self.seen.add(counter)
        return True


def accept(window: Window | NativeWindow, counter: int) -> bool:
    if not window.is_new(counter):
        return False
    window.mark(counter)
    return True


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> Twin:
    chosen: Twin = request.param
    return chosen


@pytest.mark.parametrize("top", [WINDOW, WINDOW + 1, 10_000, 65_536, 123_457, LAST])
def test_window_is_8192_wide_at_each_position(twin: Twin, top: int) -> None:
    window = twin(page(), 0, 1)
    assert accept(window, top)

    assert not window.is_new(top)
    assert not window.is_new(max(top - 8193, 0))
    assert not window.is_new(top - 8192)
    assert window.is_new(top - 8191) is (top > 8191)
    assert accept(window, top - 8191)
    assert not window.is_new(top - 8191)


def test_window_refuses_counter_zero_and_takes_the_first(twin: Twin) -> None:
    window = twin(page(), 0, 1)

    assert not window.is_new(0)
    assert accept(window, 1)
    assert not window.is_new(0)
    assert not window.is_new(1)


steps = st.lists(
    st.one_of(
        st.integers(0, LAST),
        st.integers(0, 3 * WINDOW),
        st.integers(-WINDOW - 2, 2 * WINDOW).map(lambda offset: ("offset", offset)),
        st.sampled_from([WINDOW - 1, WINDOW, WINDOW + 1, LAST, LAST - WINDOW, 63, 64, 65]),
    ),
    max_size=60,
)


@given(steps=steps)
@example(steps=[LAST, LAST - 8191, LAST - 8192, ("offset", 1)])
def test_twins_and_a_set_accept_the_same(steps: list[int | tuple[str, int]]) -> None:
    pages = [page() for _ in TWINS]
    windows: list[Window | NativeWindow] = [Window(pages[0], 1, 7), NativeWindow(pages[1], 1, 7)]
    model = Model()
    for step in steps:
        top = max(model.seen, default=0)
        counter = step if isinstance(step, int) else min(max(top + step[1], 0), LAST)
        expected = model.accept(counter)
        assert [accept(window, counter) for window in windows] == [expected] * 2
    assert bytes(pages[0]) == bytes(pages[1])


@pytest.mark.parametrize("size", [44, 1000, 8192])
def test_batch_in_any_order_is_accepted_once(twin: Twin, size: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    window = twin(page(), 0, 1)
    for first in range(1, 4 * size, size):
        batch = list(range(first, first + size)) * 2
        draw.shuffle(batch)
        assert sum(accept(window, counter) for counter in batch) == size


def test_windows_of_all_sequences_are_apart(twin: Twin) -> None:
    words = page()
    windows = {
        (phase, sequence): twin(words, phase, 7, sequence)
        for phase in range(PHASES)
        for sequence in range(SEQUENCES)
    }
    for (phase, sequence), window in windows.items():
        first = 1 + 100_000 * phase + 10_000 * sequence
        assert all(accept(window, first + offset) for offset in range(WINDOW))
    for (phase, sequence), window in windows.items():
        first = 1 + 100_000 * phase + 10_000 * sequence
        assert not any(window.is_new(first + offset) for offset in range(WINDOW))
        assert window.is_new(first + WINDOW)


def test_window_of_another_key_begins_anew_and_of_the_same_goes_on(twin: Twin) -> None:
    words = page()
    assert accept(twin(words, 1, 5), 900)

    assert not twin(words, 1, 5).is_new(900)
    other = twin(words, 1, 6)
    assert accept(other, 900)
    assert words[slot_start(1) + SlotWord.WINDOW_SERIAL] == 6
    assert bytes(words[: slot_start(1)]) == bytes(8 * slot_start(1)), (
        "the other phase is left alone"
    )


class Killed(Exception):
    pass


class DyingWords:
    """The page's words, in a worker that is killed before one of its stores."""

    def __init__(self, words: memoryview, stores: int) -> None:
        self._words = words
        self._left = stores

    def __getitem__(self, index: int) -> int:
        value: int = self._words[index]
        return value

    def __setitem__(self, index: int, value: int) -> None:
        if self._left == 0:
            raise Killed
        self._left -= 1
        self._words[index] = value


SLIDES = ((5, 6), (63, 64), (100, 300), (8000, 8300), (100, 100 + WINDOW), (1, 30_000))


@pytest.mark.parametrize(("before", "counter"), SLIDES)
def test_killed_in_a_slide_the_successor_accepts_nothing_twice(before: int, counter: int) -> None:
    """By each store: new top, words between, bit. The twin in C stores in the same order: see
    tests/crash, which kills it for real."""
    for stores in range(WINDOW // 64 + 4):
        words = page()
        window = Window(words, 0, 1)
        seen = [each for each in range(max(1, before - 100), before + 1) if accept(window, each)]
        dying = Window.__new__(Window)
        dying.__dict__.update(window.__dict__, _words=DyingWords(words, stores))
        try:
            dying.mark(counter)
        except Killed:
            pass
        else:
            assert stores > 2
            break
        successor = Window(words, 0, 1)
        assert not any(successor.is_new(each) for each in seen)
    else:
        raise AssertionError("a slide has no end")


def test_killed_while_a_window_begins_the_successor_begins_it_again() -> None:
    for stores in range(BITMAP_WORDS + 3):
        words = page()
        old = Window(words, 0, 1)
        for counter in range(1, 300):
            accept(old, counter)
        with pytest.raises(Killed):
            Window(DyingWords(words, stores), 0, 2)  # type: ignore[arg-type]

        assert Window(words, 0, 2).is_new(1)
        assert words[slot_start(0) + SlotWord.TOP] == 0
