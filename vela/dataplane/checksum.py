"""Inner checksums that are left to the outer one. Pure. docs/protocol.md, section 3.5.

Sums of 16-bit words (RFC 1071) are taken as the number that the bytes make,
modulo 65535: 2**16 is 1 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vela.wire import IPV4_HEADER, IPV6_HEADER, TCP_HEADER, UDP_HEADER

_PROTOCOL_TCP, _PROTOCOL_UDP = 6, 17
_FRAGMENT = 0x3FFF  # RFC 791, section 3.1: more fragments, and the offset


class Transport(NamedTuple):
    """Where an unfragmented TCP or UDP packet, without padding or extension headers, has what."""

    start: int
    """Of the TCP or UDP header."""
    field: int
    """Of its checksum."""
    pseudo_header: int
    """Folded sum of the pseudo-header, 1..65535."""


def find_transport(data: Sequence[int], packet: int, end: int) -> Transport | None:
    """Return where the IP packet at data[packet:end] has its transport header, if it is such one.

    It was seen to be an IP packet: vela.datagram.is_ipv4_packet, is_ipv6_packet.
    """
    if data[packet] >> 4 == 4:
        if _number(data, packet + 6, 2) & _FRAGMENT or _number(data, packet + 2, 2) != end - packet:
            return None
        start = packet + (data[packet] & 0x0F) * 4
        protocol = data[packet + 9]
        addresses = packet + 12, packet + IPV4_HEADER
    else:
        start = packet + IPV6_HEADER
        if _number(data, packet + 4, 2) != end - start:
            return None
        protocol = data[packet + 6]
        addresses = packet + 8, start
    length = end - start
    if protocol == _PROTOCOL_TCP:
        if length < TCP_HEADER or not TCP_HEADER <= (data[start + 12] >> 4) * 4 <= length:
            return None
        field = start + 16
    elif protocol == _PROTOCOL_UDP:
        if length < UDP_HEADER or _number(data, start + 4, 2) != length:
            return None
        field = start + 6
    else:
        return None
    pseudo_header = _number(data, addresses[0], addresses[1] - addresses[0]) + protocol + length
    # Never all zero, so a sum of 0 is written as 65535.
    return Transport(start, field, pseudo_header % 0xFFFF or 0xFFFF)


def is_partial(data: Sequence[int], packet: int, end: int) -> bool:
    """Tell whether a packet's checksum field holds nothing but the sum of its pseudo-header."""
    return _find_left(data, packet, end) is not None


def complete(data: bytearray, packet: int, end: int) -> None:
    """Complete the checksum of a packet that is_partial(), in place; else change nothing."""
    found = _find_left(data, packet, end)
    if found is None:
        return
    number = _number(data, found.start, end - found.start)
    if (end - found.start) % 2:
        number <<= 8
    # The field is part of the sum. RFC 768: zero would say that there is none.
    value = -number % 0xFFFF or 0xFFFF
    data[found.field : found.field + 2] = value.to_bytes(2, "big")


def _find_left(data: Sequence[int], packet: int, end: int) -> Transport | None:
    found = find_transport(data, packet, end)
    if found is None or _number(data, found.field, 2) != found.pseudo_header:
        return None
    return found


def _number(data: Sequence[int], start: int, length: int) -> int:
    return int.from_bytes(bytes(data[start : start + length]), "big")
