"""Which CPU a worker runs on, and how it shares it. The only importer of psutil."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

import psutil

from vela.errors import DeviceError


def allowed_cpus() -> tuple[int, ...]:
    """Return the CPUs that this process may use. Raises DeviceError where that cannot be read."""
    try:
        cpus = psutil.Process().cpu_affinity()
    except OSError as err:  # it opens files in /proc
        raise DeviceError(f"cannot find out which CPUs there are: {err.strerror}") from err
    return tuple(sorted(cpus))


def least_loaded(cpus: Iterable[int], own: Iterable[int]) -> int:
    """Return the CPU that occurs least in own; of several, the lowest.

    What others do on it changes while this would look. And of two velads on one
    machine, in namespaces of it, workers on one CPU hand a frame to each other
    sooner than on two: waking an idle CPU costs more (0.15 against 0.30 ms of
    round trip, on a virtual machine).
    """
    load = Counter(own)
    return min(cpus, key=lambda cpu: (load[cpu], cpu))


def pin(cpu: int) -> None:
    """Run the calling process on this CPU alone. Raises OSError if it cannot."""
    # Not by psutil, which first reads /proc: a worker's frames are waiting.
    os.sched_setaffinity(0, {cpu})


def take_turns() -> None:
    """Let the calling process finish its turn of the CPU, and others theirs, before they change.

    SCHED_BATCH (sched(7)): a worker that is woken still runs at once on an idle
    CPU, but interrupts nobody. Otherwise each frame that one thread sends wakes
    the one that receives it, or the program that waits for it, in place of the
    sender, and batches never grow: measured, a third of one TCP stream.
    """
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
