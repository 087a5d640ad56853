"""vela.supervisor.circuit.spread: the threads of a process are moved as its load has it.

The process and its threads are real, as is where they run. Time, what the circuit carries and how
idle the CPUs are come from the test: other programs on the machine change nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from simulation import StrictLoop
from structlog.testing import capture_logs

from vela.linux.idle_cpus import IdleCpus
from vela.linux.usage import thread_times
from vela.supervisor.circuit import spread as spread_module
from vela.supervisor.circuit.placement import (
    CONFIRM_LOOKS,
    PERIOD_S,
    QUIET_LOOKS,
    SETTLE_LOOKS,
    TRIAL_LOOKS,
)
from vela.supervisor.circuit.rates import Traffic
from vela.supervisor.circuit.spread import LEAST_RATE, Spread

HOME, OTHER = 0, 1
NOBODY = 2**22  # larger than any process id
USED_S = 0.1
WAIT_S = 60.0

# Two threads, as a worker has, that compute for as long as the test can take.
BUSY = f"""
import threading, time
end = time.monotonic() + {2 * WAIT_S}
def spin():
    while time.monotonic() < end:
        pass
threading.Thread(target=spin).start()
print(flush=True)
spin()
"""

pytestmark = pytest.mark.skipif(
    not {HOME, OTHER} <= os.sched_getaffinity(0), reason="needs CPUs 0 and 1"
)


class Machine:
    """A busy process on one CPU, and another CPU that is idle."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.worker: tuple[int | None, int] = (pid, HOME)
        self.loop = StrictLoop()
        self.idle = {HOME: 0.0, OTHER: 0.5}
        self.rate = 10 * LEAST_RATE
        self.computes = True
        self._slower: Callable[[], Traffic] | None = None
        self.idle_cpus = IdleCpus(self._read)
        self.spread = self.another()

    def another(self) -> Spread:
        return Spread("vela0", self.loop, self.idle_cpus, lambda: self.worker, self._traffic)

    def _traffic(self) -> Traffic:
        if self._slower is not None:
            return self._slower()
        return Traffic(0, round(self.loop.now() * self.rate), 0, 0)

    def _read(self) -> Mapping[int, tuple[int, int]]:
        ticks = round(100000 * self.loop.now())
        return {cpu: (round(ticks * idle), ticks) for cpu, idle in self.idle.items()}

    def pass_period(self, *spreads: Spread) -> None:
        """Let a period pass in which the process takes USED_S of CPU time."""
        if self.computes:
            self.until_used()
        for spread in spreads or (self.spread,):
            spread.check()
        self.loop.run_for(PERIOD_S)
        assert self.loop.failures == []

    def slow_down(self, to: float = 0.9) -> None:
        """Carry less from now on: this share of before."""
        began, carried = self.loop.now(), self._traffic().tx_bytes
        rate = to * self.rate

        def slower() -> Traffic:
            return Traffic(0, carried + round((self.loop.now() - began) * rate), 0, 0)

        self._slower = slower

    def stop(self) -> None:
        """Let the process compute no more."""
        os.kill(self.pid, signal.SIGSTOP)
        self.computes = False
        self.slow_down(0.0)

    def until_used(self) -> None:
        used = sum(thread_times(self.pid).values())
        end = time.monotonic() + WAIT_S
        while sum(thread_times(self.pid).values()) < used + USED_S:
            assert time.monotonic() < end, "the process gets no CPU time"

    @property
    def cpus(self) -> tuple[set[int], ...]:
        """Where each thread may run, the first one first."""
        (other,) = thread_times(self.pid).keys() - {self.pid}
        return os.sched_getaffinity(self.pid), os.sched_getaffinity(other)

    def until_apart(self) -> None:
        for _ in range(CONFIRM_LOOKS + 5):
            assert self.spread.ingress_cpu is None
            self.pass_period()
            if self.spread.ingress_cpu is not None:
                break
        assert self.spread.ingress_cpu == OTHER


