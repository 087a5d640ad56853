"""Whether the machine left a thread without a CPU for long while it was ready to run.

Linux 6.18 does that on a CPU that is never idle: its fair scheduler passed over worker threads, and
ksoftirqd, for up to 7 s beside one busy loop. What waits on such a machine says nothing about VELA.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PERIOD_S = 0.25


class Starvation:
    """Watches the threads of all descendants of a process, and the kernel's that move packets."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._waits_s: dict[Path, float] = {}
        self._longest_s = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="starvation", daemon=True)
        self._kernel = [
            path.parent
            for path in Path("/proc").glob("[0-9]*/comm")
            if _text(path).startswith("ksoftirqd/")
        ]

    @property
    def longest_s(self) -> float:
        """How long the thread waited that waited longest in one piece, as good as; see PERIOD_S."""
        return self._longest_s

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(PERIOD_S):
            self._look()

    def _look(self) -> None:
        # Documentation/scheduler/sched-stats.rst: the second figure is what a thread has waited in
        # all, in ns, to which a wait is added when it ends. So what is added between two looks is
        # one wait, where it is longer than the time between them.
        waits_s = {}
        for path in self._threads():
            fields = _text(path).split()
            if len(fields) == 3:
                waits_s[path] = int(fields[1]) * 1e-9
        for path, now_s in waits_s.items():
            before_s = self._waits_s.get(path, now_s)
            self._longest_s = max(self._longest_s, now_s - before_s)
        self._waits_s = waits_s

    def _threads(self) -> Iterator[Path]:
        yield from (folder / "schedstat" for folder in self._kernel)
        waiting = [str(self._pid)]
        while waiting:
            for task in _tasks(waiting.pop()):
                yield task / "schedstat"
                waiting += _text(task / "children").split()


def _tasks(pid: str) -> list[Path]:
    with suppress(OSError):
        return list(Path("/proc", pid, "task").iterdir())
    return []


def _text(path: Path) -> str:
    # What has ended meanwhile waits for nothing.
    with suppress(OSError):
        return path.read_text()
    return ""
