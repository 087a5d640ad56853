"""The MSS that TCP announces, through each engine: what is lowered, and what stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from attached_plane import CIRCUIT, LOCAL, REMOTE, Circuit
from hypothesis import HealthCheck, assume, example, given, note, settings
from hypothesis import strategies as st
from packets import ACK, SYN, TCP, UDP, Packet, ethertype, handshakes, link_headers, word_sum

from vela.dataplane.counters import Slot
from vela.dataplane.frame import Elision
from vela.dataplane.mss import MssClamp

LIMIT = 1472  # of a datagram on a 1500-byte path
OUTWARD = REMOTE + LOCAL
BRIDGED = bytes.fromhex("02005e1000aa02005e1000bb")
V4 = Packet(flags=SYN, tcp_options=bytes.fromhex("020405b4"))  # RFC 9293, 3.7.1: 1460
V6 = replace(V4, version=6, source=bytes(15) + b"\1", destination=bytes(15) + b"\2")
MSS = b"\x02\x04"
NOP, END = b"\x01", b"\x00"
SACK = b"\x04\x02"  # RFC 2018
TIMESTAMP = bytes.fromhex("080a1122334455667788")  # RFC 7323
WINDOW = bytes.fromhex("030307")

many = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=["python", "native"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def circuit(engine: str) -> Iterator[Circuit]:
    with ExitStack() as stack:
        yield Circuit(stack, engine, mss_clamp=MssClamp(LIMIT))


@pytest.fixture(scope="module")
def twins() -> Iterator[tuple[Circuit, Circuit]]:
    with ExitStack() as stack:
        clamp = MssClamp(LIMIT)
        yield Circuit(stack, "python", mss_clamp=clamp), Circuit(stack, "native", mss_clamp=clamp)


def framed(packet: Packet, addresses: bytes = BRIDGED, tags: bytes = b"") -> bytes:
    return addresses + tags + ethertype(packet.version) + packet.finished()


def datagram(frame: bytes) -> bytes:
    escape = b"\x40" if frame[0] >> 4 in (4, 6) else b""
    return bytes([CIRCUIT]) + escape + frame


def with_mss(packet: Packet, mss: int) -> Packet:
    return replace(packet, tcp_options=MSS + mss.to_bytes(2, "big"))


# 1472 less circuit id, escape, link header, IP header, TCP header.
LIMITS = [
    pytest.param(V4, b"", 1416, id="ipv4"),
    pytest.param(V6, b"", 1396, id="ipv6"),
    pytest.param(V4, bytes.fromhex("81000005"), 1412, id="802.1Q"),
    pytest.param(V6, bytes.fromhex("88a8006481000005"), 1388, id="QinQ"),
    pytest.param(replace(V4, flags=SYN | ACK), b"", 1416, id="SYN and ACK"),
    pytest.param(replace(V4, ip_options=bytes(4)), b"", 1416, id="IPv4 options"),
    pytest.param(
        replace(V6, ip_options=bytes([TCP, 0, 1, 4, 0, 0, 0, 0]), first_header=60),
        b"",
        1396,
        id="destination options",
    ),
]


@pytest.mark.parametrize(("packet", "tags", "limit"), LIMITS)
def test_mss_above_the_limit_is_lowered_in_both_directions(
    circuit: Circuit, packet: Packet, tags: bytes, limit: int
) -> None:
    frame, lowered = framed(packet, tags=tags), framed(with_mss(packet, limit), tags=tags)

    assert circuit.egress(frame) == [datagram(lowered)]
    circuit.send(datagram(frame))
    assert circuit.ingress() == [lowered]


@pytest.mark.parametrize(("packet", "tags", "limit"), LIMITS)
def test_segment_of_the_lowered_mss_fills_a_datagram(
    circuit: Circuit, packet: Packet, tags: bytes, limit: int
) -> None:
    """Less the byte of an escape, which some addresses need."""
    plain = replace(packet, flags=ACK, tcp_options=b"", ip_options=b"", payload=bytes(limit))

    (sent,) = circuit.egress(framed(plain, tags=tags))

    assert len(sent) == LIMIT - 1


@pytest.mark.parametrize("packet", [V4, V6], ids=["ipv4", "ipv6"])
def test_mss_of_what_travels_elided_is_larger_by_the_header_that_does_not(
    circuit: Circuit, packet: Packet
) -> None:
    limit = LIMIT - 1 - packet.transport_offset - 20
    packet = with_mss(packet, 9000)
    lowered = with_mss(packet, limit).finished()

    assert circuit.egress(framed(packet, OUTWARD)) == [bytes([CIRCUIT]) + lowered]
    circuit.send(bytes([CIRCUIT]) + packet.finished())
    assert circuit.ingress() == [LOCAL + REMOTE + ethertype(packet.version) + lowered]


def test_mss_of_what_came_elided_to_an_end_that_does_not_elide_is_that_of_complete_frames(
    engine: str,
) -> None:
    with ExitStack() as stack:
        clamp = MssClamp(LIMIT)
        circuit = Circuit(stack, engine, mss_clamp=clamp, elision=Elision.NEVER)
        circuit.send(bytes([CIRCUIT]) + V4.finished())
        (frame,) = circuit.ingress()

    assert frame[14:] == with_mss(V4, 1416).finished()


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(with_mss(V4, 1416), id="as large as it may be"),
        pytest.param(with_mss(V4, 0), id="nothing"),
        pytest.param(replace(V4, flags=ACK), id="no SYN"),
        pytest.param(replace(V4, fragment=0x2000), id="first fragment"),
        pytest.param(replace(V4, fragment=1), id="later fragment"),
        pytest.param(replace(V4, protocol=UDP, payload=bytes(40)), id="UDP"),
        pytest.param(replace(V4, tcp_options=NOP * 3 + b"\x02"), id="option cut off"),
        pytest.param(replace(V4, tcp_options=NOP + b"\x02\x04\xff"), id="value cut off"),
        pytest.param(replace(V4, tcp_options=b"\x02\x00\xff\xff"), id="length of nothing"),
        pytest.param(replace(V4, tcp_options=b"\x02\x01\xff\xff"), id="length of one"),
        pytest.param(replace(V4, tcp_options=b"\x02\x03\xff\x01"), id="odd length"),
        pytest.param(replace(V4, tcp_options=MSS + b"\xff\xff\x02\xff\xff\xff"), id="beyond"),
        pytest.param(replace(V4, tcp_options=b"\x05\x09" + MSS + b"\xff\xff"), id="too long"),
        pytest.param(replace(V4, tcp_options=END + MSS + b"\xff\xff" + END * 3), id="behind end"),
        pytest.param(
            replace(V4, tcp_options=MSS + b"\xff\xff" + bytes.fromhex("1d100001") + bytes(12)),
            id="signed by TCP-AO",
        ),
        pytest.param(
            replace(V6, ip_options=bytes([TCP, 0, 0, 0, 0, 0, 0, 9]), first_header=44),
            id="IPv6 fragment",
        ),
        pytest.param(
            replace(V6, ip_options=bytes([TCP, 2]) + bytes(14), first_header=51), id="IPsec"
        ),
    ],
)
def test_what_has_no_mss_above_the_limit_stays_as_it_is(circuit: Circuit, packet: Packet) -> None:
    before = circuit.counted()
    frame = framed(packet)

    assert circuit.egress(frame) == [datagram(frame)]
    circuit.send(datagram(frame))
    assert circuit.ingress() == [frame]
    for slot in (Slot.TX_MSS_CLAMPED, Slot.RX_MSS_CLAMPED):
        assert circuit.counted().get(slot) == before.get(slot)


def test_padding_that_looks_like_options_stays_as_it_is(circuit: Circuit) -> None:
    """The data offset leads behind the packet, into Ethernet's padding."""
    packet = bytearray(replace(V4, tcp_options=b"").finished())
    packet[32] = 6 << 4
    frame = BRIDGED + b"\x08\x00" + bytes(packet) + MSS + b"\xff\xff" + bytes(2)

    assert circuit.egress(frame) == [datagram(frame)]


