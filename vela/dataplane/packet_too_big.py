"""ICMP messages that tell a sender which packets cross a circuit in one datagram. Pure.

RFC 792 and RFC 1191, section 4, for IPv4; RFC 4443, section 3.2, for IPv6. The C twin is
native/packet_too_big.c.

A bridge port has no address, and the circuit's own addresses, where it has some, are local ones
of the host, whose kernel would drop a packet from outside with them as martian. So a message
comes from the destination of the packet that is too large: hosts and their reverse path filters
expect that address on this side, and the bridge has learned its MAC address there. Linux does the
same for bridged VXLAN and Geneve (net/ipv4/ip_tunnel_core.c, iptunnel_pmtud_build_icmp).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vela.dataplane.frame import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    is_ipv4_packet,
    is_ipv6_packet,
)
from vela.dataplane.mss import skip_extensions
from vela.wire import ETHERNET_HEADER, IPV4_HEADER, IPV6_HEADER, MIN_IPV6_MTU, VLAN_TAG

RATE = 100
BURST = 50
"""Messages per second of a circuit, and at once. RFC 1812, section 4.3.2.8; RFC 4443, section
2.4 (f). One has 1294 bytes at most, so a flood makes 1 Mbit/s. A sender that misses its message
loses nothing: the packet crosses all the same, and its next one gets another."""

_MAX_LINK = ETHERNET_HEADER + 2 * VLAN_TAG
_MIN_IPV4_MTU = 68  # RFC 791, section 3.2
_ICMP_HEADER = 8
# Of a message, at most, IP header included: RFC 1812, section 4.3.2.3; RFC 4443, section 2.4 (c).
_MAX_ICMP, _MAX_ICMPV6 = 576, 1280
_QUOTED = _MAX_ICMP - IPV4_HEADER - _ICMP_HEADER
_QUOTED_V6 = _MAX_ICMPV6 - IPV6_HEADER - _ICMP_HEADER

_DONT_FRAGMENT, _OFFSET = 0x4000, 0x1FFF
_ICMP, _ICMPV6 = 1, 58
_FRAGMENT_HEADER = 44  # RFC 8200, section 4.5
_EXTENSIONS = (0, 43, _FRAGMENT_HEADER, 60)
# RFC 792, RFC 950, RFC 1256: the others report errors. Linux takes unknown ones for such, too
# (net/ipv4/icmp.c, __icmp_send).
_QUERIES = frozenset((0, 8, 9, 10, 13, 14, 15, 16, 17, 18))
_MIN_INFORMATIONAL, _REDIRECT = 128, 137  # RFC 4443, section 2.4 (e)

_CONTROL = 0xC0  # RFC 1812, section 4.3.2.5: precedence of internetwork control
_HOPS = 64
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_ICMP_TOO_BIG = struct.Struct("!BBHI")  # the next-hop MTU is the lower half of the last field


class Limiter:
    """A token bucket: RATE messages per second, and up to BURST at once."""

    def __init__(self) -> None:
        self._level = BURST * 1000  # thousandths of messages
        self._filled_ms = 0

    def allows(self, now: float) -> bool:
        """Tell whether a message may be sent. now is monotonic."""
        now_ms = int(now * 1000)
        filled = self._level + (now_ms - self._filled_ms) * RATE
        self._level, self._filled_ms = min(filled, BURST * 1000), now_ms
        return self._level >= 1000

    def take(self) -> None:
        """Count a message that is sent."""
        self._level -= 1000


def too_big_message(link: bytes, packet: Sequence[int], mtu: int) -> bytes | None:
    """Return the frame that says to the sender of a packet that mtu bytes would fit.

    link: what goes before the packet in its frame, tags included; its EtherType need not be there
    any more. None where the sender is told nothing: the packet fits, or may be cut by IP, or must
    not be answered by an ICMP error (RFC 1812, section 4.3.2.7; RFC 4443, section 2.4 (e)), or is
    none. Multicast gets none over IPv6 either: each copy of a frame on a bridge would make one.
    """
    if len(link) > _MAX_LINK or link[0] & 1 or link[6] & 1:
        return None
    back = link[6:12] + link[:6] + link[12:-2]
    if is_ipv4_packet(packet, 0, len(packet)):
        message = _icmp(packet, mtu)
        return None if message is None else back + ETHERTYPE_IPV4 + message
    if is_ipv6_packet(packet, 0, len(packet)):
        message = _icmpv6(packet, mtu)
        return None if message is None else back + ETHERTYPE_IPV6 + message
    return None


def _icmp(packet: Sequence[int], mtu: int) -> bytes | None:
    length, fragment = _word(packet, 2), _word(packet, 6)
    if mtu < _MIN_IPV4_MTU or length <= mtu:
        return None
    if not fragment & _DONT_FRAGMENT or fragment & _OFFSET:
        return None
    source, destination = bytes(packet[12:16]), bytes(packet[16:20])
    if not (_is_unicast(source) and _is_unicast(destination)):
        return None
    header = (packet[0] & 0x0F) * 4
    if packet[9] == _ICMP and (header >= length or packet[header] not in _QUERIES):
        return None
    quoted = bytes(packet[: min(length, _QUOTED)])
    return _ipv4_header(destination, source, len(quoted)) + _with_checksum(3, 4, mtu, quoted, 0)


def _ipv4_header(source: bytes, destination: bytes, quoted: int) -> bytes:
    length = IPV4_HEADER + _ICMP_HEADER + quoted
    fields = (0x45, _CONTROL, length, 0, _DONT_FRAGMENT, _HOPS, _ICMP)
    header = _IPV4.pack(*fields, 0, source, destination)
    return _IPV4.pack(*fields, _checksum(header), source, destination)


def _icmpv6(packet: Sequence[int], mtu: int) -> bytes | None:
    length = IPV6_HEADER + _word(packet, 4)
    # RFC 8200, section 5: smaller ones are the link's own to cut.
    mtu = max(mtu, MIN_IPV6_MTU)
    if length <= mtu:
        return None
    source, destination = bytes(packet[8:24]), bytes(packet[24:40])
    if not (_is_unicast_v6(source) and _is_unicast_v6(destination)):
        return None
    quoted = bytes(packet[: min(length, _QUOTED_V6)])
    if _may_be_error(quoted):
        return None
    total = _ICMP_HEADER + len(quoted)
    header = _IPV6.pack(6 << 28 | _CONTROL << 20, total, _ICMPV6, _HOPS, destination, source)
    pseudo = int.from_bytes(destination + source) + total + _ICMPV6  # RFC 8200, section 8.1
    return header + _with_checksum(2, 0, mtu, quoted, pseudo)


def _may_be_error(packet: bytes) -> bool:
    """Tell whether a packet is an ICMPv6 error, or it does not say what it is."""
    at, protocol = skip_extensions(packet, IPV6_HEADER, len(packet), packet[6])
    if protocol == _FRAGMENT_HEADER and at + 8 <= len(packet):
        if _word(packet, at + 2) & ~7:  # not the first one
            return True
        at, protocol = skip_extensions(packet, at + 8, len(packet), packet[at])
    if protocol in _EXTENSIONS:
        return True
    if protocol != _ICMPV6:
        return False
    return at >= len(packet) or packet[at] < _MIN_INFORMATIONAL or packet[at] == _REDIRECT


def _is_unicast(address: bytes) -> bool:
    """Tell whether it can be one host's: not 0/8, 127/8, 224/4 or 240/4 (RFC 1812, 5.3.7)."""
    return 0 < address[0] < 224 and address[0] != 127


def _is_unicast_v6(address: bytes) -> bool:
    return address[0] != 0xFF and (any(address[:15]) or address[15] > 1)


def _with_checksum(kind: int, code: int, mtu: int, quoted: bytes, pseudo: int) -> bytes:
    message = _ICMP_TOO_BIG.pack(kind, code, 0, mtu) + quoted
    return _ICMP_TOO_BIG.pack(kind, code, _checksum(message, pseudo), mtu) + quoted


def _checksum(data: bytes, before: int = 0) -> int:
    """RFC 1071. See vela.dataplane.checksum for the arithmetic. before: another sum."""
    number = int.from_bytes(data)
    if len(data) % 2:
        number <<= 8
    return -(number + before) % 0xFFFF


def _word(data: Sequence[int], at: int) -> int:
    return data[at] << 8 | data[at + 1]
