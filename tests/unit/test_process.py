"""vela.supervisor.runtime.process: the pitfalls of forking, one by one, with real children."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from lab.process import await_single_thread
from vela.supervisor.runtime.process import Child, ExitStatus, fork

pytestmark = pytest.mark.forks

TIMEOUT_S = 10.0


def run_script(code: str, *, unbuffered: str = "") -> subprocess.CompletedProcess[str]:
    """Run code as a program of its own: what happens at its exit is part of the test."""
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, env=env
    )


@contextmanager
def handled(number: signal.Signals, handler: Callable[[int, object], None]) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def wait_for_signal() -> None:
    while True:
        signal.pause()


def ended(child: Child) -> bool:
    return bool(select.select([child.pidfd], [], [], TIMEOUT_S)[0])


def test_child_signalled_at_birth_ends_every_time() -> None:
    """A signal must not run the parent's handler in a child that is not ready for it."""
    with handled(signal.SIGTERM, lambda _number, _frame: None):
        statuses = []
        for _ in range(50):
            child = fork(wait_for_signal, ())
            child.signal(signal.SIGTERM)
            assert ended(child), "SIGTERM was lost"
            statuses.append(child.reap())

    assert statuses == [ExitStatus(signal=signal.SIGTERM)] * 50


def test_fork_leaves_the_parents_signal_mask_as_it_was() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        fork(lambda: None, ()).reap()
        now = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert now == before | {signal.SIGUSR1}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_signal_in_the_child_does_not_wake_the_parent() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writer)
    try:

        def body() -> None:
            # A Python handler, as only those write to the wake-up descriptor.
            signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
            os.kill(os.getpid(), signal.SIGUSR1)

        # CircuitStore open in the child, or the write would fail for that reason alone.
        status = fork(body, (writer,)).reap()
    finally:
        signal.set_wakeup_fd(before)

    assert status == ExitStatus(code=0)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_terminals_signals_to_the_group_leave_the_child_alone(number: signal.Signals) -> None:
    child = fork(wait_for_signal, ())
    child.signal(number)
    child.signal(signal.SIGTERM)

    # Signals are delivered lowest number first, so the other one would have been what ended it.
    assert number < signal.SIGTERM
    assert child.reap() == ExitStatus(signal=signal.SIGTERM)


@pytest.mark.parametrize(
    "leave", ["pass", "sys.exit(3)", "raise ValueError('no')", "import nothing"]
)
def test_child_that_leaves_runs_nothing_of_the_parents(leave: str) -> None:
    done = run_script(
        f"""
import atexit, sys
from vela.supervisor.runtime.process import fork
atexit.register(print, "at exit")
def body():
    {leave}
try:
    status = fork(body, ()).reap()
finally:
    print("finally", status)
"""
    )

    code = 0 if leave == "pass" else 70
    assert done.stdout == f"finally exit status {code}\nat exit\n"
    assert ("Traceback" in done.stderr) is (leave != "pass")


def test_output_in_the_buffer_is_written_once() -> None:
    done = run_script(
        """
import sys
from vela.supervisor.runtime.process import fork
sys.stdout.write("once ")
fork(lambda: sys.stdout.flush(), ()).reap()
print("end")
"""
    )

    assert (done.stdout, done.stderr) == ("once end\n", "")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_that_cannot_be_written_does_not_prevent_a_fork(stream: str) -> None:
    """What is in the buffer stays there, and every flush fails anew."""
    code = f"""
import os, sys
from vela.supervisor.runtime.process import fork
os.dup2(os.open("/dev/full", os.O_WRONLY), sys.{stream}.fileno())
try:
    sys.{stream}.write("lost\\n")
    sys.{stream}.flush()
except OSError:
    pass
os._exit(fork(lambda: os._exit(7), ()).reap().code)
"""

    assert run_script(code).returncode == 7


def test_deaths_at_one_moment_are_all_told() -> None:
    """SIGCHLD would coalesce; each pidfd tells of its own."""
    children = [fork(partial(os._exit, code), ()) for code in range(20)]
    poll = select.poll()
    for child in children:
        poll.register(child.pidfd, select.POLLIN)
    deadline = time.monotonic() + TIMEOUT_S
    while len(poll.poll(100)) < 20:
        assert time.monotonic() < deadline

    assert [child.reap().code for child in children] == list(range(20))


def test_signal_to_a_child_that_has_ended_is_no_error_until_it_is_reaped() -> None:
    child = fork(lambda: None, ())
    assert ended(child)

    child.signal(signal.SIGKILL)

    assert child.reap() == ExitStatus(code=0)
    with pytest.raises(ChildProcessError):
        os.waitpid(child.pid, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        child.signal(signal.SIGKILL)


def test_child_has_its_descriptors_and_no_other() -> None:
    ours, theirs = socket.socketpair()
    strangers = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
    inheritable = os.dup(strangers[0])
    os.set_inheritable(inheritable, True)
    gap = os.dup2(strangers[0], 500)

    def body() -> None:
        # The descriptor of the listing itself is the one that is closed again.
        found = [int(name) for name in os.listdir("/proc/self/fd")]
        theirs.send(repr([fd for fd in found if os.path.exists(f"/proc/self/fd/{fd}")]).encode())

    assert fork(body, (theirs.fileno(),)).reap().code == 0
    assert ours.recv(1000).decode() == repr([0, 1, 2, theirs.fileno()])
    for fd in (*strangers, inheritable, gap):
        os.close(fd)
    ours.close()
    theirs.close()


def test_pidfd_is_not_inherited_by_programs() -> None:
    child = fork(lambda: None, ())

    assert not os.get_inheritable(child.pidfd)
    child.reap()


def test_fork_with_threads_is_refused() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="threads"):
            fork(lambda: None, ())
    finally:
        release.set()
        thread.join()
        await_single_thread(10.0)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (ExitStatus(code=0), "exit status 0"),
        (ExitStatus(code=70), "exit status 70"),
        (ExitStatus(signal=9), "SIGKILL"),
        (ExitStatus(signal=40), "signal 40"),
    ],
)
def test_exit_status_in_words(status: ExitStatus, text: str) -> None:
    assert str(status) == text


def test_real_time_signal_that_ends_a_child_is_told() -> None:
    child = fork(lambda: os.kill(os.getpid(), 40), ())

    assert child.reap() == ExitStatus(signal=40)
