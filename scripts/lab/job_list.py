"""A service manager that says what jobs it has, as systemd does: org.freedesktop.systemd1(5)."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.resource import Resource

UNIT = "vela.service"
_PATH = "/org/freedesktop/systemd1/unit/vela_2eservice"
_OTHER = "/org/freedesktop/systemd1/unit/other_2eservice"
_OTHER_PID = 1
_LINE = b"\r\n"
_FIXED = struct.Struct("<cBBBIII")
_RETURN, _ERROR = 2, 3


class JobList(Resource):
    """Answers who asks at a socket which jobs there are, and for two properties of a service.

    Knows of a call no more than the names in it, which is as much as it takes. Says nothing while
    it is silent.
    """

    def __init__(self, path: Path, service: Callable[[], tuple[int, int]]) -> None:
        """service: returns the main process of the unit, and how many descriptors it has stored."""
        self.path = path
        self.silent = False
        self.asked = 0
        """How many calls have come."""
        self._service = service
        self._job: str | None = None
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen()
        self._end, self._ends = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._ends.close()
        self._thread.join()
        self._end.close()
        self._listening.close()

    @contextmanager
    def restart(self) -> Iterator[None]:
        """Have a job that restarts the unit, beside one that restarts another, inside."""
        self._job = "restart"
        yield
        self._job = None

    @contextmanager
    def stop(self) -> Iterator[None]:
        """Have a job that stops the unit, inside."""
        self._job = "stop"
        yield
        self._job = None

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._listening, select.POLLIN)
        poll.register(self._end, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._end.fileno() in ready:
                return
            connection, _ = self._listening.accept()
            with connection, suppress(OSError):
                self._answer_all(connection)

    def _answer_all(self, connection: socket.socket) -> None:
        # As sd-bus reads it, which takes in whatever there is.
        begun = connection.recv(4096)
        if not (begun.startswith(b"\0AUTH EXTERNAL ") and begun.endswith(_LINE + b"BEGIN" + _LINE)):
            return
        with connection.makefile("rwb") as talk:
            talk.write(b"OK 0123456789abcdef0123456789abcdef" + _LINE)
            talk.flush()
            while fixed := talk.read(_FIXED.size):
                _, _, _, _, body_length, serial, fields_length = _FIXED.unpack(fixed)
                fields = talk.read(fields_length + -fields_length % 8)
                body = talk.read(body_length)
                self.asked += 1
                if self.silent:
                    continue
                talk.write(self._answer(serial, fields, body))
                talk.flush()

    def _answer(self, serial: int, fields: bytes, body: bytes) -> bytes:
        pid, stored = self._service()
        if b"ListJobs" in fields:
            jobs = [] if self._job is None else [(7, "other.service", _OTHER), (8, UNIT, _PATH)]
            return _reply(serial, "a(usssoo)", _array([self._entry(*each) for each in jobs]))
        if _OTHER.encode() in fields:
            return _reply(serial, "v", _number(_OTHER_PID))
        if b"MainPID" in body:
            return _reply(serial, "v", _number(pid))
        if b"NFileDescriptorStore" in body:
            return _reply(serial, "v", _number(stored))
        return _reply(serial, "s", _string("unknown"), kind=_ERROR)

    def _entry(self, number: int, unit: str, path: str) -> bytes:
        entry = struct.pack("<I", number)
        job = f"/org/freedesktop/systemd1/job/{number}"
        for text in (unit, self._job or "", "running", job, path):
            entry = _padded(entry, 4) + _string(text)
        return entry


def _reply(serial: int, signature: str, body: bytes, kind: int = _RETURN) -> bytes:
    fields = b"\5\1u\0" + struct.pack("<I", serial)
    # The sender, as systemd has it.
    fields += b"\7\1s\0" + _string("org.freedesktop.systemd1")
    fields = (
        _padded(fields, 8) + b"\10\1g\0" + bytes((len(signature),)) + signature.encode() + b"\0"
    )
    fixed = _FIXED.pack(b"l", kind, 1, 1, len(body), serial + 100, len(fields))
    return _padded(fixed + fields, 8) + body


def _array(entries: list[bytes]) -> bytes:
    joined = b""
    for entry in entries:
        joined = _padded(joined, 8) + entry
    return _padded(struct.pack("<I", len(joined)), 8) + joined


def _number(value: int) -> bytes:
    return b"\1u\0\0" + struct.pack("<I", value)


def _string(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode() + b"\0"


def _padded(data: bytes, size: int) -> bytes:
    return data + bytes(-len(data) % size)
