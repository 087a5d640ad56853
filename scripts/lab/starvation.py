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
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PERIOD_S = 0.25


class StarvationWatch:
    """Watches this process's descendants, and the kernel's threads that move packets.

    By a process that is none of its children: one with threads must not fork, and some tests do;
    others wait until they have no children.
    """

    def __init__(self) -> None:
        self._watcher = subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(os.getpid())],
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
        with self._watcher:
            pass


class _Waits:
    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before_s: dict[Path, float] = {}
        self._kernel = [
            path.parent
            for path in Path("/proc").glob("[0-9]*/comm")
            if _text(path).startswith("ksoftirqd/")
        ]
        self.longest_s = 0.0

    def look(self) -> None:
        # Documentation/scheduler/sched-stats.rst: the second figure is what a thread has waited in
        # all, in ns, to which a wait is added when it ends. So what is added between two looks is
        # one wait, where it is longer than the time between them.
        waits_s = {}
        for path in self._threads():
            fields = _text(path).split()
            if len(fields) == 3:
                waits_s[path] = int(fields[1]) * 1e-9
        for path, now_s in waits_s.items():
            self.longest_s = max(self.longest_s, now_s - self._before_s.get(path, now_s))
        self._before_s = waits_s

    def _threads(self) -> Iterator[Path]:
        yield from (folder / "schedstat" for folder in self._kernel)
        left = [str(self._pid)]
        while left:
            for task in _tasks(left.pop()):
                yield task / "schedstat"
                left += _text(task / "children").split()


def _tasks(pid: str) -> list[Path]:
    with suppress(OSError):
        return list(Path("/proc", pid, "task").iterdir())
    return []


def _text(path: Path) -> str:
    # What has ended meanwhile waits for nothing.
    with suppress(OSError):
        return path.read_text()
    return ""


def _serve(pid: int) -> None:
    waits = _Waits(pid)
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
