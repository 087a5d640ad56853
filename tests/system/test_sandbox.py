"""vela.linux.sandbox: what a real child has left; it does not outlive its supervisor."""

from __future__ import annotations

import os
import pwd
import select
import signal
import socket
import subprocess
import sys

import pytest

from vela.errors import ConfigError
from vela.linux.sandbox import User, confine, find_user
from vela.supervisor.runtime.process import fork

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

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


def test_confined_child_dies_with_a_supervisor_that_is_killed() -> None:
    """Also though the change of user clears what prctl had set before."""
    code = f"""
import os, signal
from vela.linux.sandbox import User, confine
from vela.supervisor.runtime.process import fork
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
