"""Datagrams at a rate, from one end of a segment to the other, and how many arrive."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lab.buffers import force_receive_buffer
from lab.cpu import cpu_used
from lab.errors import LabError
from lab.program import Program
from lab.tunnels.tunnel import Segment

ETHERNET_HEADER = 14
HEADERS = ETHERNET_HEADER + 20 + 8  # IPv4, UDP
MIN_PAYLOAD = 16  # blast.c's mark
PORT = 5300
UNLIMITED = 1e9
"""A rate that no sender reaches."""
# Of the sockets: what waits there while the sink waits for a CPU.
BUFFER_BYTES = 4 << 20
GRACE_S = 10.0

# include/uapi/asm-generic/socket.h
_SO_SNDBUFFORCE = 32


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one rate."""

    offered_per_s: float
    sent: int
    received: int
    reordered: int
    sending_s: float
    seconds: float
    """From the first frame sent to the last one sent or received."""
    generator_cpu_s: float = 0.0
    """Of sender and sink, and of what the kernel did on their account."""
    machine_cpu_s: float = 0.0
    forwarders_cpu_s: float = 0.0

    @property
    def loss(self) -> float:
        """Return the share that did not arrive."""
        return 1 - self.received / self.sent if self.sent else 1.0

    @property
    def sent_per_s(self) -> float:
        return self.sent / self.sending_s

    @property
    def delivered_per_s(self) -> float:
        """Return the rate of arrival; what only queues held does not count as rate."""
        return self.received / self.seconds


class Blast:
    """Sends from A to B of a segment, in frames of one size. Get one by blast_across."""

    def __init__(
        self,
        program: Program,
        segment: Segment,
        sender: socket.socket,
        sink: socket.socket,
        payload: int,
    ) -> None:
        self._program = program
        self._forwarders = segment.forwarders
        self._fds = (sender.fileno(), sink.fileno())
        self._payload = payload

    def trial(self, rate: float, seconds: float) -> Trial:
        """Offer rate frames a second for that long."""
        argv = (*map(str, self._fds), str(self._payload), f"{rate:f}", f"{seconds:f}")
        with cpu_used(self._forwarders) as cpu:
            printed = self._program.run(*argv, fds=self._fds, limit_s=seconds + GRACE_S)
        return Trial(
            offered_per_s=rate,
            sent=printed["sent"],
            received=printed["received"],
            reordered=printed["reordered"],
            sending_s=printed["sending_s"],
            seconds=printed["seconds"],
            generator_cpu_s=printed["sender_cpu_s"] + printed["sink_cpu_s"],
            machine_cpu_s=cpu.machine_s,
            forwarders_cpu_s=cpu.processes_s,
        )


@contextmanager
def blast_across(program: Program, segment: Segment, frame: int) -> Iterator[Blast]:
    """Open both sockets; frame is the size on the segment's interface in bytes, without FCS."""
    payload = frame - HEADERS
    if payload < MIN_PAYLOAD or frame > segment.mtu + ETHERNET_HEADER:
        raise LabError(f"frames of {frame} bytes are of no use on an MTU of {segment.mtu}")
    with (
        segment.a.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        segment.b.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink,
    ):
        # The variants that pass the machine's own limit.
        sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER_BYTES)
        force_receive_buffer(sink, BUFFER_BYTES)
        sink.bind((segment.b.address, PORT))
        sender.connect((segment.b.address, PORT))
        yield Blast(program, segment, sender, sink, payload)
