"""Whether the machine left a thread without a CPU for long while it was ready to run.

Linux 6.18 does that on a CPU that is never idle: its fair scheduler passed over worker threads, and
ksoftirqd, for up to 7 s beside one busy loop. What waits on such a machine says nothing about VELA.

Run as a program it watches the descendants of the process given. It answers each line that it
reads by the longest wait since the line before, in seconds, and ends with its input.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lab.cpu import is_ready, scheduled_s
from lab.process import descendants

PERIOD_S = 0.25
# Of looks for waits that have not ended, and may not before the thread is killed. Each reads more.
UNENDED_PERIOD_S = 1.0


class StarvationWatch:
    """Watches this process's descendants, and the kernel's threads that move packets.

    By a process that is none of its children: one with threads must not fork, and some tests do;
    others wait until they have no children.
    """

    def __init__(self) -> None:
        self._watcher = subprocess.Popen(
            [sys.executable, "-m", __name__, str(os.getpid())],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # What goes on is its child.
        self._watcher.wait()

    def longest_s(self) -> float:
        """Return the longest wait of a thread in one piece since the last call, as good as."""
        assert self._watcher.stdin is not None
        assert self._watcher.stdout is not None
        self._watcher.stdin.write("\n")
        self._watcher.stdin.flush()
        return float(self._watcher.stdout.readline())

    def close(self) -> None:
        # One that somebody has ended is no trouble of the tests that are over.
        with suppress(BrokenPipeError), self._watcher:
            pass


class Waits:
    """The waits of a process's descendants, as far as looks find them."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before: dict[Path, tuple[float, float]] = {}
        self._stood: dict[Path, tuple[float, float]] = {}
        self._unended_s: dict[Path, float] = {}
        self._looked_at = time.monotonic()
        self._kernel = list(_movers_of_packets())
        self.longest_s = 0.0

    def look(self) -> None:
        # What two looks find added is one wait, where it is longer than the time between them.
        stand: dict[Path, tuple[float, float]] = {}
        for pid in (self._pid, *descendants(self._pid), *self._kernel):
            stand |= scheduled_s(pid)
        for thread, (_, waited_s) in stand.items():
            _, before_s = self._before.get(thread, (0.0, waited_s))
            self.longest_s = max(self.longest_s, waited_s - before_s)
        self._before = stand
        now = time.monotonic()
        if now - self._looked_at >= UNENDED_PERIOD_S:
            self._look_for_unended(stand, now)

    def _look_for_unended(self, stand: dict[Path, tuple[float, float]], now: float) -> None:
        passed_s, self._looked_at = now - self._looked_at, now
        # Ready to run, and has not run since the look before.
        self._unended_s = {
            thread: self._unended_s.get(thread, 0.0) + passed_s
            for thread, figures in stand.items()
            if self._stood.get(thread) == figures and is_ready(thread)
        }
        self._stood = stand
        self.longest_s = max(self.longest_s, *self._unended_s.values(), 0.0)


def _movers_of_packets() -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(FileNotFoundError, ProcessLookupError):  # another one, which has just ended
            if path.read_text().startswith("ksoftirqd/"):
                yield int(path.parent.name)


def _serve(pid: int) -> None:
    waits = Waits(pid)
    waits.look()
    while True:
        if select.select([sys.stdin], [], [], PERIOD_S)[0]:
            # Not readline(), whose buffer select() does not know of.
            if not os.read(sys.stdin.fileno(), 1):
                return
            waits.look()
            print(f"{waits.longest_s:.3f}", flush=True)
            waits.longest_s = 0.0
        else:
            waits.look()


if __name__ == "__main__":
    if os.fork() == 0:
        os.setsid()
        _serve(int(sys.argv[1]))
