"""A small HTTP server in the event loop: what is asked for is sent, and the connection ends.

What clients can make it keep is bounded: their number, the size of a request, and the time from
the connection to its end. One that sends no request makes room for others first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable
from http import HTTPStatus

from vela.address import Endpoint
from vela.errors import DeviceError

from ..runtime.listener import Listener
from ..runtime.loop import EventLoop, Timer
from .request import BadRequest, Request, Response, format_head, parse_request

MAX_CLIENTS = 16
BACKLOG = 16
# From the connection to the whole request, and to the end of the answer.
REQUEST_S = 5.0
ANSWER_S = 15.0
# What a client still sends is read for so long: a reset would destroy the answer on its way.
LINGER_S = 2.0

_READ_SIZE = 16384  # bytes

Respond = Callable[[Response], None]
Handler = Callable[[Request, Respond], None]
"""Answers a GET request by respond(), now or later."""


class HttpServer:
    """Serves GET and HEAD at one address."""

    def __init__(
        self,
        loop: EventLoop,
        address: Endpoint,
        handler: Handler,
        on_exhausted: Callable[[str], object] = lambda reason: None,
        adopted: int | None = None,
    ) -> None:
        """Listen. on_exhausted: see Listener. Raises DeviceError if the address cannot be had.

        adopted: the descriptor of a socket that listens there already.
        """
        self._loop = loop
        self._handler = handler
        self._clients: dict[_Client, None] = {}
        self.answers: dict[int, int] = {}
        """How many there were, by status."""
        if adopted is not None:
            listening = socket.socket(fileno=adopted)
            self._listener = Listener(loop, listening, self._on_connection, on_exhausted)
            return
        listening = socket.socket(
            socket.AF_INET6 if address.address.version == 6 else socket.AF_INET,
            socket.SOCK_STREAM | socket.SOCK_NONBLOCK,
        )
        try:
            # Connections of a former velad do not keep the port.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address.address.version == 6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((str(address.address), address.port))
            listening.listen(BACKLOG)
        except OSError as err:
            listening.close()
            raise DeviceError(f"cannot listen on {address}: {_reason(err)}") from err
        self._listener = Listener(loop, listening, self._on_connection, on_exhausted)

    def fileno(self) -> int:
        """The descriptor that listens."""
        return self._listener.fileno()

    def freeze(self) -> None:
        """Accept nothing until thaw(). Requests that are there already are answered."""
        self._listener.freeze()

    def thaw(self) -> None:
        self._listener.thaw()

    def close(self) -> None:
        self._listener.close()
        for client in tuple(self._clients):
            client.close()

    def _on_connection(self, connection: socket.socket) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            # The oldest one, of those without a request if there are any.
            min(self._clients, key=lambda each: each.is_asking).close()
        client = _Client(self._loop, connection, self._handler, self._count, self._forget)
        self._clients[client] = None

    def _count(self, status: HTTPStatus) -> None:
        self.answers[status.value] = self.answers.get(status.value, 0) + 1

    def _forget(self, client: _Client) -> None:
        del self._clients[client]


class _Client:
    """A connection: its request, the answer, and what still comes after that."""

    def __init__(
        self,
        loop: EventLoop,
        connection: socket.socket,
        handler: Handler,
        on_answer: Callable[[HTTPStatus], None],
        on_closed: Callable[[_Client], None],
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._handler = handler
        self._on_answer = on_answer
        self._on_closed = on_closed
        self._received = bytearray()
        self._unsent: list[memoryview] = []
        self._wants_body = True
        self._closed = False
        self._end: Timer = loop.call_later(REQUEST_S, self.close)
        self.is_asking = False
        """Whether it has sent its request."""
        self._is_answered = False
        self._ended = False
        """Whether it sends nothing more."""
        self._watched = True
        loop.watch(connection.fileno(), self._on_readable)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._end.cancel()
        if self._watched:
            self._loop.unwatch(self._connection.fileno())
        self._connection.close()
        self._unsent = []
        self._on_closed(self)

    def _on_readable(self) -> None:
        try:
            data = self._connection.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self._on_end()
        elif not self.is_asking:
            self._received += data
            self._ask()
        # All else is left out: each connection has one request.

    def _on_end(self) -> None:
        """Go on only with an answer that the client may still wait for."""
        self._ended = True
        if not self.is_asking or (self._is_answered and not self._unsent):
            self.close()
        else:
            self._wait(self._send if self._unsent else None)

    def _wait(self, writable: Callable[[], None] | None) -> None:
        """Wait for what the client sends, unless it is at its end, and for room."""
        fd, readable = self._connection.fileno(), None if self._ended else self._on_readable
        if readable is None and writable is None:
            self._loop.unwatch(fd)
            self._watched = False
            return
        if not self._watched:
            self._loop.watch(fd, self._on_readable)
            self._watched = True
        self._loop.watch_writable(fd, readable, writable)

    def _ask(self) -> None:
        try:
            request = parse_request(self._received)
        except BadRequest:
            self._begin_answer()
            self._respond(_plain(HTTPStatus.BAD_REQUEST))
            return
        if request is None:
            return
        self._begin_answer()
        self._wants_body = request.method != "HEAD"
        if request.method not in ("GET", "HEAD"):
            self._respond(_plain(HTTPStatus.METHOD_NOT_ALLOWED, ("Allow", "GET, HEAD")))
            return
        self._handler(request, self._respond)

    def _begin_answer(self) -> None:
        self.is_asking = True
        self._received.clear()
        self._end.cancel()
        self._end = self._loop.call_later(ANSWER_S, self.close)

    def _respond(self, response: Response) -> None:
        if self._closed:
            return
        self._on_answer(response.status)
        self._is_answered = True
        self._unsent.append(memoryview(format_head(response, time.time())))
        if self._wants_body and response.body:
            self._unsent.append(memoryview(response.body))
        self._send()

    def _send(self) -> None:
        try:
            while self._unsent:
                sent = self._connection.send(self._unsent[0])
                self._unsent[0] = self._unsent[0][sent:]
                if not self._unsent[0]:
                    del self._unsent[0]
        except BlockingIOError:
            self._wait(self._send)
            return
        except OSError:
            self.close()
            return
        self._linger()

    def _linger(self) -> None:
        """Wait until the client has taken the answer and ends the connection."""
        if self._ended:
            self.close()
            return
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        self._end.cancel()
        self._end = self._loop.call_later(LINGER_S, self.close)
        self._wait(None)


def not_found() -> Response:
    return _plain(HTTPStatus.NOT_FOUND)


def _plain(status: HTTPStatus, *fields: tuple[str, str]) -> Response:
    body = f"{status.value} {status.phrase}\n".encode()
    return Response(status, "text/plain; charset=utf-8", body, fields)


def _reason(err: OSError) -> str:
    return os.strerror(err.errno or errno.EIO)
