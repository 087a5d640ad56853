"""The sockets that a circuit's frames leave from: the present one, the next, and former ones."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

from vela.linux.underlay import UnderlayPath

from ..frame_ports import FORMER_PORT_S
from ..runtime.loop import EventLoop, Timer

HELD_S = 2 * FORMER_PORT_S
"""How long a former port is kept, so that no other program of this machine has it while the remote
still takes frames from there. The remote counts from when it hears of the next one, which is
repeated every 0.5 s."""

Sockets = tuple[socket.socket, ...]
"""One for each queue; their ports are in a row."""
Opener = Callable[[UnderlayPath, int | None, int], Sockets]
"""Opens so many sockets to that remote, the first with this source port; None: one of the circuit's
own. Fewer where there is no such row. Raises DeviceError."""


class SendSockets:
    """Owns them. The listening socket, from which a circuit can send as well, is not among them."""

    def __init__(self, loop: EventLoop, open_sockets: Opener) -> None:
        self._loop = loop
        self._open = open_sockets
        self.all_present: Sockets = ()
        self._next: tuple[tuple[int | None, int], Sockets] | None = None
        self._former: dict[int, tuple[socket.socket, Timer]] = {}

    @property
    def present(self) -> socket.socket | None:
        """The first of those that frames leave from."""
        return next(iter(self.all_present), None)

    def count_from(self, port: int) -> int:
        """Return how many sockets in a row there are, or will be, from this port on; 1 at least."""
        for each in (self.all_present, () if self._next is None else self._next[1]):
            if each and _port(each[0]) == port:
                return len(each)
        return 1

    def prepare(self, path: UnderlayPath, wanted: int | None, count: int = 1) -> int:
        """Open the sockets for take(), and return the port of the first. Raises DeviceError."""
        asked = wanted, count
        if self._next is None or self._next[0] != asked:
            self._close_next()
            self._next = asked, self._open(path, wanted, count)
        return _port(self._next[1][0])

    def take(self, path: UnderlayPath, wanted: int | None, count: int = 1) -> Sockets:
        """Return the present sockets, which become ones from this source port on.

        Raises DeviceError. Those that were present before stay so until retire(): they may be more
        or fewer.
        """
        if not self.all_present:
            self.prepare(path, wanted, count)
            assert self._next is not None
            self.all_present, self._next = self._next[1], None
        return self.all_present

    def retire(self) -> None:
        """Send from the present sockets no more, and keep their ports for a while."""
        retired, self.all_present = self.all_present, ()
        for each in retired:
            port = _port(each)
            self._former[port] = each, self._loop.call_later(HELD_S, partial(self.free, port))

    def free(self, port: int) -> None:
        """Give up a former port, if it is one."""
        former = self._former.pop(port, None)
        if former is not None:
            retired, timer = former
            timer.cancel()
            retired.close()

    def close(self) -> None:
        self._close_next()
        for each in self.all_present:
            each.close()
        self.all_present = ()
        for port in tuple(self._former):
            self.free(port)

    def _close_next(self) -> None:
        if self._next is not None:
            for each in self._next[1]:
                each.close()
            self._next = None


def _port(opened: socket.socket) -> int:
    port: int = opened.getsockname()[1]
    return port
