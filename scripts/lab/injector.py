"""Frames put onto an interface exactly as given. A packet(7) socket."""

from __future__ import annotations

import socket

from lab.link import Interface
from lab.resource import Resource


class Injector(Resource):
    """Sends whole Ethernet frames, header included, out of one interface. A context."""

    def __init__(self, interface: Interface) -> None:
        # Protocol 0 receives nothing, so nothing is queued here.
        self._socket = interface.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)
        try:
            self._socket.bind((interface.name, 0))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, frame: bytes) -> None:
        """Send one frame. Raises OSError: EMSGSIZE where it exceeds the interface's MTU."""
        self._socket.send(frame)
