"""Several small frames in one sealed datagram: docs/protocol.md, 3.10. Both engines."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack

import pytest
from attached_plane import CIRCUIT, LOCAL, PLANES, REMOTE, Circuit, broadcast, queued
from frame_keys import Keys
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from packets import PLAIN, Packet, virtio_header

from vela.dataplane.bundle import BUNDLE_MAX, bundle_limit
from vela.dataplane.counters import Slot
from vela.dataplane.frame import VERIFICATION_HEADER
from vela.dataplane.key_page import KeyPage, create
from vela.dataplane.pieces import Fragmentation

TWINS = ("python", "native")
IPV4 = REMOTE + LOCAL + b"\x08\x00"
ECHO = (b"\x41\x01" + bytes(range(16)))[: VERIFICATION_HEADER - 1]


class BundlingCircuit(Circuit):
    def __init__(self, stack: ExitStack, engine: str, **changes: object) -> None:
        fd = create()
        stack.callback(os.close, fd)
        self.keys = Keys()
        self.page = stack.enter_context(KeyPage(fd))
        self.page.install(0, self.keys.pair, 1)
        self.page.send_with(0)
        super().__init__(stack, engine, **({"key_page": fd, "bundle_limit": BUNDLE_MAX} | changes))
        self.attachment.receive_socket.settimeout(None)  # as a worker's
        self._sealed = 0

    def texts(self, *frames: bytes) -> list[bytes]:
        """Return what the datagrams hold that these frames, given together, become."""
        return [self.keys.open(each)[1] for each in self.egress(*frames)]

    def take(self, *texts: bytes) -> list[bytes]:
        """Return the frames that sealed texts become."""
        for text in texts:
            self._sealed += 1
            self.send(self.keys.seal(self._sealed, text))
        return self.ingress()


@pytest.fixture(params=PLANES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def bundle_of(*texts: bytes) -> bytes:
    return b"\x42" + b"".join(len(text).to_bytes(2, "big") + text for text in texts)


def ipv4(size: int, mark: int = 0, tos: int = 0) -> bytes:
    """A packet of size bytes, whose frame travels elided."""
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, tos, size, mark, 0, 64, 253, 0, b"\xac\x10\0\1", b"\xac\x10\0\2"
    )
    return header.ljust(size, b"\xdd")


def test_small_frames_that_wait_share_a_datagram_in_order(engine: str, stack: ExitStack) -> None:
    circuit = BundlingCircuit(stack, engine)
    packet, other = ipv4(60, 1), broadcast(64, 2)

    assert circuit.texts(IPV4 + packet, other, IPV4 + packet) == [bundle_of(packet, other, packet)]
    assert circuit.counters.worker[Slot.TX_FRAMES] == 3
    assert circuit.counters.worker[Slot.TX_ELIDED] == 2


def test_frame_by_itself_travels_as_ever(engine: str, stack: ExitStack) -> None:
    circuit = BundlingCircuit(stack, engine)

    for frame, text in ((broadcast(64), broadcast(64)), (IPV4 + ipv4(60), ipv4(60))):
        assert circuit.texts(frame) == [text]


def test_frame_whose_first_byte_means_something_is_escaped_in_a_bundle_too(
    engine: str, stack: ExitStack
) -> None:
    circuit = BundlingCircuit(stack, engine)
    frame = bytes([0x45]) + broadcast(63)

    assert circuit.texts(frame, frame) == [bundle_of(b"\x40" + frame, b"\x40" + frame)]
    assert circuit.take(bundle_of(b"\x40" + frame, b"\x40" + frame)) == [frame, frame]


def test_larger_frames_travel_alone_and_none_overtakes(engine: str, stack: ExitStack) -> None:
    circuit = BundlingCircuit(stack, engine)
    small = [broadcast(100, mark) for mark in range(5)]
    limit, large = broadcast(512, 7), broadcast(513, 8)

    sent = circuit.texts(small[0], small[1], large, small[2], large, small[3], limit, small[4])

    assert sent == [
        bundle_of(*small[:2]),
        large,
        small[2],
        large,
        bundle_of(small[3], limit, small[4]),
    ]


def test_bundles_are_as_full_as_a_datagram_may_be(twin: str, stack: ExitStack) -> None:
    """Of equal frames they are of one size, so that one send takes them all."""
    for path, most, limit in (
        (1472, 1232, 1232),
        (9000, 1232, 1232),
        (600, 1232, 600),
        (1472, 900, 900),
    ):
        circuit = BundlingCircuit(stack, twin, datagram_limit=path, bundle_limit=most)
        each = 2 + 60
        fit = (limit - 22 - 1) // each
        frames = [broadcast(60, mark) for mark in range(3 * fit + 1)][:64]

        sent = circuit.egress(*frames)

        assert [len(datagram) for datagram in sent[:-1]] == [22 + 1 + fit * each] * (len(sent) - 1)
        assert max(map(len, sent)) <= limit
        texts = b"".join(circuit.keys.open(datagram)[1] for datagram in sent)
        assert [texts.count(frame) for frame in frames] == [1] * len(frames)


def test_frames_of_different_classes_do_not_share_a_datagram(twin: str, stack: ExitStack) -> None:
    circuit = BundlingCircuit(stack, twin, dscp=None, carry_ecn=True)
    packets = [ipv4(60, mark, tos) for mark, tos in enumerate((0, 0, 0xB8, 0xB8, 2, 3, 3))]

    assert circuit.texts(*(IPV4 + packet for packet in packets)) == [
        bundle_of(*packets[:2]),
        bundle_of(*packets[2:4]),
        packets[4],
        bundle_of(*packets[5:]),
    ]


def test_pieces_are_never_bundled(twin: str, stack: ExitStack) -> None:
    circuit = BundlingCircuit(
        stack, twin, datagram_limit=600, fragmentation=Fragmentation.IN_PIECES
    )
    small, large = broadcast(64, 1), broadcast(1000, 2)

    sent = circuit.texts(small, large, small)

    assert (sent[0], sent[-1]) == (small, small)
    assert [text[0] for text in sent[1:-1]] == [0x44, 0x44]


def test_segments_of_a_super_frame_travel_alone_and_none_overtakes(stack: ExitStack) -> None:
    circuit = BundlingCircuit(stack, "native", virtio_header=True)
    plain, packet = broadcast(60), Packet(payload=bytes(300))
    small = PLAIN + plain

    sent = circuit.texts(
        small, small, virtio_header(packet, 14, 100) + IPV4 + packet.unfinished(), small
    )

    assert (sent[0], sent[-1]) == (bundle_of(plain, plain), plain)
    assert [(text[0], len(text)) for text in sent[1:-1]] == [(0x45, 140)] * 3


def test_frames_of_a_bundle_are_given_to_the_interface_in_order(
    engine: str, stack: ExitStack
) -> None:
    circuit = BundlingCircuit(stack, engine)
    packets = [ipv4(60 + mark, mark) for mark in range(4)]

    got = circuit.take(bundle_of(packets[0], broadcast(70, 9), *packets[1:]))

    received = LOCAL + REMOTE + b"\x08\x00"
    first, *others = (received + packet for packet in packets)
    assert got == [first, broadcast(70, 9), *others]
    assert circuit.counters.worker[Slot.RX_FRAMES] == 5
    assert circuit.counters.worker[Slot.RX_ELIDED] == 4
    assert circuit.counters.worker[Slot.RX_BYTES] == sum(map(len, got))


def test_what_is_no_frame_in_a_bundle_is_counted_and_the_others_are_taken(
    twin: str, stack: ExitStack
) -> None:
    frame = broadcast(60)
    for wrong, slot in (
        (ECHO, Slot.RX_RESERVED),
        (b"\x44" + bytes(30), Slot.RX_RESERVED),
        (bundle_of(frame), Slot.RX_RESERVED),
        (b"\x43" + bytes(30), Slot.RX_RESERVED),
        (frame[:13], Slot.RX_SHORT),
        (broadcast(1490), Slot.RX_OVERSIZED),
        (ipv4(60)[:-1], Slot.RX_MALFORMED),
    ):
        circuit = BundlingCircuit(stack, twin)

        assert circuit.take(bundle_of(frame, wrong, frame)) == [frame, frame]
        assert circuit.counters.worker[slot] == 1
        # Nobody was answered.
        assert queued(circuit.remote) == []


@pytest.mark.parametrize(
    "tail", [b"", b"\0", b"\0\0", b"\0\x3d" + broadcast(60), b"\xff\xff" + bytes(60)]
)
def test_bundle_whose_next_frame_cannot_be_found_is_counted_once(
    twin: str, tail: bytes, stack: ExitStack
) -> None:
    circuit, frame = BundlingCircuit(stack, twin), broadcast(60)

    assert circuit.take((b"" if tail == b"" else bundle_of(frame)) + tail or b"\x42") == (
        [] if tail == b"" else [frame]
    )
    assert circuit.counters.worker[Slot.RX_MALFORMED] == 1


def test_without_agreement_none_are_sent_and_those_that_come_are_taken(
    twin: str, stack: ExitStack
) -> None:
    """A worker that was started before its circuit agreed on them may meet them."""
    circuit = BundlingCircuit(stack, twin, bundle_limit=0)
    frames = [broadcast(60, mark) for mark in range(3)]

    assert circuit.texts(*frames) == frames
    assert circuit.take(bundle_of(*frames)) == frames


def test_clear_circuits_have_none(twin: str, stack: ExitStack) -> None:
    """Byte 0x42 of a clear datagram is a seal's."""
    circuit = BundlingCircuit(stack, twin, key_page=None)
    frames = [broadcast(60, mark) for mark in range(3)]

    assert circuit.egress(*frames) == [bytes([CIRCUIT]) + frame for frame in frames]
    circuit.send(bytes([CIRCUIT]) + bundle_of(*frames))
    assert circuit.ingress() == []
    assert circuit.counters.worker[Slot.RX_RESERVED] == 1


