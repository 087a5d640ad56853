"""vela.datagram: the first byte's meaning, and what is an IP packet. docs/protocol.md, 3 and 5."""

from __future__ import annotations

import pytest

from vela.dataplane.frame import (
    KIND,
    Kind,
    ethernet_header,
    is_ipv4_packet,
    is_ipv6_packet,
    needs_escape,
)

# docs/protocol.md, section 3, line by line; what is not here begins a complete frame.
MEANINGS = {
    **dict.fromkeys(range(0x45, 0x50), Kind.IPV4),
    **dict.fromkeys(range(0x60, 0x70), Kind.IPV6),
    0x40: Kind.ESCAPED,
    0x41: Kind.VERIFICATION,
    0x42: Kind.RESERVED,
    0x43: Kind.RESERVED,
    0x44: Kind.PIECE,
}

# RFC 791, section 3.1: version 4, 5 words of header, 24 bytes in all, UDP, 192.0.2.1 to 192.0.2.2.
IPV4 = bytes.fromhex("45000018 00000000 4011b6d3 c0000201 c0000202 00000000")
# RFC 8200, section 3: version 6, 4 bytes behind the header, UDP, 2001:db8::1 to ::2.
IPV6 = bytes.fromhex(
    "60000000 00041140 20010db8000000000000000000000001 20010db8000000000000000000000002 00000000"
)


def test_kind_of_every_first_byte_is_that_of_the_protocol() -> None:
    assert [KIND[first] for first in range(256)] == [
        MEANINGS.get(first, Kind.ETHERNET) for first in range(256)
    ]


def test_needs_escape_only_for_macs_that_begin_with_0x4_or_0x6() -> None:
    escaped = {first for first in range(256) if needs_escape(first)}

    assert escaped == {*range(0x40, 0x50), *range(0x60, 0x70)}


@pytest.mark.parametrize("padding", [0, 1, 22])
def test_is_ip_packet_of_a_packet_with_padding_is_true(padding: int) -> None:
    for packet, judge in ((IPV4, is_ipv4_packet), (IPV6, is_ipv6_packet)):
        data = b"before" + packet + bytes(padding)

        assert judge(data, 6, len(data))


def test_is_ip_packet_truncated_at_any_byte_is_false() -> None:
    for size in range(len(IPV4)):
        assert not is_ipv4_packet(IPV4, 0, size), size
    for size in range(len(IPV6)):
        assert not is_ipv6_packet(IPV6, 0, size), size


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        (0, 0x44, "a header of 16 bytes"),
        (0, 0x47, "a header of 28 bytes in a packet of 24"),
        (0, 0x65, "version 6"),
        (3, 19, "a total length below the header's"),
        (3, 25, "a total length beyond the data"),
        (2, 1, "a total length of 280"),
    ],
)
def test_is_ipv4_packet_with_a_wrong_header_is_false(offset: int, value: int, why: str) -> None:
    packet = bytearray(IPV4)
    packet[offset] = value

    assert not is_ipv4_packet(packet, 0, len(packet)), why


def test_is_ipv4_packet_with_options_is_true() -> None:
    packet = bytearray(IPV4)
    packet[0] = 0x46

    assert is_ipv4_packet(packet, 0, len(packet))


@pytest.mark.parametrize(("offset", "value"), [(0, 0x45), (0, 0x70), (5, 5), (4, 1)])
def test_is_ipv6_packet_with_a_wrong_header_is_false(offset: int, value: int) -> None:
    packet = bytearray(IPV6)
    packet[offset] = value

    assert not is_ipv6_packet(packet, 0, len(packet))


def test_ethernet_header_of_wrong_parts_raises() -> None:
    header = ethernet_header(bytes(6), b"\x02" + bytes(5), b"\x08\x00")
    assert header == bytes.fromhex("000000000000 020000000000 0800")

    with pytest.raises(ValueError, match="13 bytes"):
        ethernet_header(bytes(5), bytes(6), b"\x08\x00")
