"""Frames as they cross an interface, with the kernel's time of each. A packet(7) socket."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct

from lab.buffers import force_receive_buffer
from lab.errors import LabError
from lab.headers import ETHERTYPE_VLAN
from lab.link import Interface
from lab.resource import Resource
from lab.waiting import PATIENCE

# include/uapi/asm-generic/socket.h, linux/if_ether.h, linux/if_packet.h
_SO_TIMESTAMPNS = 35
_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_AUXDATA = 8
_STATUS_CHECKSUM_NOT_READY = 1 << 3
_STATUS_VLAN_VALID = 1 << 4
_STATUS_VLAN_TPID_VALID = 1 << 6
_AUXDATA = Struct("=IIIHHHH")  # status, length, snap length, mac, net, VLAN TCI, VLAN TPID
_TIMESPEC = Struct("=qq")
_VLAN = Struct("!HH")

BUFFER_BYTES = 64 << 20
# A segmentation buffer is at most 64 KiB of IP with an Ethernet header and a tag.
_LARGEST_FRAME = 65536 + 14 + 4
_MAC_PAIR = 12


@dataclass(frozen=True, slots=True)
class Packet:
    """One frame, VLAN tag in place. With offloads on it may be far larger than the MTU."""

    data: bytes
    time_ns: int
    """Unix time, nanoseconds."""
    outgoing: bool
    """Sent by this interface, not received."""
    checksum_ready: bool
    """False: the transport checksum is left to hardware that a veth does not have."""


class Capture(Resource):
    """Everything that crosses one interface from the moment of its making.

    seen holds all that was read so far. A context; close it otherwise.
    """

    def __init__(self, interface: Interface) -> None:
        self.seen: list[Packet] = []
        # Protocol 0 receives nothing: no frame of another interface before bind.
        self._socket = interface.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)
        try:
            force_receive_buffer(self._socket, BUFFER_BYTES)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            self._socket.setblocking(False)
            self._socket.bind((interface.name, _ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def packets(self) -> list[Packet]:
        """Return all packets since the start, without waiting."""
        while self._read() is not None:
            pass
        return list(self.seen)

    def wait_for(
        self, predicate: Callable[[Packet], bool], timeout_s: float = 5.0, what: str = "a packet"
    ) -> Packet:
        """Return the first packet since the start of which predicate is true.

        Raises LabError if none comes in time.
        """
        return self.wait_for_count(predicate, 1, timeout_s, what)[0]

    def wait_for_count(
        self,
        predicate: Callable[[Packet], bool],
        count: int,
        timeout_s: float = 5.0,
        what: str = "packets",
    ) -> list[Packet]:
        """Return the first count such packets. Raises LabError if fewer come in time.

        That is PATIENCE times timeout_s: see lab.waiting.
        """
        limit_s = PATIENCE * timeout_s
        deadline = time.monotonic() + limit_s
        found = [packet for packet in self.seen if predicate(packet)]
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while len(found) < count:
            packet = self._read()
            if packet is not None:
                if predicate(packet):
                    found.append(packet)
            elif not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise LabError(
                    f"saw {len(found)} of {count} in {limit_s:g} s of {what}, "
                    f"among {len(self.seen)} packets"
                )
        return found[:count]

    def _read(self) -> Packet | None:
        try:
            data, ancillary, _, address = self._socket.recvmsg(_LARGEST_FRAME, 256)
        except BlockingIOError:
            return None
        time_ns, checksum_ready = 0, True
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(value)
                time_ns = seconds * 1_000_000_000 + nanoseconds
            elif (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
                status, _, _, _, _, tci, tpid = _AUXDATA.unpack(value)
                checksum_ready = not status & _STATUS_CHECKSUM_NOT_READY
                if status & _STATUS_VLAN_VALID:
                    # The kernel keeps a tag beside the frame, also where none is on the wire.
                    tpid = tpid if status & _STATUS_VLAN_TPID_VALID else ETHERTYPE_VLAN
                    data = data[:_MAC_PAIR] + _VLAN.pack(tpid, tci) + data[_MAC_PAIR:]
        outgoing = address[2] == socket.PACKET_OUTGOING
        packet = Packet(data, time_ns, outgoing, checksum_ready)
        self.seen.append(packet)
        return packet
