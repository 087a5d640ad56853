"""ICMP errors about what one UDP port of this host has sent, for operators to read.

Anybody can send such errors, so nothing is decided by them. The sockets are raw ones: the kernel
gives an error about a datagram of a SO_REUSEPORT group to any member of it (net/ipv4/udp.c,
__udp4_lib_err). Formats: RFC 792, RFC 4443. Filters: raw(7), ICMP_FILTER; RFC 3542, section 3.2.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from vela.address import Endpoint, IPAddress
from vela.linux import bpf

# Of one look; what does not fit the receive buffer meanwhile is lost.
MOST_AT_ONCE = 32
RECEIVE_BUFFER = 16384

_SOL_RAW, _ICMP_FILTER, _ICMPV6_FILTER = 255, 1, 1  # linux/icmp.h, linux/icmpv6.h
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_UNREACHABLE, _EXCEEDED = 3, 11
_UNREACHABLE6, _EXCEEDED6 = 1, 3
_IPV4_HEADER, _IPV6_HEADER, _ICMP_HEADER = 20, 40, 8
_PORTS = struct.Struct("!HH")

_KINDS = {
    4: {
        (3, 0): "network unreachable",
        (3, 1): "host unreachable",
        (3, 2): "protocol unreachable",
        (3, 3): "port unreachable",
        (3, 9): "network prohibited",
        (3, 10): "host prohibited",
        (3, 13): "administratively prohibited",
        (11, 0): "time to live exceeded",
    },
    6: {
        (1, 0): "no route",
        (1, 1): "administratively prohibited",
        (1, 2): "beyond scope",
        (1, 3): "address unreachable",
        (1, 4): "port unreachable",
        (1, 5): "source address prohibited",
        (1, 6): "route rejected",
        (3, 0): "hop limit exceeded",
    },
}


@dataclass(frozen=True, slots=True)
class IcmpError:
    """An error that somebody sent."""

    kind: str
    source: IPAddress
    remote: Endpoint
    """Where the datagram that it is about was sent to."""


class IcmpErrors:
    """Reads errors about datagrams from one port. Without CAP_NET_RAW there are none."""

    def __init__(self, port: int) -> None:
        self._sockets: list[socket.socket] = []
        for make, program in ((_icmp, _filter(port)), (_icmpv6, _filter6(port))):
            with contextlib.suppress(OSError):  # no privilege, or no IPv6
                self._sockets.append(make(program))

    @property
    def hears(self) -> bool:
        """Whether this process may read them."""
        return bool(self._sockets)

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        self._sockets.clear()

    def read(self) -> Iterator[IcmpError]:
        """Yield the errors that have come since the last call, or the first of them."""
        for each in self._sockets:
            for _ in range(MOST_AT_ONCE):
                try:
                    data, sender = each.recvfrom(256, socket.MSG_DONTWAIT)
                except OSError:
                    break
                found = parse(data, sender[0], 4 if each.family == socket.AF_INET else 6)
                if found is not None:
                    yield found


def parse(data: bytes, sender: str, version: int) -> IcmpError | None:
    """Return what a raw socket has read: of IPv4 with the header, of IPv6 without; None: no error.

    sender: as in its socket address.
    """
    start = 4 * (data[0] & 15) if version == 4 and data else 0
    quoted = start + _ICMP_HEADER
    if len(data) < quoted + 1:
        return None
    if version == 4:
        ports = quoted + 4 * (data[quoted] & 15)
        address = data[quoted + 16 : quoted + 20]
    else:
        ports = quoted + _IPV6_HEADER
        address = data[quoted + 24 : quoted + 40]
    kind = _KINDS[version].get((data[start], data[start + 1]))
    if kind is None or len(data) < ports + _PORTS.size:
        return None
    _, port = _PORTS.unpack_from(data, ports)
    return IcmpError(
        kind, ip_address(sender.partition("%")[0]), Endpoint(ip_address(address), port)
    )


def _icmp(program: bytes) -> socket.socket:
    """Raises OSError."""
    wanted = 1 << _UNREACHABLE | 1 << _EXCEEDED
    blocked = struct.pack("=I", ~wanted & 0xFFFFFFFF)
    opened = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    return _restricted(opened, (_SOL_RAW, _ICMP_FILTER, blocked), program)


def _icmpv6(program: bytes) -> socket.socket:
    """Raises OSError."""
    wanted = 1 << _UNREACHABLE6 | 1 << _EXCEEDED6
    blocked = struct.pack("=8I", ~wanted & 0xFFFFFFFF, *[0xFFFFFFFF] * 7)
    opened = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    return _restricted(opened, (socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, blocked), program)


def _restricted(
    opened: socket.socket, types: tuple[int, int, bytes], program: bytes
) -> socket.socket:
    try:
        opened.setsockopt(*types)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        fprog = bpf.Fprog(program)
        opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog.raw)
    except OSError:
        opened.close()
        raise
    return opened


def _filter(port: int) -> bytes:
    """Pass errors about UDP from this port. The program sees the IPv4 header in front."""
    inner = _IPV4_HEADER + _ICMP_HEADER  # neither header has options: few packets have
    return b"".join(
        (
            bpf.instruction(bpf.LOAD_BYTE, 0),
            bpf.instruction(bpf.IF_EQUAL, 0x45, 0, 7),
            bpf.instruction(bpf.LOAD_BYTE, inner),
            bpf.instruction(bpf.IF_EQUAL, 0x45, 0, 5),
            bpf.instruction(bpf.LOAD_BYTE, inner + 9),
            bpf.instruction(bpf.IF_EQUAL, socket.IPPROTO_UDP, 0, 3),
            bpf.instruction(bpf.LOAD_HALF, inner + _IPV4_HEADER),
            bpf.instruction(bpf.IF_EQUAL, port, 0, 1),
            bpf.instruction(bpf.RETURN, 0xFFFFFFFF),
            bpf.instruction(bpf.RETURN, 0),
        )
    )


def _filter6(port: int) -> bytes:
    """The same; the program sees the ICMPv6 header in front."""
    return b"".join(
        (
            bpf.instruction(bpf.LOAD_BYTE, _ICMP_HEADER + 6),
            bpf.instruction(bpf.IF_EQUAL, socket.IPPROTO_UDP, 0, 3),
            bpf.instruction(bpf.LOAD_HALF, _ICMP_HEADER + _IPV6_HEADER),
            bpf.instruction(bpf.IF_EQUAL, port, 0, 1),
            bpf.instruction(bpf.RETURN, 0xFFFFFFFF),
            bpf.instruction(bpf.RETURN, 0),
        )
    )
