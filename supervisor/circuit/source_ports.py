"""The ports of its own that a circuit sends frames from, and the sockets that have them."""

from __future__ import annotations

import errno
import os
import socket
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from ipaddress import ip_address

from vela.errors import DeviceError
from vela.linux.choice import UnderlayChoice
from vela.linux.underlay import UnderlayPath, open_send_socket
from vela.reasons import Cause
from vela.wire import MAX_SOURCE_PORT, MIN_SOURCE_PORT

from .send_sockets import Sockets

# Ports tried from the derived one on, where others have it.
SOURCE_PORT_TRIES = 64


class SourcePorts:
    """Opens them, or takes over those that another velad has left."""

    def __init__(self, inherited: int | None, further: Sequence[int] = ()) -> None:
        """inherited: the descriptor of what another velad sends from; None: there is none.

        further: those of its further queues.
        """
        self._inherited = () if inherited is None else (inherited, *further)

    def open(
        self,
        path: UnderlayPath,
        ports: Sequence[int],
        count: int,
        choice: UnderlayChoice,
        free: Callable[[int], None],
        *,
        narrowed: bool,
        tos: int,
    ) -> Sockets:
        """Return a socket to a remote that has the first of these ports that is to be had.

        Several sockets have ports in a row about there; one, where there is no row of so many.
        free gives up a port, if this circuit has it from before. Raises DeviceError.
        """
        inherited = self._take_inherited(path, ports, choice)
        if inherited:
            return inherited

        def open_row(row: Sequence[int]) -> Sockets:
            with ExitStack() as undo:
                opened = []
                for port in row:
                    free(port)
                    each = open_send_socket(
                        path.route.source,
                        port,
                        path.endpoint,
                        narrowed=narrowed,
                        tos=tos,
                        choice=choice,
                    )
                    undo.callback(each.close)
                    opened.append(each)
                undo.pop_all()
            return tuple(opened)

        for row in _rows(ports, count) if count > 1 else ():
            with suppress(OSError):
                return open_row(row)
        for port in ports:
            try:
                return open_row((port,))
            except OSError as err:
                if err.errno != errno.EADDRINUSE:
                    raise DeviceError(
                        f"cannot send to {path.endpoint}: {os.strerror(err.errno or 0)}"
                    ) from err
        taken = str(ports[0]) if len(ports) == 1 else f"{ports[0]} and {len(ports) - 1} more"
        raise DeviceError(Cause.PORT_IN_USE.say(port=taken))

    def close(self) -> None:
        """Give up what another velad has left, if it was not taken over."""
        for fd in self._inherited:
            os.close(fd)
        self._inherited = ()

    def _take_inherited(
        self, path: UnderlayPath, ports: Sequence[int], choice: UnderlayChoice
    ) -> Sockets:
        """Return the sockets that another velad sends from, once, if they are the right ones."""
        inherited = [socket.socket(fileno=fd) for fd in self._inherited]
        self._inherited = ()
        right: list[socket.socket] = []
        expected: Container[int] = ports
        if len(inherited) > 1:
            expected = {row[0] for row in _rows(ports, len(inherited))}
        endpoint = path.endpoint
        with suppress(OSError):
            for each in inherited:
                address, port = each.getpeername()[:2]
                source = each.getsockname()
                same = (ip_address(address), port) == (endpoint.address, endpoint.port)
                own = ip_address(source[0]) == path.route.source
                if not (same and own and source[1] in expected):
                    break
                choice.mark_socket(each)
                right.append(each)
                expected = (source[1] + 1,)
        for each in inherited[len(right) :]:
            each.close()
        return tuple(right)


def _rows(ports: Iterable[int], count: int) -> Iterator[range]:
    """Yield rows of so many ports about each of these.

    Each begins at a multiple of their number: a remote with as many queues then receives by those
    that are sent by.
    """
    for start in dict.fromkeys(port - port % count for port in ports):
        if start >= MIN_SOURCE_PORT and start + count - 1 <= MAX_SOURCE_PORT:
            yield range(start, start + count)


def derived_ports(identity: str) -> list[int]:
    """Return the ports of one circuit, the best first. identity: what tells it from others."""
    span = MAX_SOURCE_PORT - MIN_SOURCE_PORT + 1
    first = zlib.crc32(identity.encode())
    return [MIN_SOURCE_PORT + (first + i) % span for i in range(SOURCE_PORT_TRIES)]
