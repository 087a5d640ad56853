"""The sockets that a circuit's frames leave from: the present one, the next, and former ones."""

from __future__ import annotations

import socket
from collections.abc import Callable

from vela.linux.underlay import UnderlayPath

from ..frame_ports import FORMER_PORT_S
from ..runtime.loop import EventLoop, Timer

HELD_S = 2 * FORMER_PORT_S
"""How long a former port is kept, so that no other program of this machine has it while the remote
still takes frames from there. The remote counts from when it hears of the next one, which is
repeated every 0.5 s."""

Opener = Callable[[UnderlayPath, int | None], socket.socket]
"""Opens a socket to that remote with this source port; None: one of the circuit's own. Raises
DeviceError."""


class SendSockets:
    """Owns them. The listening socket, from which a circuit can send as well, is not among them."""

    def __init__(self, loop: EventLoop, open_socket: Opener) -> None:
        self._loop = loop
        self._open = open_socket
        self.present: socket.socket | None = None
        self._next: tuple[int | None, socket.socket] | None = None
        self._former: dict[int, tuple[socket.socket, Timer]] = {}

    def prepare(self, path: UnderlayPath, wanted: int | None) -> int:
        """Open the socket for take(), and return its port. Raises DeviceError."""
        if self._next is None or self._next[0] != wanted:
            self._close_next()
            self._next = wanted, self._open(path, wanted)
        port: int = self._next[1].getsockname()[1]
        return port

    def take(self, path: UnderlayPath, wanted: int | None) -> socket.socket:
        """Return the present socket, which becomes one with this source port. Raises DeviceError.

        One that was present before stays so until retire().
        """
        if self.present is None:
            self.prepare(path, wanted)
            assert self._next is not None
            self.present, self._next = self._next[1], None
        return self.present

    def retire(self) -> None:
        """Send from the present socket no more, and keep its port for a while."""
        if self.present is None:
            return
        retired, self.present = self.present, None
        port = retired.getsockname()[1]
        self._former[port] = retired, self._loop.call_later(HELD_S, lambda: self.free(port))

    def free(self, port: int) -> None:
        """Give up a former port, if it is one."""
        former = self._former.pop(port, None)
        if former is not None:
            retired, timer = former
            timer.cancel()
            retired.close()

    def close(self) -> None:
        self._close_next()
        if self.present is not None:
            self.present.close()
            self.present = None
        for port in tuple(self._former):
            self.free(port)

    def _close_next(self) -> None:
        if self._next is not None:
            self._next[1].close()
            self._next = None
