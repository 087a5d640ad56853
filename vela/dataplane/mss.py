"""Lowers the MSS that TCP announces, so that segments fit one datagram. Pure.

RFC 9293, section 3.7.1; RFC 6691: the MSS counts neither IP nor TCP options. Its C twin is
native/mss.c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vela.dataplane.frame import is_ipv4_packet, is_ipv6_packet
from vela.wire import (
    DATA_HEADER,
    ESCAPE,
    ETHERNET_HEADER,
    IPV4_HEADER,
    IPV6_HEADER,
    TCP_HEADER,
    VLAN_TAG,
)

_SYN = 0x02
_TCP = 6
_FRAGMENT = 0x3FFF  # RFC 791, section 3.1: more fragments, and the offset
_END, _NOP, _MSS, _MSS_LENGTH = 0, 1, 2, 4  # RFC 9293, section 3.1
_AO = 29  # RFC 5925, section 2.2
# RFC 8200, section 4: hop-by-hop options, routing, destination options. Others, such as those of
# IPsec, sign or hide what comes behind them.
_EXTENSIONS = (0, 43, 60)
_EXTENSION_UNIT = 8
_MAX_EXTENSIONS = 8
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_TAGS = (b"\x81\x00", b"\x88\xa8")  # IEEE 802.1Q, table 9-1

MIN_MSS = 88
"""Linux sends no smaller segments (TCP_MIN_MSS), and few others accept it."""


@dataclass(frozen=True, slots=True)
class MssClamp:
    """What TCP segments may have, at most."""

    datagram_limit: int | None = None
    """Bytes of the UDP payload that carries one."""
    mss: int | None = None


class MssClamper:
    """Lowers the MSS in frames of one circuit."""

    def __init__(self, clamp: MssClamp, seal: int) -> None:
        """seal: the bytes that encryption adds to a datagram."""
        self._clamp = clamp
        self._header = DATA_HEADER + seal

    def clamp(self, data: bytearray, start: int, end: int, *, elided: bool) -> bool:
        """Lower the MSS of the frame at data[start:end], in place; its checksum is complete.

        Malformed options stay as they are, and so do those that TCP-AO signs.
        elided: frames of its connection travel without their Ethernet header.
        Return whether anything changed.
        """
        packet = network_offset(data, start, end)
        if packet is None:
            return False
        header = _find_syn(data, packet, end)
        if header is None:
            return False
        before = self._header + (0 if elided else ESCAPE + packet - start)
        limit = self._limit(before, IPV4_HEADER if data[packet] >> 4 == 4 else IPV6_HEADER)
        options = list(_options(data, header))
        if None in options:
            return False
        changed = False
        for option in options:
            if option is not None and data[option] == _MSS:
                changed |= _lower(data, header, option + 2, limit)
        return changed

    def _limit(self, before: int, ip_header: int) -> int:
        limit = 0xFFFF if self._clamp.mss is None else self._clamp.mss
        if self._clamp.datagram_limit is not None:
            fits = self._clamp.datagram_limit - before - ip_header - TCP_HEADER
            if fits < limit:
                limit = max(fits, MIN_MSS)
        return limit


def network_offset(data: bytearray, start: int, end: int) -> int | None:
    """Return where the IP header of a frame begins, behind any VLAN tags; None: it has none."""
    packet = start + ETHERNET_HEADER
    while packet <= end:
        ethertype = bytes(data[packet - 2 : packet])
        if ethertype in (_IPV4, _IPV6):
            return packet
        if ethertype not in _TAGS:
            return None
        packet += VLAN_TAG
    return None


def skip_extensions(data: Sequence[int], at: int, end: int, protocol: int) -> tuple[int, int]:
    """Return where the first header behind IPv6's extension headers begins, and what it is.

    protocol: what begins at data[at]. Of extension headers that are too many, or
    not all there before end, it is the first that is not skipped.
    """
    for _ in range(_MAX_EXTENSIONS):
        if protocol not in _EXTENSIONS or at + _EXTENSION_UNIT > end:
            break
        protocol = data[at]
        at += (data[at + 1] + 1) * _EXTENSION_UNIT
    return at, protocol


def _find_syn(data: bytearray, packet: int, end: int) -> int | None:
    """Return where an unfragmented SYN has its TCP header, which is all there; else None."""
    if is_ipv4_packet(data, packet, end):
        if data[packet + 9] != _TCP or _word(data, packet + 6) & _FRAGMENT:
            return None
        header = packet + (data[packet] & 0x0F) * 4
        behind = packet + _word(data, packet + 2)
    elif is_ipv6_packet(data, packet, end):
        behind = packet + IPV6_HEADER + _word(data, packet + 4)
        header, protocol = skip_extensions(data, packet + IPV6_HEADER, behind, data[packet + 6])
        if protocol != _TCP:
            return None
    else:
        return None
    if header + TCP_HEADER > behind or not data[header + 13] & _SYN:
        return None
    length = (data[header + 12] >> 4) * 4
    return header if length >= TCP_HEADER and header + length <= behind else None


def _options(data: bytearray, header: int) -> Iterator[int | None]:
    """Yield where each TCP option begins; None where one is malformed, or TCP-AO."""
    at = header + TCP_HEADER
    end = header + (data[header + 12] >> 4) * 4
    while at < end and data[at] != _END:
        length = 1
        if data[at] != _NOP:
            length = data[at + 1] if at + 1 < end else 0
            if length < 2 or at + length > end or data[at] == _AO:
                yield None
                return
            if data[at] == _MSS and length != _MSS_LENGTH:
                yield None
                return
        yield at
        at += length


def _lower(data: bytearray, header: int, value: int, limit: int) -> bool:
    was = _word(data, value)
    if was <= limit:
        return False
    data[value : value + 2] = limit.to_bytes(2, "big")
    # RFC 1624, equation 3. At an odd offset the bytes are in two words, in the other order.
    order: tuple[int, int] = (was, limit)
    if (value - header) % 2:
        order = (_swapped(was), _swapped(limit))
    field = header + 16
    number = (0xFFFF ^ _word(data, field)) + (0xFFFF ^ order[0]) + order[1]
    # 2**16 is 1 here. Zero has two forms; this is the one of net/core/dev.c, skb_checksum_help.
    checksum = 0xFFFF ^ (number % 0xFFFF or 0xFFFF)
    data[field : field + 2] = (checksum or 0xFFFF).to_bytes(2, "big")
    return True


def _swapped(word: int) -> int:
    return (word & 0xFF) << 8 | word >> 8


def _word(data: bytearray, at: int) -> int:
    return data[at] << 8 | data[at + 1]
