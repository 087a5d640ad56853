"""vela.linux.sandbox: what a real child has left; it does not outlive its supervisor."""

from __future__ import annotations

import faulthandler
import hashlib
import os
import pwd
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vela.errors import ConfigError
from vela.linux import seccomp
from vela.linux.sandbox import User, confine, find_user, key_holder_filter, resolver_filter
from vela.linux.seccomp import Filter
from vela.supervisor.runtime.process import ExitStatus, fork

pytestmark = [
    pytest.mark.forks,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

needs_filter = pytest.mark.skipif(seccomp.why_not() != "", reason=seccomp.why_not())

NOBODY = User(pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid)
TIMEOUT_S = 10.0


def test_find_user_of_a_name_that_is_not_there_raises() -> None:
    assert find_user("nobody") == NOBODY
    with pytest.raises(ConfigError, match="there is no user 'no-such-user'"):
        find_user("no-such-user")


def test_confined_child_has_no_privilege_and_no_way_back() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()

    def body() -> None:
        os.setgroups([0, 6])  # as a login of root's has them: "disk", say
        confine(NOBODY, parent)
        with open("/proc/self/status") as file:
            theirs.send(file.read().encode())
        try:
            os.setuid(0)
        except PermissionError:
            theirs.send(b"no way back")

    with ours, theirs:
        assert fork(body, (theirs.fileno(),)).reap().code == 0
        status = dict(
            line.split(":", 1) for line in ours.recv(65536).decode().splitlines() if ":" in line
        )
        assert ours.recv(100, socket.MSG_DONTWAIT) == b"no way back"

    assert status["Uid"].split() == [str(NOBODY.uid)] * 4
    assert status["Gid"].split() == [str(NOBODY.gid)] * 4
    assert status["Groups"].split() == []
    assert status["NoNewPrivs"].strip() == "1"
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[kind], 16) == 0, kind


def test_confined_child_has_no_terminal_and_leaves_no_core() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()

    def body() -> None:
        confine(NOBODY, parent)
        theirs.send(repr((os.getsid(0) == os.getpid(), os.stat("/proc/self/mem").st_uid)).encode())
        theirs.send(repr(resource.getrlimit(resource.RLIMIT_CORE)).encode())
        os.kill(os.getpid(), signal.SIGSEGV)

    with ours, theirs:
        child = fork(body, (theirs.fileno(),))
        # Not dumpable: what it has in /proc is root's.
        assert ours.recv(100) == b"(True, 0)"
        assert ours.recv(100) == b"(0, 0)"
        result = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        assert result is not None
        assert result.si_code == os.CLD_KILLED  # CLD_DUMPED: it left one


def in_helper(calls: Filter | None, act: Callable[[], object]) -> ExitStatus:
    """Return how a child ended that acted under a helper's filter."""
    parent = os.getpid()
    assert calls is not None

    def body() -> None:
        confine(NOBODY, parent)
        calls.install()
        act()

    return fork(body, ()).reap()


def fails(error: type[OSError], act: Callable[[], object]) -> None:
    try:
        act()
    except error:
        os._exit(9)


def run_threads() -> None:
    threads = [threading.Thread(target=os.listdir, args=("/",)) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
    resource.getrlimit(resource.RLIMIT_STACK)
    os._exit(9)


def abort() -> None:
    faulthandler.disable()  # of pytest
    os.abort()


@needs_filter
@pytest.mark.parametrize(
    ("act", "ended"),
    [
        (run_threads, ExitStatus(code=9)),
        (abort, ExitStatus(signal=signal.SIGABRT)),
        (lambda: fails(PermissionError, os.fork), ExitStatus(code=9)),
        (lambda: os.execv("/bin/true", ["true"]), ExitStatus(signal=signal.SIGSYS)),
        (lambda: os.kill(os.getppid(), 0), ExitStatus(signal=signal.SIGSYS)),
        (lambda: os.pidfd_open(os.getppid()), ExitStatus(signal=signal.SIGSYS)),
        (lambda: os.setpriority(0, 0, 5), ExitStatus(signal=signal.SIGSYS)),
        (lambda: os.sched_setaffinity(0, {0}), ExitStatus(signal=signal.SIGSYS)),
        (
            lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU),
            ExitStatus(signal=signal.SIGSYS),
        ),
    ],
    ids=[
        *("threads", "abort", "fork", "execve", "kill", "pidfd_open", "setpriority"),
        *("sched_setaffinity", "prlimit"),
    ],
)
def test_helper_for_names_has_threads_and_sockets_and_no_way_to_others(
    act: Callable[[], object], ended: ExitStatus
) -> None:
    assert in_helper(resolver_filter(), act) == ended


def hash_and_read(path: str) -> None:
    hashlib.sha256(Path(path).read_bytes()).hexdigest()
    os._exit(9)


@needs_filter
@pytest.mark.parametrize(
    ("act", "ended"),
    [
        (lambda: hash_and_read("/etc/hostname"), ExitStatus(code=9)),
        (lambda: fails(PermissionError, os.fork), ExitStatus(code=9)),
        (socket.socket, ExitStatus(signal=signal.SIGSYS)),
        (socket.socketpair, ExitStatus(signal=signal.SIGSYS)),
        (lambda: os.execv("/bin/true", ["true"]), ExitStatus(signal=signal.SIGSYS)),
        (lambda: os.kill(os.getppid(), 0), ExitStatus(signal=signal.SIGSYS)),
    ],
    ids=["files", "fork", "socket", "socketpair", "execve", "kill"],
)
def test_key_holder_reads_files_and_has_nobody_to_tell_them_to(
    act: Callable[[], object], ended: ExitStatus
) -> None:
    assert in_helper(key_holder_filter(), act) == ended


def test_confined_child_dies_with_a_supervisor_that_is_killed() -> None:
    """Also though the change of user clears what prctl had set before."""
    code = f"""
import os, signal
from vela.linux.sandbox import User, confine
from vela.linux import seccomp
from vela.linux.seccomp import Filter
from vela.supervisor.runtime.process import ExitStatus, fork
supervisor = os.getpid()
def body():
    confine(User({NOBODY.uid}, {NOBODY.gid}), supervisor)
    os.write(1, f"{{os.getpid()}}\\n".encode())
    signal.pause()
fork(body, ())
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        child = os.pidfd_open(int(supervisor.stdout.readline()))
        try:
            supervisor.kill()
            assert select.select([child], [], [], TIMEOUT_S)[0], "the child lives on"
        finally:
            os.close(child)


def test_child_whose_supervisor_is_gone_already_ends_at_once() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def body() -> None:
        confine(NOBODY, 1 if os.getppid() != 1 else 2)
        theirs.send(b"went on")

    with ours, theirs:
        assert fork(body, (theirs.fileno(),)).reap().code == 0
        theirs.close()
        assert ours.recv(100) == b""


def test_confined_child_ends_by_sigterm() -> None:
    parent = os.getpid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def body() -> None:
        confine(NOBODY, parent)
        theirs.send(b"ready")
        signal.pause()

    with ours, theirs:
        child = fork(body, (theirs.fileno(),))
        assert ours.recv(100) == b"ready"
        child.signal(signal.SIGTERM)
        assert child.reap().signal == signal.SIGTERM
