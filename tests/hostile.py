"""Attackers: packets with forged sources, and a peer that speaks the handshake and has no manners.

Bytes are written out by hand from docs/protocol.md, section 4, without a key.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from ipaddress import ip_address

from lab.datagrams import VELA_PORT, udp_socket
from lab.namespace import Namespace
from lab.resource import Resource

REQUEST, ACKNOWLEDGE, CONFIRM, CLOSE, KEEPALIVE, REJECT = range(1, 7)
TAG = bytes(16)
_HEADER = struct.Struct("!BBBBQQQ")
_IPPROTO_ICMPV6 = 58


def tlv(number: int, value: bytes = b"") -> bytes:
    return struct.pack("!BH", number, len(value)) + value


def description(
    *, mac: bytes = b"\x02\x11\x22\x33\x44\x55", mtu: int = 1471, port: int = VELA_PORT
) -> bytes:
    return (
        tlv(1, mac)
        + tlv(2, mtu.to_bytes(4))
        + tlv(3, (7).to_bytes(4))
        + tlv(4, port.to_bytes(2))
        + tlv(7, (5000).to_bytes(4))
    )


def offer(
    *addresses: str, interface: str = "", bridge: str = "", mac: bytes | None = None
) -> bytes:
    parts = [tlv(8, interface.encode())] if interface else []
    for each in addresses:
        host, _, length = each.partition("/")
        packed = ip_address(host).packed
        parts.append(tlv(9 if len(packed) == 4 else 10, packed + bytes([int(length)])))
    if bridge:
        parts.append(tlv(11, bridge.encode()))
    if mac is not None:
        parts.append(tlv(12, mac))
    return b"".join(parts)


def message(
    kind: int, circuit_id: int, sender: int, receiver: int, counter: int, tlvs: bytes = b""
) -> bytes:
    body = _HEADER.pack(0, 1, kind, circuit_id, sender, receiver, counter) + tlvs
    if kind in (REQUEST, CONFIRM):
        body += tlv(20, bytes(max(0, 320 - len(TAG) - 3 - len(body))))
    return body + TAG


def nonce() -> int:
    return int.from_bytes(os.urandom(8)) or 1


class Peer(Resource):
    """Asks for one circuit after the other, from one socket."""

    def __init__(self, namespace: Namespace, address: str, remote: str) -> None:
        self._socket = udp_socket(namespace, address)
        self._port = self._socket.getsockname()[1]
        self._remote = (remote, VELA_PORT)
        self._sessions: dict[int, list[int]] = {}
        """By circuit: this end's nonce, the other's, the last counter sent and heard."""

    def start(self) -> None:
        pass

    def close(self) -> None:
        self._socket.close()

    def ask(self, circuit_id: int, wants: bytes = b"", *, mtu: int = 1471) -> bytes | None:
        """Ask for a circuit; return the KEEPALIVE or the REJECT, or None."""
        own, tlvs = nonce(), description(mtu=mtu, port=self._port) + wants
        self._socket.sendto(message(REQUEST, circuit_id, own, 0, 1, tlvs), self._remote)
        acknowledged = self._receive(circuit_id, {ACKNOWLEDGE})
        if acknowledged is None:
            return None
        cookie = _HEADER.unpack_from(acknowledged)[4]
        self.confirm = message(CONFIRM, circuit_id, own, cookie, 2, tlvs)
        self._socket.sendto(self.confirm, self._remote)
        answer = self._receive(circuit_id, {KEEPALIVE, REJECT})
        if answer is not None and answer[2] == KEEPALIVE:
            self._sessions[circuit_id] = [own, cookie, 2, _HEADER.unpack_from(answer)[6], mtu]
        return answer

    def is_up(self, circuit_id: int) -> None:
        """Say that the circuit is up."""
        session = self._sessions[circuit_id]
        session[2] += 1
        own, other, counter, heard, mtu = session
        tlvs = description(mtu=mtu, port=self._port) + tlv(13, heard.to_bytes(8))
        tlvs += tlv(14, (time.monotonic_ns() // 1000).to_bytes(8)) + tlv(16, b"\1")
        sent = message(KEEPALIVE, circuit_id, own, other, counter, tlvs)
        self._socket.sendto(sent, self._remote)

    def delete(self, circuit_id: int) -> None:
        session = self._sessions.pop(circuit_id)
        own, other, counter = session[0], session[1], session[2] + 1
        self._socket.sendto(
            message(CLOSE, circuit_id, own, other, counter, tlv(17, b"\0\2")), self._remote
        )

    def send(self, data: bytes) -> None:
        self._socket.sendto(data, self._remote)

    def _receive(self, circuit_id: int, kinds: set[int], timeout_s: float = 2.0) -> bytes | None:
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65535)
            except TimeoutError:
                return None
            if len(data) >= 44 and data[0] == 0 and data[3] == circuit_id and data[2] in kinds:
                return data
        return None


def reason(rejected: bytes) -> str:
    """Return the sentence of a REJECT."""
    assert rejected[2] == REJECT
    at, end = _HEADER.size, len(rejected) - len(TAG)
    while at < end:
        number, length = struct.unpack_from("!BH", rejected, at)
        if number == 18:
            return rejected[at + 3 : at + 3 + length].decode()
        at += 3 + length
    return ""


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4_packet(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0),
        *(socket.inet_aton(source), socket.inet_aton(destination)),
    )
    return head[:10] + checksum(head).to_bytes(2) + head[12:] + payload


def ipv6_packet(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    addresses = ip_address(source).packed + ip_address(destination).packed
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + addresses + payload


def echo(source: str, destination: str, size: int = 1400) -> bytes:
    """Return the echo message of that host's that its kernel believes to have sent, unasked.

    That is a reply, or an IPv6 request (net/ipv4/icmp.c, icmp_err; net/ipv6/icmp.c, icmpv6_err).
    """
    if ":" in source:
        return ipv6_packet(
            source, destination, _IPPROTO_ICMPV6, b"\x80\0\0\0\0\1\0\1".ljust(size, b"\0")
        )
    return ipv4_packet(source, destination, 1, b"\0\0\0\0\0\1\0\1".ljust(size, b"\0"))


def udp_packet(source: str, source_port: int, destination: str, size: int = 1400) -> bytes:
    """Return the beginning of one of that host's datagrams to VELA's port."""
    datagram = struct.pack("!HHHH", source_port, VELA_PORT, 8 + size, 0) + bytes(size)
    packet = ipv6_packet if ":" in source else ipv4_packet
    return packet(source, destination, 17, datagram)


def forge_too_big(namespace: Namespace, victim: str, quoted: bytes, mtu: int) -> None:
    """Tell a host, from an address of the namespace, that its packet did not fit the path."""
    if ":" in victim:
        with namespace.socket(socket.AF_INET6, socket.SOCK_RAW, _IPPROTO_ICMPV6) as sender:
            # RFC 4443, section 3.2; the kernel writes the checksum.
            sender.sendto(struct.pack("!BBHI", 2, 0, 0, mtu) + quoted[:1200], (victim, 0))
        return
    body = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quoted[:500]  # RFC 1191, section 4
    with namespace.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sender:
        sender.sendto(body[:2] + checksum(body).to_bytes(2) + body[4:], (victim, 0))


# Type and how many codes there are: RFC 792, RFC 1122, RFC 1812; RFC 4443, RFC 4861.
ICMP_ERRORS = {3: 16, 4: 1, 5: 4, 11: 2, 12: 3}
ICMPV6_ERRORS = {1: 8, 2: 1, 3: 2, 4: 3, 137: 1}


def icmp_errors(source: str, victim: str, quoted: bytes, mtu: int) -> list[bytes]:
    """Return an IP packet of each kind of ICMP error, from source about a packet of the victim."""
    v6 = ":" in victim
    packets = []
    for kind, codes in (ICMPV6_ERRORS if v6 else ICMP_ERRORS).items():
        for code in range(codes):
            body = struct.pack("!BBHI", kind, code, 0, mtu) + quoted[:500]
            pseudo = b""
            if v6:
                pseudo = ip_address(source).packed + ip_address(victim).packed
                pseudo += struct.pack("!II", len(body), _IPPROTO_ICMPV6)
            body = body[:2] + checksum(pseudo + body).to_bytes(2) + body[4:]
            make, protocol = (ipv6_packet, _IPPROTO_ICMPV6) if v6 else (ipv4_packet, 1)
            packets.append(make(source, victim, protocol, body))
    return packets


class Forger(Resource):
    """Sends whole IP packets to a host, whatever they say of where they come from; a context."""

    def __init__(self, namespace: Namespace, victim: str) -> None:
        family = socket.AF_INET6 if ":" in victim else socket.AF_INET
        self._socket = namespace.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._victim = victim

    def start(self) -> None:
        pass

    def close(self) -> None:
        self._socket.close()

    def send(self, packet: bytes) -> None:
        self._socket.sendto(packet, (self._victim, 0))
