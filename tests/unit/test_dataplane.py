"""The data path, each engine through the same tests: real UDP sockets, and a pair for the TAP."""

from __future__ import annotations

import random
import select
import socket
import struct
from contextlib import ExitStack, suppress

import pytest
from attached_plane import (
    CIRCUIT,
    LOCAL,
    PLANES,
    REMOTE,
    TIMEOUT_S,
    UDP_GRO,
    UDP_SEGMENT,
    Circuit,
    broadcast,
    on_wire,
    queued,
    readable,
)

from lab.namespace import Namespace
from lab.waiting import eventually
from vela.dataplane.counters import Slot
from vela.dataplane.frame import Elision
from vela.linux.features import Feature


@pytest.fixture(params=PLANES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=[name for name, (_, has) in PLANES.items() if Feature.UDP_SEGMENT in has])
def segmenting(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def circuit(engine: str, stack: ExitStack) -> Circuit:
    return Circuit(stack, engine)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([60] * 150, id="more than a batch of one size"),
        pytest.param([1489] * 64, id="more than one datagram carries"),
        pytest.param([60, 1400, 60, 1400, 1400, 1399, 1400, 100], id="mixed"),
        pytest.param(list(range(60, 120)), id="each larger"),
        pytest.param(list(range(120, 60, -1)), id="each smaller"),
        pytest.param([14, 1489, 14], id="smallest and largest"),
    ],
)
def test_egress_of_many_frames_keeps_their_order_and_bytes(
    circuit: Circuit, sizes: list[int]
) -> None:
    frames = [broadcast(size, mark)[:size] for mark, size in enumerate(sizes)]

    assert circuit.egress(*frames) == [on_wire(frame) for frame in frames]
    assert circuit.counters.worker[Slot.TX_FRAMES] == len(sizes)
    assert circuit.counters.worker[Slot.TX_BYTES] == sum(sizes)
    assert circuit.counters.worker[Slot.TX_ERRORS] == 0


def test_egress_of_frames_of_one_size_shares_a_send(segmenting: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, segmenting)
    circuit.remote.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    frames = [broadcast(500, mark) for mark in range(20)] + [broadcast(99)]

    assert circuit.egress(*frames) == [b"".join(map(on_wire, frames))]


@pytest.mark.parametrize("engine", ["python without udp_segment", "native without udp_segment"])
def test_egress_without_udp_segment_sends_each_frame_by_itself(
    engine: str, stack: ExitStack
) -> None:
    circuit = Circuit(stack, engine)
    circuit.remote.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    frames = [broadcast(500, mark) for mark in range(80)] + [broadcast(99)]

    assert circuit.egress(*frames) == [on_wire(frame) for frame in frames]


def test_egress_elides_escapes_and_counts(circuit: Circuit) -> None:
    packet = bytes.fromhex("4500001c000000004011000000000000000000000000000000000000")
    elided = REMOTE + LOCAL + b"\x08\x00" + packet
    escaped = b"\x45" * 6 + LOCAL + b"\x08\x00" + packet

    assert circuit.egress(elided, escaped) == [b"\x07" + packet, b"\x07\x40" + escaped]
    assert circuit.counted() == {
        Slot.TX_FRAMES: 2,
        Slot.TX_BYTES: len(elided) + len(escaped),
        Slot.TX_ELIDED: 1,
    }


@pytest.mark.parametrize("first", [0x3F, 0x40, 0x45, 0x4F, 0x50, 0x5F, 0x60, 0x65, 0x6F, 0x70])
def test_egress_of_complete_frame_is_escaped_where_it_would_be_taken_for_a_packet(
    circuit: Circuit, first: int
) -> None:
    """docs/protocol.md, section 3: 0x40 to 0x4f and 0x60 to 0x6f."""
    frame = bytes([first]) + broadcast(60)[1:]
    escape = b"\x40" if 0x40 <= first <= 0x4F or 0x60 <= first <= 0x6F else b""

    assert circuit.egress(frame) == [b"\x07" + escape + frame]


def test_egress_of_ip_only_drops_and_counts_the_rest(engine: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, engine, elision=Elision.ALWAYS)
    packet = bytes.fromhex("4500001c000000004011000000000000000000000000000000000000")

    assert circuit.egress(broadcast(60), b"\xff" * 6 + LOCAL + b"\x08\x00" + packet) == [
        b"\x07" + packet
    ]
    assert circuit.counters.worker[Slot.TX_NOT_IP] == 1
    assert circuit.counters.worker[Slot.TX_FRAMES] == 1