def test_every_mss_option_is_lowered_whatever_its_offset(circuit: Circuit) -> None:
    options = NOP + MSS + b"\x05\xb4" + SACK + NOP + MSS + b"\xff\xff" + TIMESTAMP + WINDOW
    lowered = options.replace(b"\x05\xb4", b"\x05\x88").replace(b"\xff\xff", b"\x05\x88")
    frame, expected = (framed(replace(V4, tcp_options=o + END * 3)) for o in (options, lowered))

    assert circuit.egress(frame) == [datagram(expected)]


def test_wrong_checksum_stays_as_wrong_as_it_was(circuit: Circuit) -> None:
    frame = BRIDGED + b"\x08\x00" + V4.finished(damage=0x1111)

    (sent,) = circuit.egress(frame)

    lowered = int.from_bytes(with_mss(V4, 1416).finished()[36:38], "big")
    wrong = int.from_bytes(sent[51:53], "big")
    assert wrong == lowered + 0x1111 - (0xFFFF if lowered + 0x1111 > 0xFFFF else 0)


def test_configured_mss_is_the_limit_whatever_the_datagram_has(engine: str) -> None:
    with ExitStack() as stack:
        circuit = Circuit(stack, engine, mss_clamp=MssClamp(mss=1000))
        assert circuit.egress(framed(V4)) == [datagram(framed(with_mss(V4, 1000)))]
    with ExitStack() as stack:
        circuit = Circuit(stack, engine, mss_clamp=MssClamp(LIMIT, 9000))
        assert circuit.egress(framed(V4)) == [datagram(framed(with_mss(V4, 1416)))]


