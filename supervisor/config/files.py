"""Files that velad trusts: whose they are, and who can change them.

Whoever can change the configuration, a key or the state of velad is root on this machine, for all
that matters. So such files belong to root, or to the user that velad runs as, and nobody else
can write them. Folders above a file are the operator's: only the file is looked at.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from enum import Enum
from pathlib import Path

from vela.errors import VelaError

MAX_LINKS = 40  # as the kernel has it: path_resolution(7)

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


class UntrustedError(VelaError):
    """A file that is not what it should be, or somebody else's; says what would be right."""


class Access(Enum):
    """What others may do with a file."""

    READ = _WRITABLE
    NONE = _OTHERS

    @property
    def forbidden(self) -> int:
        """The bits of the mode that may not be set."""
        bits: int = self.value
        return bits


def open_trusted(path: Path, others: Access) -> int:
    """Return a descriptor to read a file; a symbolic link is none.

    Raises UntrustedError, or OSError where the file cannot be opened.
    """
    # O_NONBLOCK: opening a FIFO would wait for its writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags)
    except OSError as err:
        if err.errno == errno.ELOOP:
            raise UntrustedError(f"{path} is a symbolic link; name the file itself") from err
        raise
    try:
        _check(os.fstat(fd), path, others)
    except BaseException:
        os.close(fd)
        raise
    return fd


def resolve_links(path: Path) -> Path:
    """Return what a path leads to, where every symbolic link at its end is trusted, too.

    A link that somebody else made could let velad read any of root's files in the place of the
    one that is meant. Raises UntrustedError, or OSError.
    """
    for _ in range(MAX_LINKS):
        status = os.lstat(path)
        if not stat.S_ISLNK(status.st_mode):
            return path
        _check_owner(status, path)
        path = path.parent / os.readlink(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def close_directory(path: Path) -> None:
    """Take a directory of velad's own from all others, if it is sticky, as a fresh tmpfs is.

    Nobody can have replaced what root has in there, so nothing is lost by it; where it is not
    sticky, or somebody else's, check_directory() refuses it.
    """
    with suppress(OSError):
        status = os.lstat(path)
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if ours and status.st_mode & stat.S_ISVTX:
            path.chmod(stat.S_IMODE(status.st_mode) & ~(_WRITABLE | stat.S_ISVTX))


def check_directory(path: Path) -> None:
    """Check a folder whose files velad trusts.

    Raises UntrustedError, or OSError where it cannot be looked at.
    """
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise UntrustedError(f"{path} is a symbolic link; name the directory itself")
    if not stat.S_ISDIR(status.st_mode):
        raise UntrustedError(f"{path} is no directory")
    _check_owner(status, path)
    _check_mode(status, path, Access.READ)


def _check(status: os.stat_result, path: Path, others: Access) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedError(f"{path} is not a regular file; name one that is")
    _check_owner(status, path)
    _check_mode(status, path, others)


def _check_owner(status: os.stat_result, path: Path) -> None:
    user = os.geteuid()
    if status.st_uid not in (0, user):
        name = "root" if user == 0 else f"root or user {user}"
        raise UntrustedError(
            f"{path} belongs to user {status.st_uid}, not to {name}; run chown root on it"
        )


def _check_mode(status: os.stat_result, path: Path, others: Access) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if not mode & others.forbidden:
        return
    if others is Access.NONE:
        raise UntrustedError(f"{path} gives others access (mode {mode:04o}); run chmod 600 on it")
    raise UntrustedError(f"{path} can be changed by others (mode {mode:04o}); run chmod go-w on it")
