"""A network namespace, the processes started in it, and sockets opened in it from here."""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from lab.errors import LabError
from lab.resource import Resource
from lab.waiting import PATIENCE, eventually

PREFIX = "vlab"
RUN_TIMEOUT_S = 60.0 * PATIENCE
# How long a process may take to obey SIGTERM before it is killed.
TERMINATE_TIMEOUT_S = 5.0

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)
_live: set[Namespace] = set()


class Namespace(Resource):
    """A named network namespace with its loopback up and duplicate address detection off.

    Its name is unique on the machine: process id, counter, label. Removed on
    leaving the context, together with the processes that were started through
    it, and at exit in any case.
    """

    def __init__(self, label: str = "") -> None:
        self.name = f"{prefix(os.getpid())}{next(_numbers)}{label and '-' + label}"
        self.resolv_conf: Path | None = None
        """What processes started from now on see as /etc/resolv.conf; None: the machine's."""
        self._processes: list[subprocess.Popen[Any]] = []
        try:
            with _signals_held():
                _ip("netns", "add", self.name)
                _live.add(self)
            self.run("ip", "link", "set", "lo", "up")
            # A fresh address is usable at once, and no router is asked for.
            self.sysctl("net/ipv6/conf/default/accept_dad", 0)
            self.sysctl("net/ipv6/conf/default/router_solicitations", 0)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"

    @property
    def path(self) -> Path:
        return Path("/run/netns", self.name)

    def command(self, *argv: str) -> list[str]:
        """Return the command line that runs argv inside."""
        line = ["ip", "netns", "exec", self.name]
        if self.resolv_conf is not None:
            # ip-netns(8) has made a mount namespace of the process's own already.
            bind = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
            line += ["sh", "-c", bind, str(self.resolv_conf)]
        return [*line, *argv]

    def run(
        self,
        *argv: str,
        check: bool = True,
        timeout_s: float = RUN_TIMEOUT_S,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run argv inside to its end.

        Raises LabError with its output if it fails and check is set, or if it
        takes longer than timeout_s; it is then killed.
        """
        return _run(self.command(*argv), check=check, timeout_s=timeout_s, stdin=stdin, env=env)

    def popen(
        self,
        *argv: str,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = subprocess.DEVNULL,
        stderr: int | IO[Any] | None = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Start argv inside, in a session of its own; the namespace ends it when removed."""
        with _signals_held() as mask:
            process = subprocess.Popen(
                self.command(*argv),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=env,
                cwd=cwd,
                text=True,
                start_new_session=True,
                preexec_fn=partial(signal.pthread_sigmask, signal.SIG_SETMASK, mask),
            )
            self._processes.append(process)
        return process

    def sysctl(self, key: str, value: int | str) -> None:
        """Write one of the namespace's own settings; key is its path under /proc/sys."""
        with self.entered():
            Path("/proc/sys", key).write_text(str(value))

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread in; sockets opened meanwhile belong to it for good.

        Names under /sys stay those of the outside. Not for threads that share
        work: only this thread moves.
        """
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _setns(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _setns(here)
        finally:
            os.close(here)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket of this namespace; the caller closes it."""
        with self.entered():
            return socket.socket(family, kind, protocol)

    def pids(self) -> list[int]:
        """Return the processes inside, whoever started them."""
        return pids(self.name)

    def detach(self) -> None:
        """Leave it, and what runs in it, in place after this process ends."""
        _live.discard(self)

    def close(self) -> None:
        """End the processes started here and delete the namespace. Idempotent."""
        if self not in _live:
            return
        try:
            self._end_processes()
        finally:
            _ip("netns", "del", self.name)
            _live.discard(self)

    def _end_processes(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(TERMINATE_TIMEOUT_S)
            _discard(process)
        # Their descendants: a session id cannot be reused while it has members.
        ending = {process.pid for process in self._processes}
        self._processes.clear()
        if ending:
            end_sessions(self.name, ending)


def prefix(pid: int) -> str:
    """Return how the unique names begin that a process gives."""
    return f"{PREFIX}-{pid}-"


def pids(name: str) -> list[int]:
    """Return the processes in a namespace, whoever started them."""
    return [int(pid) for pid in _ip("netns", "pids", name).split()]


def sessions(name: str) -> set[int]:
    """Return the sessions that the processes in a namespace belong to."""
    found = set()
    for pid in pids(name):
        with suppress(ProcessLookupError):
            found.add(os.getsid(pid))
    return found


def end_sessions(name: str, ending: set[int]) -> None:
    """Kill what is in the namespace and belongs to one of the sessions, and wait for its end.

    A session is the process id of its leader: of what popen returned.
    """

    def members() -> list[int]:
        found = []
        for pid in pids(name):
            with suppress(ProcessLookupError):
                if os.getsid(pid) in ending:
                    found.append(pid)
        return found

    for pid in members():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not members(), TERMINATE_TIMEOUT_S, f"processes in {name} to end")


def existing() -> set[str]:
    """Return the names of all network namespaces of the machine."""
    return {line.split()[0] for line in _ip("netns", "list").splitlines() if line.strip()}


def delete(name: str) -> None:
    """Delete a namespace by name, whoever made it."""
    _ip("netns", "del", name)


def unavailable() -> str | None:
    """Return why no namespace can be made here, or None if one can."""
    if os.geteuid() != 0:
        return "not root"
    try:
        Namespace("probe").close()
    except (LabError, OSError) as err:
        return f"no network namespaces: {err}"
    return None


@contextmanager
def _signals_held() -> Iterator[set[signal.Signals]]:
    """Put off what would interrupt, so that all that was started is also known here.

    subprocess.run is no help: an exception out of a signal handler while it
    forks leaves a child that nobody has heard of. Yields the mask that
    children get back.
    """
    ending = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        yield {signal.Signals(number) for number in before}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _discard(process: subprocess.Popen[str]) -> None:
    process.kill()  # nothing happens to one that has ended
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _run(
    argv: list[str],
    *,
    check: bool = True,
    timeout_s: float = RUN_TIMEOUT_S,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    line = " ".join(argv)
    process = None
    try:
        with _signals_held() as mask:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=env,
                preexec_fn=partial(signal.pthread_sigmask, signal.SIG_SETMASK, mask),
            )
        stdout, stderr = process.communicate(stdin, timeout_s)
    except subprocess.TimeoutExpired as err:
        raise LabError(f"{line}: not done after {timeout_s:g} s") from err
    except FileNotFoundError as err:
        raise LabError(f"{line}: {err.strerror}") from err
    finally:
        if process is not None:
            _discard(process)
    done = subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise LabError(f"{line}: exit status {done.returncode}: {said}")
    return done


def _ip(*argv: str) -> str:
    return _run(["ip", *argv]).stdout


def _setns(fd: int) -> None:
    # os.setns came with Python 3.12.
    if _libc.setns(fd, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


@atexit.register
def _remove_all() -> None:
    for namespace in list(_live):
        with suppress(LabError, OSError):
            namespace.close()
