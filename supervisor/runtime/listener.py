"""A listening socket in the event loop."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from .loop import EventLoop, Timer

EXHAUSTED_PAUSE_S = 1.0

# Errors of accept(2) when descriptors or memory run out.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """Accepts connections, one each time the loop turns."""

    def __init__(
        self,
        loop: EventLoop,
        listening: socket.socket,
        on_connection: Callable[[socket.socket], object],
        on_exhausted: Callable[[str], object],
    ) -> None:
        """Own a socket that listens and does not block.

        on_connection gets connections, which do not block either. on_exhausted gets the reason why
        none can be accepted at present; that is tried again after EXHAUSTED_PAUSE_S.
        """
        self._loop = loop
        self._socket = listening
        self._on_connection = on_connection
        self._on_exhausted = on_exhausted
        self._pause: Timer | None = None
        self._listens = False
        self._listen()

    def fileno(self) -> int:
        return self._socket.fileno()

    def freeze(self) -> None:
        """Accept nothing until thaw(): connections wait, or another process accepts them."""
        if self._listens:
            self._rest()
        elif self._pause is not None:
            self._pause.cancel()

    def thaw(self) -> None:
        self._listen()

    def close(self) -> None:
        self.freeze()
        self._socket.close()

    def _listen(self) -> None:
        self._pause = None
        self._listens = True
        self._loop.watch(self._socket.fileno(), self._accept)

    def _rest(self) -> None:
        self._listens = False
        self._loop.unwatch(self._socket.fileno())

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError as err:
            if err.errno in _EXHAUSTED:
                # The connection stays in the queue, so the socket stays readable.
                self._rest()
                self._pause = self._loop.call_later(EXHAUSTED_PAUSE_S, self._listen)
                self._on_exhausted(os.strerror(err.errno or 0))
            return  # or the client has closed it
        connection.setblocking(False)
        self._on_connection(connection)