def test_datagram_of_next_to_nothing_leaves_what_hosts_accept(engine: str) -> None:
    with ExitStack() as stack:
        circuit = Circuit(stack, engine, mss_clamp=MssClamp(100))
        assert circuit.egress(framed(V4)) == [datagram(framed(with_mss(V4, 88)))]


def test_without_a_clamp_nothing_is_lowered(engine: str) -> None:
    with ExitStack() as stack:
        circuit = Circuit(stack, engine)
        assert circuit.egress(framed(V4)) == [datagram(framed(V4))]


def test_lowered_ones_are_counted_once_each(engine: str) -> None:
    with ExitStack() as stack:
        circuit = Circuit(stack, engine, mss_clamp=MssClamp(LIMIT))
        circuit.egress(framed(V4), framed(with_mss(V4, 500)), framed(V6))
        circuit.send(datagram(framed(V4)))
        circuit.ingress()
        counted = circuit.counted()

    assert (counted[Slot.TX_MSS_CLAMPED], counted[Slot.RX_MSS_CLAMPED]) == (2, 1)


@many
@given(
    packet=handshakes(),
    addresses=st.sampled_from((OUTWARD, BRIDGED, b"\x45" * 6 + LOCAL)),
    tags=st.one_of(st.just(b""), link_headers),
    cut=st.integers(0, 60),
    damage=st.tuples(st.integers(0, 100), st.integers(0, 255)),
)
@example(packet=V4, addresses=BRIDGED, tags=b"", cut=0, damage=(0, 0))
def test_engines_do_the_same_in_both_directions(
    twins: tuple[Circuit, Circuit],
    packet: Packet,
    addresses: bytes,
    tags: bytes,
    cut: int,
    damage: tuple[int, int],
) -> None:
    whole = bytearray(framed(packet, addresses, tags))
    whole[14 + damage[0] % (len(whole) - 14)] ^= damage[1]
    frame = bytes(whole[: max(14, len(whole) - cut)])
    note(frame.hex())
    python, native = twins

    assert python.egress(frame) == native.egress(frame)
    received = []
    for each in twins:
        each.send(datagram(frame))
        received.append(each.ingress())
    assert received[0] == received[1]
    assert python.counted() == native.counted()


@many
@given(packet=handshakes(), tags=link_headers)
def test_checksum_that_was_right_stays_right(
    twins: tuple[Circuit, Circuit], packet: Packet, tags: bytes
) -> None:
    assume(packet.protocol == TCP)
    frame = framed(packet, tags=tags)

    for each in twins:
        (sent,) = each.egress(frame)
        start = len(sent) - packet.transport_length
        pseudo = packet.source + packet.destination
        pseudo += packet.transport_length.to_bytes(4, "big") + bytes(2) + TCP.to_bytes(2, "big")
        assert word_sum(pseudo + sent[start:]) == 0xFFFF
