"""Which CPUs a worker runs on.

Workers keep the scheduling class that velad was started with, SCHED_OTHER unless the operator
says otherwise. SCHED_BATCH carries 7 to 8 % more on an idle machine, and waits for the turn of
every other program on a busy one: docs/performance.md.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterable


def allowed_cpus() -> tuple[int, ...]:
    """Return the CPUs that this process may use."""
    # psutil would open files in /proc, which fails where there are no more descriptors.
    return tuple(sorted(os.sched_getaffinity(0)))


def least_loaded(cpus: Iterable[int], own: Iterable[int], taken: Container[int] = ()) -> int:
    """Return the CPU that occurs least in own; of several, the lowest.

    taken: CPUs that are set aside for others, and are returned only if there are no more.

    What others do on it changes while this would look. And of two velads on one
    machine, in namespaces of it, workers on one CPU hand a frame to each other
    sooner than on two: waking an idle CPU costs more (0.15 against 0.30 ms of
    round trip, on a virtual machine).
    """
    load = Counter(own)
    return min(cpus, key=lambda cpu: (cpu in taken, load[cpu], cpu))


def pin(cpu: int) -> None:
    """Run the calling thread, and those that it starts, on this CPU alone. Raises OSError."""
    os.sched_setaffinity(0, {cpu})


def pin_thread(thread: int, cpu: int) -> None:
    """Run one thread of any process on this CPU alone.

    Raises OSError: with another user's, for lack of CAP_SYS_NICE too.
    """
    os.sched_setaffinity(thread, {cpu})
