"""What messages of the kernel say, as it was read, for as long as dumps bring them again.

A host says the same of most of its addresses and routes each time it is asked. Where hundreds of
circuits are made in a row, reading that anew for each takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")

MOST = 4096  # messages, where no dump tells which are still true


class Recollection(Generic[Value]):
    """Reads each message once, while it comes again and again."""

    def __init__(self, read: Callable[[bytes], Value]) -> None:
        self._read = read
        self._recent: dict[bytes, Value] = {}
        self._before: dict[bytes, Value] = {}

    def __len__(self) -> int:
        return len(self._recent) + len(self._before)

    def read(self, body: bytes) -> Value:
        """Return what a message says. Raises what reading it raises."""
        if body in self._recent:
            return self._recent[body]
        value = self._before.pop(body) if body in self._before else self._read(body)
        if len(self._recent) >= MOST:
            self.end_dump()
        self._recent[body] = value
        return value

    def end_dump(self) -> None:
        """Forget what did not come since the last call: interfaces come and go for years."""
        self._before, self._recent = self._recent, {}
