"""scripts/lab/starvation.py, and the tests that run again because of what it sees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lab import starvation
from lab.cpu import is_ready, waits_s
from lab.daemon import ROOT
from lab.process import descendants, running
from lab.starvation import StarvationWatch
from lab.waiting import eventually

pytestmark = [pytest.mark.needs_net_admin, pytest.mark.alone]

HELD_S = 0.7
LOOK_S = 5.0
# A child that wants to run is left without a CPU while another one, which goes before it, keeps it.
STARVE = f"""
import os, time

def starve():
    cpu = {{max(os.sched_getaffinity(0))}}
    children = []
    for goes_before in (False, True):
        child = os.fork()
        if child == 0:
            os.sched_setaffinity(0, cpu)
            end = time.monotonic() + {HELD_S}
            if goes_before:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            while time.monotonic() < end:
                pass
            # The one that was left without a CPU shows what it waited before it ends.
            time.sleep(0 if goes_before else {HELD_S})
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
"""
TESTS = (
    STARVE
    + """
import pytest

pytestmark = pytest.mark.needs_net_admin

def attempt(name):
    with open(name, "a+") as file:
        file.write("x")
        file.seek(0)
        return len(file.read())

def test_starved():
    if attempt("starved") == 1:
        starve()
        assert False

def test_wrong():
    attempt("wrong")
    assert False
"""
)


def watchers(pid: int) -> list[int]:
    """Return the processes that watch the descendants of one."""
    wanted = [b"lab.starvation", str(pid).encode()]
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if path.read_bytes().split(b"\0")[-3:-1] == wanted:
                found.append(int(path.parent.name))
    return found


def test_thread_that_is_left_without_a_cpu_is_seen() -> None:
    watch = StarvationWatch()
    try:
        watch.longest_s()
        subprocess.run([sys.executable, "-c", STARVE + "starve()"], check=True, timeout=60)

        assert watch.longest_s() > HELD_S / 2
    finally:
        watch.close()


@pytest.mark.parametrize(("ready", "runs", "seen_s"), [(1, 0, 3.0), (1, 1, 0.0), (0, 0, 0.0)])
def test_wait_that_has_not_ended_counts(
    monkeypatch: pytest.MonkeyPatch, ready: int, runs: int, seen_s: float
) -> None:
    """A thread that is killed ends with its wait, and nobody can read how long that was."""
    clock, thread = [0.0], Path("/proc/1/task/1")
    monkeypatch.setattr(starvation, "is_ready", lambda each: each == thread and bool(ready))
    monkeypatch.setattr(starvation, "scheduled_s", lambda _: {thread: (runs * clock[0], 0.0)})
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    waits = starvation.Waits(os.getpid())

    for clock[0] in (0.0, 1.0, 2.0, 2.25, 4.0):
        waits.look()

    assert waits.longest_s == seen_s


def test_thread_is_ready_while_it_computes_and_not_while_it_sleeps() -> None:
    own, sleeping = Path("/proc/thread-self").resolve(), subprocess.Popen(["sleep", "60"])
    try:
        asleep = Path(f"/proc/{sleeping.pid}/task/{sleeping.pid}")
        eventually(lambda: not is_ready(asleep), 10, "the other process to sleep")
        assert is_ready(own)
    finally:
        sleeping.kill()
        sleeping.wait()
    assert not is_ready(asleep)


def test_processes_that_end_while_they_are_looked_at_are_no_trouble() -> None:
    # Each ends within a millisecond, while the loop is between its directory and its threads.
    forking = subprocess.Popen(["sh", "-c", "while :; do (:) & (:) & (:) & wait; done"])
    try:
        seen = set()
        end = time.monotonic() + LOOK_S
        while time.monotonic() < end:
            for pid in descendants(os.getpid()):
                waits_s(pid)
                seen.add(pid)
    finally:
        forking.kill()
        forking.wait()
    assert len(seen) > 20


def test_watch_whose_process_was_killed_can_be_closed() -> None:
    before = set(watchers(os.getpid()))  # that of this session
    watch = StarvationWatch()
    watch.longest_s()
    (pid,) = set(watchers(os.getpid())) - before
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not running([pid]), 10, "the watcher's end")
    with pytest.raises((BrokenPipeError, ValueError)):
        watch.longest_s()
    watch.close()


def test_test_that_fails_runs_again_only_if_its_processes_were_starved(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(TESTS)
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'scripts'}"}
    options = ["-p", "conftest", "-p", "no:cacheprovider", "-o", "addopts="]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_two.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )

    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
    assert "FAILED test_two.py::test_wrong" in done.stdout
    assert "test_two.py::test_starved: once more, as a thread was left without a CPU" in done.stdout
    assert (tmp_path / "starved").read_text() == "xx"
