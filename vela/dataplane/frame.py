"""The data header: a frame to a datagram and back, in place, for one circuit. No I/O.

docs/protocol.md, sections 2, 3 and 5. Its C twin is native/frame.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from vela.dataplane.checksum import complete, is_partial
from vela.dataplane.counters import Slot
from vela.wire import (
    DATA_HEADER,
    ESCAPE,
    ETHERNET_HEADER,
    IPV4_HEADER,
    IPV6_HEADER,
    put_data_header,
)

ESCAPE_BYTE = 0x40
VERIFICATION_BYTE = 0x41
PIECE_BYTE = 0x44
ENCRYPTED_BYTE = 0x42
"""The lowest bit is the key's phase."""

ETHERTYPE_IPV4 = b"\x08\x00"
ETHERTYPE_IPV6 = b"\x86\xdd"

# docs/protocol.md, section 5: circuit id, 0x41, type, identifier (8), timestamp (8).
VERIFICATION_HEADER = DATA_HEADER + 1 + 1 + 8 + 8
ECHO_REQUEST = 1
ECHO_REPLY = 2


class Kind(IntEnum):
    """What follows the circuit id, told by its first byte."""

    ETHERNET = 0
    IPV4 = 1
    IPV6 = 2
    ESCAPED = 3
    VERIFICATION = 4
    RESERVED = 5
    PIECE = 6


def _kind(first: int) -> Kind:
    match first:
        case 0x40:
            return Kind.ESCAPED
        case 0x41:
            return Kind.VERIFICATION
        case 0x42 | 0x43:
            return Kind.RESERVED
        case 0x44:
            return Kind.PIECE
        case _ if first >> 4 == 4:
            return Kind.IPV4
        case _ if first >> 4 == 6:
            return Kind.IPV6
        case _:
            return Kind.ETHERNET


KIND = tuple(_kind(first) for first in range(256))
"""Kind by the value of the byte behind the circuit id."""


_IPV4_HEADER_LENGTH = tuple(
    (first & 0x0F) * 4 if first >> 4 == 4 else 0 for first in range(256)
)  # by a packet's first byte; 0 if that is not IPv4's


def needs_escape(first: int) -> bool:
    """Tell whether a complete frame that begins with this byte would be read as something else."""
    return KIND[first] is not Kind.ETHERNET


def is_ipv4_packet(data: Sequence[int], start: int, end: int) -> bool:
    """Tell whether data[start:end] is an IPv4 packet, with or without trailing padding.

    Both ends ask this, the sender before it elides and the receiver before it
    rebuilds, so a frame that is not IP in spite of its EtherType travels whole
    and arrives as it was. RFC 791, section 3.1.
    """
    if end - start < IPV4_HEADER:
        return False
    header = _IPV4_HEADER_LENGTH[data[start]]
    total = data[start + 2] << 8 | data[start + 3]
    return IPV4_HEADER <= header <= total <= end - start


def is_ipv6_packet(data: Sequence[int], start: int, end: int) -> bool:
    """Tell whether data[start:end] is an IPv6 packet, with or without trailing padding.

    RFC 8200, section 3.
    """
    if end - start < IPV6_HEADER:
        return False
    payload = data[start + 4] << 8 | data[start + 5]
    return data[start] >> 4 == 6 and IPV6_HEADER + payload <= end - start


def ethernet_header(destination: bytes, source: bytes, ethertype: bytes) -> bytes:
    """Return the 14 bytes that begin an untagged frame. IEEE 802.3, 3.1.1."""
    header = destination + source + ethertype
    if len(header) != ETHERNET_HEADER:
        raise ValueError(f"{len(header)} bytes do not make an Ethernet header")
    return header


# Looking a member up in an enumeration takes as long as the rest of a comparison.
_IPV4, _IPV6, _ETHERNET = Kind.IPV4, Kind.IPV6, Kind.ETHERNET

HEADROOM = DATA_HEADER + ESCAPE
"""Bytes that a buffer must have before a frame, for what goes before it on the wire."""

REBUILD_ROOM = ETHERNET_HEADER - DATA_HEADER
"""Bytes that a buffer must have before a datagram, for the Ethernet header put before its packet.

They are overwritten, so datagrams that lie one behind the other are taken in order.
"""


class Elision(IntEnum):
    """Which Ethernet headers a sender leaves out."""

    NEVER = 0
    KNOWN = 1  # those between the two TAPs' addresses
    ALWAYS = 2  # all, and frames that are not IP are dropped


class Dropped(Exception):
    """A frame or datagram goes no further; slot counts the reason."""

    def __init__(self, slot: Slot) -> None:
        super().__init__(slot.name)
        self.slot = slot


class Verification(Exception):
    """A datagram is no frame but an in-circuit verification (docs/protocol.md, section 5)."""


class Piece(Exception):
    """A datagram is one piece of a frame (docs/protocol.md, 3.7)."""


