"""Pings to many addresses by one process, each request and each answer known."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from struct import Struct

from lab.buffers import force_receive_buffer
from lab.namespace import Namespace
from lab.resource import Resource
from lab.waiting import eventually

# RFC 792: type, code, checksum, identifier, sequence number.
_ECHO = Struct("!BBHHH")
_REQUEST, _ANSWER = 8, 0
_LARGEST = 2048
_BUFFER_BYTES = 32 << 20

ANSWER_TIMEOUT_S = 60.0


class Pings(Resource):
    """Asks each target every interval_s, in turn. A context.

    Times are monotonic seconds. A request that the kernel refuses to send counts as sent. There
    are 65536 requests for each target at most.
    """

    def __init__(
        self, targets: Sequence[str], interval_s: float, namespace: Namespace | None = None
    ) -> None:
        """Each target is a different IPv4 address. Without a namespace: from this process's own."""
        self._targets = list(targets)
        self._pause_s = interval_s / len(targets)
        self._identifier = os.getpid() & 0xFFFF
        # By target, each by the request's number. One writes: the thread.
        self._sent: list[list[float]] = [[] for _ in targets]
        self._came: list[dict[int, float]] = [{} for _ in targets]
        make = socket.socket if namespace is None else namespace.socket
        self._socket = make(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        # Answers that were held up come all at once, to a thread that may wait for a CPU.
        force_receive_buffer(self._socket, _BUFFER_BYTES)
        self._end, self._ends = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self.stop()
        self._socket.close()
        os.close(self._end)

    def stop(self) -> None:
        """Ask no more."""
        if self._ends >= 0:
            os.close(self._ends)
            self._ends = -1
            if self._thread.ident is not None:
                self._thread.join()

    def await_answers(self, count: int) -> None:
        """Wait until each target has answered so many requests that were sent from now on."""
        asked = self.asked()

        def have_come() -> bool:
            return all(
                sum(number >= first for number in list(came)) >= count
                for first, came in zip(asked, self._came, strict=True)
            )

        eventually(have_come, ANSWER_TIMEOUT_S, f"{count} more answers of each target", 0.1)

    def asked(self) -> list[int]:
        """Return how often each target has been asked."""
        return [len(sent) for sent in self._sent]

    def unanswered(self, after: float = 0.0) -> list[list[float]]:
        """Return when the requests were sent that each target never answered, after stop().

        What was sent before a point of time, and what was sent after the last that was
        answered, which may be under way, does not count.
        """
        return [
            [
                at
                for number, at in enumerate(sent[: max(came, default=0)])
                if number not in came and at > after
            ]
            for sent, came in zip(self._sent, self._came, strict=True)
        ]

    def gaps(self) -> list[float]:
        """Return the longest time without an answer of each target, in seconds."""
        return [
            max((after - before for before, after in pairwise(sorted(came.values()))), default=0.0)
            for came in self._came
        ]

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._end, select.POLLHUP)
        turn, due = 0, time.monotonic()
        while True:
            left_s = due - time.monotonic()
            ready = {fd for fd, _ in poll.poll(max(0.0, left_s) * 1000)}
            if self._end in ready:
                return
            if self._socket.fileno() in ready:
                self._receive()
            now = time.monotonic()
            if now >= due:
                self._send(turn % len(self._targets), now)
                turn += 1
                # A process that stood still does not make up for it.
                due = max(due + self._pause_s, now)

    def _send(self, target: int, now: float) -> None:
        number = len(self._sent[target])
        self._sent[target].append(now)
        # RFC 1071, over four words of which two are zero.
        total = (_REQUEST << 8) + self._identifier + number
        checksum = 0xFFFF - total % 0xFFFF
        request = _ECHO.pack(_REQUEST, 0, checksum, self._identifier, number)
        with suppress(OSError):
            self._socket.sendto(request, socket.MSG_DONTWAIT, (self._targets[target], 0))

    def _receive(self) -> None:
        data, (source, _) = self._socket.recvfrom(_LARGEST)
        start = (data[0] & 0x0F) * 4
        if len(data) < start + _ECHO.size or source not in self._targets:
            return
        kind, _, _, identifier, number = _ECHO.unpack_from(data, start)
        target = self._targets.index(source)
        if (kind, identifier) == (_ANSWER, self._identifier) and number < len(self._sent[target]):
            self._came[target].setdefault(number, time.monotonic())
