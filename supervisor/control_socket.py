"""The Unix socket of velactl: one JSON object on each line, a request and its reply.

A client may subscribe; it then also gets events, as lines with the key "event".
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from vela.errors import DeviceError, VelaError

from .runtime.listener import EXHAUSTED_PAUSE_S, Listener
from .runtime.loop import EventLoop

MAX_REQUEST = 65536  # bytes; commands are short
MAX_UNSENT = 4 << 20  # bytes, of one client; a status of 255 circuits takes 400 000
MAX_UNSENT_OF_ALL = 16 << 20  # bytes
MAX_CLIENTS = 64
MAX_SUBSCRIBERS = 16
MAX_UNSENT_EVENTS = 256 << 10  # bytes; more than a thousand changes of circuits
BACKLOG = 16

_UCRED = struct.Struct("=iII")  # pid, uid, gid; include/linux/socket.h, struct ucred

Request = Mapping[str, object]
Reply = Mapping[str, object]
Event = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Caller:
    """The process that a request comes from, as the kernel says (SO_PEERCRED)."""

    uid: int
    pid: int


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection on which no request and no reply is under way."""

    descriptor: int
    subscribed: bool


@dataclass(frozen=True, slots=True)
class Subscribe:
    """A reply after which the client gets all events."""

    reply: Reply


class Later:
    """A reply that comes when the work is done."""

    def __init__(self) -> None:
        self._reply: Reply | None = None
        self._waiting: list[Callable[[Reply], object]] = []

    def give(self, reply: Reply) -> None:
        """Reply now, once."""
        self._reply = reply
        for callback in self._waiting:
            callback(reply)

    def then(self, callback: Callable[[Reply], object]) -> None:
        """Call back with the reply; at once if it is there."""
        if self._reply is None:
            self._waiting.append(callback)
        else:
            callback(self._reply)


@dataclass(frozen=True, slots=True)
class Hand:
    """A reply that a descriptor goes along with. The descriptor stays its owner's to close."""

    reply: Reply
    descriptor: int


Answer = Reply | Subscribe | Later | Hand

Handler = Callable[[Request, Caller], Answer]
"""Carries out a request. Raises VelaError."""


