"""Frames that are larger than a datagram, through each engine: in pieces, and back.

docs/protocol.md, 3.7.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from attached_plane import (
    CIRCUIT,
    LOCAL,
    PLANES,
    REMOTE,
    UDP_GRO,
    UDP_SEGMENT,
    Circuit,
    broadcast,
    on_wire,
    queued,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.waiting import eventually
from vela.dataplane.counters import Slot
from vela.dataplane.ecn import NOT_ECT
from vela.dataplane.frame import Dropped
from vela.dataplane.mss import MssClamp
from vela.dataplane.pieces import Cutter, Fragmentation, Joiner
from vela.linux.features import Feature

LARGE = {"frame_limit": 9018, "fragmentation": Fragmentation.IN_PIECES}
HEADER = 9  # circuit id, 0x44, index, length (2), number (4)
LIMIT = 1472
many = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True, slots=True)
class Part:
    """A piece as it is on the wire. Read and written here by nothing that is under test."""

    index: int
    last: bool
    length: int
    number: int
    content: bytes

    @classmethod
    def read(cls, datagram: bytes) -> Part:
        circuit_id, kind, flags, length, number = struct.unpack_from("!BBBHI", datagram)
        assert (circuit_id, kind, flags & 0x40) == (CIRCUIT, 0x44, 0)
        return cls(flags & 0x3F, flags >= 0x80, length, number, datagram[HEADER:])

    def write(self) -> bytes:
        flags = (self.index | self.last << 7) & 0xFF
        return struct.pack("!BBBHI", CIRCUIT, 0x44, flags, self.length, self.number) + self.content


def cut(content: bytes, size: int, number: int = 1000) -> list[bytes]:
    """Return the pieces of what is behind a circuit id."""
    count = -(-len(content) // size)
    return [
        Part(
            index,
            index + 1 == count,
            len(content),
            number,
            content[index * size :][:size].ljust(size, b"\0"),
        ).write()
        for index in range(count)
    ]


def joined(datagrams: Iterable[bytes]) -> list[bytes]:
    """Return datagrams with those that came in pieces put together, in order."""
    whole, content = [], b""
    for datagram in datagrams:
        if datagram[1:2] != b"\x44":
            whole.append(datagram)
            continue
        part = Part.read(datagram)
        assert len(content) == part.index * len(part.content)
        content += part.content
        if part.last:
            assert content[part.length :] == bytes(len(content) - part.length)
            whole.append(bytes([CIRCUIT]) + content[: part.length])
            content = b""
    assert content == b""
    return whole


@pytest.fixture(params=PLANES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["python", "native"])
def twin(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def twins() -> Iterator[tuple[Circuit, Circuit]]:
    with ExitStack() as stack:
        yield Circuit(stack, "python", **LARGE), Circuit(stack, "native", **LARGE)


@pytest.mark.parametrize(
    ("size", "count", "each"),
    [
        # As few pieces as possible, of one size: ceil(size / ceil(size / 1463)).
        pytest.param(1472, 2, 736, id="one byte too large"),
        pytest.param(1514, 2, 757, id="full bridged frame"),
        pytest.param(1515, 2, 758, id="odd"),
        pytest.param(2926, 2, 1463, id="two full pieces"),
        pytest.param(2927, 3, 976, id="three pieces"),
        pytest.param(9018, 7, 1289, id="jumbo"),
    ],
)
def test_egress_above_a_datagram_is_cut_into_pieces_of_one_size(
    engine: str, stack: ExitStack, size: int, count: int, each: int
) -> None:
    circuit = Circuit(stack, engine, **LARGE)
    frame = broadcast(size)

    sent = circuit.egress(frame)

    parts = [Part.read(datagram) for datagram in sent]
    assert [part.index for part in parts] == list(range(count))
    assert [part.last for part in parts] == [False] * (count - 1) + [True]
    assert {part.length for part in parts} == {size}
    assert len({part.number for part in parts}) == 1
    assert {len(part.content) for part in parts} == {each}
    assert joined(sent) == [on_wire(frame)]
    assert circuit.counted() == {Slot.TX_FRAMES: 1, Slot.TX_BYTES: size, Slot.TX_PIECED: 1}


def test_egress_of_what_fits_a_datagram_travels_whole(engine: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, engine, **LARGE)
    frame = broadcast(1471)

    assert circuit.egress(frame) == [on_wire(frame)]
    assert Slot.TX_PIECED not in circuit.counted()


def test_egress_of_pieces_keeps_the_order_among_other_frames(engine: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, engine, **LARGE)
    sizes = [60, 1514, 60, 1471, 9018, 1514, 1514, 757 + HEADER - 1, 60, 2000] * 8
    frames = [broadcast(size, mark) for mark, size in enumerate(sizes)]

    sent = circuit.egress(*frames)

    assert joined(sent) == [on_wire(frame) for frame in frames]
    assert circuit.counters.worker[Slot.TX_ERRORS] == 0
    assert circuit.counters.worker[Slot.TX_FRAGMENTED] == 0


def test_egress_of_pieces_numbers_frames_in_a_row(twin: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, twin, **LARGE)

    sent = circuit.egress(*[broadcast(1514, mark) for mark in range(40)])

    numbers = [Part.read(datagram).number for datagram in sent]
    assert numbers == [(numbers[0] + i // 2) % (1 << 32) for i in range(80)]


@pytest.mark.parametrize("queue", range(3))
def test_queues_of_one_circuit_share_no_number(twin: str, stack: ExitStack, queue: int) -> None:
    circuit = Circuit(stack, twin, **LARGE, queue=(queue, 4))
    sent = [each for _ in range(20) for each in circuit.egress(broadcast(1514))]

    numbers = [Part.read(datagram).number for datagram in sent]
    assert numbers == [(numbers[0] + 4 * (i // 2)) % (1 << 32) for i in range(40)]
    assert numbers[0] % 4 == queue


def test_worker_that_follows_another_begins_with_another_number(
    twin: str, stack: ExitStack
) -> None:
    """Else what it sends could complete a frame of the one before."""
    first = [
        Part.read(Circuit(stack, twin, **LARGE).egress(broadcast(1514))[0]).number for _ in range(4)
    ]

    assert len(set(first)) == 4


@pytest.mark.parametrize(
    "engine", [name for name, (_, has) in PLANES.items() if Feature.UDP_SEGMENT in has]
)
def test_egress_of_pieces_of_many_frames_share_a_send(engine: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, engine, **LARGE)
    circuit.remote.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)

    sent = circuit.egress(*[broadcast(1514, mark) for mark in range(32)])

    assert [len(each) for each in sent] == [64 * (757 + HEADER)]


def test_egress_where_ip_is_to_fragment_travels_whole(twin: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, twin, frame_limit=9018)
    frame = broadcast(1514)

    assert circuit.egress(frame) == [on_wire(frame)]
    assert circuit.counters.worker[Slot.TX_FRAGMENTED] == 1


def test_egress_where_nothing_is_to_be_fragmented_is_dropped(twin: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, twin, frame_limit=9018, fragmentation=Fragmentation.NEVER)

    assert circuit.egress(broadcast(1472), broadcast(1471)) == [on_wire(broadcast(1471))]
    assert circuit.counted() == {
        Slot.TX_TOO_LARGE: 1,
        Slot.TX_FRAMES: 1,
        Slot.TX_BYTES: 1471,
    }


def test_egress_of_what_would_be_too_many_pieces_travels_whole(twin: str, stack: ExitStack) -> None:
    """64 of 91 bytes are 5824."""
    circuit = Circuit(stack, twin, **LARGE, datagram_limit=100)

    sent = circuit.egress(broadcast(5824), broadcast(5825))

    assert [len(each) for each in sent] == [100] * 64 + [5826]
    assert joined(sent) == [on_wire(broadcast(5824)), on_wire(broadcast(5825))]
    assert circuit.counters.worker[Slot.TX_PIECED] == 1


def test_egress_of_elided_and_escaped_frames_in_pieces_begins_with_what_they_begin_with(
    twin: str, stack: ExitStack
) -> None:
    circuit = Circuit(stack, twin, **LARGE)
    packet = bytes.fromhex("45000800000000004011000000000000000000000000") + bytes(2026)
    elided = REMOTE + LOCAL + b"\x08\x00" + packet
    escaped = b"\x45" * 6 + broadcast(2000)[6:]

    assert joined(circuit.egress(elided, escaped)) == [b"\x07" + packet, b"\x07\x40" + escaped]


def test_ingress_of_pieces_gives_the_frame(engine: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, engine, **LARGE)
    packet = bytes.fromhex("45000800000000004011000000000000000000000000") + bytes(2026)
    for datagram in (
        *cut(broadcast(9018), 1289, 1),
        *cut(packet, 700, 2),
        *cut(b"\x40" + b"\x45" * 6 + broadcast(2000)[6:], 1001, 3),
    ):
        circuit.send(datagram)

    assert circuit.ingress() == [
        broadcast(9018),
        LOCAL + REMOTE + b"\x08\x00" + packet,
        b"\x45" * 6 + broadcast(2000)[6:],
    ]
    counted = circuit.counted()
    assert (counted[Slot.RX_FRAMES], counted[Slot.RX_JOINED]) == (3, 3)
    assert counted[Slot.RX_ELIDED] == 1
    assert set(counted) == {Slot.RX_FRAMES, Slot.RX_BYTES, Slot.RX_JOINED, Slot.RX_ELIDED}


def test_ingress_of_pieces_that_gro_joined_gives_each_frame(engine: str, stack: ExitStack) -> None:
    """Of more frames than there are slots: what waits to be written must not be overwritten."""
    circuit = Circuit(stack, engine, **LARGE)
    frames = [broadcast(1514, mark) for mark in range(200)]
    pieces = [piece for mark, frame in enumerate(frames) for piece in cut(frame, 757, mark)]
    size = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 757 + HEADER))]
    for start in range(0, len(pieces), 64):
        circuit.remote.sendmsg(pieces[start : start + 64], size, 0, circuit.address)

    assert circuit.ingress() == frames


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_ingress_of_pieces_in_another_order_gives_the_frame(
    twin: str, stack: ExitStack, order: tuple[int, ...]
) -> None:
    circuit = Circuit(stack, twin, **LARGE)
    pieces = cut(broadcast(3000), 1000)
    for index in order:
        circuit.send(pieces[index])

    assert circuit.ingress() == [broadcast(3000)]


def test_ingress_of_interleaved_frames_gives_each_when_it_is_complete(
    twin: str, stack: ExitStack
) -> None:
    circuit = Circuit(stack, twin, **LARGE)
    first, second = cut(broadcast(3000, 1), 1500, 1), cut(broadcast(3000, 2), 1500, 2)
    for datagram in (first[0], second[0], second[1], first[1]):
        circuit.send(datagram)

    assert circuit.ingress() == [broadcast(3000, 2), broadcast(3000, 1)]


def test_ingress_of_duplicates_gives_the_frame_once(twin: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, twin, **LARGE)
    first, second = cut(broadcast(3000), 1500)
    for datagram in (first, first, second, second, first):
        circuit.send(datagram)

    assert circuit.ingress() == [broadcast(3000)]
    assert circuit.counters.worker[Slot.RX_DUPLICATE] == 3


@pytest.mark.parametrize(
    ("part", "slot"),
    [
        pytest.param(Part(0, True, 100, 1, bytes(50)), Slot.RX_MALFORMED, id="last too early"),
        pytest.param(Part(1, False, 100, 1, bytes(50)), Slot.RX_MALFORMED, id="no last one"),
        pytest.param(Part(2, True, 100, 1, bytes(50)), Slot.RX_MALFORMED, id="behind the last"),
        pytest.param(Part(0, True, 100, 1, bytes(100)), Slot.RX_MALFORMED, id="one piece"),
        pytest.param(Part(0, True, 100, 1, bytes(101)), Slot.RX_MALFORMED, id="more than all"),
        pytest.param(Part(0, False, 65, 1, bytes(1)), Slot.RX_MALFORMED, id="too many"),
        pytest.param(Part(0, False, 0, 1, bytes(10)), Slot.RX_MALFORMED, id="of nothing"),
        pytest.param(Part(0, False, 9020, 1, bytes(1400)), Slot.RX_OVERSIZED, id="oversized"),
        pytest.param(Part(0, False, 100, 1, b""), Slot.RX_SHORT, id="without content"),
    ],
)
def test_ingress_of_what_is_no_piece_counts_it_by_reason(
    twin: str, stack: ExitStack, part: Part, slot: Slot
) -> None:
    circuit = Circuit(stack, twin, **LARGE)
    circuit.send(part.write())
    circuit.send(on_wire(broadcast(60)))

    assert circuit.ingress() == [broadcast(60)]
    assert circuit.counted() == {slot: 1, Slot.RX_FRAMES: 1, Slot.RX_BYTES: 60}


@pytest.mark.parametrize(
    ("content", "slot"),
    [
        pytest.param(b"\x41\x01" + bytes(100), Slot.RX_RESERVED, id="echo request"),
        pytest.param(b"\x44\x00" + bytes(100), Slot.RX_RESERVED, id="piece"),
        pytest.param(b"\x42\x00" + bytes(100), Slot.RX_RESERVED, id="encrypted"),
        pytest.param(b"\x45" + bytes(100), Slot.RX_MALFORMED, id="malformed"),
        pytest.param(bytes(13), Slot.RX_SHORT, id="13 bytes of frame"),
        pytest.param(broadcast(9019), Slot.RX_OVERSIZED, id="frame above the limit"),
    ],
)
def test_ingress_of_pieces_that_make_no_frame_counts_it_by_reason(
    twin: str, stack: ExitStack, content: bytes, slot: Slot
) -> None:
    circuit = Circuit(stack, twin, **LARGE)
    for datagram in cut(content, -(-len(content) // 7)):
        circuit.send(datagram)

    assert circuit.ingress() == []
    assert circuit.counted() == {slot: 1}
    assert queued(circuit.remote) == queued(circuit.supervisor) == []


def test_ingress_of_piece_of_another_size_or_length_begins_the_frame_anew(
    twin: str, stack: ExitStack
) -> None:
    """Overlapping pieces cannot be: the size of one says where each lies."""
    circuit = Circuit(stack, twin, **LARGE)
    for datagram in (
        cut(broadcast(3000, 1), 1500)[0],
        cut(broadcast(3000, 2), 1400)[1],
        *cut(broadcast(3001, 3), 1400),
    ):
        circuit.send(datagram)

    assert circuit.ingress() == [broadcast(3001, 3)]
    assert circuit.counters.worker[Slot.RX_INCOMPLETE] == 2


def test_ingress_of_frames_that_are_never_complete_takes_the_newest_64(
    twin: str, stack: ExitStack
) -> None:
    circuit = Circuit(stack, twin, **LARGE)
    frames = [cut(broadcast(9018, mark), 1289, mark) for mark in range(1000)]
    received = []
    for first, *_ in frames:
        circuit.send(first)
        received += circuit.ingress()
    assert received == []
    assert circuit.counters.worker[Slot.RX_INCOMPLETE] == 1000 - 64
    for _, *rest in reversed(frames[-64:]):
        for datagram in rest:
            circuit.send(datagram)
        received += circuit.ingress()

    assert received == [broadcast(9018, mark) for mark in reversed(range(1000 - 64, 1000))]
    assert circuit.counters.worker[Slot.RX_INCOMPLETE] == 1000 - 64


def test_ingress_of_frame_without_its_last_piece_is_given_up_and_counted(
    twin: str, stack: ExitStack
) -> None:
    circuit = Circuit(stack, twin, **LARGE)
    number = 1
    circuit.send(cut(broadcast(3000), 1500, 0)[0])

    def given_up() -> bool:
        nonlocal number
        for datagram in cut(broadcast(2000), 1000, number):
            circuit.send(datagram)
        assert circuit.ingress() == [broadcast(2000)]
        number += 64  # another slot than that of the first
        return circuit.counters.worker[Slot.RX_INCOMPLETE] == 1

    eventually(given_up, 10, "the frame to be given up")
    circuit.send(cut(broadcast(3000), 1500, 0)[1])
    assert circuit.ingress() == []


def test_joiner_gives_up_after_a_second_and_not_before() -> None:
    first, second = map(bytearray, cut(broadcast(3000), 1500))
    joiner = Joiner(9018)

    assert joiner.take(first, 0, len(first), NOT_ECT, 100.0) is None
    assert joiner.take(second, 0, len(second), NOT_ECT, 100.99) is not None
    joiner = Joiner(9018)
    assert joiner.take(first, 0, len(first), NOT_ECT, 100.0) is None
    assert joiner.take(second, 0, len(second), NOT_ECT, 101.0) is None
    assert joiner.given_up == 1


def test_joiner_takes_no_more_memory_than_64_frames_have() -> None:
    joiner = Joiner(9018)
    for number in range(10000):
        first = bytearray(cut(broadcast(9000), 1500, number)[0])
        joiner.take(first, 0, len(first), NOT_ECT, 0.0)

    assert sum(frame is not None for frame in joiner._slots) == 64
    assert joiner.given_up == 10000 - 64


def test_mss_in_pieces_is_lowered_as_in_one(twin: str, stack: ExitStack) -> None:
    """A SYN with data."""
    circuit = Circuit(stack, twin, **LARGE, mss_clamp=MssClamp(LIMIT))
    syn = bytes.fromhex(
        "450007d000000000 4006 0000 c0000201 c0000202"
        "9c401451 00000001 00000000 6002 01f4 0000 0000 020405b4"
    )
    for datagram in cut(bytes(12) + b"\x08\x00" + syn.ljust(2000, b"\0"), 1007):
        circuit.send(datagram)

    (frame,) = circuit.ingress()

    assert frame[54:58] == bytes.fromhex("02040588")
    assert circuit.counters.worker[Slot.RX_MSS_CLAMPED] == 1


@many
@given(
    sizes=st.lists(
        st.one_of(st.integers(14, 9018), st.sampled_from((1471, 1472, 1514, 1518))), max_size=20
    )
)
def test_engines_cut_alike_and_join_what_the_other_cut(
    twins: tuple[Circuit, Circuit], sizes: list[int]
) -> None:
    frames = [broadcast(size, mark)[:size] for mark, size in enumerate(sizes)]
    sent = [each.egress(*frames) for each in twins]

    assert [each[:5] + each[9:] for each in sent[0]] == [each[:5] + each[9:] for each in sent[1]]
    for datagrams, receiver in zip(sent, reversed(twins), strict=True):
        for datagram in datagrams:
            receiver.send(datagram)
        assert receiver.ingress() == frames
    assert twins[0].counted() == twins[1].counted()


@st.composite
def hostile(draw: st.DrawFn) -> list[bytes]:
    """Pieces of a few frames, in any order, some twice, damaged, cut off, or missing."""
    pieces = []
    for number in draw(st.lists(st.sampled_from((0, 1, 2, 64, 128, 1 << 31)), max_size=5)):
        content = draw(st.sampled_from((broadcast(3000), broadcast(1600), bytes(40), b"\x44" * 50)))
        pieces += cut(content, draw(st.sampled_from((7, 20, 800, 1000, 1400))), number)[:70]
    chosen = draw(st.lists(st.sampled_from(pieces), max_size=40)) if pieces else []
    for at, datagram in enumerate(chosen):
        if draw(st.integers(0, 9)):
            continue
        changed = bytearray(datagram)
        changed[draw(st.integers(2, 8))] = draw(st.integers(0, 255))
        chosen[at] = bytes(changed[: draw(st.integers(2, len(changed)))])
    return chosen


@many
@given(datagrams=hostile())
def test_engines_do_the_same_with_hostile_pieces(datagrams: list[bytes]) -> None:
    received, counted = [], []
    for name in ("python", "native"):
        with ExitStack() as stack:
            circuit = Circuit(stack, name, **LARGE)
            for datagram in datagrams:
                circuit.send(datagram)
            received.append(circuit.ingress())
            counted.append(circuit.counted())

    assert received[0] == received[1]
    assert counted[0] == counted[1]


def test_cutter_and_joiner_of_the_largest_frame() -> None:
    datagram = bytes([CIRCUIT]) + bytes(range(256)) * 255
    pieces = Cutter(CIRCUIT, (1 << 32) - 1).cut(memoryview(datagram), LIMIT)
    joiner = Joiner(65505)

    assert [Part.read(bytes(piece)).number for piece in pieces] == [(1 << 32) - 1] * len(pieces)
    *_, whole = (joiner.take(bytearray(each), 0, len(each), NOT_ECT, 0.0) for each in pieces)
    assert whole is not None
    assert whole[0].endswith(datagram)
    with pytest.raises(Dropped):
        joiner.take(bytearray(pieces[0]), 0, len(pieces[0]), NOT_ECT, 0.0)
