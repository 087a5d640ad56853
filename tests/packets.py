"""TCP and UDP packets of every shape, finished or as a kernel with offloads leaves them.

Built here from the RFCs, by nothing that is under test.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from itertools import pairwise

from hypothesis import strategies as st

TCP, UDP = 6, 17
# RFC 8200, sections 4.3, 4.4, 4.6.
HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS = 0, 43, 60
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))

# include/uapi/linux/virtio_net.h
NEEDS_CHECKSUM = 1
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80
VIRTIO_HEADER = struct.Struct("=BBHHHH")
PLAIN = bytes(VIRTIO_HEADER.size)


def word_sum(data: bytes) -> int:
    """Return the folded one's complement sum of 16-bit words. RFC 1071."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True, slots=True)
class Packet:
    """One TCP or UDP packet; lengths and checksums follow from the rest."""

    version: int = 4
    protocol: int = TCP
    source: bytes = b"\xc0\x00\x02\x01"
    destination: bytes = b"\xc0\x00\x02\x02"
    traffic_class: int = 0
    """Eight bits, ECN included."""
    identification: int = 0
    """Of IPv4; the flow label of IPv6."""
    fragment: int = 0x4000
    """The 16 bits of flags and offset in IPv4."""
    hop_limit: int = 64
    ip_options: bytes = b""
    """Of IPv4, a multiple of four; of IPv6, whole extension headers."""
    first_header: int = DESTINATION_OPTIONS
    """The type of the first of IPv6's; each says itself what comes behind it."""
    ports: tuple[int, int] = (40000, 5201)
    sequence: int = 1
    acknowledgment: int = 2
    flags: int = ACK
    reserved: int = 0
    """The four bits beside TCP's data offset."""
    window: int = 500
    urgent: int = 0
    tcp_options: bytes = b""
    payload: bytes = field(default=b"", repr=False)

    @property
    def transport_length(self) -> int:
        own = 20 + len(self.tcp_options) if self.protocol == TCP else 8
        return own + len(self.payload)

    @property
    def transport_offset(self) -> int:
        return (20 if self.version == 4 else 40) + len(self.ip_options)

    @property
    def checksum_offset(self) -> int:
        return 16 if self.protocol == TCP else 6

    def pseudo_header_sum(self) -> int:
        """RFC 9293, section 3.1; RFC 8200, section 8.1."""
        length = struct.pack("!IHH", self.transport_length, 0, self.protocol)
        return word_sum(self.source + self.destination + length)

    def transport(self, checksum: int) -> bytes:
        if self.protocol == UDP:
            return struct.pack("!HHHH", *self.ports, self.transport_length, checksum) + self.payload
        words = 5 + len(self.tcp_options) // 4
        header = struct.pack(
            "!HHIIBBHHH",
            *self.ports,
            self.sequence & 0xFFFFFFFF,
            self.acknowledgment,
            words << 4 | self.reserved,
            self.flags,
            self.window,
            checksum,
            self.urgent,
        )
        return header + self.tcp_options + self.payload

    def ip(self) -> bytes:
        if self.version == 6:
            first = 6 << 28 | self.traffic_class << 20 | self.identification
            length = len(self.ip_options) + self.transport_length
            following = self.first_header if self.ip_options else self.protocol
            head = struct.pack("!IHBB", first, length, following, self.hop_limit)
            return head + self.source + self.destination + self.ip_options
        head = struct.pack(
            "!BBHHHBBH",
            0x40 | self.transport_offset // 4,
            self.traffic_class,
            self.transport_offset + self.transport_length,
            self.identification & 0xFFFF,
            self.fragment,
            self.hop_limit,
            self.protocol,
            0,
        )
        head += self.source + self.destination + self.ip_options
        return head[:10] + struct.pack("!H", 0xFFFF ^ word_sum(head)) + head[12:]

    def finished(self, damage: int = 0) -> bytes:
        """Return the packet with its checksum; damage is added to it."""
        total = word_sum(
            struct.pack("!HH", 0, self.pseudo_header_sum()) + self.transport(0)  # padded if odd
        )
        value = 0xFFFF ^ total
        if value == 0 and self.protocol == UDP:
            value = 0xFFFF  # RFC 768
        return self.ip() + self.transport((value + damage) & 0xFFFF)

    def unfinished(self) -> bytes:
        """Return the packet with the sum of its pseudo-header in place of its checksum."""
        return self.ip() + self.transport(self.pseudo_header_sum())


def virtio_header(packet: Packet, link: int, segment_size: int = 0) -> bytes:
    """Return what goes before an unfinished packet behind a link header of link bytes.

    segment_size in bytes of payload; 0: it is not to be cut.
    """
    gso = GSO_NONE
    if segment_size:
        tcp = GSO_TCPV4 if packet.version == 4 else GSO_TCPV6
        gso = tcp if packet.protocol == TCP else GSO_UDP_L4
        if packet.protocol == TCP and packet.flags & CWR:
            gso |= GSO_ECN
    start = link + packet.transport_offset
    header = start + packet.transport_length - len(packet.payload)
    return VIRTIO_HEADER.pack(
        NEEDS_CHECKSUM, gso, header, segment_size, start, packet.checksum_offset
    )


