"""Congestion marks and classes of service between inner and outer headers, through each engine.

RFC 6040, sections 4.1 and 4.2; the table of test_outer_mark is its figure 4.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

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
    readable,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packets import UDP, Packet, word_sum

from vela.dataplane.counters import Slot
from vela.dataplane.pieces import Fragmentation
from vela.linux.features import Feature

NOT_ECT, ECT1, ECT0, CE = range(4)
DROP = None
EF = 46 << 2
SOURCE6, DESTINATION6 = bytes(15) + b"\x01", bytes(15) + b"\x02"
many = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def packet(version: int, tos: int) -> Packet:
    made = Packet(version, UDP, traffic_class=tos, payload=b"x" * 100)
    if version == 4:
        return made
    return replace(made, source=SOURCE6, destination=DESTINATION6)


def frame(inner: Packet, link: str, destination: bytes = REMOTE, source: bytes = LOCAL) -> bytes:
    ethertype = b"\x08\x00" if inner.version == 4 else b"\x86\xdd"
    tags = {"two tags": b"\x88\xa8\x00\x05\x81\x00\x00\x07", "tag": b"\x81\x00\x00\x07"}
    return destination + source + tags.get(link, b"") + ethertype + inner.finished()


@pytest.fixture(params=PLANES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["python", "native"])
def twin(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Circuit, Circuit]]:
    with ExitStack() as stack:
        circuits = tuple(marked(stack, engine) for engine in ("python", "native"))
        yield circuits[0], circuits[1]


def marked(stack: ExitStack, engine: str, **changes: object) -> Circuit:
    """Return a circuit that sees the marks of what comes, and whose remote sees those of its."""
    settled: dict[str, object] = {"carry_ecn": True, "dscp": None, **changes}
    circuit = Circuit(stack, engine, **settled)
    for each in (circuit.attachment.receive_socket, circuit.remote):
        each.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    return circuit


def sent(circuit: Circuit, *frames: bytes) -> list[tuple[int, int]]:
    """Return TOS byte and length of what the remote receives for frames that come together."""
    for each in frames:
        circuit.host.send(each)
    while readable(circuit.tap):
        circuit.plane.egress()
    received = []
    while readable(circuit.remote):
        data, ancillary, _, _ = circuit.remote.recvmsg(65536, 256)
        (tos,) = (value[0] for _, kind, value in ancillary if kind == socket.IP_TOS)
        received.append((tos, len(data)))
    return received


def arrived(circuit: Circuit, outer: int, *datagrams: bytes) -> list[bytes]:
    """Return the frames that datagrams with this outer TOS byte become."""
    tos = (socket.IPPROTO_IP, socket.IP_TOS, struct.pack("=i", outer))
    for datagram in datagrams:
        circuit.remote.sendmsg([datagram], [tos], 0, circuit.address)
    return circuit.ingress()


@pytest.mark.parametrize("link", ["known", "tag", "two tags", "other"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("settled", "inner", "outer"),
    [
        ({}, EF | CE, EF | CE),
        ({}, EF | ECT0, EF | ECT0),
        ({}, ECT1, ECT1),
        ({}, NOT_ECT, NOT_ECT),
        ({"dscp": 10}, EF | ECT0, ECT0 | 10 << 2),
        ({"dscp": 0}, EF | ECT1, ECT1),
        # To a remote that does not bring a mark back, the outer header must not ask for one.
        ({"carry_ecn": False}, EF | ECT0, EF),
        ({"carry_ecn": False, "dscp": 0}, EF | ECT0, 0),
    ],
)
def test_outer_header_of_a_frame(
    twin: str,
    stack: ExitStack,
    settled: dict[str, object],
    inner: int,
    outer: int,
    version: int,
    link: str,
) -> None:
    circuit = marked(stack, twin, **settled)
    # As the supervisor sets it up.
    default = settled.get("dscp")
    if isinstance(default, int):
        circuit.attachment.send_socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, default << 2)
    given_frame = frame(packet(version, inner), link, *([LOCAL] if link == "other" else []))

    assert [tos for tos, _ in sent(circuit, given_frame)] == [outer]


def test_frame_without_an_ip_header_has_no_mark_and_no_class(twin: str, stack: ExitStack) -> None:
    circuit = marked(stack, twin)
    short = REMOTE + LOCAL + b"\x08\x00" + b"\x45\x03"
    other = REMOTE + LOCAL + b"\x86\xdd" + b"\x15\x03" * 30

    for each in (broadcast(100), short, other):
        assert [tos for tos, _ in sent(circuit, each)] == [0]


def test_batch_ends_where_the_mark_changes_and_only_there(engine: str, stack: ExitStack) -> None:
    circuit = marked(stack, engine)
    circuit.remote.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    frames = {tos: frame(packet(4, tos), "known") for tos in (NOT_ECT, ECT0, CE)}
    size = len(on_wire(frames[CE][14:]))
    order = [ECT0] * 5 + [CE] * 3 + [NOT_ECT] + [ECT0] * 2

    received = sent(circuit, *(frames[tos] for tos in order))

    batches = [(ECT0, 5 * size), (CE, 3 * size), (NOT_ECT, size), (ECT0, 2 * size)]
    if Feature.UDP_SEGMENT in PLANES[engine][1]:
        assert received == batches
    else:
        assert received == [(tos, size) for tos in order]


def test_pieces_have_the_mark_of_their_frame(engine: str, stack: ExitStack) -> None:
    circuit = marked(stack, engine, frame_limit=9018, fragmentation=Fragmentation.IN_PIECES)
    large = replace(packet(4, EF | ECT0), payload=b"x" * 4000)

    received = sent(circuit, frame(large, "known"), frame(packet(4, CE), "known"))

    assert [tos for tos, _ in received] == [EF | ECT0] * 3 + [CE]


# By inner mark: what arrives for the outer Not-ECT, ECT(1), ECT(0), CE.
FIGURE_4 = {
    NOT_ECT: (NOT_ECT, NOT_ECT, NOT_ECT, DROP),
    ECT1: (ECT1, ECT1, ECT1, CE),
    ECT0: (ECT0, ECT1, ECT0, CE),
    CE: (CE, CE, CE, CE),
}


@pytest.mark.parametrize("link", ["elided", "complete", "tag", "two tags"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("inner", FIGURE_4)
def test_outer_mark_comes_into_the_inner_header(
    twin: str, stack: ExitStack, inner: int, version: int, link: str
) -> None:
    circuit = marked(stack, twin)
    for outer, result in enumerate(FIGURE_4[inner]):
        # The class of the outer header is the underlay's.
        given_frame = frame(packet(version, EF | inner), link, LOCAL, REMOTE)
        wire = given_frame[14:] if link == "elided" else given_frame

        received = arrived(circuit, 10 << 2 | outer, on_wire(wire))

        if result is DROP:
            assert received == []
            assert circuit.counted()[Slot.RX_ECN] == 1
        else:
            assert received == [frame(packet(version, EF | result), link, LOCAL, REMOTE)]
    if inner != NOT_ECT:
        assert Slot.RX_ECN not in circuit.counted()


def test_frame_without_an_ip_header_arrives_as_it_was(twin: str, stack: ExitStack) -> None:
    circuit = marked(stack, twin)
    short = LOCAL + REMOTE + b"\x08\x00" + b"\x45\x02"

    assert arrived(circuit, CE, on_wire(broadcast(100)), on_wire(short)) == [broadcast(100), short]


def test_wrong_header_checksum_stays_wrong(twin: str, stack: ExitStack) -> None:
    circuit = marked(stack, twin)
    right = frame(packet(4, ECT0), "complete", LOCAL, REMOTE)
    wrong = right[:24] + bytes([right[24] ^ 1]) + right[25:]

    (received,) = arrived(circuit, CE, on_wire(wrong))

    assert received[15] & 3 == CE
    assert word_sum(received[14:34]) not in (0, 0xFFFF)


def test_datagrams_that_the_kernel_joined_are_all_marked(engine: str, stack: ExitStack) -> None:
    circuit = marked(stack, engine)
    wire = on_wire(frame(packet(4, ECT0), "elided")[14:])
    control = [
        (socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", len(wire))),
        (socket.IPPROTO_IP, socket.IP_TOS, struct.pack("=i", CE)),
    ]

    circuit.remote.sendmsg([wire * 5], control, 0, circuit.address)

    assert circuit.ingress() == [frame(packet(4, CE), "elided", LOCAL, REMOTE)] * 5
    # And what comes behind them is not.
    assert arrived(circuit, ECT0, wire) == [frame(packet(4, ECT0), "elided", LOCAL, REMOTE)]


@pytest.mark.parametrize("last", [0, 1, 2])
def test_frame_of_which_one_piece_is_marked_is_marked(
    twin: str, stack: ExitStack, last: int
) -> None:
    """Whichever of them, and whichever arrives last."""
    large = replace(packet(4, ECT0), payload=b"x" * 4000)
    circuit = marked(stack, twin, frame_limit=9018, fragmentation=Fragmentation.IN_PIECES)
    circuit.host.send(frame(large, "known"))
    circuit.plane.egress()
    pieces = queued(circuit.remote)
    assert len(pieces) == 3
    for marked_piece in range(3):
        numbered = [each[:5] + bytes([marked_piece, 9, 9, 9]) + each[9:] for each in pieces]
        numbered.append(numbered.pop(last))
        received = []
        for index, each in enumerate(numbered):
            received += arrived(circuit, CE if index == marked_piece else ECT0, each)

        assert received == [frame(replace(large, traffic_class=CE), "known", LOCAL, REMOTE)]


@many
@given(
    outer=st.integers(0, 3),
    link=st.sampled_from([b"\x08\x00", b"\x86\xdd", b"\x81\x00\x00\x01\x08\x00", b"\x88\xcc"]),
    body=st.one_of(
        st.binary(max_size=70),
        st.binary(min_size=19, max_size=70).map(lambda data: b"\x45" + data),
        st.binary(min_size=39, max_size=70).map(lambda data: b"\x60" + data),
    ),
)
def test_twins_do_the_same_to_any_frame(
    both: tuple[Circuit, Circuit], outer: int, link: bytes, body: bytes
) -> None:
    datagram = on_wire(LOCAL + REMOTE + link + body)
    before = [circuit.counted() for circuit in both]

    received = [arrived(circuit, outer, datagram) for circuit in both]
    tos = [sent(circuit, REMOTE + LOCAL + link + body) for circuit in both]

    assert received[0] == received[1]
    assert tos[0] == tos[1]
    assert before[0] == before[1]
    assert both[0].counted() == both[1].counted()
    assert datagram[0] == CIRCUIT
