"""Processes as /proc shows them: which one a number means, and who belongs to a session."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lab.waiting import eventually


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot, or None if there is none.

    Together with the number it tells a process from a later one of that number.
    """
    try:
        return int(_stat(Path("/proc", str(pid)))[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _stat(folder: Path) -> list[str]:
    """Return what stands behind the name of a process or a thread: its state and so on.

    proc_pid_stat(5), from field 3 on. Raises FileNotFoundError or ProcessLookupError.
    """
    # The name, in parentheses, may hold anything.
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()


def threads(pid: int) -> list[Path]:
    """Return the folder of each thread of a process. One that has ended has none."""
    folder = Path("/proc", str(pid), "task")
    try:
        return [folder / name for name in os.listdir(folder)]
    except (FileNotFoundError, ProcessLookupError):
        return []


def await_single_thread(timeout_s: float) -> None:
    """Wait until this process has one thread: it must not fork before.

    A thread that was joined, or has said that it ends, is not gone yet.
    """
    eventually(lambda: len(threads(os.getpid())) == 1, timeout_s, "other threads to be gone")


def children(pid: int) -> list[int]:
    """Return the processes that the main thread of one has forked, and not yet reaped."""
    return _forked_by(Path("/proc", str(pid), "task", str(pid)))


def go_before_others(pids: Iterable[int]) -> None:
    """Let processes, and what they start, run before all that is not real-time, where allowed.

    For a test whose threads a busy machine would leave without a CPU for longer than it waits:
    see lab.starvation. By SCHED_FIFO, sched(7).
    """
    for pid in pids:
        for thread in threads(pid):
            with suppress(PermissionError, ProcessLookupError):
                os.sched_setscheduler(int(thread.name), os.SCHED_FIFO, os.sched_param(1))


def descendants(pid: int) -> list[int]:
    """Return what all threads of a process have started, and what that has: in whatever session.

    What ends meanwhile has none.
    """
    found = []
    for thread in threads(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in _forked_by(thread):
                found += [child, *descendants(child)]
    return found


def _forked_by(thread: Path) -> list[int]:
    return [int(child) for child in (thread / "children").read_text().split()]


def running(pids: Iterable[int]) -> list[int]:
    """Return those that have not ended: of some, only the exit status is left to be taken.

    Where their parent is gone that is init's to do, and it may take its time.
    """
    return [pid for pid in pids if not _has_ended(pid)]


def _has_ended(pid: int) -> bool:
    try:
        return _stat(Path("/proc", str(pid)))[0] in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def session_members(session: int) -> list[int]:
    """Return the processes of a session, known by its leader's process id."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(ProcessLookupError):
                if os.getsid(int(entry.name)) == session:
                    found.append(int(entry.name))
    return found


def resident_kb(pid: int) -> int:
    """Return how much of a process is in memory, in kB. Raises OSError if there is none."""
    text = Path("/proc", str(pid), "status").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1])


def sleeps(pid: int) -> bool:
    """Tell whether all threads of a process wait for something, or it has ended."""
    try:
        return all(thread_sleeps(pid, int(thread.name)) for thread in threads(pid))
    except OSError:
        return True


def thread_sleeps(pid: int, thread: int) -> bool:
    """Tell whether one thread of a process does. Raises OSError if it has ended."""
    return _stat(Path("/proc", str(pid), "task", str(thread)))[0] == "S"
