"""Memory for keys that two processes share: out of reach of others, of swap and of core dumps."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from contextlib import suppress

# The same on every architecture (include/uapi/asm-generic/unistd.h): Linux 5.14.
_SYS_MEMFD_SECRET = 447

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def create(size: int) -> int:
    """Return a descriptor of size bytes of zeros.

    memfd_secret(2) takes the pages out of the kernel's own map, so that neither
    /proc/PID/mem nor a bug that reads the kernel's memory shows them. It is missing
    before Linux 5.14, where it was not built in, or where secretmem.enable=0 was
    given; then the memory is an ordinary memfd, which map_shared() locks.

    Raises OSError where there is neither.
    """
    fd = _memfd_secret()
    if fd is None:
        fd = os.memfd_create("vela-keys", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def map_shared(fd: int, size: int) -> mmap.mmap:
    """Map memory that create() made, into this process alone: a fork does not inherit it.

    Raises OSError where there is no memory that may be locked (RLIMIT_MEMLOCK).
    """
    mapped = mmap.mmap(fd, size)
    try:
        # A child gets the descriptor or nothing; so no copy lives on in one that has no use for it.
        mapped.madvise(mmap.MADV_DONTFORK)
        # What memfd_secret refuses, it does not need: its pages are in no dump.
        with suppress(OSError):
            mapped.madvise(mmap.MADV_DONTDUMP)
        if not is_hidden(fd):
            _lock(mapped, size)
    except OSError:
        mapped.close()
        raise
    return mapped


def is_hidden(fd: int) -> bool:
    """Tell whether memory of create() is one that not even the kernel maps: it is locked, too."""
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # EINVAL: not what memfd_create makes
        return True
    return False


def _memfd_secret() -> int | None:
    fd: int = _libc.syscall(_SYS_MEMFD_SECRET, os.O_CLOEXEC)
    if fd >= 0:
        return fd
    error = ctypes.get_errno()
    # EPERM: a sandbox's way to say that it does not know the call.
    if error not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
        raise OSError(error, f"memfd_secret: {os.strerror(error)}")
    return None


def _lock(mapped: mmap.mmap, size: int) -> None:
    """Keep memory out of swap."""
    first = ctypes.c_char.from_buffer(mapped)
    try:
        failed = _libc.mlock(ctypes.addressof(first), size) != 0
        error = ctypes.get_errno()
    finally:
        del first
    if failed:
        raise OSError(error, f"mlock: {os.strerror(error)}")
