"""What a forked child gives up before it touches anything from the network."""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
from dataclasses import dataclass

from vela.errors import ConfigError

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


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


def confine(user: User, supervisor_pid: int) -> None:
    """Drop all privileges for good, and die with the supervisor.

    Ends the process at once if the supervisor is gone already.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    # Behind the change of user, which clears it (prctl(2)).
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor_pid:
        os._exit(0)


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"prctl({option}): {os.strerror(errno)}")
