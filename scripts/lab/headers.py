"""Just enough of Ethernet, IP and UDP to look at what a capture holds. Pure."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from struct import Struct

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_VLAN = 0x8100
ETHERTYPE_IPV6 = 0x86DD

_ETHERNET = Struct("!6s6sH")
_VLAN = Struct("!HH")
_IPV4 = Struct("!BBHHHBBH4s4s")  # RFC 791, section 3.1
_IPV6 = Struct("!IHBB16s16s")  # RFC 8200, section 3
_UDP = Struct("!HHHH")  # RFC 768


@dataclass(frozen=True, slots=True)
class Ethernet:
    """One frame; ethertype and payload are those behind a VLAN tag, if there is one."""

    destination: bytes
    source: bytes
    ethertype: int
    payload: bytes
    vlan: int | None = None
    """The tag's 16 bits: priority, drop eligible, identifier."""


@dataclass(frozen=True, slots=True)
class IPv4:
    """One packet, cut to its total length."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int
    ttl: int
    identification: int
    dont_fragment: bool
    more_fragments: bool
    fragment_offset: int
    """Bytes."""
    total_length: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class IPv6:
    """One packet, cut to its payload length; payload begins with extension headers."""

    source: IPv6Address
    destination: IPv6Address
    next_header: int
    hop_limit: int
    payload_length: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Udp:
    """One datagram as UDP sees it."""

    source_port: int
    destination_port: int
    length: int
    checksum: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Datagram:
    """What a frame carried if it was an unfragmented UDP datagram."""

    ip: IPv4 | IPv6
    udp: Udp


def parse_ethernet(data: bytes) -> Ethernet:
    """Raises ValueError if data is shorter than its headers."""
    _need(data, _ETHERNET.size, "Ethernet")
    destination, source, ethertype = _ETHERNET.unpack_from(data)
    if ethertype != ETHERTYPE_VLAN:
        return Ethernet(destination, source, ethertype, data[14:])
    _need(data, _ETHERNET.size + _VLAN.size, "VLAN")
    tag, ethertype = _VLAN.unpack_from(data, 14)
    return Ethernet(destination, source, ethertype, data[18:], tag)


def parse_ipv4(data: bytes) -> IPv4:
    """Raises ValueError if data is no whole IPv4 packet."""
    _need(data, _IPV4.size, "IPv4")
    first, _, total, identification, fragment, ttl, protocol, _, source, destination = (
        _IPV4.unpack_from(data)
    )
    header = (first & 0x0F) * 4
    if first >> 4 != 4 or header < _IPV4.size or total < header:
        raise ValueError(f"no IPv4 header: {data[:20].hex()}")
    _need(data, total, "IPv4 packet")
    return IPv4(
        source=IPv4Address(source),
        destination=IPv4Address(destination),
        protocol=protocol,
        ttl=ttl,
        identification=identification,
        dont_fragment=bool(fragment & 0x4000),
        more_fragments=bool(fragment & 0x2000),
        fragment_offset=(fragment & 0x1FFF) * 8,
        total_length=total,
        payload=data[header:total],
    )


def parse_ipv6(data: bytes) -> IPv6:
    """Raises ValueError if data is no whole IPv6 packet."""
    _need(data, _IPV6.size, "IPv6")
    first, length, next_header, hop_limit, source, destination = _IPV6.unpack_from(data)
    if first >> 28 != 6:
        raise ValueError(f"no IPv6 header: {data[:40].hex()}")
    _need(data, _IPV6.size + length, "IPv6 packet")
    return IPv6(
        source=IPv6Address(source),
        destination=IPv6Address(destination),
        next_header=next_header,
        hop_limit=hop_limit,
        payload_length=length,
        payload=data[_IPV6.size : _IPV6.size + length],
    )


def parse_udp(data: bytes) -> Udp:
    """Raises ValueError if data is no whole UDP datagram."""
    _need(data, _UDP.size, "UDP")
    source, destination, length, checksum = _UDP.unpack_from(data)
    if length < _UDP.size:
        raise ValueError(f"no UDP length: {length}")
    _need(data, length, "UDP datagram")
    return Udp(source, destination, length, checksum, data[_UDP.size : length])


def datagram(frame: bytes) -> Datagram | None:
    """Return the UDP datagram in an Ethernet frame, or None if it is anything else.

    A fragment is something else. Raises ValueError if it is malformed.
    """
    ethernet = parse_ethernet(frame)
    if ethernet.ethertype == ETHERTYPE_IPV4:
        ipv4 = parse_ipv4(ethernet.payload)
        whole = not ipv4.more_fragments and ipv4.fragment_offset == 0
        if ipv4.protocol == socket.IPPROTO_UDP and whole:
            return Datagram(ipv4, parse_udp(ipv4.payload))
    elif ethernet.ethertype == ETHERTYPE_IPV6:
        ipv6 = parse_ipv6(ethernet.payload)
        if ipv6.next_header == socket.IPPROTO_UDP:
            return Datagram(ipv6, parse_udp(ipv6.payload))
    return None


def _need(data: bytes, size: int, what: str) -> None:
    if len(data) < size:
        raise ValueError(f"{what}: {len(data)} bytes, {size} needed")
