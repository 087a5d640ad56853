"""Descriptors of this process: how many are open, and what happens where there are no more."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


def open_descriptors() -> int:
    """Return how many are open, without those that earlier tests left to the garbage collector."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def no_descriptors(but: int = 0) -> Iterator[None]:
    """Let this process open nothing inside, but so many at a time; what is open stays so."""
    # What it closed later would make room.
    gc.collect()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_one = os.dup(0)
    os.close(next_one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_one + but, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
