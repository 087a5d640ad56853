"""The client of velad's control socket: requests and replies, one JSON object on each line."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

from vela.errors import VelaError

TIMEOUT_S = 5.0

# The longest that one wait takes, where there is no other limit: a day.
_NO_LIMIT_S = 86400.0

_ACCEPTS = 0x10000  # include/linux/net.h, __SO_ACCEPTCON
_TIMEVAL = struct.Struct("@ll")  # include/uapi/asm-generic/socket.h, SO_SNDTIMEO

Document = Mapping[str, Any]


class Connection:
    """A connection to velad. A context: closed on leaving."""

    def __init__(self, path: str, timeout_s: float = TIMEOUT_S) -> None:
        """Connect. Raises VelaError, which says what to do."""
        self._path = path
        self._timeout_s = timeout_s
        self._received = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # settimeout() would make connect() fail instead of wait if many connect at once.
        seconds, fraction = divmod(timeout_s, 1)
        wait = _TIMEVAL.pack(int(seconds), int(fraction * 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        try:
            with self._errors():
                self._socket.connect(path)
                self._socket.settimeout(timeout_s)
        except VelaError:
            self._socket.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, request: Document) -> Document:
        """Send a request and return its reply. Events that arrive before it are lost.

        Raises VelaError: no answer in time, or the error that velad answers.
        """
        self.send(request)
        while True:
            reply = self.read(time.monotonic() + self._timeout_s)
            if reply is None:
                raise VelaError(self._no_answer())
            if "event" not in reply:
                return checked(reply)

    def send(self, request: Document) -> None:
        """Send a request. read() returns its reply. Raises VelaError."""
        try:
            with self._errors():
                self._socket.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError as err:
            raise VelaError(self._no_answer()) from err

    def read(self, deadline: float | None = None) -> Document | None:
        """Return the next reply or event; None: there was none until the deadline.

        deadline: of time.monotonic(). Raises VelaError if velad ends first.
        """
        while b"\n" not in self._received:
            left_s = _NO_LIMIT_S if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                return None
            self._socket.settimeout(left_s)
            try:
                with self._errors():
                    data = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            if not data:
                raise VelaError(f"velad at {self._path} ended before it answered")
            self._received += data
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        document: Document = json.loads(line)
        return document

    def _no_answer(self) -> str:
        return f"velad did not answer on {self._path} within {self._timeout_s:g} s"

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of the socket into a VelaError that says what to do, but for TimeoutError."""
        try:
            yield
        except TimeoutError:
            raise
        except BlockingIOError as err:
            raise VelaError(self._no_answer()) from err
        except (FileNotFoundError, ConnectionRefusedError) as err:
            raise VelaError(_not_running(self._path)) from err
        except PermissionError as err:
            raise VelaError(_not_permitted(self._path)) from err
        except (BrokenPipeError, ConnectionResetError) as err:
            raise VelaError(f"velad at {self._path} ended before it answered") from err
        except OSError as err:
            # A path that is too long has no errno.
            raise VelaError(
                f"{self._path}: {os.strerror(err.errno) if err.errno else err}"
            ) from err


def ask(path: str | os.PathLike[str], request: Document, timeout_s: float = TIMEOUT_S) -> Document:
    """Send one request to the velad that serves path, and return its reply. Blocks.

    Raises VelaError: no velad, no answer in time, or the error that it answers.
    """
    with Connection(os.fspath(path), timeout_s) as connection:
        return connection.ask(request)


def checked(reply: Document) -> Document:
    """Return a reply that is no error. Raises VelaError with the text of one that is."""
    if "error" in reply:
        raise VelaError(str(reply["error"]))
    return reply


def find_socket(pid: int) -> str | None:
    """Return the path of the Unix socket that a process listens on; None: unknown."""
    process = f"/proc/{pid}"
    links = set()
    try:
        listening = _listening(f"{process}/net/unix")
        for name in os.listdir(f"{process}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                links.add(os.readlink(f"{process}/fd/{name}"))
    except OSError:
        return None
    for inode, path in listening:
        if f"socket:[{inode}]" in links:
            return path
    return None


def _listening(table: str) -> Iterator[tuple[str, str]]:
    """Yield inode and path of each listening Unix socket. Raises OSError."""
    with open(table, encoding="utf-8", errors="surrogateescape") as file:
        lines = file.read().splitlines()[1:]
    for line in lines:
        # net/unix/af_unix.c, unix_seq_show: Num RefCount Protocol Flags Type St Inode Path
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & _ACCEPTS:
            yield fields[6], fields[7]


def _not_running(path: str) -> str:
    text = f"no velad is running at {path}"
    try:
        others = sorted(
            {
                other
                for _, other in _listening("/proc/net/unix")
                if other.endswith("velad.sock") and other != path
            }
        )
    except OSError:
        others = []
    if others:
        return f"{text}; one is at {others[0]}: use --socket {others[0]}"
    return f"{text}; start it: systemctl start vela, or velad --config FILE"


def _not_permitted(path: str) -> str:
    """Return who may use the socket, as its owner and mode say."""
    text = f"{path}: permission denied; only root"
    try:
        found = os.stat(path)
    except OSError:
        return f"{text} may use it: try sudo"
    if found.st_mode & 0o020 and found.st_gid:
        import grp

        try:
            group = grp.getgrgid(found.st_gid).gr_name
        except KeyError:
            group = str(found.st_gid)
        return f"{text} and the group {group} may use it: try sudo, or join the group"
    return (
        f"{text} may use it: try sudo, or let a group use it by control_group in the configuration"
    )