def test_egress_of_frames_that_cannot_be_is_counted(circuit: Circuit) -> None:
    """Shorter than a header, or longer than the TAP's limit: neither cut off nor sent."""
    assert circuit.egress(broadcast(60)[:13], broadcast(1490), broadcast(3000), broadcast(60)) == [
        on_wire(broadcast(60))
    ]
    assert circuit.counters.worker[Slot.TX_ERRORS] == 3
    assert circuit.counters.worker[Slot.TX_FRAMES] == 1


def test_egress_above_the_underlay_is_sent_and_counted_as_fragmented(circuit: Circuit) -> None:
    """A datagram of 1472 bytes is the largest; it holds a frame of 1471."""
    frames = [broadcast(1471), broadcast(1472), broadcast(1489), broadcast(60)]

    assert circuit.egress(*frames) == [on_wire(frame) for frame in frames]
    assert circuit.counters.worker[Slot.TX_FRAGMENTED] == 2


def test_egress_to_a_destination_leaves_from_the_unconnected_socket(
    engine: str, stack: ExitStack
) -> None:
    remote, listening = Circuit(stack, engine).remote, Circuit(stack, engine).udp()
    circuit = Circuit(stack, engine, send_socket=listening, destination=remote.getsockname())
    frames = [broadcast(60, 1), broadcast(60, 2), broadcast(300, 3)]

    circuit.egress(*frames)

    assert queued(remote) == [on_wire(frame) for frame in frames]


ORIGIN = {  # include/uapi/linux/in.h and in6.h: IP_PKTINFO and IPV6_PKTINFO
    "127.0.0.9": (0, 8, bytes(4) + bytes([127, 0, 0, 9]) + bytes(4)),
    "::1": (41, 50, bytes(15) + b"\1" + bytes(4)),
}


@pytest.mark.parametrize("here", ORIGIN)
def test_what_is_sent_leaves_from_the_origin_though_the_socket_is_bound_to_all(
    engine: str, stack: ExitStack, here: str
) -> None:
    """Single datagrams, runs, and answers to echo requests."""
    listening = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listening.bind(("::", 0))
    remote = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    remote.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    remote.bind(("::", 0))
    remote.settimeout(TIMEOUT_S)
    to = "::1" if here == "::1" else "::ffff:127.0.0.1"
    circuit = Circuit(
        stack,
        engine,
        send_socket=listening,
        destination=(to, remote.getsockname()[1]),
        source_address=ORIGIN[here],
    )
    frames = [broadcast(60, 1), broadcast(60, 2), broadcast(300, 3)]

    circuit.egress(*frames)
    circuit.send(bytes([CIRCUIT, 0x41, 1]) + bytes(16))
    circuit.ingress()

    received = [remote.recvfrom(2048) for _ in range(4)]
    assert [data for data, _ in received[:3]] == [on_wire(frame) for frame in frames]
    assert received[3][0] == bytes([CIRCUIT, 0x41, 2]) + bytes(16)
    assert {address[0].removeprefix("::ffff:") for _, address in received} == {here}


