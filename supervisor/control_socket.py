"""The Unix socket of velactl: one JSON object on each line, a request and its reply."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from vela.errors import DeviceError, VelaError

from .runtime.loop import EventLoop, Timer

MAX_REQUEST = 65536  # bytes; commands are short
MAX_UNSENT = 4 << 20  # bytes; a status of 255 circuits takes 300 000
MAX_CLIENTS = 64
BACKLOG = 16
EXHAUSTED_PAUSE_S = 1.0

# Errors of accept(2) when descriptors or memory run out.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_ACCEPTS = 0x10000  # include/linux/net.h, __SO_ACCEPTCON

_TIMEVAL = struct.Struct("@ll")  # include/uapi/asm-generic/socket.h, SO_SNDTIMEO

Reply = Mapping[str, object]
Handler = Callable[[Mapping[str, object]], Reply]


class ControlSocket:
    """Answers requests with a handler, one at a time. Slow clients do not delay others."""

    def __init__(self, loop: EventLoop, path: Path, handler: Handler) -> None:
        """Bind path. Raises DeviceError if another velad serves it or it cannot be created."""
        self._loop = loop
        self._path = path
        self._handler = handler
        self._clients: dict[int, _Client] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._bind()
        except OSError as err:
            self._listener.close()
            raise DeviceError(f"control socket {path}: {_reason(err)}") from err
        except DeviceError:
            self._listener.close()
            raise
        self._listener.listen(BACKLOG)
        self._pause: Timer | None = None
        self._listen()

    def close(self) -> None:
        for client in tuple(self._clients.values()):
            self._drop(client)
        if self._pause is None:
            self._loop.unwatch(self._listener.fileno())
        else:
            self._pause.cancel()
        self._listener.close()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _bind(self) -> None:
        # For root only, whatever the umask: requests change interfaces.
        before = os.umask(0o177)
        try:
            try:
                self._listener.bind(str(self._path))
            except OSError as err:
                if err.errno != errno.EADDRINUSE:
                    raise
                self._remove_stale()
                self._listener.bind(str(self._path))
        finally:
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

    def _listen(self) -> None:
        self._pause = None
        self._loop.watch(self._listener.fileno(), self._on_connection)

    def _on_connection(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as err:
            if err.errno in _EXHAUSTED:
                # The connection stays in the queue, so the listener stays readable.
                self._loop.unwatch(self._listener.fileno())
                self._pause = self._loop.call_later(EXHAUSTED_PAUSE_S, self._listen)
                structlog.get_logger().error(
                    "control_connection_not_accepted",
                    error=_reason(err),
                    retry_in_s=EXHAUSTED_PAUSE_S,
                )
            return  # or the client has closed it
        if len(self._clients) >= MAX_CLIENTS:
            connection.close()
            return
        connection.setblocking(False)
        client = _Client(connection)
        self._clients[connection.fileno()] = client
        self._loop.watch(connection.fileno(), lambda: self._on_readable(client))

    def _on_readable(self, client: _Client) -> None:
        try:
            data = client.connection.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        if not data:
            client.ended = True
            self._send(client)
            return
        *lines, rest = bytes(client.received + data).split(b"\n")
        if len(rest) > MAX_REQUEST:
            self._drop(client)
            return
        client.received = rest
        for line in lines:
            client.unsent += json.dumps(self._answer(line)).encode() + b"\n"
            if not self._send(client):
                return

    def _send(self, client: _Client) -> bool:
        """Send as much as the client takes now, the rest later. False: the client is dropped."""
        try:
            while client.unsent:
                del client.unsent[: client.connection.send(client.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return False
        if len(client.unsent) > MAX_UNSENT or (client.ended and not client.unsent):
            self._drop(client)
            return False
        self._loop.watch_writable(
            client.connection.fileno(),
            None if client.ended else lambda: self._on_readable(client),
            (lambda: self._send(client)) if client.unsent else None,
        )
        return True

    def _answer(self, line: bytes) -> Reply:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("a request must be an object")
        except (ValueError, RecursionError) as err:
            return {"error": f"not a request: {err}"}
        try:
            return self._handler(request)
        except VelaError as err:
            return {"error": str(err)}
        except Exception:
            # A bug. Circuits go on, and the log has the traceback.
            structlog.get_logger().exception("command_failed", request=request)
            return {"error": "internal error; see the log of velad"}

    def _drop(self, client: _Client) -> None:
        del self._clients[client.connection.fileno()]
        self._loop.unwatch(client.connection.fileno())
        client.connection.close()


class _Client:
    """A connection, the request received so far, and replies not sent yet."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""
        self.unsent = bytearray()
        self.ended = False
        """The client sends no more requests; it may still wait for replies."""


def find_socket(pid: int) -> Path | None:
    """Return the path of the Unix socket that a process listens on; None: unknown."""
    process = Path("/proc", str(pid))
    links = set()
    try:
        table = (process / "net" / "unix").read_text()
        for link in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                links.add(str(link.readlink()))
    except OSError:
        return None
    for line in table.splitlines()[1:]:
        # net/unix/af_unix.c, unix_seq_show: Num RefCount Protocol Flags Type St Inode Path
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & _ACCEPTS and f"socket:[{fields[6]}]" in links:
            return Path(fields[7])
    return None


def ask(path: Path, request: Mapping[str, object], timeout_s: float) -> Mapping[str, object]:
    """Send a request to the velad that serves path, and return its reply. Blocks.

    Raises VelaError: no velad, no answer in time, or the error that it answers.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        # settimeout() would make connect() fail instead of wait if many connect at once.
        seconds, fraction = divmod(timeout_s, 1)
        wait = _TIMEVAL.pack(int(seconds), int(fraction * 1_000_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        try:
            connection.connect(str(path))
            connection.settimeout(timeout_s)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as file:
                line = file.readline()
        except (TimeoutError, BlockingIOError) as err:
            raise VelaError(f"velad did not answer on {path} within {timeout_s:g} s") from err
        except (FileNotFoundError, ConnectionRefusedError) as err:
            raise VelaError(f"no velad is running at {path}") from err
        except OSError as err:
            raise VelaError(f"{path}: {_reason(err)}") from err
    if not line.endswith(b"\n"):
        raise VelaError(f"velad at {path} ended before it answered")
    reply: Mapping[str, object] = json.loads(line)
    if "error" in reply:
        raise VelaError(str(reply["error"]))
    return reply


def _reason(err: OSError) -> str:
    # A path that is too long has no errno.
    return os.strerror(err.errno) if err.errno else str(err)