class ControlSocket:
    """Answers requests with a handler, one at a time. Slow clients do not delay others.

    What clients can make it keep is bounded. If there are too many, the one that has been idle
    for longest has to go. A client that does not read its replies gets no further ones.
    """

    def __init__(
        self,
        loop: EventLoop,
        path: Path,
        handler: Handler,
        group: int | None = None,
        adopted: int | None = None,
        clients: Iterable[Connected] = (),
    ) -> None:
        """Bind path. group: the id of the group that may use it beside root.

        adopted: the descriptor of a socket that listens there already. clients: who is connected.
        Raises DeviceError if another velad serves it or it cannot be created.
        """
        self._loop = loop
        self._path = path
        self._handler = handler
        self._group = group
        self._clients: dict[int, _Client] = {}
        self._queue: deque[_Client] = deque()
        self._frozen = False
        for each in clients:
            self._add(socket.socket(fileno=each.descriptor), subscribed=each.subscribed)
        if adopted is not None:
            listening = socket.socket(fileno=adopted)
            self._listener = Listener(loop, listening, self._on_connection, _report_exhausted)
            return
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._bind(listening)
        except OSError as err:
            listening.close()
            raise DeviceError(f"control socket {path}: {_reason(err)}") from err
        except DeviceError:
            listening.close()
            raise
        listening.listen(BACKLOG)
        self._listener = Listener(loop, listening, self._on_connection, _report_exhausted)

    def fileno(self) -> int:
        """The descriptor that listens."""
        return self._listener.fileno()

    def freeze(self) -> None:
        """Answer the requests that are here, and no others until thaw().

        Who reads a reply, or waits for one that comes later, is not served any more then.
        """
        self._listener.freeze()
        while self._queue:
            self._take_turn()
        self._frozen = True
        for client in tuple(self._clients.values()):
            if client.waits or client.received or client.ended:
                self._drop(client)
            else:
                self._send(client)

    def thaw(self) -> None:
        self._frozen = False
        for client in tuple(self._clients.values()):
            if not client.watched:
                self._watch(client)
        self._listener.thaw()

    @property
    def connected(self) -> tuple[Connected, ...]:
        """Those whose requests and events another process can go on with, while this is frozen."""
        return tuple(
            Connected(fd, each.subscribed) for fd, each in self._clients.items() if not each.unsent
        )

    def _drop_all(self) -> None:
        for client in tuple(self._clients.values()):
            self._drop(client)

    def close(self, *, leave: bool = False) -> None:
        """leave: another velad still serves it."""
        self._drop_all()
        self._listener.close()
        if leave:
            return
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _bind(self, listening: socket.socket) -> None:
        # For root and the group only, whatever the umask: requests change interfaces. The socket is
        # created with its group, since the unit has no CAP_CHOWN.
        before = os.umask(0o177 if self._group is None else 0o117)
        own_group = os.getegid()
        try:
            if self._group is not None:
                os.setegid(self._group)
            try:
                listening.bind(str(self._path))
            except OSError as err:
                if err.errno != errno.EADDRINUSE:
                    raise
                self._remove_stale()
                listening.bind(str(self._path))
        finally:
            os.setegid(own_group)
            os.umask(before)

    def _remove_stale(self) -> None:
        """Remove the socket of a velad that was killed."""
        # A connection to another kind of file is refused, too.
        if not stat.S_ISSOCK(self._path.lstat().st_mode):
            raise DeviceError(f"control socket {self._path}: the path exists and is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self._path))
            except ConnectionRefusedError:
                self._path.unlink()
                return
            except OSError as err:
                raise DeviceError(
                    f"control socket {self._path}: another program has the path: {err}"
                ) from err
        raise DeviceError(f"control socket {self._path}: another velad answers there")

    def _on_connection(self, connection: socket.socket) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            idle = (each for each in self._clients.values() if not each.subscribed)
            self._drop(min(idle, key=lambda each: (each.waits, each.active_at)))
        self._add(connection)

    def _add(self, connection: socket.socket, *, subscribed: bool = False) -> None:
        connection.setblocking(False)
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _ = _UCRED.unpack(credentials)
        client = _Client(connection, Caller(uid, pid), self._loop.now())
        client.subscribed = subscribed
        self._clients[connection.fileno()] = client
        self._watch(client)

    def _watch(self, client: _Client) -> None:
        client.watched = True
        self._loop.watch(client.connection.fileno(), lambda: self._on_readable(client))

    def _unwatch(self, client: _Client) -> None:
        client.watched = False
        self._loop.unwatch(client.connection.fileno())

    def publish(self, event: Event) -> None:
        """Send an event to all subscribers. One that is too slow gets the number of lost ones."""
        if self._frozen:
            return  # another velad may write to them
        subscribers = [each for each in self._clients.values() if each.subscribed]
        if not subscribers:
            return
        line = json.dumps(event).encode() + b"\n"
        for client in subscribers:
            if len(client.unsent) + len(line) > MAX_UNSENT_EVENTS:
                client.lost_events += 1
            else:
                client.unsent += line
                self._send(client)

    def _on_readable(self, client: _Client) -> None:
        if client.is_asking:
            return  # one request after the other
        try:
            data = client.connection.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        client.active_at = self._loop.now()
        if not data:
            client.ended = True
        client.received += data
        if len(client.received) > 2 * MAX_REQUEST or (
            not client.is_asking and len(client.received) > MAX_REQUEST
        ):
            self._drop(client)
        elif client.is_asking:
            self._enqueue(client)
        else:
            self._send(client)

    def _enqueue(self, client: _Client) -> None:
        """Answer a request of this client when it is its turn: each has one after the other.

        A turn of the loop takes two requests at most, so that control messages do not wait.
        """
        if not client.queued:
            client.queued = True
            self._queue.append(client)
            if len(self._queue) == 1:
                self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        if not self._queue:
            return  # all were answered before velad was frozen
        client = self._queue[0]
        client.queued = False
        try:
            self._serve(client)
        finally:
            self._queue.popleft()
            if self._queue:
                self._loop.call_soon(self._take_turn)

    def _serve(self, client: _Client) -> None:
        """Answer the next request, if the client has taken all replies before."""
        if client.dropped:
            return
        if client.is_asking and not client.unsent:
            line, _, rest = client.received.partition(b"\n")
            client.received = rest
            answer = self._answer(bytes(line), client)
            if isinstance(answer, Later):
                # Its further requests, and its end, are looked at when the reply is there.
                client.waits = True
                self._unwatch(client)
                answer.then(lambda reply: self._reply_late(client, reply))
                return
            if isinstance(answer, Hand):
                self._hand(client, answer)
                return
            self._put(client, answer)
        self._send(client)

    def _hand(self, client: _Client, hand: Hand) -> None:
        """Send a reply with its descriptor, at once or not at all: replies before it are taken."""
        line = json.dumps(hand.reply).encode() + b"\n"
        try:
            sent = socket.send_fds(client.connection, [line], [hand.descriptor])
        except OSError:
            self._drop(client)
            return
        client.unsent += line[sent:]
        self._send(client)

    def _reply_late(self, client: _Client, reply: Reply) -> None:
        if client.dropped:
            return
        client.waits = False
        self._watch(client)
        self._put(client, reply)
        self._send(client)

    def _put(self, client: _Client, reply: Reply) -> None:
        client.unsent += json.dumps(reply).encode() + b"\n"
        self._bound_unsent(client)

    def _send(self, client: _Client) -> None:
        """Send as much as the client takes now, the rest later."""
        try:
            while client.unsent:
                del client.unsent[: client.connection.send(client.unsent)]
                client.active_at = self._loop.now()
                if not client.unsent and client.lost_events:
                    lost = {"event": "lost", "time": time.time(), "events": client.lost_events}
                    client.lost_events = 0
                    client.unsent += json.dumps(lost).encode() + b"\n"
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if len(client.unsent) > MAX_UNSENT:
            self._drop(client)
            return
        if self._frozen:
            if client.unsent:
                fd = client.connection.fileno()
                self._loop.watch_writable(fd, None, lambda: self._serve(client))
            else:
                self._unwatch(client)
            return
        if client.is_asking and not client.unsent:
            self._enqueue(client)
        elif client.ended and (client.subscribed or not client.unsent):
            self._drop(client)
            return
        # Until the replies are taken, further requests stay in the socket.
        reads = not (client.ended or client.is_asking) and (client.subscribed or not client.unsent)
        self._loop.watch_writable(
            client.connection.fileno(),
            (lambda: self._on_readable(client)) if reads or not client.unsent else None,
            (lambda: self._serve(client)) if client.unsent else None,
        )

    def _bound_unsent(self, latest: _Client) -> None:
        """Drop clients that do not read, if replies take too much memory all together."""
        while sum(len(each.unsent) for each in self._clients.values()) > MAX_UNSENT_OF_ALL:
            stalled = [each for each in self._clients.values() if each.unsent and each != latest]
            if not stalled:
                return
            self._drop(min(stalled, key=lambda each: each.active_at))

    def _answer(self, line: bytes, client: _Client) -> Reply | Later | Hand:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("a request must be an object")
        except (ValueError, RecursionError) as err:
            return {"error": f"not a request: {err}"}
        try:
            reply = self._handler(request, client.caller)
            return self._subscribe(client, reply) if isinstance(reply, Subscribe) else reply
        except VelaError as err:
            return {"error": str(err)}
        except Exception:
            # A bug. Circuits go on, and the log has the traceback.
            structlog.get_logger().exception("command_failed", request=request)
            return {"error": "internal error; see the log of velad"}

    def _subscribe(self, client: _Client, subscribe: Subscribe) -> Reply:
        others = sum(each.subscribed for each in self._clients.values() if each is not client)
        if others >= MAX_SUBSCRIBERS:
            raise VelaError(f"{MAX_SUBSCRIBERS} clients monitor circuits already; end one of them")
        client.subscribed = True
        return subscribe.reply

    def _drop(self, client: _Client) -> None:
        if client.dropped:
            return
        client.dropped = True
        del self._clients[client.connection.fileno()]
        if client.watched:
            self._unwatch(client)
        client.connection.close()


class _Client:
    """A connection, requests received and not answered yet, and replies not sent yet."""

    def __init__(self, connection: socket.socket, caller: Caller, now: float) -> None:
        self.connection = connection
        self.caller = caller
        self.active_at = now
        """When it last sent a request or took a reply; monotonic seconds."""
        self.received = bytearray()
        self.unsent = bytearray()
        self.subscribed = False
        self.lost_events = 0
        self.dropped = False
        self.watched = False
        """By the loop."""
        self.queued = False
        self.waits = False
        """For a reply that comes later."""
        self.ended = False
        """The client sends no more requests; it may still wait for replies."""

    @property
    def is_asking(self) -> bool:
        """Whether a whole request waits."""
        return b"\n" in self.received


def _report_exhausted(reason: str) -> None:
    structlog.get_logger().error(
        "control_connection_not_accepted", error=reason, retry_in_s=EXHAUSTED_PAUSE_S
    )


def _reason(err: OSError) -> str:
    # A path that is too long has no errno.
    return os.strerror(err.errno) if err.errno else str(err)
