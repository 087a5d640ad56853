"""Pages of memory that this process shares with its forks, each of which keeps one of them."""

from __future__ import annotations

import ctypes
import mmap
import os

PAGE_SIZE = mmap.PAGESIZE
# Of one mapping: a fork takes time for each mapping that there is. Memory is taken where a page is
# written to.
_PAGES_AT_ONCE = 256

_libc = ctypes.CDLL(None, use_errno=True)


class SharedPages:
    """Pages to take and give back."""

    def __init__(self, at_once: int = _PAGES_AT_ONCE) -> None:
        self._at_once = at_once
        self._mappings: list[tuple[int, mmap.mmap]] = []
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
        self._mappings.append((start, mapping))
        memory = memoryview(mapping)
        self._free += [
            SharedPage(self, start + offset, memory[offset : offset + PAGE_SIZE])
            for offset in range(0, size, PAGE_SIZE)
        ]

    def unmap_all_but(self, kept: int) -> None:
        """See SharedPage.unmap_others."""
        for start, mapping in self._mappings:
            end = start + len(mapping)
            if start <= kept < end:
                _unmap(start, kept)
                _unmap(kept + PAGE_SIZE, end)
            else:
                _unmap(start, end)


class SharedPage:
    """One page, shared since before the fork."""

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


def _unmap(start: int, end: int) -> None:
    if start < end and _libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(end - start)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"munmap: {os.strerror(error)}")
