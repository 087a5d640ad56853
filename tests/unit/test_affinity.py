"""vela.linux.affinity: which CPU, and that what is pinned alone is pinned."""

from __future__ import annotations

import os
import threading

import pytest
from exhaustion import no_descriptors

from vela.linux.affinity import allowed_cpus, least_loaded, pin, pin_thread
from vela.linux.usage import thread_times
from vela.supervisor.runtime.process import fork


@pytest.mark.parametrize(
    ("cpus", "own", "expected"),
    [
        ([0, 1, 2], [], 0),
        ([0, 1, 2], [0], 1),
        ([0, 1, 2], [0, 1, 2, 0], 1),
        ([2, 1], [1, 2], 1),
        ([3], [3, 3, 3], 3),
        ([0, 1], [7, 7, 7, 0], 1),
    ],
)
def test_least_loaded_is_the_lowest_of_those_with_fewest(
    cpus: list[int], own: list[int], expected: int
) -> None:
    assert least_loaded(cpus, own) == expected


def test_cpu_that_is_set_aside_is_returned_only_if_there_is_no_other() -> None:
    assert least_loaded([0, 1, 2], [1, 1, 2, 2], {0}) == 1
    assert least_loaded([0, 1], [0], {0, 1}) == 1


def test_255_circuits_spread_evenly() -> None:
    in_use: list[int] = []
    for _ in range(255):
        in_use.append(least_loaded((0, 1, 2, 3), in_use))

    assert sorted(in_use.count(cpu) for cpu in range(4)) == [63, 64, 64, 64]


def test_allowed_cpus_take_no_descriptor() -> None:
    with no_descriptors():
        assert allowed_cpus() == tuple(sorted(os.sched_getaffinity(0)))


@pytest.mark.forks
def test_pin_in_a_child_pins_the_child_alone() -> None:
    before = os.sched_getaffinity(0)
    assert allowed_cpus() == tuple(sorted(before))
    cpu = max(before)

    def body() -> None:
        pin(cpu)
        os._exit(0 if os.sched_getaffinity(0) == {cpu} else 1)

    assert fork(body, ()).reap().code == 0
    assert os.sched_getaffinity(0) == before


def test_pin_to_a_cpu_that_is_not_there_raises() -> None:
    with pytest.raises((OSError, ValueError)):
        pin(100_000)


def test_threads_of_a_process_and_their_cpu() -> None:
    (cpu, *_) = allowed = os.sched_getaffinity(0)
    started, ended = threading.Event(), threading.Event()
    made: list[int] = []

    def run() -> None:
        made.append(threading.get_native_id())
        started.set()
        ended.wait()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert started.wait(10.0)
        times = thread_times(os.getpid())
        assert {os.getpid(), made[0]} <= set(times)
        assert min(times.values()) >= 0.0
        pin_thread(made[0], cpu)
        assert os.sched_getaffinity(made[0]) == {cpu}
        assert os.sched_getaffinity(0) == allowed
    finally:
        ended.set()
        thread.join()


def test_process_that_has_ended_has_no_threads() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    assert thread_times(pid) == {}
    with pytest.raises(ProcessLookupError):
        pin_thread(pid, 0)