@pytest.mark.parametrize("size", [0, 21])
def test_origin_of_a_size_that_no_address_has_is_refused(stack: ExitStack, size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes do not say where to send from"):
        Circuit(stack, "native", source_address=(0, 8, bytes(size)))


def test_egress_while_the_remote_is_closed_loses_nothing_once_it_is_back(circuit: Circuit) -> None:
    """What ICMP says of one datagram (ECONNREFUSED) must not cost a later one."""
    port = circuit.remote.getsockname()[1]
    poll = select.poll()
    poll.register(circuit.attachment.send_socket, 0)
    single = [broadcast(60, 1)]
    run = [broadcast(60, mark) for mark in range(30)]
    for frames in (single, run):
        circuit.remote.close()
        circuit.host.send(broadcast(60))
        circuit.plane.egress()
        (pending,) = poll.poll(TIMEOUT_S * 1000)
        assert pending[1] & select.POLLERR

        circuit.remote = circuit.udp(port)

        assert circuit.egress(*frames) == [on_wire(frame) for frame in frames]
    assert circuit.counters.worker[Slot.TX_ERRORS] == 0


def test_ingress_of_single_datagrams_gives_their_frames(circuit: Circuit) -> None:
    packet = bytes.fromhex("4500001c000000004011000000000000000000000000000000000000")
    rebuilt = LOCAL + REMOTE + b"\x08\x00" + packet
    escaped = b"\x60" * 6 + REMOTE + b"\x08\x06" + bytes(28)
    for datagram in (on_wire(broadcast(60)), b"\x07" + packet, b"\x07\x40" + escaped):
        circuit.send(datagram)

    assert circuit.ingress() == [broadcast(60), rebuilt, escaped]
    assert circuit.counted() == {
        Slot.RX_FRAMES: 3,
        Slot.RX_BYTES: 60 + len(rebuilt) + len(escaped),
        Slot.RX_ELIDED: 1,
    }


def test_ingress_of_merged_datagrams_gives_each_its_frame(circuit: Circuit) -> None:
    """UDP_SEGMENT on loopback arrives in one piece; the last datagram is shorter."""
    packets = [bytes.fromhex("45000064") + bytes(16) + bytes([mark]) * 80 for mark in range(40)]
    last = bytes.fromhex("4500001e") + bytes(26)
    datagrams = [b"\x07" + packet for packet in (*packets, last)]
    size = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 101))]

    circuit.remote.sendmsg(datagrams, size, 0, circuit.address)
    if Feature.UDP_GRO in circuit.attachment.features:
        circuit.plane.ingress()
        assert not readable(circuit.attachment.receive_socket)

    head = LOCAL + REMOTE + b"\x08\x00"
    assert circuit.ingress() == [head + packet for packet in (*packets, last)]
    assert circuit.counters.worker[Slot.RX_ELIDED] == 41


def test_ingress_merged_with_other_circuits_datagrams_diverts_those(circuit: Circuit) -> None:
    frames = [bytes([circuit_id]) + broadcast(60, circuit_id) for circuit_id in (7, 8, 7, 9, 0, 7)]
    size = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 61))]

    circuit.remote.sendmsg(frames, size, 0, circuit.address)

    assert circuit.ingress() == [broadcast(60, 7)] * 3
    assert queued(circuit.supervisor) == [frames[1], frames[3], frames[4]]
    assert circuit.counted() == {Slot.RX_FRAMES: 3, Slot.RX_BYTES: 180}


def test_ingress_with_no_room_toward_the_supervisor_counts_and_goes_on(circuit: Circuit) -> None:
    divert = circuit.attachment.divert_socket
    with suppress(BlockingIOError):
        while True:
            divert.send(b"\x08")
    circuit.send(b"\x08" + broadcast(60))
    circuit.send(on_wire(broadcast(60)))

    assert circuit.ingress() == [broadcast(60)]
    assert circuit.counters.worker[Slot.RX_CONGESTED] == 1


@pytest.mark.parametrize(
    ("datagram", "slot"),
    [
        pytest.param("", Slot.RX_SHORT, id="empty"),
        pytest.param("07", Slot.RX_SHORT, id="nothing behind the id"),
        pytest.param("07" + "ff" * 13, Slot.RX_SHORT, id="13 bytes of frame"),
        pytest.param("0740" + "45" * 13, Slot.RX_SHORT, id="13 bytes behind the escape"),
        pytest.param("0742" + "00" * 30, Slot.RX_RESERVED, id="0x42"),
        pytest.param("0743", Slot.RX_RESERVED, id="0x43"),
        pytest.param("0744" + "00" * 30, Slot.RX_MALFORMED, id="piece of nothing"),
        pytest.param("0744" + "00" * 7, Slot.RX_SHORT, id="piece without content"),
        pytest.param("07" + "ff" * 1490, Slot.RX_OVERSIZED, id="frame above the limit"),
        pytest.param("07" + "4500" + "05c4" + "00" * 1472, Slot.RX_OVERSIZED, id="packet above it"),
        pytest.param("07" + "45" + "00" * 30, Slot.RX_MALFORMED, id="IPv4 of no length"),
        pytest.param("07" + "60" + "00" * 30, Slot.RX_MALFORMED, id="IPv6 cut off"),
        pytest.param("0741", Slot.RX_SHORT, id="verification without type"),
        pytest.param("0741 01" + "00" * 15, Slot.RX_SHORT, id="echo request cut off"),
        pytest.param("0741 03" + "00" * 16, Slot.RX_RESERVED, id="unknown verification"),
    ],
)
def test_ingress_of_what_is_no_frame_counts_it_by_reason(
    circuit: Circuit, datagram: str, slot: Slot
) -> None:
    circuit.send(bytes.fromhex(datagram))
    circuit.send(on_wire(broadcast(60)))

    assert circuit.ingress() == [broadcast(60)]
    assert circuit.counted() == {slot: 1, Slot.RX_FRAMES: 1, Slot.RX_BYTES: 60}
    assert queued(circuit.supervisor) == []


def test_ingress_with_a_tap_that_refuses_counts_and_goes_on(circuit: Circuit) -> None:
    circuit.host.close()  # EPIPE, where a TAP that is down gives EIO
    circuit.send(on_wire(broadcast(60)))
    circuit.send(on_wire(broadcast(60)))
    while readable(circuit.attachment.receive_socket):
        circuit.plane.ingress()

    assert circuit.counted() == {Slot.RX_INTERFACE_DOWN: 2}


@pytest.mark.parametrize("padding", [0, 1000])
def test_ingress_of_an_echo_request_is_answered_with_its_length(
    circuit: Circuit, padding: int
) -> None:
    rest = bytes(range(16)) + bytes(padding)

    circuit.send(b"\x07\x41\x01" + rest)

    assert circuit.ingress() == []
    assert queued(circuit.remote) == [b"\x07\x41\x02" + rest]
    assert circuit.counted() == {Slot.RX_VERIFICATIONS: 1}


def test_ingress_of_an_echo_reply_goes_to_the_supervisor(circuit: Circuit) -> None:
    circuit.send(b"\x07\x41\x02" + bytes(16))

    assert circuit.ingress() == []
    assert queued(circuit.supervisor) == [b"\x07\x41\x02" + bytes(16)]
    assert queued(circuit.remote) == []


def test_ingress_of_datagrams_of_any_content_never_raises(circuit: Circuit) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(2000):
        datagram = bytearray(draw.randbytes(draw.randrange(0, 90)))
        if datagram and draw.random() < 0.9:
            datagram[0] = CIRCUIT
        if len(datagram) > 1 and draw.random() < 0.5:
            datagram[1] = draw.choice((0x40, 0x41, 0x42, 0x45, 0x60))
        circuit.send(bytes(datagram))
        circuit.plane.ingress()
        queued(circuit.host)
        queued(circuit.supervisor)
        queued(circuit.remote)

    assert circuit.counters.progress() == (0, 2000)


@pytest.mark.needs_net_admin
@pytest.mark.parametrize("mtu", [1000, 68])
def test_egress_where_the_kernel_cannot_segment_sends_one_by_one(
    segmenting: str, stack: ExitStack, mtu: int
) -> None:
    """Segments above the route's MTU, found out only by the refusal (EINVAL or EMSGSIZE)."""
    namespace = stack.enter_context(Namespace("narrow"))
    with namespace.entered():
        circuit = Circuit(stack, segmenting)
        namespace.run("ip", "link", "set", "dev", "lo", "mtu", str(mtu))
        large = [broadcast(1400, mark) for mark in range(10)]
        small = [broadcast(30, mark) for mark in range(10)]

        for _ in range(2):
            assert circuit.egress(*large, *small) == [on_wire(each) for each in (*large, *small)]

        assert circuit.counters.worker[Slot.TX_ERRORS] == 0
        assert circuit.counters.worker[Slot.TX_FRAMES] == 40
        assert circuit.counters.worker[Slot.TX_FRAGMENTED] == 20


@pytest.mark.needs_net_admin
@pytest.mark.parametrize("engine", ["python without udp_segment", "native without udp_segment"])
def test_egress_one_by_one_sees_soon_that_the_route_has_become_narrower(
    engine: str, stack: ExitStack
) -> None:
    """No refusal says so, as the kernel fragments what is too large."""
    namespace = stack.enter_context(Namespace("narrow"))
    with namespace.entered():
        circuit = Circuit(stack, engine)
        frame = broadcast(1400)
        assert circuit.egress(frame) == [on_wire(frame)]
        namespace.run("ip", "link", "set", "dev", "lo", "mtu", "1000")

        def fragmented() -> int:
            assert circuit.egress(frame) == [on_wire(frame)]
            return circuit.counters.worker[Slot.TX_FRAGMENTED]

        eventually(fragmented, 10, "a fragmented datagram to be counted")
        namespace.run("ip", "link", "set", "dev", "lo", "mtu", "65536")

        def whole() -> bool:
            return fragmented() == fragmented()

        eventually(whole, 10, "datagrams to be whole again")


