"""What is in a process's memory, as root can read it: a search for keys."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path


def found_in_memory(pid: int, keys: Collection[bytes]) -> set[bytes]:
    """Return which of these are anywhere in a process's memory."""
    found: set[bytes] = set()
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            area, rights, *_, name = (*line.split(), "")
            if "r" not in rights or "[vvar" in line or "[vsyscall" in name:
                continue
            first, last = (int(each, 16) for each in area.split("-"))
            try:
                data = os.pread(memory.fileno(), last - first, first)
            except OSError:
                continue  # a device, or beyond the end of a file
            found |= {key for key in keys if key in data}
    return found