def test_all_frames_of_a_bundle_that_cannot_leave_are_counted(twin: str, stack: ExitStack) -> None:
    circuit = BundlingCircuit(stack, twin)
    frames = [broadcast(100, mark) for mark in range(30)]
    circuit.page.wipe_all()
    circuit.egress(*frames)
    assert circuit.counters.worker[Slot.TX_NO_KEY] == 30

    circuit = BundlingCircuit(stack, twin, features=frozenset())
    sending: socket.socket = circuit.attachment.send_socket
    sending.shutdown(socket.SHUT_WR)
    circuit.egress(*frames)
    assert circuit.counters.worker[Slot.TX_ERRORS] == 30


def test_frames_of_a_batch_beyond_the_memory_for_frames_are_all_sent_in_order(
    twin: str, stack: ExitStack
) -> None:
    """Large ones are sent from where they were read; small ones are copied."""
    circuit = BundlingCircuit(stack, twin, frame_limit=9018, datagram_limit=9100)
    frames = [broadcast(9000 if mark % 5 == 4 else 300, mark) for mark in range(60)]

    texts = b"".join(circuit.texts(*frames))

    found = [texts.find(frame) for frame in frames]
    assert -1 not in found
    assert found == sorted(found)


@pytest.mark.parametrize(("mtu", "limit"), [(1450, 1232), (1300, 1232), (1000, 1022), (68, 90)])
def test_bundle_is_no_larger_than_what_one_packet_makes(mtu: int, limit: int) -> None:
    assert bundle_limit(mtu) == limit


