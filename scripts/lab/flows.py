"""Flows of numbered datagrams through a circuit, in both directions: which came, in which order."""

from __future__ import annotations

import select
import socket
import struct
import time
from contextlib import ExitStack
from itertools import pairwise

from lab.autoconfigured import Ends
from lab.capture import Capture
from lab.circuit import ADDRESSES_A, ADDRESSES_B
from lab.waiting import eventually

A, B = (each[0].partition("/")[0] for each in (ADDRESSES_A, ADDRESSES_B))
FLOWS = 8
BURST = 4
PAUSE_S = 0.0005
WINDOW = 24  # of each flow under way at most: those of 32 flows fit an interface's queue
STALLED_S = 0.2  # without an answer, all that was under way is taken for lost
STEERED_S = 0.3  # three times what a steering program waits at most: demux.STEER_INTERVAL_S
LAST = 20  # of the datagrams that are sent, those that may be under way
_NUMBER = struct.Struct("!I")


class Flows:
    """UDP in both directions between the two ends, each datagram with its number."""

    def __init__(self, both: Ends, stack: ExitStack, count: int = FLOWS) -> None:
        pairs = [self._pair(both, stack) for _ in range(count)]
        self._ends = [end for pair in pairs for end in pair]
        self._number = self._first = 0
        self._latest = [0] * len(self._ends)
        self.heard: list[list[int]] = [[] for _ in self._ends]
        """The numbers that came to each end of each flow, in order."""
        # Until its steering is in force, the supervisor delivers beside the worker.
        self.carry(STEERED_S)
        self.finish()
        self._first = self._number
        self.heard = [[] for _ in self._ends]

    @staticmethod
    def _pair(both: Ends, stack: ExitStack) -> tuple[socket.socket, socket.socket]:
        a = stack.enter_context(both.a.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM))
        b = stack.enter_context(both.b.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM))
        a.bind((A, 0))
        b.bind((B, 0))
        a.connect(b.getsockname())
        b.connect(a.getsockname())
        return a, b

    def carry(self, seconds: float) -> None:
        """Send bursts on all flows, for so long.

        No more than the queues hold: what is lost then is not lost for want of a CPU.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._await_room()
            for _ in range(BURST):
                self._number += 1
                for each in self._ends:
                    each.send(_NUMBER.pack(self._number))
            self._hear()
            # So that neither queues nor sockets overflow.
            time.sleep(PAUSE_S)

    def _await_room(self) -> None:
        until = time.monotonic() + STALLED_S
        while (left_s := until - time.monotonic()) > 0:
            late = [
                end
                for end, latest in zip(self._ends, self._latest, strict=True)
                if self._number - latest >= WINDOW
            ]
            if not late:
                return
            select.select(late, (), (), left_s)
            self._hear()

    def _hear(self) -> None:
        for end, (each, heard) in enumerate(zip(self._ends, self.heard, strict=True)):
            try:
                while True:
                    number = _NUMBER.unpack(each.recv(64, socket.MSG_DONTWAIT))[0]
                    self._latest[end] = max(self._latest[end], number)
                    if number > self._first:
                        heard.append(number)
            except BlockingIOError:
                continue

    def finish(self) -> int:
        """Wait until the last number has come to all ends; return how many datagrams were lost."""

        def complete() -> bool:
            self._number += 1
            for each in self._ends:
                each.send(_NUMBER.pack(self._number))
            time.sleep(0.01)
            self._hear()
            return all(heard[-1:] and heard[-1] >= self._number - LAST for heard in self.heard)

        eventually(complete, 10.0, "the last datagrams of all flows")
        return sum(heard[-1] - self._first - len(heard) for heard in self.heard)

    def overtaken(self) -> int:
        """Return how many datagrams came behind a later one of their flow."""
        return sum(one >= next_ for heard in self.heard for one, next_ in pairwise(heard))


def ports_by_flow(capture: Capture) -> dict[int, set[int]]:
    """Return the outer source ports, by the inner ones, of elided IPv4 UDP that arrived."""
    found: dict[int, set[int]] = {}
    for packet in capture.packets():
        data = packet.data
        # Outer Ethernet, IPv4 and UDP, the circuit id, inner IPv4 and UDP.
        if packet.outgoing or data[12:14] != b"\x08\x00" or data[23] != 17 or data[42] != 1:
            continue
        if len(data) < 43 + 28 or data[43] != 0x45 or data[43 + 9] != 17:
            continue
        outer, inner = int.from_bytes(data[34:36]), int.from_bytes(data[63:65])
        found.setdefault(inner, set()).add(outer)
    return found