@pytest.fixture
def machine() -> Iterator[Machine]:
    # Pinned before its threads start, as a worker is.
    command = ["taskset", "-c", str(HOME), sys.executable, "-c", BUSY]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        made = Machine(process.pid)
        yield made
        made.loop.close()
        process.kill()


def test_ingress_thread_alone_moves_under_load_and_comes_back_behind_it(machine: Machine) -> None:
    machine.until_apart()
    assert machine.cpus == ({HOME}, {OTHER})

    for _ in range(SETTLE_LOOKS + TRIAL_LOOKS + 3):
        machine.pass_period()
    assert machine.cpus == ({HOME}, {OTHER})

    machine.stop()
    for _ in range(QUIET_LOOKS + 1):
        machine.pass_period()
    assert machine.spread.ingress_cpu is None
    assert machine.cpus == ({HOME}, {HOME})


def test_thread_that_carries_less_elsewhere_comes_back(machine: Machine) -> None:
    machine.until_apart()
    machine.slow_down()
    for _ in range(SETTLE_LOOKS + TRIAL_LOOKS - 1):
        machine.pass_period()
        assert machine.cpus == ({HOME}, {OTHER})
    machine.pass_period()
    machine.pass_period()
    assert machine.cpus == ({HOME}, {HOME})
    assert machine.spread.ingress_cpu is None


def test_circuit_that_carries_little_is_not_looked_at(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread_module, "thread_times", lambda pid: pytest.fail("looked"))
    machine.computes = False
    machine.rate = 0.9 * LEAST_RATE
    for _ in range(CONFIRM_LOOKS + 5):
        machine.pass_period()
    assert machine.spread.ingress_cpu is None


def test_busy_circuit_that_becomes_idle_is_looked_at_no_more(machine: Machine) -> None:
    machine.idle[OTHER] = 0.0
    for _ in range(CONFIRM_LOOKS + 5):
        machine.pass_period()
    assert machine.spread.ingress_cpu is None
    machine.computes = False
    machine.slow_down(0.0)
    machine.loop.run_for(2 * PERIOD_S)
    # Nothing is due any more but what the test asks for.
    with pytest.raises(AssertionError, match="nothing is due"):
        machine.loop.run()


def test_two_circuits_do_not_choose_one_idle_cpu_at_once(machine: Machine) -> None:
    other = machine.another()
    chosen: list[tuple[int | None, int | None]] = []
    for _ in range(CONFIRM_LOOKS + 5):
        machine.pass_period(machine.spread, other)
        chosen.append((machine.spread.ingress_cpu, other.ingress_cpu))
        if any(cpu is not None for cpu in chosen[-1]):
            break
    assert chosen[-1] in ((OTHER, None), (None, OTHER))


@pytest.mark.parametrize("present", [(None, HOME), (NOBODY, HOME), (None, OTHER)])
def test_another_worker_has_both_threads_on_its_cpu(
    machine: Machine, present: tuple[int | None, int]
) -> None:
    machine.until_apart()
    machine.worker = present
    assert machine.spread.ingress_cpu is None
    moved = machine.cpus
    machine.loop.run_for(PERIOD_S)
    machine.pass_period()
    assert machine.spread.ingress_cpu is None
    # Nobody touches a process that is no worker.
    assert machine.cpus == moved


def test_worker_that_ends_is_followed_no_more(machine: Machine) -> None:
    machine.until_apart()
    os.kill(machine.pid, signal.SIGKILL)
    os.waitid(os.P_PID, machine.pid, os.WEXITED | os.WNOWAIT)
    machine.computes = False
    machine.loop.run_for(PERIOD_S)
    assert machine.loop.failures == []
    assert machine.spread.ingress_cpu is None


def test_thread_that_may_not_be_moved_is_reported_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: int, cpu: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(spread_module, "pin_thread", refuse)
    with capture_logs() as log:
        for _ in range(2 * CONFIRM_LOOKS + 5):
            machine.pass_period()
    assert [(entry["event"], entry["cpu"]) for entry in log] == [("thread_not_pinned", OTHER)]
    assert machine.spread.ingress_cpu is None
    assert machine.cpus == ({HOME}, {HOME})