sizes = st.lists(st.one_of(st.integers(60, 140), st.integers(505, 520), st.integers(60, 1489)))
texts_of_any_kind = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=120),
        st.integers(14, 200).map(broadcast),
        st.integers(28, 200).map(ipv4),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=sizes,
    tos=st.lists(st.sampled_from([0, 0, 0, 2, 0xB8]), min_size=1),
    texts=texts_of_any_kind,
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    limit=st.sampled_from([100, 570, 1232, 4000]),
)
@example(sizes=[60] * 64, tos=[0], texts=[], changes=[], limit=4000)
def test_twins_do_the_same(
    sizes: Sequence[int],
    tos: Sequence[int],
    texts: Sequence[bytes],
    changes: Sequence[tuple[int, int]],
    limit: int,
) -> None:
    frames = [
        IPV4 + ipv4(size - 14, number, tos[number % len(tos)]) if number % 3 else broadcast(size)
        for number, size in enumerate(sizes[:64])
    ]
    hostile = bytearray(bundle_of(*texts))
    for at, value in changes:
        hostile[at % len(hostile)] = value
    found = []
    for twin in TWINS:
        with ExitStack() as stack:
            circuit = BundlingCircuit(stack, twin, dscp=None, carry_ecn=True, datagram_limit=limit)
            sent = circuit.egress(*frames)
            found.append((sent, circuit.take(bytes(hostile)), circuit.counted()))
    assert found[0] == found[1]
