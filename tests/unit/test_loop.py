"""vela.supervisor.runtime.loop: timers, descriptors and signals on a real selector."""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import pytest
from simulation import SimulatedClock

from vela.supervisor.runtime import loop as loop_module
from vela.supervisor.runtime.loop import (
    FAILURES_BEFORE_REST,
    TIMERS_AT_ONCE,
    TIMERS_BEFORE_SWEEP,
    EventLoop,
    Timer,
)


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    # A test that would wait for ever ends, and fails.
    made.call_later(20.0, lambda: pytest.fail("the loop was not stopped"))
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_timers_fire_in_order_of_time_then_of_making(loop: EventLoop) -> None:
    fired: list[str] = []
    start = loop.now()
    loop.call_at(start + 0.03, loop.stop)
    loop.call_at(start + 0.02, lambda: fired.append("late"))
    loop.call_at(start + 0.01, lambda: fired.append("early"))
    for name in "abc":
        loop.call_at(start, partial(fired.append, name))

    loop.run()

    assert fired == ["a", "b", "c", "early", "late"]


def test_timers_with_slack_fire_together_and_never_early() -> None:
    loop = EventLoop(SimulatedClock())
    fired: list[tuple[float, float]] = []
    start = loop.now()

    def note(when: float) -> None:
        fired.append((when, loop.now()))

    for milliseconds in range(100):
        when = start + milliseconds / 1000
        loop.call_at(when, partial(note, when), 0.05)
    loop.call_at(start + 0.2, loop.stop)
    loop.run()
    loop.close()

    assert len(fired) == 100
    assert all(at >= when for when, at in fired)
    assert len({at for _, at in fired}) <= 3  # 100 ms touch three spans of 50


def test_timer_with_slack_is_late_by_no_more(loop: EventLoop) -> None:
    start = loop.now()

    timers = [loop.call_at(start + number / 777, lambda: None, 0.02) for number in range(777)]

    for number, timer in enumerate(timers):
        assert 0 <= timer.when - (start + number / 777) <= 0.02 + 1e-9


def test_what_is_to_be_called_soon_is_called_in_order_of_asking(loop: EventLoop) -> None:
    fired: list[str] = []
    for name in "abc":
        loop.call_soon(partial(fired.append, name))
    loop.call_soon(loop.stop)

    loop.run()

    assert fired == ["a", "b", "c"]


def test_timer_never_fires_before_its_time(loop: EventLoop) -> None:
    start = time.monotonic()
    loop.call_later(0.05, loop.stop)

    loop.run()

    assert time.monotonic() - start >= 0.05


def test_timer_cancelled_by_one_due_at_the_same_time_does_not_fire(loop: EventLoop) -> None:
    fired: list[str] = []
    loop.call_soon(lambda: second.cancel())
    second = loop.call_soon(lambda: fired.append("cancelled"))
    third = loop.call_soon(lambda: fired.append("third"))
    fourth = loop.call_soon(loop.stop)

    loop.run()
    third.cancel()
    fourth.cancel()

    assert fired == ["third"]


