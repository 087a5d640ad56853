"""The contract of the data path.

A data path moves frames between one TAP and one pair of UDP sockets, in
batches: each call of egress() or ingress() waits until there is something to
do, does what is there up to a batch, and returns. The two are called by one
thread each, for ever, so frames keep their order in each direction. Or one
thread does both by poll_until(), and waits in no other call.

vela.dataplane.reference specifies what any other engine does.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Protocol

from vela.dataplane.frame import Elision
from vela.dataplane.mss import MssClamp
from vela.dataplane.pieces import Fragmentation
from vela.linux.features import ALL_FEATURES, Features

POLL_WINDOW_S = 0.05
"""A packet every 20 ms, as of voice, keeps a thread that polls awake."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a data path works on: open descriptors, which it does not close, and numbers."""

    circuit_id: int
    tap_fd: int
    """Frames without a header before them (IFF_NO_PI), unless virtio_header. Blocking; not so
    without RWF_NOWAIT among the features."""
    receive_socket: socket.socket
    """Blocking, unconnected, UDP_GRO on if it is among the features; the steering sends only what
    is for this circuit here."""
    send_socket: socket.socket
    """Blocking; connected to the remote, unless destination is set."""
    destination: tuple[str, int] | None
    """As sendmsg takes it; None where send_socket is connected."""
    divert_socket: socket.socket
    """Non-blocking SOCK_SEQPACKET to the supervisor, for datagrams that are not this circuit's; on
    an encrypted circuit also from there, for those that are."""
    local_mac: bytes
    remote_mac: bytes
    """As rebuilt frames show it; where it is not known, any that differs from local_mac."""
    elision: Elision
    frame_limit: int
    """The largest frame that the TAP gives and takes, in bytes."""
    datagram_limit: int
    """The largest UDP payload that the underlay does not fragment, in bytes."""
    counters: memoryview
    """vela.dataplane.counters.Slot by slot, 64 bits each."""
    virtio_header: bool = False
    """A virtio header goes before each frame of the TAP, which may be left unfinished: without its
    checksum, or not yet cut into segments. With the reference all are finished: the kernel is told
    to leave nothing to it."""
    partial_checksums: bool = False
    """Both ends leave inner checksums to the outer one: docs/protocol.md, 3.5."""
    source_address: tuple[int, int, bytes] | None = None
    """What sendmsg takes along, so that datagrams leave from the right one of this machine's
    addresses; None where send_socket is bound to that."""
    features: Features = ALL_FEATURES
    """What the kernel can do and the data path is to use."""
    fragmentation: Fragmentation = Fragmentation.BY_IP
    packet_too_big: bool = False
    """Senders of packets that are larger than a datagram, and that IP is not to cut, hear by ICMP
    what would fit (packet_too_big.py). What becomes of the packets fragmentation says."""
    queue: tuple[int, int] = (0, 1)
    """Which of the circuit's queues this is, from 0 on, and a power of two that is not less than
    their number. Queues share nothing that is numbered: frames that are cut into pieces have
    numbers that leave the first, divided by the second, and so no place at the receiver in common;
    sealed datagrams have the sequence of the first."""
    mss_clamp: MssClamp | None = None
    """How large segments may be that TCP announces here and there; None: as they are."""
    dscp: int | None = 0
    """Of the outer headers: a number, which send_socket has by itself; None: that of each inner
    packet."""
    carry_ecn: bool = False
    """The outer headers get the ECN of the inner packet, as the remote brings it back: RFC 6040."""
    low_latency: bool = False
    """One thread carries it, by poll_until()."""
    key_page: int | None = None
    """The descriptor of the circuit's key page (key_page.py), which the data path maps. With one,
    no clear frame is sent or accepted, whether or not it holds a key. None: not encrypted."""
    sequences: int = 1
    """How many sequences of counters the remote may use, SEQUENCES at most; for more than one the
    page needs room: docs/protocol.md, 3.6."""
    bundle_limit: int = 0
    """How large a sealed datagram with several small frames may be (bundle.py), in bytes; 0: the
    remote is sent none."""

    @property
    def outer_ipv4(self) -> bool:
        """Whether the outer headers are IPv4's. An IPv6 socket can send both."""
        if self.destination is None or self.send_socket.family != socket.AF_INET6:
            return self.send_socket.family != socket.AF_INET6
        return IPv6Address(self.destination[0]).ipv4_mapped is not None


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine can do, as it declares in engine.py."""

    features: Features = frozenset()
    """The kernel's features that it can use."""
    virtio_header: bool = False
    """It reads and writes a virtio header before each frame of the TAP, and the kernel may leave
    checksums and segmentation to it."""
    partial_checksums: bool = False
    """It leaves inner checksums to the outer one and completes those of the remote:
    docs/protocol.md, 3.5."""
    several_queues: bool = False
    """Its threads run beside each other, so that more than two carry more."""
    native: bool = False
    """It tells the remote that it is native: docs/protocol.md, 4.1, capability bit 2."""


class DataPlane(Protocol):
    """Two loops, and their bodies. Nothing that the network does to a frame makes them raise."""

    def egress(self) -> None:
        """Forward frames TAP to UDP: wait for the first, take those behind it as they are there."""

    def ingress(self) -> None:
        """Forward frames UDP to TAP, likewise."""

    def egress_until(self, stop: memoryview, states: memoryview, /) -> None:
        """Call egress() until the first byte of stop, which others write, is not 0.

        The signal handover.WAKE ends a wait, so that stop is seen; or the engine tells by the first
        byte of states that it waits, and has taken nothing. See vela.dataplane.handover.
        """

    def ingress_until(self, stop: memoryview, states: memoryview, /) -> None:
        """Call ingress(), likewise; with the second byte of states."""

    def poll_until(self, stop: memoryview, states: memoryview, /) -> None:
        """Forward frames both ways, likewise, and do not sleep for POLL_WINDOW_S behind a frame."""
