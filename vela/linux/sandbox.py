"""What a forked child gives up: its privileges at once, and then all that it does not use.

Workers read hostile bytes, and so does whoever looks up names. docs/security.md says what one
that was taken over can still do.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import resource
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from termios import TCGETS, TIOCGWINSZ

from vela.errors import ConfigError, DeviceError
from vela.linux import seccomp
from vela.linux.seccomp import (
    OWN_PID,
    Filter,
    Rule,
    allow,
    equals,
    fail,
    has_bit_of,
    has_no_bit_of,
    kill,
)

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_VMA = 0x53564D41

_PROT_EXEC = 0x4  # include/uapi/asm-generic/mman-common.h
_CLONE_THREAD = 0x00010000  # include/uapi/linux/sched.h
_STDERR = 2

# include/uapi/linux/capability.h
_CAP_KILL = 5
_CAP_SYS_NICE = 23

# Made ahead of any fork: what a child makes is memory of its own.
_libc_prctl = ctypes.CDLL(None, use_errno=True).prctl
_libc_prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)

_INTERPRETER = (
    # What threads wait for each other with, and memory: never executable.
    allow("futex"),
    allow("mmap", has_no_bit_of(2, _PROT_EXEC)),
    allow("mprotect", has_no_bit_of(2, _PROT_EXEC)),
    allow("munmap"),
    allow("mremap"),
    allow("madvise"),
    allow("brk"),
    # Without the vDSO, as with some virtual clocks, these are calls.
    allow("clock_gettime"),
    allow("gettimeofday"),
    # A wait that SIGSTOP and SIGCONT interrupted goes on by this.
    allow("restart_syscall"),
    allow("rt_sigreturn"),
    allow("rt_sigprocmask"),
    allow("rt_sigaction"),
    allow("sched_yield"),
    # malloc asks when a thread needs memory of its own.
    allow("sched_getaffinity"),
    allow("getrandom"),
    allow("getpid"),
    allow("gettid"),
    allow("exit"),
    allow("exit_group"),
    # A line of the log, and what libc says before it aborts.
    allow("write", equals(0, _STDERR)),
    allow("writev", equals(0, _STDERR)),
    allow("tgkill", equals(0, OWN_PID), equals(2, signal.SIGABRT)),
    # A traceback looks for its source files, and for a terminal.
    *(
        fail(errno.EPERM, call)
        for call in (
            *("open", "openat", "access", "faccessat", "faccessat2", "stat", "lstat", "fstat"),
            *("newfstatat", "statx", "lseek", "readlink", "readlinkat", "getcwd"),
        )
    ),
    *(fail(errno.EPERM, "ioctl", equals(1, request)) for request in (TCGETS, TIOCGWINSZ)),
    # Names for mappings: Python's developer mode since 3.15, glibc with a tunable. As a kernel that
    # has none.
    fail(errno.EINVAL, "prctl", equals(0, _PR_SET_VMA)),
)

_HELPER = (
    # New threads, and no processes. What clone3 is asked for stands in memory, where no filter
    # can see it; libc then takes clone.
    fail(errno.ENOSYS, "clone3"),
    allow("clone", has_bit_of(0, _CLONE_THREAD)),
    *(fail(errno.EPERM, call) for call in ("clone", "fork", "vfork")),
    allow("tgkill", equals(0, OWN_PID)),
    allow("prlimit64", equals(0, 0)),
    *(
        kill(call)
        for call in (
            *("execve", "execveat"),
            # Processes of the same user: the workers.
            *("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"),
            *("pidfd_open", "pidfd_getfd", "pidfd_send_signal", "process_madvise", "prlimit64"),
            *("ptrace", "process_vm_readv", "process_vm_writev", "setpriority", "ioprio_set"),
            *("sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler"),
            # Large parts of the kernel that no look-up needs.
            *("bpf", "io_uring_setup", "userfaultfd", "perf_event_open", "personality"),
            *("keyctl", "add_key", "request_key"),
            *("unshare", "setns", "mount", "umount2", "pivot_root", "chroot"),
        )
    ),
)

_KEY_HOLDER = (
    *_HELPER,
    *map(kill, ("socket", "socketpair", "connect", "bind", "listen", "accept", "accept4")),
)


@dataclass(frozen=True, slots=True)
class User:
    """Whom a child runs as."""

    uid: int
    gid: int


def find_user(name: str) -> User:
    """Return the user of this name. Raises ConfigError if there is none."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError as err:
        raise ConfigError(f"there is no user {name!r}") from err
    return User(entry.pw_uid, entry.pw_gid)


def check_capabilities() -> None:
    """Raise DeviceError where this process could not end its children, as they are other users."""
    if not _has_capability(_CAP_KILL):
        raise DeviceError("it has no CAP_KILL: its workers, which run as others, would outlive it")


def may_move_children() -> bool:
    """Tell whether this process may choose the CPUs of its children, as they are other users."""
    return _has_capability(_CAP_SYS_NICE)


def _has_capability(bit: int) -> bool:
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> bit & 1)
    return True  # then nobody knows


@cache
def why_no_filter() -> str:
    """Return why children here run without a filter of system calls; empty: they have one."""
    return seccomp.why_not()


def worker_filter(calls: Iterable[Rule]) -> Filter | None:
    """Return the filter of a worker whose engine makes these calls; None: see why_no_filter."""
    if why_no_filter():
        return None
    return Filter(seccomp.program((*calls, *_INTERPRETER), seccomp.KILL))


@cache
def resolver_filter() -> Filter | None:
    """Return the filter of whoever looks up names; None: see why_no_filter.

    It names what is forbidden. Look-ups load modules of the system's choice, which open files and
    speak to daemons in ways that nobody can list.
    """
    if why_no_filter():
        return None
    return Filter(seccomp.program(_HELPER, seccomp.ALLOW))


@cache
def key_holder_filter() -> Filter | None:
    """Return the filter of whoever has keys: as resolver_filter, and nobody to tell them to."""
    if why_no_filter():
        return None
    return Filter(seccomp.program(_KEY_HOLDER, seccomp.ALLOW))


def confine(user: User, supervisor_pid: int) -> None:
    """Drop all privileges for good, and die with the supervisor.

    Afterwards the process has no terminal, leaves no core, and shows its memory to nobody. Ends it
    at once if the supervisor is gone already.
    """
    # Without a terminal, as whoever has it could type on it (TIOCSTI).
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # Only privileged processes may call setgroups, even if there is nothing to drop.
    if set(os.getgroups()) - {user.gid}:
        os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    # Behind the change of user, which clears the one and sets the other as fs.suid_dumpable says
    # (prctl(2)).
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_DUMPABLE, 0)
    if os.getppid() != supervisor_pid:
        os._exit(0)


def seal(calls: Filter | None, polled: int = 2) -> None:
    """Let no thread of this process start anything or open anything any more, and filter its calls.

    polled: how many descriptors it polls at a time; 3 at most, as so many numbers are taken.
    All threads must have started. The limits hold where there is no filter, too. Raises OSError.
    """
    # However many processes the user has: with 0 a process may start none.
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    # It also is how many descriptors may be polled at a time.
    resource.setrlimit(resource.RLIMIT_NOFILE, (polled, polled))
    if calls is not None:
        calls.install()


def _prctl(option: int, argument: int) -> None:
    if _libc_prctl(option, argument, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")
