"""D-Bus calls to a program at the other end of a Unix socket, with no bus in between.

systemd answers root like that. D-Bus Specification, "Message Protocol" and "Authentication
Protocol": as much of both as jobs.py takes. Whatever comes back is checked.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from vela.errors import DeviceError

_CALL, _RETURN, _ERROR = 1, 2, 3
_PATH, _INTERFACE, _MEMBER, _REPLY_SERIAL, _SIGNATURE = 1, 2, 3, 5, 8
_VERSION = 1
_FIXED = 16
"""Bytes of a message before its header fields."""
_MAX_MESSAGE = 1 << 20  # bytes; systemd takes 150 for a job
_MAX_LINE = 512


class Reader:
    """Takes values out of a message, each from where its alignment puts it.

    Raises DeviceError where there is less than there should be.
    """

    def __init__(self, data: bytes, order: str) -> None:
        """order: of the bytes of a number, as struct has it."""
        self._data, self._order, self._at = data, order, 0

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def align(self, size: int) -> None:
        self._at += -self._at % size

    def byte(self) -> int:
        return self._take(1)[0]

    def uint32(self) -> int:
        self.align(4)
        (number,) = struct.unpack(f"{self._order}I", self._take(4))
        return int(number)

    def string(self) -> str:
        """Take a string or an object path."""
        return self._text(self.uint32())

    def signature(self) -> str:
        return self._text(self.byte())

    def array(self) -> Reader:
        """Take an array of structures, and return what takes these."""
        length = self.uint32()
        self.align(8)
        return Reader(self._take(length), self._order)

    def _text(self, length: int) -> str:
        return self._take(length + 1)[:-1].decode(errors="replace")

    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise DeviceError("a D-Bus message is shorter than it says")
        taken = self._data[self._at : end]
        self._at = end
        return taken


class Peer:
    """A connection to a program that answers calls."""

    def __init__(self, path: Path, limit_s: float) -> None:
        """limit_s: for all that is said here, from now on. Raises DeviceError."""
        self._until = time.monotonic() + limit_s
        self._serial = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._wait_no_longer()
            self._socket.connect(str(path))
            self._authenticate()
        except OSError as err:
            self._socket.close()
            raise DeviceError(f"{path} does not answer: {err}") from err
        except DeviceError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def call(self, path: str, interface: str, member: str, *arguments: str) -> Reader:
        """Call a method with strings, and return what it returns. Raises DeviceError."""
        self._serial += 1
        try:
            self._wait_no_longer()
            self._socket.sendall(call_message(self._serial, path, interface, member, arguments))
            while True:
                kind, replies_to, body = self._next()
                # Signals come in between.
                if replies_to == self._serial and kind in (_RETURN, _ERROR):
                    break
        except OSError as err:
            raise DeviceError(f"no answer to {member}: {err}") from err
        if kind == _ERROR:
            raise DeviceError(f"{member} is refused")
        return body

    def _authenticate(self) -> None:
        """The other end takes the kernel's word for who this is (SO_PEERCRED).

        All in one, as sd-bus does at this end. At the other end it reads as much as there is, and
        does not look at a call that came in with BEGIN until something else comes (252).
        """
        user = str(os.geteuid()).encode().hex()
        self._socket.sendall(f"\0AUTH EXTERNAL {user}\r\nBEGIN\r\n".encode())
        line = b""
        while not line.endswith(b"\r\n"):
            if len(line) > _MAX_LINE:
                raise DeviceError("no D-Bus at the other end")
            line += self._receive(1)
        if not line.startswith(b"OK "):
            raise DeviceError(f"this user is not let in: {line[:-2].decode(errors='replace')}")

    def _next(self) -> tuple[int, int | None, Reader]:
        """Return a message: its type, the serial number that it is a reply to, and its body."""
        fixed = self._receive(_FIXED)
        if fixed[0] not in b"lB" or fixed[3] != _VERSION:
            raise DeviceError("what comes is no D-Bus message")
        order = "<" if fixed[0] == ord("l") else ">"
        length, _, fields_length = struct.unpack(f"{order}III", fixed[4:])
        padding = -fields_length % 8
        if max(length, fields_length) > _MAX_MESSAGE:
            raise DeviceError("a D-Bus message is too long")
        fields = Reader(self._receive(fields_length + padding)[:fields_length], order)
        body = Reader(self._receive(length), order)
        return fixed[1], _reply_serial(fields), body

    def _receive(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            self._wait_no_longer()
            part = self._socket.recv(length - len(received))
            if not part:
                raise DeviceError("the other end has hung up")
            received += part
        return received

    def _wait_no_longer(self) -> None:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left_s)


def call_message(
    serial: int, path: str, interface: str, member: str, arguments: Iterable[str]
) -> bytes:
    """Return the bytes of a call of a method with strings."""
    fields, body, signature = b"", b"", ""
    for argument in arguments:
        body = _aligned(body, 4) + _string(argument)
        signature += "s"
    named = [(_PATH, "o", path), (_INTERFACE, "s", interface), (_MEMBER, "s", member)]
    for code, kind, text in named:
        fields = _aligned(fields, 8) + bytes((code,)) + _signature(kind) + _string(text)
    if signature:
        fields = _aligned(fields, 8) + bytes((_SIGNATURE,)) + _signature("g")
        fields += _signature(signature)
    fixed = struct.pack("<cBBBIII", b"l", _CALL, 0, _VERSION, len(body), serial, len(fields))
    return _aligned(fixed + fields, 8) + body


def _reply_serial(fields: Reader) -> int | None:
    """Return what a message is a reply to. Raises DeviceError for a field that is not known."""
    found = None
    while not fields.at_end:
        fields.align(8)
        code, kind = fields.byte(), fields.signature()
        if kind == "u":
            number = fields.uint32()
            found = number if code == _REPLY_SERIAL else found
        elif kind in ("s", "o"):
            fields.string()
        elif kind == "g":
            fields.signature()
        else:
            raise DeviceError(f"a D-Bus message has a field of type {kind}")
    return found


def _aligned(data: bytes, size: int) -> bytes:
    return data + bytes(-len(data) % size)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def _signature(text: str) -> bytes:
    return bytes((len(text),)) + text.encode() + b"\0"
