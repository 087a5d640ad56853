"""vela.supervisor.runtime.burst: work that is done together, each for itself."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from simulation import SimulatedClock

from vela.supervisor.runtime.burst import AT_ONCE_S, Burst, Pause
from vela.supervisor.runtime.loop import EventLoop


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.close()


def test_work_that_fails_keeps_none_of_the_rest_from_being_done(
    loop: EventLoop, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def fail() -> None:
        raise ZeroDivisionError

    burst = Burst(loop, Pause(0.01))
    burst.add(lambda: done.append("first"))
    burst.add(fail)
    burst.add(lambda: done.append("third"))
    loop.call_later(0.005, lambda: burst.add(fail))
    loop.call_later(0.006, lambda: burst.add(lambda: done.append("later")))
    loop.call_later(0.1, loop.stop)

    loop.run()

    assert done == ["first", "third", "later"]
    assert capsys.readouterr().out.count("callback_failed") == 2


@pytest.mark.parametrize(
    ("number", "expected_s"), [(0, 0.15), (1, 0.15), (5, 0.15), (10, 0.3), (20, 0.6), (255, 0.6)]
)
def test_pause_grows_with_the_burst_between_its_bounds(number: int, expected_s: float) -> None:
    pause = Pause(shortest_s=0.15, each_s=0.03, longest_s=0.6)

    assert pause.after(number) == pytest.approx(expected_s)


def test_more_work_is_done_together_the_more_there_was(loop: EventLoop) -> None:
    each_s = 0.02
    burst = Burst(loop, Pause(shortest_s=0.0, each_s=each_s, longest_s=1.0))
    bursts: list[list[float]] = []

    def add(number: int, then: list[int]) -> None:
        done: list[float] = []
        bursts.append(done)

        def note() -> None:
            done.append(loop.now())
            if len(done) < number:
                return
            if then:
                loop.call_soon(lambda: add(then[0], then[1:]))
            else:
                loop.stop()

        for _ in range(number):
            burst.add(note)

    loop.call_soon(lambda: add(1, [4]))
    loop.run()
    # The next one waits for four.
    loop.call_soon(lambda: add(1, []))
    loop.run()

    first, second, third = (done[0] for done in bursts)
    assert second - first >= each_s
    assert third - second >= 4 * each_s
    # The four were together.
    assert bursts[1][-1] - bursts[1][0] < 4 * each_s


def test_long_burst_lets_the_loop_look_at_what_has_arrived_and_goes_on() -> None:
    clock = SimulatedClock()
    loop = EventLoop(clock)
    arrived, sender = os.pipe()
    number, at_once = 10, 4
    # A little longer, whatever the sum is rounded to.
    each_s = 1.01 * AT_ONCE_S / at_once
    done: list[str] = []

    def work() -> None:
        clock.pass_time(each_s)
        done.append("work")
        if done.count("work") == number:
            loop.call_soon(loop.stop)

    def read() -> None:
        os.read(arrived, 1)
        done.append("read")

    try:
        burst = Burst(loop, Pause(shortest_s=1.0))
        for _ in range(number):
            burst.add(work)
        loop.watch(arrived, read)
        os.write(sender, bytes(3))

        began = loop.now()
        loop.run()

        assert done == ["read", *["work"] * 4, "read", *["work"] * 4, "read", *["work"] * 2]
        assert loop.now() - began == pytest.approx(number * each_s)
    finally:
        loop.close()
        os.close(arrived)
        os.close(sender)
