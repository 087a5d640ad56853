"""Why a worker ended: one line of text, in memory that the worker shares with the supervisor.

Writing it cannot fail or block. The reader trusts nothing: a worker that an attacker controls can
write any bytes at any time.
"""

from __future__ import annotations

import os

_PRINTABLE = range(0x20, 0x7F)


class ExitMessage:
    """The message of one circuit's workers. The first of a worker's two threads to fail sets it."""

    def __init__(self, memory: memoryview) -> None:
        """Use this shared memory, in bytes; a longer message is cut off."""
        self._memory = memory

    def write(self, where: str, error: BaseException) -> None:
        """Store an error and where it occurred: "start", "egress" or "ingress"."""
        if self._memory[0]:
            return
        text = f"{where}: {describe(error)}".encode("ascii", "replace")[: len(self._memory)]
        self._memory[: len(text)] = text

    def read(self) -> str:
        """Return the message as one line of printable ASCII; empty if there is none."""
        text = bytes(self._memory).partition(b"\0")[0]
        return "".join(chr(byte) if byte in _PRINTABLE else "?" for byte in text).strip()

    def clear(self) -> None:
        self._memory[:] = bytes(len(self._memory))


def describe(error: BaseException) -> str:
    """Return the kernel's text for an OSError, without its number; else class and message."""
    if isinstance(error, OSError) and error.errno is not None:
        return str(error.strerror or os.strerror(error.errno))
    message = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {message}" if message else name
