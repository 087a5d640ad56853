"""A program on each CPU that computes and never sleeps: what a busy host is to all others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from lab.errors import LabError
from lab.resource import Resource

# alarm(2): ended by the kernel, whatever becomes of who started it.
_LOOP = """
import os, signal, sys
cpu, seconds = map(int, sys.argv[1:])
signal.alarm(seconds)
os.sched_setaffinity(0, {cpu})
print(flush=True)
while True:
    pass
"""


class BusyLoops(Resource):
    """One for each of the CPUs, for limit_s seconds at most. A context: all run inside.

    Each has a session of its own, as two services have: the kernel may share
    a CPU among sessions first, then within them (sched(7), autogroup).
    """

    def __init__(self, cpus: Sequence[int], limit_s: int) -> None:
        self._cpus = cpus
        self._limit_s = limit_s
        self._loops: list[subprocess.Popen[bytes]] = []

    @property
    def pids(self) -> list[int]:
        """Return their process ids, in the order of the CPUs."""
        return [loop.pid for loop in self._loops]

    def start(self) -> None:
        for cpu in self._cpus:
            self._loops.append(
                subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _LOOP, str(cpu), str(self._limit_s)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
            )
        for loop in self._loops:
            assert loop.stdout is not None
            if not loop.stdout.readline():
                raise LabError(f"a busy loop ended with status {loop.wait()}")

    def check(self) -> None:
        """Raise LabError if one of them has ended: what was measured then was no busy host."""
        if any(loop.poll() is not None for loop in self._loops):
            raise LabError(f"not done within the {self._limit_s} s of a busy loop")

    def close(self) -> None:
        for loop in self._loops:
            loop.kill()
        for loop in self._loops:
            loop.wait()
            assert loop.stdout is not None
            loop.stdout.close()
        self._loops.clear()
