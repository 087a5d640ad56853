"""Pages of memory that this process shares with its forks, each of which keeps one of them."""

from __future__ import annotations

import ctypes
import mmap
import os

PAGE_SIZE = mmap.PAGESIZE
# Of one mapping: a fork takes time for each mapping that there is. Memory is taken where a page is
# written to.
_PAGES_AT_ONCE = 256

# Made ahead of any fork: what a child makes is memory of its own.
_munmap = ctypes.CDLL(None, use_errno=True).munmap
_munmap.argtypes = (ctypes.c_size_t, ctypes.c_size_t)


class SharedPages:
    """Pages to take and give back."""

    __slots__ = ("_at_once", "_free", "_mappings")

    def __init__(self, at_once: int = _PAGES_AT_ONCE) -> None:
        self._at_once = at_once
        # Where each begins and ends. They are never unmapped: their views keep them.
        self._mappings: list[tuple[int, int]] = []
        self._free: list[SharedPage] = []

    def take(self) -> SharedPage:
        """Return a page that is all zero. Raises OSError where there is no more memory."""
        if not self._free:
            self._map()
        return self._free.pop()

    def give_back(self, page: SharedPage) -> None:
        """Take a page that no other process has any more."""
        page.memory[:] = bytes(PAGE_SIZE)
        self._free.append(page)

    def _map(self) -> None:
        size = self._at_once * PAGE_SIZE
        mapping = mmap.mmap(-1, size)
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self._mappings.append((start, start + size))
        memory = memoryview(mapping)
        self._free += [
            SharedPage(self, start + offset, memory[offset : offset + PAGE_SIZE])
            for offset in range(0, size, PAGE_SIZE)
        ]

    def unmap_all_but(self, kept: int) -> None:
        """See SharedPage.unmap_others."""
        failed = 0
        for start, end in self._mappings:
            if not start <= kept < end:
                failed |= _munmap(start, end - start)
                continue
            behind = kept + PAGE_SIZE
            if start < kept:
                failed |= _munmap(start, kept - start)
            if behind < end:
                failed |= _munmap(behind, end - behind)
        if failed:
            error = ctypes.get_errno()
            raise OSError(error, f"munmap: {os.strerror(error)}")


class SharedPage:
    """One page, shared since before the fork."""

    __slots__ = ("_address", "_pages", "memory")

    def __init__(self, pages: SharedPages, address: int, memory: memoryview) -> None:
        self._pages = pages
        self._address = address
        self.memory = memory
        """Bytes."""

    def unmap_others(self) -> None:
        """Keep no page but this; to be called in a fork, which must not touch any other after it.

        Raises OSError.
        """
        self._pages.unmap_all_but(self._address)
