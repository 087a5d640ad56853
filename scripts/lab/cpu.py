"""CPU time used, by the whole machine and by processes, as /proc tells it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.process import threads

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class CpuUse:
    """Seconds of CPU between two points of time."""

    machine_s: float = 0.0
    """All that was not idle, whoever it was for."""
    processes_s: float = 0.0


@contextmanager
def cpu_used(pids: Iterable[int]) -> Iterator[CpuUse]:
    """Yield what is filled in when the block ends: by the machine, and by these processes.

    Raises LabError if one of them has ended.
    """
    known = tuple(pids)
    use, machine, processes = CpuUse(), _machine_ticks(), _processes_ticks(known)
    yield use
    # Whole ticks: the difference of two fractions is no multiple of one.
    use.machine_s = (_machine_ticks() - machine) * _TICK_S
    use.processes_s = (_processes_ticks(known) - processes) * _TICK_S


def stolen_s() -> float:
    """Return what the hypervisor has given to others since boot while something was to run here.

    Seconds of all CPUs together, in steps of a clock tick.
    """
    # proc_stat(5): the eighth figure.
    first = Path("/proc/stat").read_text().split("\n", 1)[0]
    return int(first.split()[8]) * _TICK_S


def busy_s() -> float:
    """Return what all CPUs together have worked since boot, or not been given by the hypervisor."""
    return _machine_ticks() * _TICK_S + stolen_s()


def ran_s(pid: int) -> float:
    """Return how long the threads that a process has now have run; exact, unlike ticks."""
    return sum(ran for ran, _ in scheduled_s(pid).values())


def waited_s(pid: int) -> float:
    """Return how long the threads that a process has now were ready to run, and others ran."""
    return sum(waits_s(pid).values())


def longest_wait_s(pid: int) -> float:
    """Return how long that one of them did which waited longest."""
    return max(waits_s(pid).values(), default=0.0)


def waits_s(pid: int) -> dict[Path, float]:
    """Return how long each thread of a process has waited so far; a wait counts when it ends."""
    return {thread: waited for thread, (_, waited) in scheduled_s(pid).items()}


def scheduled_s(pid: int) -> dict[Path, tuple[float, float]]:
    """Return how long each thread of a process has run, and has waited: see waits_s()."""
    # Documentation/scheduler/sched-stats.rst: nanoseconds on a CPU, then in its queue.
    found = {}
    for thread in threads(pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # one that has just ended
            ran, waited = (thread / "schedstat").read_text().split()[:2]
            found[thread] = (int(ran) * 1e-9, int(waited) * 1e-9)
    return found


def is_ready(thread: Path) -> bool:
    """Tell whether a thread, by its folder, runs or is ready to run. One that has ended is not."""
    try:
        # proc_pid_stat(5): the third field; the second one, in parentheses, may hold anything.
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _machine_ticks() -> int:
    # proc_stat(5): user nice system idle iowait irq softirq steal; guests are
    # within user, and what the hypervisor took was nobody's here.
    first = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, first)
    return user + nice + system + irq + softirq


def _processes_ticks(pids: tuple[int, ...]) -> int:
    # proc_pid_stat(5): utime and stime, fields 14 and 15; the second field, in
    # parentheses, may hold anything.
    ticks = 0
    for pid in pids:
        try:
            text = Path("/proc", str(pid), "stat").read_text()
        except (FileNotFoundError, ProcessLookupError) as err:
            raise LabError(f"process {pid} has ended") from err
        fields = text.rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks
