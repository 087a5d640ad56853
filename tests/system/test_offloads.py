"""Frames left unfinished, against the kernel's own finishing and the reference twin.

The kernel cuts with its software segmentation (lab.segmenter); the reference
forwards what comes of it; the native twin, which gets the whole, must send the
same datagrams, and give the TAP what the kernel cuts into the same frames.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from attached_plane import LOCAL, PLANES, REMOTE, UDP_SEGMENT, Circuit
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from packets import (
    ACK,
    CWR,
    ECE,
    FIN,
    PLAIN,
    PSH,
    TCP,
    UDP,
    URG,
    VIRTIO_HEADER,
    Packet,
    ethertype,
    handshakes,
    link_headers,
    packets,
    payloads,
    virtio_header,
    word_sum,
)

from lab.segmenter import KernelSegmenter
from vela.dataplane.counters import Slot
from vela.dataplane.mss import MssClamp
from vela.dataplane.pieces import Fragmentation
from vela.linux.features import Feature

pytestmark = pytest.mark.needs_net_admin

LIMITS = {"frame_limit": 9018, "datagram_limit": 8972}
OUTWARD = REMOTE + LOCAL
BRIDGED = bytes.fromhex("02005e100063") + LOCAL
COUNTERS = [slot for slot in Slot if not slot.name.endswith("PROGRESS")]

many = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Twins:
    """One circuit by each engine, and the kernel to judge them."""

    def __init__(self, stack: ExitStack, native: str, **changes: object) -> None:
        self.kernel = stack.enter_context(KernelSegmenter())
        changes = LIMITS | changes
        self.reference = Circuit(stack, "python", **changes)
        self.native = Circuit(stack, native, virtio_header=True, **changes)
        self._counted = [self.counts(self.reference), self.counts(self.native)]

    def joins(self, protocol: int) -> bool:
        """Tell whether native gives the TAP frames of a flow as one."""
        needed = Feature.TSO if protocol == TCP else Feature.USO
        return needed in self.native.attachment.features

    @staticmethod
    def counts(circuit: Circuit) -> list[int]:
        return [circuit.counters.worker[slot] for slot in COUNTERS]

    def counted(self) -> list[dict[str, int]]:
        """Return what each twin has counted since the last time."""
        now = [self.counts(self.reference), self.counts(self.native)]
        changes = [
            {slot.name: new - old for slot, new, old in zip(COUNTERS, *pair, strict=True)}
            for pair in zip(now, self._counted, strict=True)
        ]
        self._counted = now
        return changes


@pytest.fixture(scope="module", params=[name for name in PLANES if name.startswith("native")])
def native(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def twins(native: str) -> Iterator[Twins]:
    with ExitStack() as stack:
        yield Twins(stack, native)


@pytest.fixture(scope="module")
def leaving(native: str) -> Iterator[Twins]:
    """Both ends leave inner checksums to the outer one."""
    with ExitStack() as stack:
        yield Twins(stack, native, partial_checksums=True)


@pytest.fixture(scope="module", params=[False, True], ids=["complete", "partial"])
def clamping(native: str, request: pytest.FixtureRequest) -> Iterator[Twins]:
    """Both ends lower the MSS of TCP, with checksums complete or left to the outer one."""
    with ExitStack() as stack:
        clamp = MssClamp(1472)
        yield Twins(stack, native, mss_clamp=clamp, partial_checksums=request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["complete", "partial"])
def cutting(native: str, request: pytest.FixtureRequest) -> Iterator[Twins]:
    """What exceeds 1472 bytes travels in pieces."""
    with ExitStack() as stack:
        pieces = Fragmentation.IN_PIECES
        narrow = {"datagram_limit": 1472, "fragmentation": pieces}
        yield Twins(stack, native, partial_checksums=request.param, **narrow)


@pytest.fixture(scope="module")
def dropping(native: str) -> Iterator[Twins]:
    """What exceeds 1472 bytes does not travel."""
    with ExitStack() as stack:
        narrow = {"datagram_limit": 1472, "fragmentation": Fragmentation.NEVER}
        yield Twins(stack, native, **narrow)


def framed(addresses: bytes, tags: bytes, packet: Packet, *, finished: bool = False) -> bytes:
    own = packet.finished() if finished else packet.unfinished()
    return addresses + tags + ethertype(packet.version) + own


def to_be_cut(packet: Packet, segment_size: int) -> Packet:
    """Return the packet with a payload that the kernel cuts, into 2 to 128 (UDP_MAX_SEGMENTS)."""
    missing = bytes(max(0, segment_size + 1 - len(packet.payload)))
    return replace(packet, payload=(packet.payload + missing)[: 128 * segment_size])


def send_both(twins: Twins, unfinished: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return the datagrams of the reference, behind the kernel's own finishing, and of native."""
    finished = twins.kernel.frames(unfinished)
    assert finished
    return twins.reference.egress(*finished), twins.native.egress(unfinished)


@many
@given(
    packet=packets(payloads()),
    segment_size=st.integers(100, 8800),
    addresses=st.sampled_from((OUTWARD, OUTWARD, BRIDGED, b"\x45" * 6 + LOCAL)),
    tags=st.one_of(st.just(b""), link_headers),
)
def test_egress_of_super_frame_is_what_the_kernel_would_have_cut(
    twins: Twins, packet: Packet, segment_size: int, addresses: bytes, tags: bytes
) -> None:
    packet = to_be_cut(packet, segment_size)
    link = len(addresses + tags) + 2
    unfinished = virtio_header(packet, link, segment_size) + framed(addresses, tags, packet)
    note(unfinished[:160].hex())

    expected, sent = send_both(twins, unfinished)

    assert sent == expected
    reference, native = twins.counted()
    assert native == reference
    assert reference["TX_FRAMES"] == -(-len(packet.payload) // segment_size)


@many
@given(
    packet=packets(payloads(8000)),
    addresses=st.sampled_from((OUTWARD, BRIDGED)),
    tags=st.one_of(st.just(b""), link_headers),
)
def test_egress_of_frame_without_its_checksum_gets_what_the_kernel_computes(
    twins: Twins, packet: Packet, addresses: bytes, tags: bytes
) -> None:
    unfinished = virtio_header(packet, len(addresses + tags) + 2) + framed(addresses, tags, packet)

    expected, sent = send_both(twins, unfinished)

    assert len(sent) == 1
    assert sent == expected
    reference, native = twins.counted()
    assert native == reference


def test_egress_of_frames_finished_and_unfinished_keeps_their_order(twins: Twins) -> None:
    whole = Packet(payload=bytes(range(256)) * 30)
    single = Packet(sequence=9000, payload=b"single")
    given_by_tap = [
        PLAIN + framed(OUTWARD, b"", single, finished=True),
        virtio_header(whole, 14, 1000) + framed(OUTWARD, b"", whole),
        virtio_header(single, 14) + framed(OUTWARD, b"", single),
        virtio_header(whole, 14, 1400) + framed(BRIDGED, b"", whole),
        PLAIN + b"\xff" * 6 + LOCAL + b"\x88\xb5" + bytes(46),
    ]
    finished = [frame for each in given_by_tap for frame in twins.kernel.frames(each)]

    assert len(finished) == 1 + 8 + 1 + 6 + 1
    assert twins.native.egress(*given_by_tap) == twins.reference.egress(*finished)
    reference, native = twins.counted()
    assert native == reference


def test_egress_of_super_frame_of_segments_at_the_limit_is_cut(twins: Twins) -> None:
    """9018 bytes of frame are 8964 of payload, behind Ethernet, IPv4 and TCP."""
    packet = Packet(payload=bytes(20000))
    unfinished = virtio_header(packet, 14, 8964) + framed(OUTWARD, b"", packet)

    expected, sent = send_both(twins, unfinished)

    assert len(sent) == 3
    assert sent == expected
    twins.counted()


def test_egress_of_udp_segment_whose_checksum_is_zero_has_its_other_form(twins: Twins) -> None:
    """RFC 768: zero would say that there is none."""
    packet = Packet(protocol=UDP, payload=bytes(100))
    missing = int.from_bytes(packet.finished()[26:28], "big")
    first = missing.to_bytes(2, "big") + bytes(98)
    assert replace(packet, payload=first).finished()[26:28] == b"\xff\xff"
    whole = replace(packet, payload=first + bytes(100))
    unfinished = virtio_header(whole, 14, 100) + framed(OUTWARD, b"", whole)

    expected, sent = send_both(twins, unfinished)

    assert sent == expected
    assert [each[27:29] for each in sent] == [b"\xff\xff", missing.to_bytes(2, "big")]
    twins.counted()


def test_egress_of_super_frame_of_one_segment_is_one_datagram(twins: Twins) -> None:
    """No larger than a segment, or without payload: as the headers say, with a checksum."""
    for packet in (Packet(payload=b"abc"), Packet(version=4, flags=ACK | FIN | PSH)):
        unfinished = virtio_header(packet, 14, 1000) + framed(OUTWARD, b"", packet)

        assert twins.native.egress(unfinished) == [b"\x07" + packet.finished()]
    twins.counted()


@pytest.mark.parametrize(
    ("header", "what"),
    [
        pytest.param(VIRTIO_HEADER.pack(0, 1, 54, 1000, 34, 16), "whole", id="no checksum wanted"),
        pytest.param(VIRTIO_HEADER.pack(1, 1, 54, 0, 34, 16), "whole", id="segments of nothing"),
        pytest.param(VIRTIO_HEADER.pack(1, 3, 54, 1000, 34, 16), "whole", id="UFO, never offered"),
        pytest.param(VIRTIO_HEADER.pack(1, 77, 54, 1000, 34, 16), "whole", id="unknown kind"),
        pytest.param(VIRTIO_HEADER.pack(1, 5, 42, 1000, 34, 6), "whole", id="UDP, but it is TCP"),
        pytest.param(
            VIRTIO_HEADER.pack(1, 4, 54, 1000, 34, 16), "whole", id="IPv6, but it is IPv4"
        ),
        pytest.param(VIRTIO_HEADER.pack(1, 1, 54, 1000, 65535, 16), "whole", id="start behind it"),
        pytest.param(VIRTIO_HEADER.pack(1, 1, 54, 1000, 0, 16), "whole", id="start before IP"),
        pytest.param(VIRTIO_HEADER.pack(1, 1, 54, 1000, 36, 16), "whole", id="start beside TCP"),
        pytest.param(VIRTIO_HEADER.pack(1, 1, 54, 8965, 34, 16), "whole", id="above the limit"),
        pytest.param(VIRTIO_HEADER.pack(1, 0, 0, 0, 65535, 16), "single", id="checksum behind it"),
        pytest.param(
            VIRTIO_HEADER.pack(1, 0, 0, 0, 65535, 16), "bridged", id="and of a bridged one"
        ),
        pytest.param(VIRTIO_HEADER.pack(1, 0, 0, 0, 0, 65535), "single", id="field behind it"),
        pytest.param(VIRTIO_HEADER.pack(1, 1, 54, 1000, 34, 16), "arp", id="no IP in it"),
        pytest.param(VIRTIO_HEADER.pack(1, 1, 54, 1000, 34, 16)[:9], "nothing", id="cut off"),
    ],
)
def test_egress_of_what_no_kernel_gives_is_counted_as_an_error(
    twins: Twins, header: bytes, what: str
) -> None:
    frame = {
        "whole": framed(OUTWARD, b"", Packet(payload=bytes(20000))),
        "single": framed(OUTWARD, b"", Packet(payload=bytes(100))),
        "bridged": framed(BRIDGED, b"", Packet(payload=bytes(100))),
        "arp": OUTWARD + b"\x08\x06" + bytes(2000),
        "nothing": b"",
    }[what]

    assert twins.native.egress(header + frame) == []
    assert twins.native.egress(PLAIN + b"\xff" * 6 + LOCAL + b"\x88\xb5") == [
        b"\x07" + b"\xff" * 6 + LOCAL + b"\x88\xb5"
    ]
    _, native = twins.counted()
    assert (native["TX_ERRORS"], native["TX_FRAMES"]) == (1, 1)


@pytest.mark.parametrize(
    ("start", "offset", "written_at"),
    [
        pytest.param(0, 0, 0, id="into what decides on the escape"),
        pytest.param(13, 0, 13, id="into the EtherType, where the circuit id would be"),
        pytest.param(14, 0, 14, id="into the first byte of what is elided"),
    ],
)
def test_egress_of_checksum_that_a_guest_wants_elsewhere_stays_a_frame_of_the_circuit(
    twins: Twins, start: int, offset: int, written_at: int
) -> None:
    """As skb_checksum_help does it, and only then is the frame looked at."""
    frame = bytearray(framed(OUTWARD, b"", Packet(payload=bytes(100)), finished=True))
    total = 0xFFFF ^ word_sum(bytes(frame[start:]))
    frame[written_at : written_at + 2] = total.to_bytes(2, "big")

    sent = twins.native.egress(
        VIRTIO_HEADER.pack(1, 0, 0, 0, start, offset)
        + framed(OUTWARD, b"", Packet(payload=bytes(100)), finished=True)
    )

    assert sent == twins.reference.egress(bytes(frame))
    assert sent[0][0] == 7
    twins.counted()


def receive_both(
    twins: Twins, datagrams: list[bytes], *, joined: bool = False
) -> tuple[list[bytes], list[bytes], int]:
    """Return the reference's frames, those the kernel makes of native's, and native's writes.

    joined: the datagrams, of one size but for the last, arrive as UDP GRO hands them over.
    """
    received = []
    for circuit in (twins.reference, twins.native):
        if joined:
            size = struct.pack("=H", len(datagrams[0]))
            control = [(socket.IPPROTO_UDP, UDP_SEGMENT, size)]
            circuit.remote.sendmsg(datagrams, control, 0, circuit.address)
        else:
            for datagram in datagrams:
                circuit.send(datagram)
        received.append(circuit.ingress())
    expected, written = received
    frames = [frame for each in written for frame in twins.kernel.frames(each)]
    return expected, frames, len(written)


def train(packet: Packet, size: int, count: int) -> list[Packet]:
    """Return packets of one flow that continue each other, size bytes of payload each."""
    return [
        replace(
            packet,
            identification=packet.identification + (number if packet.version == 4 else 0),
            sequence=(packet.sequence + number * size) & 0xFFFFFFFF,
            payload=bytes((number + at) % 251 for at in range(size)),
        )
        for number in range(count)
    ]


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Elided and complete datagrams of flows that mostly continue, but now and then do not."""
    plain = packets(st.just(b"")).map(
        lambda packet: replace(packet, flags=ACK, ip_options=b"", reserved=0)
    )
    flows = draw(st.lists(st.one_of(plain, packets(st.just(b""))), min_size=1, max_size=3))
    datagrams = []
    for flow in flows * draw(st.integers(1, 2)):
        link = draw(st.sampled_from(("elided", "elided", "complete", "tagged")))
        size = draw(st.sampled_from((1, 13, 500, 1419)))
        following = train(flow, size, draw(st.integers(1, 12)))
        for number in range(len(following)):
            change = draw(st.sampled_from(("none",) * 12 + tuple(CHANGES)))
            if change != "none":
                following[number] = CHANGES[change](following[number])
            damage = draw(st.sampled_from((0,) * 12 + (1, 0xFFFF)))
            body = following[number].finished(damage)
            padding = bytes(draw(st.sampled_from((0,) * 12 + (3,))))
            if link == "elided":
                datagrams.append(b"\x07" + body + padding)
                continue
            tags = bytes.fromhex("81000005") if link == "tagged" else b""
            frame = LOCAL + REMOTE + tags + ethertype(flow.version) + body + padding
            datagrams.append(b"\x07" + frame)
    return datagrams


CHANGES = {
    "shorter": lambda packet: replace(packet, payload=packet.payload[:-1]),
    "empty": lambda packet: replace(packet, payload=b""),
    "push": lambda packet: replace(packet, flags=packet.flags | PSH),
    "finish": lambda packet: replace(packet, flags=packet.flags | FIN),
    "urgent": lambda packet: replace(packet, flags=packet.flags | URG, urgent=1),
    "echo": lambda packet: replace(packet, flags=packet.flags | ECE),
    "reduced": lambda packet: replace(packet, flags=packet.flags | CWR),
    "sequence": lambda packet: replace(packet, sequence=packet.sequence ^ 1),
    "identification": lambda packet: replace(packet, identification=packet.identification ^ 1),
    "window": lambda packet: replace(packet, window=packet.window ^ 1),
    "acknowledgment": lambda packet: replace(packet, acknowledgment=packet.acknowledgment ^ 1),
    "hops": lambda packet: replace(packet, hop_limit=packet.hop_limit ^ 1),
    "congestion": lambda packet: replace(packet, traffic_class=packet.traffic_class ^ 3),
    "port": lambda packet: replace(packet, ports=(packet.ports[0] ^ 1, packet.ports[1])),
    "options": lambda packet: replace(packet, tcp_options=b"\x01\x01\x01\x00"),
    "fragment": lambda packet: replace(packet, fragment=0x2000),
    "reserved": lambda packet: replace(packet, reserved=packet.reserved ^ 1),
}


@many
@given(datagrams=streams())
def test_ingress_of_any_stream_gives_the_kernel_what_it_cuts_into_the_same_frames(
    twins: Twins, datagrams: list[bytes]
) -> None:
    expected, frames, _ = receive_both(twins, datagrams)

    assert frames == expected
    reference, native = twins.counted()
    assert native == reference


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("link", ["", "0800", "81000005"])
def test_ingress_of_a_flow_is_joined_and_written_once(
    twins: Twins, version: int, protocol: int, link: str
) -> None:
    addresses = {} if version == 4 else {"source": b"\xfd" * 16, "destination": b"\xfe" * 16}
    flow = train(Packet(version=version, protocol=protocol, **addresses), 1400, 15)  # type: ignore[arg-type]
    flow.append(replace(flow[-1], payload=b"rest", sequence=flow[-1].sequence + 1400))
    if version == 4:
        flow[-1] = replace(flow[-1], identification=flow[-1].identification + 1)
    head = b""
    if link:
        head = LOCAL + REMOTE + bytes.fromhex(link).removesuffix(b"\x08\x00") + ethertype(version)

    expected, frames, writes = receive_both(
        twins, [b"\x07" + head + packet.finished() for packet in flow], joined=True
    )

    assert len(expected) == 16
    assert frames == expected
    assert writes == (1 if twins.joins(protocol) else 16)
    twins.counted()


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("wrong", [0, 1, 7, 15])
def test_ingress_of_wrong_checksum_stays_wrong_and_is_joined_with_nothing(
    twins: Twins, protocol: int, wrong: int
) -> None:
    flow = train(Packet(protocol=protocol), 100, 16)
    datagrams = [
        b"\x07" + packet.finished(damage=1 if number == wrong else 0)
        for number, packet in enumerate(flow)
    ]

    expected, frames, writes = receive_both(twins, datagrams, joined=True)

    assert expected[wrong][14:] == flow[wrong].finished(damage=1)
    assert frames == expected
    assert writes == ({0: 2, 1: 3, 7: 3, 15: 2}[wrong] if twins.joins(protocol) else 16)
    twins.counted()


@pytest.mark.parametrize("where", ["TCP", "IPv4"])
def test_ingress_of_checksum_in_its_other_form_of_zero_is_joined_with_nothing(
    twins: Twins, where: str
) -> None:
    """All ones is right where zero is computed; joined, it would come out as zero."""
    flow = train(Packet(), 100, 3)
    if where == "TCP":
        at = 20 + 16
        flow[1] = replace(flow[1], payload=flow[1].payload[:-2] + b"\0\0")
        missing = int.from_bytes(flow[1].finished()[at : at + 2], "big")
        flow[1] = replace(flow[1], payload=flow[1].payload[:-2] + missing.to_bytes(2, "big"))
    else:
        at = 10
        flow = [replace(each, source=b"\xc0\x00" + bytes(2)) for each in flow]
        missing = int.from_bytes(flow[1].finished()[at : at + 2], "big")
        flow = [replace(each, source=b"\xc0\x00" + missing.to_bytes(2, "big")) for each in flow]
    packets = [each.finished() for each in flow]
    assert packets[1][at : at + 2] == b"\0\0"
    packets[1] = packets[1][:at] + b"\xff\xff" + packets[1][at + 2 :]

    expected, frames, _ = receive_both(twins, [b"\x07" + each for each in packets], joined=True)

    assert frames == expected
    assert expected[1][14:] == packets[1]
    twins.counted()


def test_ingress_across_wrapped_sequence_numbers_is_joined(twins: Twins) -> None:
    flow = train(Packet(sequence=0xFFFFFF00, identification=0xFFFE), 1000, 4)
    assert flow[1].sequence == 0x2E8

    expected, frames, writes = receive_both(
        twins, [b"\x07" + each.finished() for each in flow], joined=True
    )

    assert (frames, writes) == (expected, 1 if twins.joins(TCP) else 4)
    twins.counted()


@many
@given(
    packet=packets(payloads()),
    segment_size=st.integers(100, 8800),
    super_frame=st.booleans(),
    addresses=st.sampled_from((OUTWARD, BRIDGED)),
    tags=st.one_of(st.just(b""), st.just(b""), link_headers),
)
def test_checksum_left_to_the_outer_one_is_completed_behind_the_other_end(
    leaving: Twins,
    packet: Packet,
    segment_size: int,
    super_frame: bool,
    addresses: bytes,
    tags: bytes,
) -> None:
    """Native sends, both twins receive: what comes out is what a stack without offloads sends."""
    if super_frame:
        packet = to_be_cut(packet, segment_size)
    else:
        segment_size, packet = 0, replace(packet, payload=packet.payload[:8000])
    link = len(addresses + tags) + 2
    unfinished = virtio_header(packet, link, segment_size) + framed(addresses, tags, packet)
    finished = leaving.kernel.frames(unfinished)
    sent = leaving.native.egress(unfinished)

    expected, frames, _ = receive_both(leaving, sent)

    # Elided headers are rebuilt as the other end's.
    if addresses == OUTWARD and not tags:
        finished = [LOCAL + REMOTE + frame[12:] for frame in finished]
    assert same_but_for_zero(expected, finished)
    assert same_but_for_zero(frames, finished)
    leaving.counted()


@many
@given(
    packet=handshakes(),
    segment_size=st.one_of(st.just(0), st.integers(100, 1400)),
    addresses=st.sampled_from((OUTWARD, BRIDGED)),
    tags=st.one_of(st.just(b""), st.just(b""), link_headers),
)
def test_mss_is_lowered_in_what_the_kernel_left_unfinished(
    clamping: Twins, packet: Packet, segment_size: int, addresses: bytes, tags: bytes
) -> None:
    """One frame, or a super-frame that a hostile guest made of a SYN; behind both ends."""
    if segment_size:
        packet = to_be_cut(packet, segment_size)
    link = len(addresses + tags) + 2
    unfinished = virtio_header(packet, link, segment_size) + framed(addresses, tags, packet)
    finished = clamping.kernel.frames(unfinished)

    expected = clamping.reference.egress(*finished)
    sent = clamping.native.egress(unfinished)
    received, frames, _ = receive_both(clamping, sent)
    without, _, _ = receive_both(clamping, expected)

    assert same_but_for_zero(received, without)
    assert same_but_for_zero(frames, received)
    clamping.counted()


@many
@given(
    packet=packets(payloads()),
    segment_size=st.one_of(st.just(0), st.integers(100, 8800), st.integers(1380, 1500)),
    addresses=st.sampled_from((OUTWARD, BRIDGED)),
    tags=st.one_of(st.just(b""), st.just(b""), link_headers),
)
def test_what_the_kernel_left_unfinished_travels_in_pieces(
    cutting: Twins, packet: Packet, segment_size: int, addresses: bytes, tags: bytes
) -> None:
    if segment_size:
        packet = to_be_cut(packet, segment_size)
    else:
        packet = replace(packet, payload=packet.payload[:8000])
    link = len(addresses + tags) + 2
    unfinished = virtio_header(packet, link, segment_size) + framed(addresses, tags, packet)
    finished = cutting.kernel.frames(unfinished)

    sent = cutting.native.egress(unfinished)
    expected, frames, _ = receive_both(cutting, sent)

    assert max(map(len, sent)) <= 1472
    # Elided headers are rebuilt as the other end's.
    if addresses == OUTWARD and not tags:
        finished = [LOCAL + REMOTE + frame[12:] for frame in finished]
    assert same_but_for_zero(expected, finished)
    assert same_but_for_zero(frames, finished)
    cutting.counted()


@many
@given(packet=packets(payloads()), segment_size=st.integers(1000, 3000))
def test_segments_that_are_not_to_be_fragmented_are_dropped_one_by_one(
    dropping: Twins, packet: Packet, segment_size: int
) -> None:
    packet = to_be_cut(packet, segment_size)
    unfinished = virtio_header(packet, 14, segment_size) + framed(OUTWARD, b"", packet)

    expected, sent = send_both(dropping, unfinished)

    assert sent == expected
    reference, native = dropping.counted()
    assert native == reference


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_frames_of_a_flow_that_came_in_pieces_are_joined_and_not_overwritten(
    cutting: Twins, protocol: int
) -> None:
    """More than there are slots; each waits in its slot until it is written with others."""
    flow = train(Packet(protocol=protocol), 300, 150)
    frames = [LOCAL + REMOTE + b"\x08\x00" + packet.finished() for packet in flow]
    size = -(-len(frames[0]) // 2)
    pieces = [
        struct.pack("!BBBHI", 7, 0x44, index | index << 7, len(frame), number)
        + frame[index * size :][:size].ljust(size, b"\0")
        for number, frame in enumerate(frames)
        for index in (0, 1)
    ]
    for start in range(0, len(pieces), 60):
        expected, received, writes = receive_both(cutting, pieces[start:][:60], joined=True)

        assert expected == received == frames[start // 2 :][:30]
        assert writes == (1 if cutting.joins(protocol) else 30)
    for circuit in (cutting.reference, cutting.native):
        for start in range(0, len(pieces), 60):
            control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", len(pieces[0])))]
            circuit.remote.sendmsg(pieces[start:][:60], control, 0, circuit.address)
    written = cutting.native.ingress()
    whole = [frame for each in written for frame in cutting.kernel.frames(each)]
    assert cutting.reference.ingress() == whole == frames
    cutting.counted()


def same_but_for_zero(frames: list[bytes], expected: list[bytes]) -> bool:
    """Compare frames; a checksum's two forms of zero are equal (RFC 1071)."""
    zeros = (b"\x00\x00", b"\xff\xff")
    if len(frames) != len(expected):
        return False
    for frame, other in zip(frames, expected, strict=True):
        if frame == other:
            continue
        apart = [at for at in range(len(frame)) if frame[at : at + 1] != other[at : at + 1]]
        if len(frame) != len(other) or len(apart) != 2 or apart[1] != apart[0] + 1:
            return False
        if {frame[apart[0] : apart[0] + 2], other[apart[0] : apart[0] + 2]} != set(zeros):
            return False
    return True


def test_checksum_is_left_where_the_circuit_says_so_and_nowhere_else(
    twins: Twins, leaving: Twins
) -> None:
    packet = Packet(payload=bytes(100))
    unfinished = virtio_header(packet, 14) + framed(OUTWARD, b"", packet)
    bridged = virtio_header(packet, 14) + framed(BRIDGED, b"", packet)

    assert leaving.native.egress(unfinished) == [b"\x07" + packet.unfinished()]
    assert twins.native.egress(unfinished) == [b"\x07" + packet.finished()]
    complete = b"\x07" + framed(BRIDGED, b"", packet, finished=True)
    assert leaving.native.egress(bridged) == [complete]
    twins.counted()
    leaving.counted()


@pytest.mark.parametrize("engine", ["reference", "native"])
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_finished_checksum_that_looks_left_travels_complete_and_stays_as_it_is(
    leaving: Twins, engine: str, protocol: int
) -> None:
    """Wrong, and just the sum of the pseudo-header: it must not come out right."""
    packet = Packet(protocol=protocol, payload=bytes(range(100)))
    is_partial = OUTWARD + b"\x08\x00" + packet.unfinished()
    circuit: Circuit = getattr(leaving, engine)

    sent = circuit.egress((PLAIN if engine == "native" else b"") + is_partial)

    assert sent == [b"\x07" + is_partial]
    expected, frames, _ = receive_both(leaving, sent)
    assert expected == frames == [is_partial]
    leaving.counted()


def test_super_frame_of_many_small_segments_is_sent_in_as_many_sends_as_it_takes(
    twins: Twins,
) -> None:
    """300 segments, where one send takes 64."""
    packet = Packet(payload=bytes(number % 251 for number in range(30000)))
    unfinished = virtio_header(packet, 14, 100) + framed(OUTWARD, b"", packet)

    expected, sent = send_both(twins, unfinished)

    assert len(sent) == 300
    assert sent == expected
    twins.counted()
