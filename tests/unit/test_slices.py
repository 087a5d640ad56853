"""vela.supervisor.runtime.slices: long work, and what else the loop has to do."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from vela.supervisor.runtime.loop import EventLoop
from vela.supervisor.runtime.slices import SLICE_S, Slices


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    made.call_later(20.0, lambda: pytest.fail("the loop was not stopped"))
    yield made
    made.close()


def busy(steps: int) -> Iterator[None]:
    """Each takes half a slice."""
    for _ in range(steps):
        end = time.monotonic() + SLICE_S / 2
        while time.monotonic() < end:
            pass
        yield


def test_timers_are_served_between_slices(loop: EventLoop) -> None:
    fired: list[int] = []
    done_at: list[int] = []

    def tick() -> None:
        fired.append(len(fired))
        loop.call_later(SLICE_S, tick)

    tick()

    def done() -> None:
        done_at.append(len(fired))
        loop.stop()

    Slices(loop, busy(40), done)
    loop.run()

    # 20 slices; the work alone would have let none of them through.
    assert done_at[0] >= 5


def test_done_is_called_after_the_last_step_and_no_step_after_cancel(loop: EventLoop) -> None:
    seen: list[str] = []

    def steps(name: str) -> Iterator[None]:
        for number in range(3):
            seen.append(f"{name}{number}")
            yield

    def done() -> None:
        seen.append("done")
        loop.stop()

    Slices(loop, steps("a"), done)
    cancelled = Slices(loop, steps("b"), lambda: seen.append("never"))
    cancelled.cancel()
    loop.run()

    assert seen == ["a0", "a1", "a2", "done"]


def test_step_that_fails_ends_the_work_and_is_told_as_its_end(loop: EventLoop) -> None:
    seen: list[str] = []

    def steps() -> Iterator[None]:
        yield
        raise ZeroDivisionError

    def done() -> None:
        seen.append("done")
        loop.stop()

    Slices(loop, steps(), done)
    loop.run()

    assert seen == ["done"]
