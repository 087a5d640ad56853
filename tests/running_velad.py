"""A velad that runs, as one that takes over from it sees it: at its control socket, and beyond."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lab.waiting import PATIENCE

TIMEOUT_S = 10.0


class RunningVelad:
    """Says what the test lets it say. Its process lives until end()."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._stack = stack
        self._listening = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        self._listening.bind(str(path))
        self._listening.listen()
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        stack.callback(self.end)
        self.channel, self._handed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.channel, self._handed):
            stack.enter_context(end)
        self.channel.settimeout(PATIENCE * TIMEOUT_S)
        self.asked: dict[str, Any] = {}
        """What it was asked at the control socket."""
        self._thread: threading.Thread | None = None

    def answer(self, answer: bytes | None = None, *, hand: bool = True) -> None:
        """Answer the next request, meanwhile: so, or with the pid, and the channel if hand."""
        said = json.dumps({"pid": self.process.pid}).encode() if answer is None else answer

        def serve() -> None:
            connection, _ = self._listening.accept()
            with connection:
                with connection.makefile("rb") as lines:
                    self.asked = json.loads(lines.readline())
                fds = [self._handed.fileno()] if hand else []
                socket.send_fds(connection, [said], fds)

        self._thread = threading.Thread(target=serve)
        self._thread.start()

    def join(self) -> None:
        """Wait until it has answered; from then on only the successor has its end."""
        if self._thread is not None:
            self._thread.join(PATIENCE * TIMEOUT_S)
            self._handed.close()

    def end(self) -> None:
        """Let its process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def say(self, message: Mapping[str, Any] | bytes, descriptors: Sequence[int] = ()) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(self.channel, [data], list(descriptors))

    def hear(self) -> dict[str, Any]:
        """Return what the successor says next; empty: it has ended."""
        data = self.channel.recv(65536)
        return dict(json.loads(data)) if data else {}

    def hears_nothing(self) -> bool:
        return not select.select([self.channel], [], [], 0)[0]


def hear_all(channel: socket.socket) -> list[tuple[dict[str, Any], list[int]]]:
    """Return all that was said so far, and the descriptors with it, which are the caller's."""
    heard = []
    while select.select([channel], [], [], 0)[0]:
        data, fds, _, _ = socket.recv_fds(channel, 1 << 18, 253)
        if not data:
            break
        heard.append((json.loads(data), fds))
    return heard


def close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)