def test_timer_that_sets_itself_again_leaves_descriptors_their_turn(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    def again() -> None:
        loop.call_soon(again)

    again()
    loop.watch(pair[0].fileno(), loop.stop)
    pair[1].send(b"x")

    loop.run()


def test_what_arrives_does_not_wait_for_all_timers_that_are_due(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    done: list[str] = []
    rounds = 4

    def read() -> None:
        pair[0].recv(1)
        done.append("read")

    loop.watch(pair[0].fileno(), read)
    pair[1].send(bytes(rounds))
    due = loop.now()
    for _ in range(rounds * TIMERS_AT_ONCE):
        loop.call_at(due, lambda: done.append("timer"))
    loop.call_at(due, loop.stop)

    loop.run()

    assert done == ["read", *["timer"] * TIMERS_AT_ONCE] * rounds


def test_descriptor_unwatched_by_an_earlier_callback_is_not_called(loop: EventLoop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    called: list[int] = []

    def first_come(index: int) -> None:
        called.append(index)
        loop.unwatch(pairs[0][0].fileno())
        loop.unwatch(pairs[1][0].fileno())
        loop.call_later(0.02, loop.stop)

    for index, (ours, theirs) in enumerate(pairs):
        loop.watch(ours.fileno(), partial(first_come, index))
        theirs.send(b"x")

    loop.run()

    assert len(called) == 1
    for each in (*pairs[0], *pairs[1]):
        each.close()


def test_descriptor_number_used_again_within_a_round_gets_no_old_event(loop: EventLoop) -> None:
    """Both are readable; whichever is first replaces the other by a socket with nothing in it."""
    pairs = [socket.socketpair() for _ in range(2)]
    fresh: list[socket.socket] = []
    called: list[str] = []

    def replace_other(index: int) -> None:
        number = pairs[1 - index][0].fileno()
        loop.unwatch(number)
        fresh.extend(socket.socketpair())
        os.dup2(fresh[0].fileno(), number)
        loop.watch(number, lambda: called.append("stale"))
        loop.unwatch(pairs[index][0].fileno())
        loop.call_later(0.02, loop.stop)

    for index, (ours, theirs) in enumerate(pairs):
        loop.watch(ours.fileno(), partial(replace_other, index))
        theirs.send(b"x")

    loop.run()

    assert called == []
    for each in (*pairs[0], *pairs[1], *fresh):
        each.close()


def test_writable_is_called_only_while_asked_for(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    fd = pair[0].fileno()
    called: list[str] = []

    def read() -> None:
        called.append("readable")
        loop.stop()

    def write() -> None:
        called.append("writable")
        loop.watch_writable(fd, read, None)
        pair[1].send(b"x")

    loop.watch(fd, read)
    loop.watch_writable(fd, read, write)

    loop.run()

    assert called == ["writable", "readable"]


def test_writable_is_not_called_once_readable_has_unwatched(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    fd = pair[0].fileno()
    called: list[str] = []

    def read() -> None:
        loop.unwatch(fd)
        loop.call_later(0.02, loop.stop)

    loop.watch(fd, read)
    loop.watch_writable(fd, read, lambda: called.append("writable"))
    pair[1].send(b"x")

    loop.run()

    assert called == []


def test_signal_ends_a_wait_at_once(loop: EventLoop) -> None:
    """By the wake-up pipe: a handler alone would be seen only at the next timeout (PEP 475)."""
    before = signal.getsignal(signal.SIGUSR1)

    def send() -> None:
        time.sleep(0.1)  # until the loop waits
        os.kill(os.getpid(), signal.SIGUSR1)

    loop.on_signal(signal.SIGUSR1, loop.stop)
    sender = threading.Thread(target=send)
    try:
        sender.start()
        loop.run()  # or the next timer, 20 s away, fails the test
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)


def test_signal_before_the_loop_runs_is_not_lost(loop: EventLoop) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    loop.on_signal(signal.SIGUSR1, loop.stop)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        loop.run()
    finally:
        signal.signal(signal.SIGUSR1, before)


def fail() -> None:
    raise ZeroDivisionError


def test_callback_that_raises_ends_neither_the_loop_nor_the_others(
    loop: EventLoop,
    pair: tuple[socket.socket, socket.socket],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def receive_and_fail() -> None:
        pair[0].recv(1)
        raise ZeroDivisionError

    before = signal.getsignal(signal.SIGUSR1)
    called: list[str] = []
    loop.call_soon(fail)
    loop.call_soon(lambda: called.append("soon"))
    loop.call_later(0.01, fail)
    loop.call_later(0.01, lambda: called.append("later"))
    loop.on_signal(signal.SIGUSR1, fail)
    loop.watch(pair[0].fileno(), receive_and_fail)
    pair[1].send(b"x")
    loop.call_later(0.05, loop.stop)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        loop.run()
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert sorted(called) == ["later", "soon"]
    logged = capsys.readouterr().out
    assert logged.count("callback_failed") == 4
    assert logged.count("ZeroDivisionError") >= 4


def test_end_of_the_process_is_no_failure_of_a_callback(loop: EventLoop) -> None:
    def leave() -> None:
        raise SystemExit(3)

    loop.call_soon(leave)

    with pytest.raises(SystemExit):
        loop.run()


def test_descriptor_whose_callback_keeps_failing_rests_and_is_tried_again(
    loop: EventLoop,
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loop_module, "FIRST_REST_S", 0.05)
    turns = 0
    called: list[tuple[int, float]] = []

    def count_turns() -> None:
        nonlocal turns
        turns += 1

    def fail_five_times() -> None:
        called.append((turns, loop.now()))
        if len(called) <= FAILURES_BEFORE_REST + 2:
            raise ZeroDivisionError
        pair[0].recv(1)
        loop.stop()

    loop.watch(pair[0].fileno(), fail_five_times)
    pair[1].send(b"x")
    # Always ready, so called in each turn of the loop.
    ready = os.eventfd(1)
    loop.watch(ready, count_turns)

    loop.run()
    os.close(ready)

    at_once = called[:FAILURES_BEFORE_REST]
    assert at_once[-1][0] - at_once[0][0] <= FAILURES_BEFORE_REST
    rests = called[FAILURES_BEFORE_REST - 1 :]
    waits = [after - before for (_, before), (_, after) in pairwise(rests)]
    assert [wait >= least for wait, least in zip(waits, (0.05, 0.1, 0.2), strict=True)] == [
        True
    ] * 3
    assert capsys.readouterr().out.count("descriptor_ignored") == 3


def test_failures_that_are_not_in_a_row_let_no_descriptor_rest(
    loop: EventLoop,
    pair: tuple[socket.socket, socket.socket],
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = 0

    def fail_now_and_then() -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            loop.stop()
        if calls % FAILURES_BEFORE_REST:
            raise ZeroDivisionError

    loop.watch(pair[0].fileno(), fail_now_and_then)
    pair[1].send(b"x")

    loop.run()

    assert "descriptor_ignored" not in capsys.readouterr().out


def test_resting_descriptor_can_be_watched_otherwise_and_unwatched(
    loop: EventLoop,
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_module, "FIRST_REST_S", 0.05)

    fd = pair[0].fileno()
    called: list[str] = []
    failed_at: list[float] = []

    def fail_until_it_rests() -> None:
        failed_at.append(loop.now())
        if len(failed_at) % FAILURES_BEFORE_REST == 0:
            loop.stop()
        raise ZeroDivisionError

    def call(what: str) -> None:
        called.append(what)
        loop.stop()

    loop.watch(fd, fail_until_it_rests)
    pair[1].send(b"x")
    loop.run()
    loop.watch_writable(fd, None, partial(call, "writable"))
    loop.run()
    assert called == ["writable"]
    assert loop.now() - failed_at[-1] >= 0.05

    loop.watch_writable(fd, fail_until_it_rests, None)
    loop.run()
    loop.unwatch(fd)
    loop.watch(fd, partial(call, "anew"))
    loop.run()
    assert called == ["writable", "anew"]
    assert len(failed_at) == 2 * FAILURES_BEFORE_REST


def timers_in_memory() -> int:
    gc.collect()
    return sum(isinstance(each, Timer) for each in gc.get_objects())


def test_cancelled_timers_do_not_fill_memory(loop: EventLoop) -> None:
    fired: list[int] = []
    kept = [loop.call_later(0.01, partial(fired.append, number)) for number in range(100)]
    before = timers_in_memory()
    for _ in range(20 * TIMERS_BEFORE_SWEEP):
        loop.call_later(3600.0, fail).cancel()

    assert timers_in_memory() - before <= TIMERS_BEFORE_SWEEP

    kept[50].cancel()
    loop.call_later(0.01, loop.stop)
    loop.run()
    assert fired == [number for number in range(100) if number != 50]


def test_many_timers_that_are_still_wanted_are_all_called(loop: EventLoop) -> None:
    fired: list[int] = []
    for number in range(3 * TIMERS_BEFORE_SWEEP):
        loop.call_later(0.0, partial(fired.append, number))
    loop.call_later(0.0, loop.stop)

    loop.run()

    assert fired == list(range(3 * TIMERS_BEFORE_SWEEP))


def test_closed_loop_leaves_no_descriptor() -> None:
    before = set(os.listdir("/proc/self/fd"))
    made = EventLoop()
    made.call_soon(made.stop)
    made.run()
    assert set(os.listdir("/proc/self/fd")) > before

    made.close()

    assert set(os.listdir("/proc/self/fd")) == before
    assert signal.set_wakeup_fd(-1) == -1
