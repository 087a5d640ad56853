"""Memory of a process that has keys is never swapped. Cores and neighbours: sandbox.py."""

from __future__ import annotations

import ctypes
import os
import resource

# include/uapi/asm-generic/mman.h
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4

_libc = ctypes.CDLL(None, use_errno=True)


def lock_memory() -> str:
    """Keep all of this process's memory out of swap; return why that is not possible, or nothing.

    To be called with privileges: without them, RLIMIT_MEMLOCK bounds what can be locked, and
    memory that the process gets later counts, too.
    """
    try:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
        # As pages are touched: else a fork would copy all that it shares with its parent.
        if _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"mlockall: {os.strerror(error)}")
    except (OSError, ValueError) as err:
        return str(err)
    return ""
