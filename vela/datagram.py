"""One UDP payload of a circuit: what its first bytes say it is. Pure.

docs/protocol.md, sections 2, 3 and 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from vela.wire import ETHERNET_HEADER, IPV4_HEADER, IPV6_HEADER

CONTROL_CIRCUIT_ID = 0

ESCAPE_BYTE = 0x40
VERIFICATION_BYTE = 0x41

ETHERTYPE_IPV4 = b"\x08\x00"
ETHERTYPE_IPV6 = b"\x86\xdd"

# docs/protocol.md, section 5: circuit id, 0x41, type, identifier (8), timestamp (8).
VERIFICATION_HEADER = 1 + 1 + 1 + 8 + 8
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


def _kind(first: int) -> Kind:
    match first:
        case 0x40:
            return Kind.ESCAPED
        case 0x41:
            return Kind.VERIFICATION
        case 0x42 | 0x43 | 0x44:
            return Kind.RESERVED
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
