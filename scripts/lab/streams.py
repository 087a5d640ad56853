"""TCP over many segments at the same time, one connection each."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass

from lab.load import CONGESTION_CONTROL
from lab.program import Program
from lab.tunnels.tunnel import Segment

WARM_UP_S = 0.5
GRACE_S = 10.0
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Shares:
    """What each segment carried at the same time."""

    bits_per_s: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.bits_per_s)

    @property
    def fairness(self) -> float:
        """Return Jain's index: 1 if all got the same, 1/n if one got everything."""
        squares = sum(rate * rate for rate in self.bits_per_s)
        return self.total**2 / (len(self.bits_per_s) * squares) if squares else 0.0

    @property
    def least_to_most(self) -> float:
        return min(self.bits_per_s) / max(self.bits_per_s) if self.total else 0.0


def concurrent_streams(program: Program, segments: list[Segment], seconds: float) -> Shares:
    """Send from A to B over all segments at once; what came in WARM_UP_S does not count."""
    with ExitStack() as stack:
        pairs = [_connected(segment, stack) for segment in segments]
        fds = [end.fileno() for pair in pairs for end in pair]
        argv = [f"{sender.fileno()}:{sink.fileno()}" for sender, sink in pairs]
        printed = program.run(
            *(f"{WARM_UP_S:f}", f"{seconds:f}", *argv),
            fds=fds,
            limit_s=WARM_UP_S + seconds + GRACE_S,
        )
    return Shares(tuple(8 * count / printed["seconds"] for count in printed["received_bytes"]))


def _connected(segment: Segment, stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    with segment.b.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.settimeout(CONNECT_TIMEOUT_S)
        listener.bind((segment.b.address, 0))
        listener.listen()
        sender = stack.enter_context(segment.a.namespace.socket(socket.AF_INET, socket.SOCK_STREAM))
        sender.settimeout(CONNECT_TIMEOUT_S)
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL.encode())
        sender.connect(listener.getsockname())
        sink = stack.enter_context(listener.accept()[0])
    return sender, sink
