"""ICMP to senders of packets that are too large for a datagram, through each engine."""

from __future__ import annotations

import struct
import time
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from attached_plane import CIRCUIT, LOCAL, REMOTE, Circuit, broadcast, on_wire, queued
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st
from packets import (
    DESTINATION_OPTIONS,
    HOP_BY_HOP,
    PLAIN,
    TCP,
    UDP,
    Packet,
    ethertype,
    link_headers,
    packets,
    payloads,
    virtio_header,
    word_sum,
)

from lab.waiting import eventually
from vela.dataplane.counters import Slot
from vela.dataplane.frame import Elision
from vela.dataplane.packet_too_big import BURST, RATE, Limiter
from vela.dataplane.pieces import Fragmentation

TOLD = {"frame_limit": 9018, "fragmentation": Fragmentation.IN_PIECES, "packet_too_big": True}
FAR, NEAR = bytes.fromhex("02005e1000aa"), bytes.fromhex("02005e1000bb")
ESCAPED = bytes.fromhex("44005e1000aa")
OUTWARD = REMOTE + LOCAL
V4 = Packet(protocol=UDP, payload=bytes(range(250)) * 6)
V6 = replace(
    V4,
    version=6,
    source=IPv6Address("2001:db8::1").packed,
    destination=IPv6Address("2001:db8::2").packed,
)
QINQ = bytes.fromhex("88a8006481000005")
ICMP, ICMPV6, FRAGMENT, ESP = 1, 58, 44, 50


