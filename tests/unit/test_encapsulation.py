"""vela.dataplane.frame: every frame, in every mode, byte for byte. docs/protocol.md, section 3."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vela.dataplane.counters import Slot
from vela.dataplane.frame import (
    HEADROOM,
    REBUILD_ROOM,
    Decapsulator,
    Dropped,
    Elision,
    Encapsulator,
    Piece,
    Verification,
)

LEFT = bytes.fromhex("02005e100001")
RIGHT = bytes.fromhex("02005e100002")
LIMIT = 1489
CIRCUIT = 7

ENVELOPE_IPV4 = RIGHT + LEFT + b"\x08\x00"
ENVELOPE_IPV6 = RIGHT + LEFT + b"\x86\xdd"
IPV4 = bytes.fromhex("45000018 00000000 4011b6d3 c0000201 c0000202 01020304")
IPV6 = bytes.fromhex(
    "60000000 00041140 20010db8000000000000000000000001 20010db8000000000000000000000002 01020304"
)

payloads = st.binary(max_size=80)


@st.composite
def ipv4_packets(draw: st.DrawFn) -> bytes:
    words, payload, padding = draw(st.integers(5, 15)), draw(payloads), draw(st.binary(max_size=20))
    total = words * 4 + len(payload)
    header = bytes([0x40 | words, 0]) + total.to_bytes(2, "big") + bytes(words * 4 - 4)
    return header + payload + padding


@st.composite
def ipv6_packets(draw: st.DrawFn) -> bytes:
    payload, padding = draw(payloads), draw(st.binary(max_size=20))
    first = 0x60 | draw(st.integers(0, 15))
    header = bytes([first, 0, 0, 0]) + len(payload).to_bytes(2, "big") + bytes(34)
    return header + payload + padding


def envelopes() -> st.SearchStrategy[bytes]:
    """Ethernet headers, those that could be elided or need an escape more often than chance."""
    macs = st.sampled_from([LEFT, RIGHT, b"\x45" * 6, b"\x60" * 6, b"\xff" * 6]) | st.binary(
        min_size=6, max_size=6
    )
    types = st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00"])
    return (
        st.sampled_from([ENVELOPE_IPV4, ENVELOPE_IPV6])
        | st.builds(lambda *parts: b"".join(parts), macs, macs, types)
        | st.binary(min_size=14, max_size=14)
    )


frames = st.builds(
    lambda envelope, rest: envelope + rest,
    envelopes(),
    ipv4_packets() | ipv6_packets() | st.binary(max_size=120),
)


def encapsulated(frame: bytes, elision: Elision) -> tuple[bytes, bool]:
    data = bytearray(HEADROOM) + frame
    start, elided = Encapsulator(CIRCUIT, LEFT, RIGHT, elision).encapsulate(
        data, HEADROOM, len(data)
    )
    return bytes(data[start:]), elided


def decapsulated(datagram: bytes, limit: int = LIMIT) -> tuple[bytes, bool]:
    data = bytearray(REBUILD_ROOM) + datagram
    start, elided = Decapsulator(RIGHT, LEFT, limit).decapsulate(data, REBUILD_ROOM, len(data))
    return bytes(data[start:]), elided


def slot_or(operation: Callable[[], tuple[bytes, bool]]) -> tuple[bytes, bool] | Slot:
    """Return what operation does, or the reason for which it drops it."""
    try:
        return operation()
    except Dropped as dropped:
        return dropped.slot


@given(frames, st.sampled_from([Elision.NEVER, Elision.KNOWN]))
def test_frame_through_both_ends_comes_out_byte_for_byte(frame: bytes, elision: Elision) -> None:
    datagram, elided = encapsulated(frame, elision)

    assert decapsulated(datagram) == (frame, elided)


@given(ipv4_packets() | ipv6_packets())
def test_ip_frame_between_the_taps_comes_out_of_any_elision(packet: bytes) -> None:
    frame = (ENVELOPE_IPV4 if packet[0] < 0x60 else ENVELOPE_IPV6) + packet

    for elision in Elision:
        datagram, elided = encapsulated(frame, elision)

        assert elided is (elision is not Elision.NEVER)
        assert datagram == bytes([CIRCUIT]) + (packet if elided else frame)
        assert decapsulated(datagram) == (frame, elided)


@given(frames, st.sampled_from([Elision.NEVER, Elision.KNOWN]))
def test_overhead_is_one_byte_and_another_only_where_it_is_needed(
    frame: bytes, elision: Elision
) -> None:
    datagram, elided = encapsulated(frame, elision)

    # Section 3: the escape only for destinations 0x40..0x4f and 0x60..0x6f.
    escape = b"\x40" if frame[0] >> 4 in (4, 6) else b""
    carried = frame[14:] if elided else escape + frame
    assert datagram == bytes([CIRCUIT]) + carried


@given(frames)
def test_elision_of_all_carries_ip_packets_and_drops_the_rest(frame: bytes) -> None:
    outcome = slot_or(lambda: encapsulated(frame, Elision.ALWAYS))

    if isinstance(outcome, Slot):
        assert outcome is Slot.TX_NOT_IP
    else:
        assert outcome == (bytes([CIRCUIT]) + frame[14:], True)
        assert frame[12:14] == (b"\x08\x00" if frame[14] < 0x60 else b"\x86\xdd")
        assert decapsulated(outcome[0])[0][12:] == frame[12:]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(LEFT + RIGHT + b"\x08\x00" + IPV4, id="the other direction"),
        pytest.param(b"\xff" * 6 + LEFT + b"\x08\x00" + IPV4, id="broadcast"),
        pytest.param(RIGHT + b"\x02" * 6 + b"\x08\x00" + IPV4, id="another source"),
        pytest.param(RIGHT + LEFT + b"\x86\xdd" + IPV4, id="IPv4 under IPv6's type"),
        pytest.param(RIGHT + LEFT + b"\x08\x00" + IPV6, id="IPv6 under IPv4's type"),
        pytest.param(RIGHT + LEFT + b"\x08\x06" + IPV4, id="ARP's type"),
        pytest.param(RIGHT + LEFT + b"\x81\x00\x00\x0a\x08\x00" + IPV4, id="tagged"),
        pytest.param(ENVELOPE_IPV4 + b"\x44" + IPV4[1:], id="a header of 16 bytes"),
        pytest.param(ENVELOPE_IPV4 + IPV4[:-1], id="a packet cut off"),
        pytest.param(ENVELOPE_IPV4, id="nothing behind the header"),
    ],
)
def test_frame_that_the_other_end_could_not_rebuild_travels_complete(frame: bytes) -> None:
    assert encapsulated(frame, Elision.KNOWN) == (bytes([CIRCUIT]) + frame, False)


def test_full_packet_on_ipv4_makes_a_datagram_of_1500_bytes() -> None:
    packet = bytes.fromhex("450005bf") + bytes(1471 - 4)  # total length 1471

    datagram, _ = encapsulated(ENVELOPE_IPV4 + packet, Elision.KNOWN)

    assert 20 + 8 + len(datagram) == 1500


@given(st.lists(frames, min_size=1, max_size=8))
def test_datagrams_back_to_back_taken_in_order_are_all_whole(sent: list[bytes]) -> None:
    """As UDP GRO lays them; each frame is done with before the next one is rebuilt."""
    datagrams = [encapsulated(frame, Elision.KNOWN)[0] for frame in sent]
    data = bytearray(REBUILD_ROOM) + b"".join(datagrams)
    decapsulator = Decapsulator(RIGHT, LEFT, LIMIT)

    received, start = [], REBUILD_ROOM
    for datagram in datagrams:
        end = start + len(datagram)
        behind = bytes(data[end:])
        frame, _ = decapsulator.decapsulate(data, start, end)
        received.append(bytes(data[frame:end]))
        assert data[end:] == behind
        start = end

    assert received == sent


@given(frames, st.sampled_from(list(Elision)))
def test_encapsulation_writes_nothing_but_what_goes_before(frame: bytes, elision: Elision) -> None:
    before, behind = b"\xaa" * 16, b"\xbb" * 16
    data = bytearray(before + bytes(HEADROOM) + frame + behind)
    start = len(before) + HEADROOM
    try:
        Encapsulator(CIRCUIT, LEFT, RIGHT, elision).encapsulate(data, start, start + len(frame))
    except Dropped:
        assert data[start:] == frame + behind
    assert data[: len(before)] == before
    assert data[start + 14 :] == frame[14:] + behind


@pytest.mark.parametrize(
    ("datagram", "slot"),
    [
        ("07", Slot.RX_SHORT),
        ("07 42", Slot.RX_RESERVED),
        ("07 43" + "00" * 60, Slot.RX_RESERVED),
        ("07" + RIGHT.hex() + LEFT.hex() + "08", Slot.RX_SHORT),
        ("07 40" + RIGHT.hex() + LEFT.hex() + "08", Slot.RX_SHORT),
        ("07 40", Slot.RX_SHORT),
        ("07 45", Slot.RX_MALFORMED),
        ("07 46" + IPV4[1:20].hex(), Slot.RX_MALFORMED),
        ("07" + IPV4[:-1].hex(), Slot.RX_MALFORMED),
        ("07" + IPV6[:-1].hex(), Slot.RX_MALFORMED),
        ("07 60", Slot.RX_MALFORMED),
    ],
)
def test_datagram_that_holds_no_frame_is_dropped(datagram: str, slot: Slot) -> None:
    with pytest.raises(Dropped) as caught:
        decapsulated(bytes.fromhex(datagram))

    assert caught.value.slot is slot


@pytest.mark.parametrize("head", ["", "40"])
def test_datagram_with_a_frame_above_the_limit_is_dropped(head: str) -> None:
    largest = (b"\x45" if head else b"\x02") + bytes(LIMIT - 1)
    datagram = b"\x07" + bytes.fromhex(head) + largest

    assert decapsulated(datagram) == (largest, False)
    with pytest.raises(Dropped) as caught:
        decapsulated(datagram + b"\0")
    assert caught.value.slot is Slot.RX_OVERSIZED


def test_packet_that_with_its_header_is_above_the_limit_is_dropped() -> None:
    assert decapsulated(b"\x07" + IPV4, limit=14 + 24) == (ENVELOPE_IPV4 + IPV4, True)
    with pytest.raises(Dropped) as caught:
        decapsulated(b"\x07" + IPV4, limit=14 + 23)
    assert caught.value.slot is Slot.RX_OVERSIZED


@given(st.binary(max_size=200), st.integers(14, 100))
def test_any_datagram_gives_a_frame_within_the_limit_or_is_dropped(
    datagram: bytes, limit: int
) -> None:
    try:
        outcome = slot_or(lambda: decapsulated(datagram, limit))
    except (Verification, Piece):
        assert datagram[1] in (0x41, 0x44)
        return

    if isinstance(outcome, Slot):
        assert outcome.name.startswith("RX_")
    else:
        frame, _ = outcome
        assert 14 <= len(frame) <= limit
        assert frame.endswith(datagram[2:])


@given(st.sampled_from([IPV4, IPV6]), st.data())
def test_packet_with_damaged_bytes_gives_a_frame_or_is_dropped(
    packet: bytes, data: st.DataObject
) -> None:
    datagram = bytearray(b"\x07" + packet)
    for _ in range(data.draw(st.integers(1, 4))):
        datagram[data.draw(st.integers(1, 6))] = data.draw(st.integers(0, 255))
    cut = bytes(datagram[: data.draw(st.integers(0, len(datagram)))])

    assume(len(cut) < 2 or cut[1] not in (0x41, 0x44))

    outcome = slot_or(lambda: decapsulated(cut))

    assert (
        outcome.name.startswith("RX_")
        if isinstance(outcome, Slot)
        else outcome[0].endswith(cut[2:])
    )
