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
    use = CpuUse(-_machine_s(), -_processes_s(known))
    yield use
    use.machine_s += _machine_s()
    use.processes_s += _processes_s(known)


def stolen_s() -> float:
    """Return what the hypervisor has given to others since boot while something was to run here.

    Seconds of all CPUs together, in steps of a clock tick.
    """
    # proc_stat(5): the eighth figure.
    first = Path("/proc/stat").read_text().split("\n", 1)[0]
    return int(first.split()[8]) * _TICK_S


def busy_s() -> float:
    """Return what all CPUs together have worked since boot, or not been given by the hypervisor."""
    return _machine_s() + stolen_s()


def ran_s(pid: int) -> float:
    """Return how long the threads that a process has now have run; exact, unlike ticks."""
    return sum(_scheduled_s(pid, 0).values())


def waited_s(pid: int) -> float:
    """Return how long the threads that a process has now were ready to run, and others ran."""
    return sum(waits_s(pid).values())


def longest_wait_s(pid: int) -> float:
    """Return how long that one of them did which waited longest."""
    return max(waits_s(pid).values(), default=0.0)


def waits_s(pid: int) -> dict[Path, float]:
    """Return how long each thread of a process has waited so far; a wait counts when it ends."""
    return _scheduled_s(pid, 1)


def scheduled_s(pid: int) -> dict[Path, tuple[float, float]]:
    """Return how long each thread of a process has run, and has waited: see waits_s()."""
    ran, waited = _scheduled_s(pid, 0), _scheduled_s(pid, 1)
    return {each: (ran[each], waited[each]) for each in ran.keys() & waited.keys()}


def is_ready(thread: Path) -> bool:
    """Tell whether a thread, by its folder, runs or is ready to run. One that has ended is not."""
    try:
        # proc_pid_stat(5): the third field; the second one, in parentheses, may hold anything.
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _scheduled_s(pid: int, field: int) -> dict[Path, float]:
    # Documentation/scheduler/sched-stats.rst: nanoseconds on a CPU, then in its queue.
    found = {}
    for thread in threads(pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # one that has just ended
            found[thread] = int((thread / "schedstat").read_text().split()[field]) * 1e-9
    return found


def _machine_s() -> float:
    # proc_stat(5): user nice system idle iowait irq softirq steal; guests are
    # within user, and what the hypervisor took was nobody's here.
    first = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, first)
    return (user + nice + system + irq + softirq) * _TICK_S


def _processes_s(pids: tuple[int, ...]) -> float:
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
    return ticks * _TICK_S