def _padded_to(multiple: int, data: bytes) -> bytes:
    return data[: len(data) // multiple * multiple]


@st.composite
def _extension_headers(draw: st.DrawFn, protocol: int) -> tuple[int, bytes]:
    """Return the type of the first of up to three headers, and all of them."""
    kinds = draw(st.lists(st.sampled_from((ROUTING, DESTINATION_OPTIONS)), max_size=2))
    if draw(st.booleans()):
        kinds.insert(0, HOP_BY_HOP)
    chain = b""
    for kind, following in pairwise([*kinds, protocol]):
        if kind == ROUTING:
            # RFC 8754: no segment left, one of two or three listed.
            units = draw(st.sampled_from((0, 2)))
            chain += bytes((following, units, 4, 0)) + bytes(4 + units * 8)
        else:
            # One PadN option (RFC 8200, section 4.2) fills the header.
            units = draw(st.integers(0, 3))
            padding = units * 8 + 4
            chain += bytes((following, units, 1, padding)) + bytes(padding)
    return (kinds or [DESTINATION_OPTIONS])[0], chain


# RFC 791, section 3.1, and RFC 2113: nothing, record route, timestamp, source route, router alert.
_IPV4_OPTIONS = tuple(
    bytes.fromhex(each)
    for each in (
        *("", "", "01" * 4, "01" * 8, "01" * 40, "0707040000000000"),
        *("440c05000000000000000000", "830704c000020900", "94040000", "9404000001010100"),
    )
)


@st.composite
def packets(draw: st.DrawFn, payload: st.SearchStrategy[bytes]) -> Packet:
    """Any TCP or UDP packet of one piece."""
    version = draw(st.sampled_from((4, 6)))
    protocol = draw(st.sampled_from((TCP, UDP)))
    width = 4 if version == 4 else 16
    addresses = st.binary(min_size=width, max_size=width)
    if version == 4:
        first_header, ip_options = DESTINATION_OPTIONS, draw(st.sampled_from(_IPV4_OPTIONS))
    else:
        first_header, ip_options = draw(_extension_headers(protocol))
    edges = st.sampled_from((0, 1, 0x7FFFFFFF, 0xFFFFFF00, 0xFFFFFFFF))
    return Packet(
        version=version,
        protocol=protocol,
        source=draw(addresses),
        destination=draw(addresses),
        traffic_class=draw(st.integers(0, 255)),
        identification=draw(st.sampled_from((0, 1, 0x1234, 0xFFF0, 0xFFFF))),
        fragment=draw(st.sampled_from((0, 0x4000))),
        hop_limit=draw(st.integers(1, 255)),
        ip_options=ip_options,
        first_header=first_header,
        ports=(draw(st.integers(0, 65535)), draw(st.integers(0, 65535))),
        sequence=draw(st.one_of(edges, st.integers(0, 0xFFFFFFFF))),
        acknowledgment=draw(st.one_of(edges, st.integers(0, 0xFFFFFFFF))),
        flags=draw(st.one_of(st.just(ACK), st.integers(0, 255))),
        reserved=draw(st.sampled_from((0, 0, 1, 15))),
        window=draw(st.integers(0, 65535)),
        urgent=draw(st.integers(0, 65535)),
        tcp_options=_padded_to(4, draw(st.binary(max_size=40))),
        payload=draw(payload),
    )


# RFC 9293, section 3.1: end, no operation; RFC 2018; RFC 7323: window scale, timestamps.
_TCP_OPTIONS = tuple(map(bytes.fromhex, ("00", "01", "0402", "030307", "080a1122334455667788")))
_ANY_OPTION = st.one_of(
    st.sampled_from(_TCP_OPTIONS),
    st.integers(0, 0xFFFF).map(lambda mss: b"\x02\x04" + mss.to_bytes(2, "big")),
    st.binary(max_size=6),
)


@st.composite
def handshakes(draw: st.DrawFn) -> Packet:
    """SYNs for the most part, with options in any order, well-formed or not."""
    packet = draw(packets(st.binary(max_size=40)))
    options = b"".join(draw(st.lists(_ANY_OPTION, max_size=6)))[:40]
    options += bytes(-len(options) % 4)
    flags = draw(st.sampled_from((SYN, SYN | ACK, 0xFF, ACK)))
    protocol = draw(st.sampled_from((TCP, TCP, UDP)))
    if packet.version == 6 and packet.ip_options:
        protocol = packet.protocol  # as the last extension header says
    return replace(packet, protocol=protocol, flags=flags, tcp_options=options)


@st.composite
def payloads(draw: st.DrawFn, largest: int = 20000) -> bytes:
    """Bytes of any length that show when they are misplaced; also all zeros and all ones."""
    size = draw(st.one_of(st.integers(0, largest), st.integers(0, 64)))
    kind = draw(st.sampled_from(("counting", "zeros", "ones")))
    if kind == "counting":
        first = draw(st.integers(0, 250))
        return bytes((first + at // 251 + at) % 251 for at in range(size))
    return (b"\x00" if kind == "zeros" else b"\xff") * size


link_headers = st.sampled_from(
    (
        "",
        "81000005",
        "8100a123",
        "88a80064",
        "88a8006481000005",
    )
).map(bytes.fromhex)
"""VLAN tags between the addresses and the EtherType."""


def ethertype(version: int) -> bytes:
    return b"\x08\x00" if version == 4 else b"\x86\xdd"
