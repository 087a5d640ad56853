"""The port of its own that a circuit sends frames from, and the socket that has it."""

from __future__ import annotations

import errno
import os
import socket
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address

from vela.errors import DeviceError
from vela.linux.choice import UnderlayChoice
from vela.linux.underlay import UnderlayPath, open_send_socket
from vela.reasons import Cause
from vela.wire import MAX_SOURCE_PORT, MIN_SOURCE_PORT

# Ports tried from the derived one on, where others have it.
SOURCE_PORT_TRIES = 64


class SourcePorts:
    """Opens them, or takes over the one that another velad has left."""

    def __init__(self, inherited: int | None) -> None:
        """inherited: the descriptor of what another velad sends from; None: there is none."""
        self._inherited = inherited

    def open(
        self,
        path: UnderlayPath,
        ports: Sequence[int],
        choice: UnderlayChoice,
        free: Callable[[int], None],
        *,
        narrowed: bool,
        tos: int,
    ) -> socket.socket:
        """Return a socket to a remote that has the first of these ports that is to be had.

        free gives up a port, if this circuit has it from before. Raises DeviceError.
        """
        inherited = self._take_inherited(path, ports, choice)
        if inherited is not None:
            return inherited
        for port in ports:
            free(port)
            try:
                return open_send_socket(
                    path.route.source,
                    port,
                    path.endpoint,
                    narrowed=narrowed,
                    tos=tos,
                    choice=choice,
                )
            except OSError as err:
                if err.errno != errno.EADDRINUSE:
                    raise DeviceError(
                        f"cannot send to {path.endpoint}: {os.strerror(err.errno or 0)}"
                    ) from err
        taken = str(ports[0]) if len(ports) == 1 else f"{ports[0]} and {len(ports) - 1} more"
        raise DeviceError(Cause.PORT_IN_USE.say(port=taken))

    def close(self) -> None:
        """Give up what another velad has left, if it was not taken over."""
        if self._inherited is not None:
            os.close(self._inherited)
            self._inherited = None

    def _take_inherited(
        self, path: UnderlayPath, ports: Sequence[int], choice: UnderlayChoice
    ) -> socket.socket | None:
        """Return the socket that another velad sends from, once, if it is the right one."""
        fd, self._inherited = self._inherited, None
        if fd is None:
            return None
        inherited = socket.socket(fileno=fd)
        endpoint = path.endpoint
        with suppress(OSError):
            address, port = inherited.getpeername()[:2]
            source = inherited.getsockname()
            same = (ip_address(address), port) == (endpoint.address, endpoint.port)
            if same and source[1] in ports and ip_address(source[0]) == path.route.source:
                choice.mark_socket(inherited)
                return inherited
        inherited.close()
        return None


def derived_ports(identity: str) -> list[int]:
    """Return the ports of one circuit, the best first. identity: what tells it from others."""
    span = MAX_SOURCE_PORT - MIN_SOURCE_PORT + 1
    first = zlib.crc32(identity.encode())
    return [MIN_SOURCE_PORT + (first + i) % span for i in range(SOURCE_PORT_TRIES)]