class Encapsulator:
    """Turns frames that a TAP gave into datagrams."""

    def __init__(
        self,
        circuit_id: int,
        local_mac: bytes,
        remote_mac: bytes,
        elision: Elision,
        *,
        partial_checksums: bool = False,
    ) -> None:
        """partial_checksums: the receiver takes elided packets that look so for unfinished."""
        self._circuit_id = circuit_id
        # Chosen once: this runs for each frame.
        self.can_elide = {
            Elision.NEVER: self._can_elide_none,
            Elision.KNOWN: self._can_elide_known,
            Elision.ALWAYS: self._can_elide_any,
        }[elision]
        """Tells whether the header of the frame at data[start:end] is one that the receiver can put
        back."""
        # A finished one that looks unfinished must not be taken for that.
        self._travels_elided = (
            self._elide_finished
            if partial_checksums and elision is Elision.KNOWN
            else self.can_elide
        )
        self._only_elided = elision is Elision.ALWAYS
        self._header_ipv4 = ethernet_header(remote_mac, local_mac, ETHERTYPE_IPV4)
        self._header_ipv6 = ethernet_header(remote_mac, local_mac, ETHERTYPE_IPV6)

    def encapsulate(self, data: bytearray, start: int, end: int) -> tuple[int, bool]:
        """Write what goes before the frame at data[start:end], at least 14 bytes.

        Return where the datagram starts (it ends where the frame does) and
        whether the header was elided. Raises Dropped.
        """
        if self._travels_elided(data, start, end):
            return put_data_header(data, start + ETHERNET_HEADER, self._circuit_id), True
        if self._only_elided:
            raise Dropped(Slot.TX_NOT_IP)
        if needs_escape(data[start]):
            start -= ESCAPE
            data[start] = ESCAPE_BYTE
        return put_data_header(data, start, self._circuit_id), False

    def _can_elide_none(self, data: bytearray, start: int, end: int) -> bool:
        return False

    def _can_elide_known(self, data: bytearray, start: int, end: int) -> bool:
        packet = start + ETHERNET_HEADER
        if data.startswith(self._header_ipv4, start):
            return is_ipv4_packet(data, packet, end)
        return data.startswith(self._header_ipv6, start) and is_ipv6_packet(data, packet, end)

    def _elide_finished(self, data: bytearray, start: int, end: int) -> bool:
        elide = self._can_elide_known(data, start, end)
        return elide and not is_partial(data, start + ETHERNET_HEADER, end)

    def _can_elide_any(self, data: bytearray, start: int, end: int) -> bool:
        packet = start + ETHERNET_HEADER
        if data.startswith(ETHERTYPE_IPV4, packet - 2):
            return is_ipv4_packet(data, packet, end)
        return data.startswith(ETHERTYPE_IPV6, packet - 2) and is_ipv6_packet(data, packet, end)


class Decapsulator:
    """Turns datagrams of its circuit into frames that a TAP takes."""

    def __init__(
        self,
        local_mac: bytes,
        remote_mac: bytes,
        frame_limit: int,
        *,
        partial_checksums: bool = False,
    ) -> None:
        """partial_checksums: the sender may leave those of elided packets unfinished."""
        self._header_ipv4 = ethernet_header(local_mac, remote_mac, ETHERTYPE_IPV4)
        self._header_ipv6 = ethernet_header(local_mac, remote_mac, ETHERTYPE_IPV6)
        self._frame_limit = frame_limit
        self._leave_checksums = partial_checksums

    def decapsulate(self, data: bytearray, start: int, end: int) -> tuple[int, bool]:
        """Find or rebuild the frame in the datagram at data[start:end].

        Return where the frame starts (it ends where the datagram does), and
        whether its header had been elided. Raises Dropped, and Verification
        or Piece where there is no frame.
        """
        packet = start + DATA_HEADER
        if packet >= end:
            raise Dropped(Slot.RX_SHORT)
        kind = KIND[data[packet]]
        elided = False
        if kind is _IPV4:
            if not is_ipv4_packet(data, packet, end):
                raise Dropped(Slot.RX_MALFORMED)
            frame, elided = packet - ETHERNET_HEADER, True
            data[frame:packet] = self._header_ipv4
        elif kind is _IPV6:
            if not is_ipv6_packet(data, packet, end):
                raise Dropped(Slot.RX_MALFORMED)
            frame, elided = packet - ETHERNET_HEADER, True
            data[frame:packet] = self._header_ipv6
        elif kind is _ETHERNET:
            frame = packet
        elif kind is Kind.ESCAPED:
            frame = packet + ESCAPE
        elif kind is Kind.VERIFICATION:
            raise Verification
        elif kind is Kind.PIECE:
            raise Piece
        else:
            raise Dropped(Slot.RX_RESERVED)
        if end - frame < ETHERNET_HEADER:
            raise Dropped(Slot.RX_SHORT)
        if end - frame > self._frame_limit:
            raise Dropped(Slot.RX_OVERSIZED)
        if elided and self._leave_checksums:
            complete(data, packet, end)
        return frame, elided