@pytest.mark.needs_net_admin
def test_egress_on_a_route_that_is_wide_again_shares_a_send_again(
    segmenting: str, stack: ExitStack
) -> None:
    namespace = stack.enter_context(Namespace("wide"))
    with namespace.entered():
        circuit = Circuit(stack, segmenting)
        circuit.remote.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        large = [on_wire(broadcast(1000, mark)) for mark in range(4)]
        frames = [datagram[1:] for datagram in large]
        namespace.run("ip", "link", "set", "dev", "lo", "mtu", "800")
        assert circuit.egress(*frames) == large
        assert circuit.counters.worker[Slot.TX_FRAGMENTED] == 4

        namespace.run("ip", "link", "set", "dev", "lo", "mtu", "65536")

        eventually(lambda: circuit.egress(*frames) == [b"".join(large)], 10, "one send")
        fragmented = circuit.counters.worker[Slot.TX_FRAGMENTED]
        assert circuit.egress(*frames) == [b"".join(large)]
        assert circuit.counters.worker[Slot.TX_FRAGMENTED] == fragmented


@pytest.mark.needs_net_admin
@pytest.mark.parametrize("said_mtu", [65535, 900])
def test_egress_after_icmp_said_fragmentation_needed_does_what_the_route_is_then(
    segmenting: str, stack: ExitStack, said_mtu: int
) -> None:
    """EMSGSIZE then comes for whatever is sent next, and may concern what nobody sends any more."""
    namespace = stack.enter_context(Namespace("icmp"))
    with namespace.entered():
        circuit = Circuit(stack, segmenting)
        circuit.remote.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        sender = circuit.attachment.send_socket
        say_fragmentation_needed(sender.getsockname(), circuit.remote.getsockname(), said_mtu)
        poll = select.poll()
        poll.register(sender, 0)
        ((_, pending),) = poll.poll(TIMEOUT_S * 1000)
        assert pending & select.POLLERR

        small = [on_wire(broadcast(60, mark)) for mark in range(4)]
        large = [on_wire(broadcast(1000, mark)) for mark in range(4)]

        assert circuit.egress(*(each[1:] for each in small)) == [b"".join(small)]
        wide = said_mtu > 1000
        assert circuit.egress(*(each[1:] for each in large)) == (
            [b"".join(large)] if wide else large
        )
        assert circuit.counters.worker[Slot.TX_FRAGMENTED] == (0 if wide else 4)
        assert circuit.counters.worker[Slot.TX_ERRORS] == 0


def say_fragmentation_needed(sender: tuple[str, int], receiver: tuple[str, int], mtu: int) -> None:
    """Send what a router would about a datagram of theirs (RFC 1191, section 4)."""
    addresses = socket.inet_aton(sender[0]) + socket.inet_aton(receiver[0])
    about = struct.pack("!BBHHHBBH", 0x45, 0, 1028, 1, 0x4000, 64, socket.IPPROTO_UDP, 0)
    about += addresses + struct.pack("!HHHH", sender[1], receiver[1], 1008, 0)
    message = bytearray(struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + about)
    sum_ = sum(struct.unpack(f"!{len(message) // 2}H", message))
    sum_ = (sum_ & 0xFFFF) + (sum_ >> 16)
    struct.pack_into("!H", message, 2, ~(sum_ + (sum_ >> 16)) & 0xFFFF)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as router:
        router.sendto(message, (sender[0], 0))


@pytest.mark.needs_net_admin
def test_egress_without_a_route_counts_errors_and_goes_on(engine: str, stack: ExitStack) -> None:
    namespace = stack.enter_context(Namespace("cut"))
    with namespace.entered():
        circuit = Circuit(stack, engine)
        namespace.run("ip", "address", "del", "127.0.0.1/8", "dev", "lo")
        assert circuit.egress(*[broadcast(60)] * 3) == []
        assert circuit.counters.worker[Slot.TX_ERRORS] == 3

        namespace.run("ip", "address", "add", "127.0.0.1/8", "dev", "lo")
        assert circuit.egress(broadcast(60)) == [on_wire(broadcast(60))]