@pytest.fixture(params=["python", "native"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def framed(packet: bytes, addresses: bytes = FAR + NEAR, tags: bytes = b"") -> bytes:
    return addresses + tags + ethertype(packet[0] >> 4) + packet


def of_size(packet: Packet, size: int) -> bytes:
    """Return a packet that has size bytes in all."""
    return replace(packet, payload=bytes(size - packet.transport_offset - 8)).finished()


def message(packet: bytes, mtu: int, addresses: bytes = FAR + NEAR, tags: bytes = b"") -> bytes:
    """Return the frame that its sender is to get. RFC 792, RFC 1191; RFC 4443, section 3.2."""
    back = addresses[6:] + addresses[:6] + tags
    if packet[0] >> 4 == 4:
        quoted = packet[: 576 - 28]
        icmp = with_sum(b"\3\4\0\0" + mtu.to_bytes(4, "big") + quoted, b"")
        head = struct.pack("!BBHHHBB", 0x45, 0xC0, 20 + len(icmp), 0, 0x4000, 64, ICMP)
        head += b"\0\0" + packet[16:20] + packet[12:16]
        head = head[:10] + (0xFFFF ^ word_sum(head)).to_bytes(2, "big") + head[12:]
        return back + b"\x08\x00" + head + icmp
    addresses = packet[24:40] + packet[8:24]
    quoted = packet[: 1280 - 48]
    pseudo = addresses + (8 + len(quoted)).to_bytes(4, "big") + ICMPV6.to_bytes(4, "big")
    icmp = with_sum(b"\2\0\0\0" + mtu.to_bytes(4, "big") + quoted, pseudo)
    head = struct.pack("!IHBB", 0x6C000000, len(icmp), ICMPV6, 64)
    return back + b"\x86\xdd" + head + addresses + icmp


def with_sum(icmp: bytes, pseudo: bytes) -> bytes:
    return icmp[:2] + (0xFFFF ^ word_sum(pseudo + icmp)).to_bytes(2, "big") + icmp[4:]


def content(datagrams: list[bytes]) -> bytes:
    """Return what the pieces of one frame hold."""
    assert all(datagram[:2] == bytes([CIRCUIT, 0x44]) for datagram in datagrams)
    (length,) = {struct.unpack_from("!H", datagram, 3)[0] for datagram in datagrams}
    return b"".join(datagram[9:] for datagram in datagrams)[:length]


# What crosses in one datagram of 1472 bytes: less circuit id, link header, and an escape where the
# frame needs one.
FITS = [
    pytest.param(V4, FAR + NEAR, b"", 1457, id="ipv4"),
    pytest.param(V6, FAR + NEAR, b"", 1457, id="ipv6"),
    pytest.param(V4, FAR + NEAR, bytes.fromhex("81000005"), 1453, id="802.1Q"),
    pytest.param(V6, FAR + NEAR, bytes.fromhex("8100a123"), 1453, id="802.1Q with priority"),
    pytest.param(V4, FAR + NEAR, QINQ, 1449, id="QinQ"),
    pytest.param(V6, ESCAPED + NEAR, b"", 1456, id="escaped"),
    pytest.param(V4, OUTWARD, b"", 1471, id="elided ipv4"),
    pytest.param(V6, OUTWARD, b"", 1471, id="elided ipv6"),
]


@pytest.mark.parametrize(("packet", "addresses", "tags", "mtu"), FITS)
def test_sender_hears_what_fits_and_its_packet_crosses_in_pieces(
    engine: str, stack: ExitStack, packet: Packet, addresses: bytes, tags: bytes, mtu: int
) -> None:
    circuit = Circuit(stack, engine, **TOLD)
    fits, exceeds = of_size(packet, mtu), of_size(packet, mtu + 1)

    assert len(circuit.egress(framed(fits, addresses, tags))) == 1
    assert queued(circuit.host) == []
    sent = circuit.egress(framed(exceeds, addresses, tags))

    assert queued(circuit.host) == [message(exceeds, mtu, addresses, tags)]
    assert len(sent) == 2
    assert content(sent).endswith(exceeds)
    assert circuit.counters.worker[Slot.TX_TOO_BIG_SENT] == 1


def test_message_over_ipv4_is_byte_for_byte_what_it_was(engine: str, stack: ExitStack) -> None:
    """By hand, from RFC 791 and RFC 792."""
    circuit = Circuit(stack, engine, **TOLD)
    # From 192.0.2.1 to 192.0.2.2: UDP of nothing but zeros, without a checksum.
    packet = bytes.fromhex("450005dc0000400040110000 c0000201 c0000202 9c401451 05c80000")
    circuit.egress(framed(packet.ljust(1500, b"\0")))

    (frame,) = queued(circuit.host)

    assert frame[:14] == NEAR + FAR + b"\x08\x00"
    # 45c0 + 0240 + 4000 + 4001 + c000 + 0202 + c000 + 0201 = 24c04: 4c06, complemented b3f9.
    assert frame[14:34] == bytes.fromhex("45c00240000040004001b3f9c0000202c0000201")
    # 0304 + 05b1, and of the quotation 4500 + 05dc + 4000 + 4011 + c000 + 0201 + c000 + 0202 +
    # 9c40 + 1451 + 05c8 = 30549: 30dfe, 0e01, complemented f1fe.
    assert frame[34:42] == bytes.fromhex("0304f1fe000005b1")
    assert frame[42:] == packet.ljust(548, b"\0")


@pytest.mark.parametrize("fragmentation", [Fragmentation.BY_IP, Fragmentation.NEVER])
def test_sender_hears_what_fits_whatever_becomes_of_its_packet(
    engine: str, stack: ExitStack, fragmentation: Fragmentation
) -> None:
    circuit = Circuit(stack, engine, **TOLD | {"fragmentation": fragmentation})
    frame = framed(V4.finished())

    sent = circuit.egress(frame)

    assert queued(circuit.host) == [message(V4.finished(), 1457)]
    assert sent == ([on_wire(frame)] if fragmentation is Fragmentation.BY_IP else [])


def test_without_being_asked_to_nobody_is_told(engine: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, engine, **TOLD | {"packet_too_big": False})

    circuit.egress(framed(V4.finished()), framed(V6.finished()))

    assert queued(circuit.host) == []
    assert Slot.TX_TOO_BIG_SENT not in circuit.counted()


def test_peer_that_takes_only_ip_leaves_more_room(engine: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, engine, **TOLD, elision=Elision.ALWAYS)

    circuit.egress(framed(V4.finished()))

    assert queued(circuit.host) == [message(V4.finished(), 1471)]


def address(packet: Packet, source: str = "", destination: str = "") -> Packet:
    kind = IPv4Address if packet.version == 4 else IPv6Address
    return replace(
        packet,
        source=kind(source).packed if source else packet.source,
        destination=kind(destination).packed if destination else packet.destination,
    )


def icmp(packet: Packet, kind: int) -> bytes:
    """Return an ICMP packet of this type; what is behind it is of no matter."""
    whole = bytearray(packet.finished())
    if packet.version == 4:
        whole[9] = ICMP
    elif not packet.ip_options:
        whole[6] = ICMPV6
    whole[packet.transport_offset] = kind
    return bytes(whole)


def behind(packet: Packet, first: int, headers: str) -> Packet:
    return replace(packet, first_header=first, ip_options=bytes.fromhex(headers))


UNICAST = FAR + NEAR
SILENT = [
    pytest.param(broadcast(1514), id="not IP"),
    pytest.param(framed(V4.finished(), b"\xff" * 6 + NEAR), id="Ethernet broadcast"),
    pytest.param(framed(V6.finished(), b"\x33\x33" + bytes(4) + NEAR), id="Ethernet multicast"),
    pytest.param(framed(V4.finished(), FAR + b"\x03" + NEAR[1:]), id="from a group address"),
    pytest.param(framed(V4.finished(), tags=QINQ + QINQ[4:]), id="three tags"),
    pytest.param(framed(V4.finished()[:-1]), id="IPv4 cut off"),
    pytest.param(framed(V6.finished()[:-1]), id="IPv6 cut off"),
    pytest.param(framed(of_size(V4, 1457) + bytes(1)), id="padding makes it too large"),
    pytest.param(framed(of_size(V6, 1457) + bytes(1)), id="likewise over IPv6"),
    pytest.param(framed(replace(V4, fragment=0).finished()), id="may be fragmented"),
    pytest.param(framed(replace(V4, fragment=0x4001).finished()), id="later fragment"),
    *[
        pytest.param(framed(address(V4, **{end: each}).finished()), id=f"IPv4 {end} {each}")
        for end in ("source", "destination")
        for each in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255")
    ],
    *[
        pytest.param(framed(address(V6, **{end: each}).finished()), id=f"IPv6 {end} {each}")
        for end in ("source", "destination")
        for each in ("::", "::1", "ff02::1", "ff0e::1")
    ],
    *[
        pytest.param(framed(icmp(V4, kind)), id=f"ICMP {kind}")
        for kind in (3, 4, 5, 11, 12, 1, 19, 255)
    ],
    *[pytest.param(framed(icmp(V6, kind)), id=f"ICMPv6 {kind}") for kind in (1, 2, 4, 127, 137)],
    *[
        pytest.param(framed(icmp(behind(V6, first, headers), 1)), id=f"ICMPv6 error {name}")
        for name, first, headers in (
            ("behind options", DESTINATION_OPTIONS, "3a00010400000000"),
            ("behind two headers", HOP_BY_HOP, "3c00010400000000 3a00010400000000"),
            ("in the first fragment", FRAGMENT, "3a00000100000009"),
            ("of options in it", FRAGMENT, "3c00000100000009 3a00010400000000"),
        )
    ],
    pytest.param(framed(behind(V6, FRAGMENT, "1100000800000009").finished()), id="IPv6 fragment"),
    pytest.param(
        framed(behind(V6, FRAGMENT, "2c00000100000009 1100000100000009").finished()),
        id="fragment of a fragment",
    ),
    pytest.param(framed(behind(V6, HOP_BY_HOP, "3cff" + "00" * 6).finished()), id="hidden"),
    pytest.param(
        framed(behind(V6, HOP_BY_HOP, "3c00010400000000" * 8 + "3a00010400000000").finished()),
        id="nine headers",
    ),
]


@pytest.mark.parametrize("frame", SILENT)
def test_what_must_not_be_answered_is_not(engine: str, stack: ExitStack, frame: bytes) -> None:
    """RFC 1812, section 4.3.2.7; RFC 4443, section 2.4 (e)."""
    circuit = Circuit(stack, engine, **TOLD)

    sent = circuit.egress(frame)

    assert content(sent).endswith(frame)
    assert queued(circuit.host) == []
    assert Slot.TX_TOO_BIG_SENT not in circuit.counted()


@pytest.mark.parametrize(
    "packet",
    [
        *[pytest.param(icmp(V4, kind), id=f"ICMP {kind}") for kind in (0, 8, 13, 18)],
        *[pytest.param(icmp(V6, kind), id=f"ICMPv6 {kind}") for kind in (128, 129, 135)],
        pytest.param(replace(V4, fragment=0x6000).finished(), id="first fragment"),
        pytest.param(replace(V4, ip_options=b"\1" * 40).finished(), id="IPv4 options"),
        pytest.param(replace(V4, protocol=TCP).finished(), id="TCP"),
        pytest.param(behind(V6, FRAGMENT, "1100000100000009").finished(), id="IPv6's first one"),
        pytest.param(icmp(behind(V6, HOP_BY_HOP, "3a00010400000000"), 128), id="echo with options"),
        pytest.param(behind(V6, ESP, "0000000000000000").finished(), id="IPsec"),
        pytest.param(
            behind(V6, HOP_BY_HOP, "3c00010400000000" * 7 + "1100010400000000").finished(),
            id="eight headers",
        ),
    ],
)
def test_what_may_be_answered_is(engine: str, stack: ExitStack, packet: bytes) -> None:
    circuit = Circuit(stack, engine, **TOLD)

    circuit.egress(framed(packet))

    assert queued(circuit.host) == [message(packet, 1457)]


@pytest.mark.parametrize(
    ("limit", "packet", "mtu"),
    [
        pytest.param(1200, V4, 1185, id="ipv4"),
        # RFC 8200, section 5: hosts send no less, and what is no larger is ours to cut.
        pytest.param(1200, V6, 1280, id="ipv6"),
        pytest.param(83, V4, 68, id="the least"),
    ],
)
def test_narrow_path_is_told_as_far_as_hosts_can_follow(
    engine: str, stack: ExitStack, limit: int, packet: Packet, mtu: int
) -> None:
    circuit = Circuit(stack, engine, **TOLD, datagram_limit=limit)
    exceeds = of_size(packet, mtu + 1)

    circuit.egress(framed(of_size(packet, mtu)), framed(exceeds))

    assert queued(circuit.host) == [message(exceeds, mtu)]


@pytest.mark.parametrize("limit", [82, 20, 10, 2])
def test_path_of_next_to_nothing_is_not_told(engine: str, stack: ExitStack, limit: int) -> None:
    circuit = Circuit(stack, engine, **TOLD, datagram_limit=limit)

    circuit.egress(framed(V4.finished()))

    assert queued(circuit.host) == []


def test_flood_of_large_packets_is_told_at_a_limited_rate(engine: str, stack: ExitStack) -> None:
    """What goes unsaid is said with a later packet; all of them cross."""
    circuit = Circuit(stack, engine, **TOLD)
    started = time.monotonic()
    sent, told = [], 0
    for _ in range(3 * BURST):
        sent += circuit.egress(framed(V4.finished()))
        told += len(queued(circuit.host))
    # The clock of the native engine may be 10 ms behind, at either end.
    most = BURST + (time.monotonic() - started + 0.02) * RATE

    assert BURST <= told <= most
    assert len(sent) == 2 * 3 * BURST
    assert circuit.counters.worker[Slot.TX_TOO_BIG_SENT] == told

    def is_told_again() -> bool:
        circuit.egress(framed(V4.finished()))
        return bool(queued(circuit.host))

    eventually(is_told_again, 5, "another message")


def test_limiter_gives_a_burst_and_then_its_rate() -> None:
    limiter = Limiter()

    def taken(now: float) -> int:
        count = 0
        while limiter.allows(now):
            limiter.take()
            count += 1
        return count

    assert taken(1000.0) == BURST
    assert taken(1000.0) == 0
    assert taken(1000.1) == RATE / 10
    assert taken(5000.0) == BURST


def test_super_frame_is_told_of_once_if_its_segments_are_too_large(stack: ExitStack) -> None:
    """With the packet that its first segment is. Only the native engine gets such."""
    circuit = Circuit(stack, "native", **TOLD, virtio_header=True)
    # Three packets of 1458 bytes, that differ in their last byte but 99.
    large = [bytes([each]) * 1430 for each in range(3)]
    packet = replace(V4, payload=b"".join(large))
    frame = framed(packet.unfinished(), tags=QINQ[4:])

    sent = circuit.egress(virtio_header(packet, 18, 1430) + frame)

    (got,) = queued(circuit.host)
    first = replace(packet, payload=large[0]).finished()
    assert got == PLAIN + message(first, 1453, tags=QINQ[4:])
    assert len(sent) == 6
    assert circuit.counters.worker[Slot.TX_TOO_BIG_SENT] == 1


def test_super_frame_of_segments_that_fit_is_not_told_of(stack: ExitStack) -> None:
    circuit = Circuit(stack, "native", **TOLD, virtio_header=True)
    packet = replace(V4, protocol=TCP, payload=bytes(1417 * 3))

    sent = circuit.egress(virtio_header(packet, 14, 1417) + framed(packet.unfinished()))

    assert [len(each) for each in sent] == [1472] * 3
    assert queued(circuit.host) == []


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    packet=packets(payloads(2000)),
    addresses=st.sampled_from((OUTWARD, UNICAST, ESCAPED + NEAR, b"\xff" * 6 + NEAR)),
    tags=st.one_of(st.just(b""), link_headers),
    limit=st.sampled_from((1472, 1300, 600, 100)),
    fragmentation=st.sampled_from((Fragmentation.IN_PIECES, Fragmentation.BY_IP)),
    damage=st.tuples(st.integers(0, 100), st.integers(0, 255)),
)
@example(V4, UNICAST, b"", 1472, Fragmentation.IN_PIECES, (0, 0))
@example(V6, UNICAST, b"", 1472, Fragmentation.IN_PIECES, (6, 17 ^ 58))
def test_engines_say_the_same(
    packet: Packet,
    addresses: bytes,
    tags: bytes,
    limit: int,
    fragmentation: Fragmentation,
    damage: tuple[int, int],
) -> None:
    whole = bytearray(framed(packet.finished(), addresses, tags))
    whole[14 + damage[0] % (len(whole) - 14)] ^= damage[1]
    frame = bytes(whole)
    note(frame.hex())
    sent, told, counted = [], [], []
    for name in ("python", "native"):
        with ExitStack() as stack:
            changes = TOLD | {"datagram_limit": limit, "fragmentation": fragmentation}
            circuit = Circuit(stack, name, **changes)
            datagrams = circuit.egress(frame)
            sent.append([each[:5] + each[9:] if each[1] == 0x44 else each for each in datagrams])
            told.append(queued(circuit.host))
            counted.append(circuit.counted())

    assert told[0] == told[1]
    assert sent[0] == sent[1]
    assert counted[0] == counted[1]
