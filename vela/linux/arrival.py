"""How long ago a datagram came to a socket, as the kernel says it."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable

_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@qq")
ARRIVAL_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)
"""Bytes of ancillary data that recvmsg needs for it."""

# Nothing waits that long to be read: the clock was set meanwhile.
_LONGEST_S = 60.0


def show_arrival(receiver: socket.socket) -> None:
    """Let recvmsg say when each datagram came. Raises OSError.

    For sockets of the Unix family, where it costs nothing: for others the kernel would look at the
    clock for every packet of the machine.
    """
    receiver.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def age_s(ancillary: Iterable[tuple[int, int, bytes]]) -> float:
    """Return how many seconds ago that came which was just received; 0: it is not known."""
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS) and len(value) == _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack(value)
            age = time.time() - (seconds + nanoseconds / 1e9)
            return age if 0.0 <= age < _LONGEST_S else 0.0
    return 0.0
