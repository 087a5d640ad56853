"""What a capture of the underlay shows of an encrypted circuit: clear frames, nonces used twice."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lab.capture import Packet
from lab.headers import ETHERTYPE_IPV4, ETHERTYPE_IPV6, parse_ethernet, parse_ipv4, parse_ipv6

PORT = 48621
SEALED = (0x42, 0x43)
"""Byte 1 of a datagram of an encrypted circuit."""
_UDP_HEADER, _HEAD, _TAG = 8, 6, 16

# A key's phase comes back with another key after a second at the earliest: that is how often an
# end changes keys. Both threads of a worker send, so one that began before a change may end after.
LATE_S = 0.05


@dataclass(frozen=True, slots=True)
class CircuitDatagram:
    """One of a circuit, or the first fragment of one."""

    time_s: float
    outgoing: bool
    """Sent by the machine that was watched, not received."""
    data: bytes
    whole: bool = True

    @property
    def is_sealed(self) -> bool:
        return self.data[1] in SEALED and (len(self.data) >= _HEAD + _TAG or not self.whole)


def circuit_datagrams(packets: Iterable[Packet], circuit_id: int = 1) -> Iterator[CircuitDatagram]:
    """Return the datagrams of a circuit; what TSO or UDP_SEGMENT joined is one."""
    for packet in packets:
        data, whole = _udp_payload(packet.data)
        if len(data) > 1 and data[0] == circuit_id:
            yield CircuitDatagram(packet.time_ns / 1e9, packet.outgoing, data, whole)


def _udp_payload(frame: bytes) -> tuple[bytes, bool]:
    """Return what a datagram from or to VELA carries, empty for all else; False: a fragment."""
    ethernet = parse_ethernet(frame)
    whole = True
    if ethernet.ethertype == ETHERTYPE_IPV4:
        ipv4 = parse_ipv4(ethernet.payload)
        if ipv4.protocol != socket.IPPROTO_UDP or ipv4.fragment_offset:
            return b"", False
        udp, whole = ipv4.payload, not ipv4.more_fragments
    elif ethernet.ethertype == ETHERTYPE_IPV6:
        ipv6 = parse_ipv6(ethernet.payload)
        if ipv6.next_header != socket.IPPROTO_UDP:
            return b"", False
        udp = ipv6.payload
    else:
        return b"", False
    ports = int.from_bytes(udp[:2]), int.from_bytes(udp[2:4])
    return (udp[_UDP_HEADER:] if PORT in ports else b""), whole


@dataclass(slots=True)
class _Direction:
    """What one end has sent, key after key."""

    phase: int | None = None
    last: dict[int, float] = field(default_factory=dict)
    """By phase: when its last datagram was sent."""
    seen: dict[int, dict[int, bytes]] = field(default_factory=dict)
    """By phase, of its newest key: the digest of what each counter was used for."""
    keys: int = 0
    datagrams: int = 0


@dataclass(slots=True)
class NonceLedger:
    """Finds counters that were used twice with one key, for something else the second time.

    A key is not seen on the wire. A direction's key ends where the phase of its datagrams changes;
    where it changes back, a new one begins. The same datagram twice, such as one that is sent
    again after an error, is no fault.
    """

    reused: list[str] = field(default_factory=list)
    clear: list[str] = field(default_factory=list)
    _directions: dict[bool, _Direction] = field(
        default_factory=lambda: {True: _Direction(), False: _Direction()}
    )

    def add(self, datagrams: Iterable[CircuitDatagram]) -> None:
        """Take what was captured, in its order."""
        for each in datagrams:
            if not each.is_sealed:
                self.clear.append(each.data[:32].hex())
            elif each.whole:
                self._add(each)

    def keys(self, outgoing: bool) -> int:
        """Return with how many keys one end has sent."""
        return self._directions[outgoing].keys

    def datagrams(self, outgoing: bool) -> int:
        """Return how many datagrams one end has sent."""
        return self._directions[outgoing].datagrams

    def _add(self, datagram: CircuitDatagram) -> None:
        way, phase = self._directions[datagram.outgoing], datagram.data[1] & 1
        way.datagrams += 1
        if phase != way.phase:
            self._change(way, phase, datagram.time_s)
        way.last[phase] = datagram.time_s
        counter = int.from_bytes(datagram.data[2:_HEAD])
        digest = hashlib.blake2b(datagram.data[_HEAD:], digest_size=8).digest()
        known = way.seen[phase].setdefault(counter, digest)
        if known != digest:
            sender = "this end" if datagram.outgoing else "the other end"
            self.reused.append(f"{sender}, key {way.keys}, phase {phase}, counter {counter}")

    @staticmethod
    def _change(way: _Direction, phase: int, now_s: float) -> None:
        if phase in way.last and now_s - way.last[phase] < LATE_S:
            return  # one that was late: its key is the one before
        way.phase = phase
        way.seen[phase] = {}
        way.keys += 1
