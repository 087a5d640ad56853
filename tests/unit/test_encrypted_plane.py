"""Encrypted circuits: each engine with keys that the test puts into its key page, real sockets, and
a remote that only has the package cryptography."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

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
    queued,
    readable,
)
from frame_keys import Keys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.namespace import Namespace
from vela.dataplane.counters import RX_DROPPED, Slot
from vela.dataplane.echo import echo_request, send_echo
from vela.dataplane.frame import VERIFICATION_HEADER, Elision
from vela.dataplane.key_page import KeyPage, SlotWord, boottime_ns, create, slot_start
from vela.dataplane.pieces import Fragmentation
from vela.linux.features import Feature
from vela.wire import Suite

VECTORS = Path(__file__).parents[1] / "vectors" / "encrypted.json"
PACKET = bytes.fromhex("4500001c000000004011000000000000000000000000000000000000")
ELIDED = REMOTE + LOCAL + b"\x08\x00" + PACKET
ECHO = b"\x41\x01" + bytes(range(16))


SEGMENTS = Feature.UDP_SEGMENT


class EncryptedCircuit(Circuit):
    """A circuit with a key page, which has these keys."""

    def __init__(self, stack: ExitStack, engine: str, *keys: Keys, **changes: object) -> None:
        fd = create()
        stack.callback(os.close, fd)
        self.page = stack.enter_context(KeyPage(fd))
        for each in keys:
            self.page.install(each.phase, each.pair, 1)
            self.page.send_with(each.phase)
        super().__init__(stack, engine, key_page=fd, **changes)
        self.attachment.receive_socket.settimeout(None)  # as a worker's

    def dropped(self) -> dict[str, int]:
        slots = RX_DROPPED | {"tx_no_key": Slot.TX_NO_KEY}
        return {name: n for name, slot in slots.items() if (n := self.counters.worker[slot])}

    def give(self, *frames: bytes) -> None:
        for frame in frames:
            self.host.send(frame)
        while readable(self.tap):
            self.plane.egress()


@pytest.fixture(params=PLANES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["python", "native"])
def twin(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def vectors() -> list[Any]:
    return [
        pytest.param(each, id=f"{each['suite']}-{each['name']}")
        for each in json.loads(VECTORS.read_text())
    ]


def keys_of(vector: dict[str, Any]) -> Keys:
    return Keys(vector["phase"], Suite[vector["suite"]], vector["number"])


@pytest.mark.parametrize("vector", vectors())
def test_datagrams_are_those_of_the_vectors_both_ways(
    twin: str, vector: dict[str, Any], stack: ExitStack
) -> None:
    keys = keys_of(vector)
    elision = Elision.KNOWN
    circuit = EncryptedCircuit(stack, twin, keys, elision=elision)
    circuit.page.words[slot_start(keys.phase) + SlotWord.NEXT] = (
        circuit.page.words[slot_start(keys.phase)] << 32 | vector["counter"]
    )
    frame = bytes.fromhex(vector["sent"])

    assert circuit.egress(frame) == [bytes.fromhex(vector["sent_datagram"])]

    circuit.send(bytes.fromhex(vector["received_datagram"]))
    assert circuit.ingress() == [bytes.fromhex(vector["received"])]


@pytest.mark.parametrize("vector", vectors())
def test_vectors_are_what_the_package_cryptography_makes_of_the_protocol(
    vector: dict[str, Any],
) -> None:
    keys, counter = keys_of(vector), vector["counter"]
    sent, received = bytes.fromhex(vector["sent"]), bytes.fromhex(vector["received"])

    assert keys.open(bytes.fromhex(vector["sent_datagram"])) == (counter, as_text(sent))
    assert keys.seal(counter, as_text(received)).hex() == vector["received_datagram"]


def as_text(frame: bytes) -> bytes:
    """Return what follows the circuit id of a frame's clear datagram."""
    if frame[:12] in (REMOTE + LOCAL, LOCAL + REMOTE) and frame[12:14] == b"\x08\x00":
        return frame[14:]
    return (b"\x40" if frame[0] >> 4 in (4, 6) else b"") + frame


@pytest.mark.parametrize("suite", list(Suite))
def test_frames_leave_sealed_in_order_with_rising_counters(
    engine: str, suite: Suite, stack: ExitStack
) -> None:
    keys = Keys(1, suite)
    circuit = EncryptedCircuit(stack, engine, keys)
    escaped = b"\x45" * 6 + LOCAL + b"\x08\x06" + bytes(40)
    frames = [broadcast(60 + mark % 7, mark) for mark in range(150)] + [ELIDED, escaped]

    opened = [keys.open(datagram) for datagram in circuit.egress(*frames)]

    assert [text for _, text in opened] == [*frames[:150], PACKET, b"\x40" + escaped]
    assert [counter for counter, _ in opened] == [*range(1, 153)]
    assert circuit.counters.worker[Slot.TX_FRAMES] == 152
    assert circuit.counters.worker[Slot.TX_BYTES] == sum(map(len, frames))
    assert circuit.counters.worker[Slot.TX_ELIDED] == 1
    assert circuit.dropped() == {}


@pytest.mark.parametrize("size", [1451, 2000, 9018])
def test_frame_above_a_datagram_leaves_in_sealed_pieces_and_comes_back(
    engine: str, size: int, stack: ExitStack
) -> None:
    """docs/protocol.md, 3.7: 0x44 is the first byte of what is sealed."""
    keys = Keys()
    large = {"frame_limit": 9018, "fragmentation": Fragmentation.IN_PIECES}
    circuit = EncryptedCircuit(stack, engine, keys, **large)
    frame = broadcast(size)

    datagrams = circuit.egress(frame)

    assert {len(datagram) for datagram in datagrams} == {len(datagrams[0])}
    assert len(datagrams[0]) <= 1472
    pieces = [keys.open(datagram)[1] for datagram in datagrams]
    assert {piece[:1] for piece in pieces} == {b"\x44"}
    assert b"".join(piece[8:] for piece in pieces)[:size] == frame
    for counter, piece in enumerate(pieces, start=1):
        circuit.send(keys.seal(counter, piece))
    assert circuit.ingress() == [frame]
    assert circuit.counters.worker[Slot.TX_FRAGMENTED] == 0
    assert circuit.dropped() == {}


def test_sender_hears_what_fits_with_the_seal(twin: str, stack: ExitStack) -> None:
    """A packet of 1450 bytes that is elided makes a datagram of 1472."""
    large = {"frame_limit": 9018, "fragmentation": Fragmentation.IN_PIECES}
    circuit = EncryptedCircuit(stack, twin, Keys(), **large, packet_too_big=True)
    packet = bytes.fromhex("450005ab0000400040110000c0000201c0000202").ljust(1451, b"\0")

    assert len(circuit.egress(REMOTE + LOCAL + b"\x08\x00" + packet)) == 2

    (frame,) = queued(circuit.host)
    assert frame[34:36] == b"\3\4"
    assert frame[38:42] == (1450).to_bytes(4, "big")
    assert frame[42:] == packet[:548]


def gso_frame(segments: int, payload: int) -> bytes:
    """What a TAP with a virtio header gives: TCP over IPv4, to be cut and completed."""
    total = 40 + segments * payload
    packet = b"\x45\x00" + total.to_bytes(2, "big") + b"\x00\x01\x40\x00\x40\x06\x00\x00"
    packet += bytes([10, 0, 0, 1, 10, 0, 0, 2])
    tcp = bytes.fromhex("9c40 1451 00000001 00000001 5010 01f4 0000 0000")
    # include/uapi/linux/virtio_net.h: checksum to be done, TCPV4, header, size, start, offset.
    virtio = struct.pack("=BBHHHH", 1, 1, 54, payload, 34, 16)
    return virtio + REMOTE + LOCAL + b"\x08\x00" + packet + tcp + bytes(segments * payload)


@pytest.mark.parametrize("engine", [name for name, (_, has) in PLANES.items() if SEGMENTS in has])
def test_full_batch_leaves_in_one_send_of_44_segments(engine: str, stack: ExitStack) -> None:
    """With UDP GRO, what one sendmsg with UDP_SEGMENT sends over loopback is one receive.

    MTU 1450: a packet of that size, its header elided, makes a datagram of 1472 bytes.
    """
    keys = Keys()
    gso = engine.startswith("native")
    circuit = EncryptedCircuit(stack, engine, keys, virtio_header=gso)
    circuit.remote.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    packet = b"\x45\x00" + (1450).to_bytes(2, "big") + bytes(1446)
    frames = [gso_frame(44, 1410)] if gso else [REMOTE + LOCAL + b"\x08\x00" + packet] * 44

    (whole,) = circuit.egress(*frames)

    assert len(whole) == 44 * 1472
    for number in range(44):
        counter, text = keys.open(whole[number * 1472 : (number + 1) * 1472])
        assert (counter, text[:4]) == (number + 1, packet[:4])


@pytest.mark.parametrize("sizes", [[500] * 20 + [99], [1400] * 50, [60, 1400, 60, 1400, 1399]])
def test_runs_share_sends_as_on_a_clear_circuit(
    twin: str, sizes: list[int], stack: ExitStack
) -> None:
    frames = [broadcast(size, mark) for mark, size in enumerate(sizes)]
    received = []
    for circuit in (Circuit(stack, twin), EncryptedCircuit(stack, twin, Keys())):
        circuit.remote.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        received.append(len(circuit.egress(*frames)))

    assert received[0] == received[1] < len(frames)


@pytest.mark.parametrize("twin_limit", [1450, 1451])
def test_datagrams_that_are_too_large_once_sealed_are_counted_as_fragmented(
    twin: str, twin_limit: int, stack: ExitStack
) -> None:
    """A datagram of 1472 bytes is the largest: circuit id, 21 bytes, and 1450 of frame."""
    circuit = EncryptedCircuit(stack, twin, Keys())

    assert len(circuit.egress(broadcast(twin_limit), broadcast(60))) == 2
    assert circuit.counters.worker[Slot.TX_FRAGMENTED] == twin_limit - 1450


@pytest.mark.parametrize("suite", list(Suite))
def test_sealed_datagrams_give_their_frames_once(
    engine: str, suite: Suite, stack: ExitStack
) -> None:
    keys = Keys(0, suite)
    circuit = EncryptedCircuit(stack, engine, keys)
    escaped = b"\x60" * 6 + REMOTE + b"\x08\x06" + bytes(28)
    texts = [broadcast(60), PACKET, b"\x40" + escaped]
    for _ in range(2):
        for counter, text in enumerate(texts, 1):
            circuit.send(keys.seal(counter, text))

    rebuilt = LOCAL + REMOTE + b"\x08\x00" + PACKET
    assert circuit.ingress() == [broadcast(60), rebuilt, escaped]
    assert circuit.dropped() == {"replayed": 3}
    assert circuit.counters.worker[Slot.RX_FRAMES] == 3
    assert circuit.counters.worker[Slot.RX_BYTES] == 60 + len(rebuilt) + len(escaped)
    assert circuit.counters.worker[Slot.RX_ELIDED] == 1


@pytest.mark.parametrize("size", [60, 700])
def test_batches_with_duplicates_swaps_foreign_segments_and_both_phases(
    twin: str, size: int, stack: ExitStack
) -> None:
    """As UDP GRO joins them: they are all of one size."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    old, new = Keys(0), Keys(1, number=40)
    circuit = EncryptedCircuit(stack, twin, old, new)
    length = size + 22
    expected: list[bytes] = []
    foreign: list[bytes] = []
    clear = wrong = repeated = 0
    counters = [1, 1]
    for _ in range(20):
        batch: list[tuple[bytes, bytes | None]] = []
        for _ in range(44):
            keys = draw.choice((old, new))
            counter = counters[keys.phase]
            counters[keys.phase] += 1
            marked = broadcast(size, counter << 1 | keys.phase)
            batch.append((keys.seal(counter, marked), marked))
        draw.shuffle(batch)
        for _ in range(5):
            place = draw.randrange(len(batch))
            kind = draw.randrange(4)
            if kind == 0:
                # Somewhere behind the one that it repeats.
                if batch[place][1] is not None:
                    batch.append((batch[place][0], None))
                    repeated += 1
            elif kind == 1:
                datagram = bytes([CIRCUIT + 1]) + bytes(length - 1)
                batch.insert(place, (datagram, None))
            elif kind == 2:
                batch.insert(place, (bytes([CIRCUIT, 0x45]).ljust(length, b"\0"), None))
            else:
                batch.insert(
                    place, (bytes([CIRCUIT, 0x42]) + b"\x00\xff" + bytes(length - 4), None)
                )
        for datagram, frame in batch:
            if frame is not None:
                expected.append(frame)
            elif datagram[0] != CIRCUIT:
                foreign.append(datagram)
            elif datagram[1] == 0x45:
                clear += 1
            elif datagram[2:4] == b"\x00\xff":
                wrong += 1
        step = 65507 // length
        for first in range(0, len(batch), step):
            circuit.remote.sendmsg(
                [datagram for datagram, _ in batch[first : first + step]],
                [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", length))],
                0,
                circuit.address,
            )
            while readable(circuit.attachment.receive_socket):
                circuit.plane.ingress()

    assert queued(circuit.host) == expected
    assert queued(circuit.supervisor) == foreign
    counted = circuit.dropped()
    assert counted.get("clear", 0) == clear
    assert counted.get("bad_tag", 0) == wrong
    assert counted.get("replayed", 0) == repeated


def test_each_changed_bit_and_each_truncation_is_refused(twin: str, stack: ExitStack) -> None:
    keys = Keys()
    circuit = EncryptedCircuit(stack, twin, keys)
    sealed = keys.seal(9, PACKET)
    for bit in range(8, 8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 0x80 >> bit % 8
        circuit.send(bytes(changed))
        assert circuit.ingress() == []
    refused = 8 * len(sealed) - 8
    assert sum(circuit.dropped().values()) == refused
    # Byte 1: seven bits that say what it is, and the phase. Then 32 bits of counter, text and tag.
    assert circuit.dropped() == {"clear": 7, "no_key": 1 + 4, "bad_tag": refused - 7 - 1 - 4}
    for length in range(1, len(sealed)):
        circuit.send(sealed[:length])
        assert circuit.ingress() == []
    assert sum(circuit.dropped().values()) == refused + len(sealed) - 1
    assert circuit.dropped()["short"] == 1 + (22 - 1)
    circuit.send(bytes([CIRCUIT + 1]) + sealed[1:])
    assert circuit.ingress() == []
    assert queued(circuit.supervisor) == [bytes([CIRCUIT + 1]) + sealed[1:]]

    circuit.send(sealed)
    assert circuit.ingress() == [LOCAL + REMOTE + b"\x08\x00" + PACKET]


def test_key_of_another_circuit_direction_or_generation_opens_nothing(
    twin: str, stack: ExitStack
) -> None:
    keys = Keys()
    circuit = EncryptedCircuit(stack, twin, keys)
    (own,) = circuit.egress(ELIDED)
    for datagram in (own, Keys(number=2).seal(1, PACKET), Keys(suite=Suite(2)).seal(1, PACKET)):
        circuit.send(datagram)

    assert circuit.ingress() == []
    assert circuit.dropped() == {"bad_tag": 3}


@pytest.mark.parametrize(
    ("text", "slot"),
    [
        pytest.param(b"\xff" * 13, Slot.RX_SHORT, id="13 bytes of frame"),
        pytest.param(b"\x43" + bytes(40), Slot.RX_RESERVED, id="encrypted twice"),
        pytest.param(b"\x42" + bytes(40), Slot.RX_MALFORMED, id="bundle of nothing"),
        pytest.param(b"\x44" + bytes(40), Slot.RX_MALFORMED, id="piece of nothing"),
        pytest.param(b"\xff" * 1490, Slot.RX_OVERSIZED, id="frame above the limit"),
        pytest.param(b"\x45" + bytes(30), Slot.RX_MALFORMED, id="IPv4 of no length"),
        pytest.param(b"\x41", Slot.RX_SHORT, id="verification without type"),
        pytest.param(b"\x41\x03" + bytes(16), Slot.RX_RESERVED, id="unknown verification"),
    ],
)
def test_what_is_no_frame_inside_is_counted_as_on_a_clear_circuit(
    twin: str, text: bytes, slot: Slot, stack: ExitStack
) -> None:
    keys = Keys()
    circuit = EncryptedCircuit(stack, twin, keys)
    circuit.send(keys.seal(1, text))

    assert circuit.ingress() == []
    assert circuit.counted() == {slot: 1}


CLEAR = [
    pytest.param(bytes([CIRCUIT]) + PACKET, "clear", id="elided"),
    pytest.param(bytes([CIRCUIT]) + broadcast(60), "clear", id="complete"),
    pytest.param(bytes([CIRCUIT, 0x40]) + broadcast(60), "clear", id="escaped"),
    pytest.param(bytes([CIRCUIT]) + ECHO, "clear", id="echo request"),
    pytest.param(bytes([CIRCUIT, 0x41, 2]) + bytes(16), "clear", id="echo reply"),
    pytest.param(bytes([CIRCUIT, 0x44]) + bytes(40), "clear", id="piece"),
    pytest.param(bytes([CIRCUIT]), "short", id="nothing behind the id"),
    pytest.param(b"", "short", id="empty"),
]


@pytest.mark.parametrize("has_key", [True, False])
@pytest.mark.parametrize(("datagram", "reason"), CLEAR)
def test_clear_datagrams_never_come_in(
    twin: str, has_key: bool, datagram: bytes, reason: str, stack: ExitStack
) -> None:
    keys = [Keys()] if has_key else []
    circuit = EncryptedCircuit(stack, twin, *keys)
    circuit.send(datagram)

    assert circuit.ingress() == []
    assert circuit.dropped() == {reason: 1}
    assert queued(circuit.remote) == []
    assert queued(circuit.supervisor) == []


@pytest.mark.parametrize("lacking", ["never", "wiped", "old", "used up", "not told"])
def test_without_a_valid_key_nothing_leaves(engine: str, lacking: str, stack: ExitStack) -> None:
    keys = Keys()
    circuit = EncryptedCircuit(stack, engine, *([] if lacking == "never" else [keys]))
    page = circuit.page
    if lacking == "wiped":
        assert len(circuit.egress(broadcast(60))) == 1
        page.wipe(0)
    elif lacking == "old":
        page.install(0, keys.pair, 1, born_ns=boottime_ns() - 180_000_000_000)
        page.send_with(0)
    elif lacking == "used up":
        page.install(0, keys.pair, 1, limit=1)
        page.send_with(0)
    elif lacking == "not told":
        page.wipe_all()
        page.install(0, keys.pair, 1)
    frames = [ELIDED, *(broadcast(200, mark) for mark in range(70)), broadcast(60)]

    assert circuit.egress(*frames) == []
    assert circuit.dropped() == {"tx_no_key": len(frames)}


def test_echo_request_is_answered_inside_with_its_length(engine: str, stack: ExitStack) -> None:
    keys = Keys()
    circuit = EncryptedCircuit(stack, engine, keys)
    for counter, padding in enumerate((0, 1000), 1):
        circuit.send(keys.seal(counter, ECHO + bytes(padding)))

    assert circuit.ingress() == []
    answers = [keys.open(each) for each in queued(circuit.remote)]
    assert answers == [
        (counter, b"\x41\x02" + ECHO[2:] + bytes(padding))
        for counter, padding in enumerate((0, 1000), 1)
    ]
    assert circuit.counted() == {Slot.RX_VERIFICATIONS: 2}
    # The other thread's counters go on behind these.
    assert [keys.open(each)[0] for each in circuit.egress(ELIDED)] == [3]


def test_echo_request_without_a_key_to_send_with_is_not_answered(
    twin: str, stack: ExitStack
) -> None:
    keys = Keys()
    circuit = EncryptedCircuit(stack, twin)
    circuit.page.install(0, keys.pair, 1)
    circuit.send(keys.seal(1, ECHO))

    assert circuit.ingress() == []
    assert queued(circuit.remote) == []
    assert circuit.counted() == {Slot.RX_NO_KEY: 1}


def test_echo_reply_goes_to_the_supervisor_opened(twin: str, stack: ExitStack) -> None:
    keys = Keys()
    circuit = EncryptedCircuit(stack, twin, keys)
    circuit.send(keys.seal(1, b"\x41\x02" + bytes(16)))

    assert circuit.ingress() == []
    assert queued(circuit.supervisor) == [bytes([CIRCUIT]) + b"\x41\x02" + bytes(16)]


@pytest.mark.parametrize("padding", [0, 1000])
def test_echo_request_of_the_supervisor_is_sealed_and_sent_by_the_worker(
    engine: str, padding: int, stack: ExitStack
) -> None:
    keys = Keys()
    circuit = EncryptedCircuit(stack, engine, keys)
    request = echo_request(CIRCUIT, b"12345678", 1.0, VERIFICATION_HEADER + padding)
    for _ in range(2):
        send_echo(circuit.attachment, circuit.supervisor, request)
    circuit.plane.ingress()

    assert [keys.open(each) for each in queued(circuit.remote)] == [
        (1, request[1:]),
        (2, request[1:]),
    ]
    assert circuit.dropped() == {}
    # The other thread's counters go on behind these.
    assert [keys.open(each)[0] for each in circuit.egress(ELIDED)] == [3]


def test_echo_request_of_the_supervisor_does_not_leave_without_a_key(
    twin: str, stack: ExitStack
) -> None:
    circuit = EncryptedCircuit(stack, twin)
    send_echo(circuit.attachment, circuit.supervisor, echo_request(CIRCUIT, b"12345678", 1.0))
    circuit.plane.ingress()

    assert queued(circuit.remote) == []
    assert circuit.counted() == {Slot.RX_NO_KEY: 1}


def test_what_is_handed_over_to_be_sent_and_too_short_is_dropped(
    twin: str, stack: ExitStack
) -> None:
    circuit = EncryptedCircuit(stack, twin, Keys())
    for length in (1, 4, 5, 6, 5 + VERIFICATION_HEADER - 1):
        circuit.supervisor.send(bytes(length))
    circuit.plane.ingress()

    assert queued(circuit.remote) == []
    assert circuit.counted() == {Slot.RX_SHORT: 5}


def test_keys_change_without_a_lost_frame(twin: str, stack: ExitStack) -> None:
    """Receive first: docs/protocol.md, 3.6. Ten generations, one after the other."""
    generations = [Keys(number % 2, number=number + 1) for number in range(10)]
    circuit = EncryptedCircuit(stack, twin, generations[0])
    assert [generations[0].open(each)[0] for each in circuit.egress(ELIDED)] == [1]
    for before, after in pairwise(generations):
        circuit.page.install(after.phase, after.pair, 1)
        # Both are received, and sent is with the one before.
        circuit.send(before.seal(500, PACKET))
        circuit.send(after.seal(1, PACKET))
        assert len(circuit.ingress()) == 2
        before.open(circuit.egress(ELIDED)[0])
        circuit.page.send_with(after.phase)
        circuit.send(before.seal(501, PACKET))
        assert len(circuit.ingress()) == 1
        assert after.open(circuit.egress(ELIDED)[0])[0] == 1
    assert circuit.dropped() == {}


def test_worker_says_which_keys_it_has_where_no_frame_comes(twin: str, stack: ExitStack) -> None:
    circuit = EncryptedCircuit(stack, twin)
    keys = Keys()
    circuit.page.install(0, keys.pair, 1)
    circuit.page.send_with(0)

    circuit.plane.ingress()
    usage = circuit.page.usage(0)
    assert usage is not None
    assert (usage.receives, usage.sends) == (True, False)
    circuit.plane.egress()
    usage = circuit.page.usage(0)
    assert usage is not None
    assert usage.sends


@pytest.mark.needs_net_admin
@pytest.mark.parametrize("mtu", [1000, 68])
def test_where_the_kernel_refuses_segments_the_same_datagrams_leave_one_by_one(
    engine: str, mtu: int, stack: ExitStack
) -> None:
    """They are sealed once: with no counter that was used for something else."""
    namespace = stack.enter_context(Namespace("narrow"))
    with namespace.entered():
        keys = Keys()
        circuit = EncryptedCircuit(stack, engine, keys)
        namespace.run("ip", "link", "set", "dev", "lo", "mtu", str(mtu))
        frames = [broadcast(1400, mark) for mark in range(10)]
        frames += [broadcast(30, mark) for mark in range(10)]

        received = [keys.open(each) for each in circuit.egress(*frames)]

        assert received == [*enumerate(frames, 1)]
        assert circuit.counters.worker[Slot.TX_ERRORS] == 0
        fragmented = sum(len(frame) + 22 > mtu - 28 for frame in frames)
        assert circuit.counters.worker[Slot.TX_FRAGMENTED] == fragmented


def test_counter_that_goes_back_raises_in_either_direction(twin: str, stack: ExitStack) -> None:
    for direction in ("egress", "ingress"):
        keys = Keys()
        circuit = EncryptedCircuit(stack, twin, keys)
        place = slot_start(0) + SlotWord.NEXT
        circuit.give(*[ELIDED] * 5)
        if direction == "ingress":
            circuit.send(keys.seal(1, ECHO))
            circuit.ingress()
            circuit.send(keys.seal(2, ECHO))
        else:
            circuit.host.send(ELIDED)
        circuit.page.words[place] -= 3

        with pytest.raises(OSError, match="revoked"):
            getattr(circuit.plane, direction)()
        assert len(queued(circuit.remote)) == 5 + (direction == "ingress")
        with suppress(OSError):
            circuit.give(ELIDED)
        assert queued(circuit.remote) == []


def test_data_plane_of_what_is_no_key_page_is_refused(twin: str, stack: ExitStack) -> None:
    fd = os.memfd_create("other")
    stack.callback(os.close, fd)
    os.ftruncate(fd, 4096)

    with pytest.raises(ValueError, match="no key page"):
        Circuit(stack, twin, key_page=fd)


frames_of_any_kind = st.lists(
    st.one_of(
        st.binary(min_size=14, max_size=1489),
        st.binary(min_size=46, max_size=200).map(
            lambda rest: REMOTE + LOCAL + b"\x08\x00\x45\x00" + len(rest).to_bytes(2, "big") + rest
        ),
        st.integers(60, 64).map(lambda size: broadcast(size)),
    ),
    max_size=20,
)
disorder = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 300), st.integers(0, 7)), max_size=30
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    suite=st.sampled_from(list(Suite)),
    phase=st.integers(0, 1),
    frames=frames_of_any_kind,
    disorder=disorder,
)
def test_twins_make_the_same_bytes_and_counters(
    suite: Suite,
    phase: int,
    frames: list[bytes],
    disorder: list[tuple[int, int, int]],
) -> None:
    keys = Keys(phase, suite)
    sent, given_to_tap, counted = [], [], []
    for name in ("python", "native"):
        with ExitStack() as stack:
            circuit = EncryptedCircuit(stack, name, keys)
            sent.append(circuit.egress(*frames))
            arriving = [
                keys.seal(counter, as_text(frame)) for counter, frame in enumerate(frames, 1)
            ]
            for index, byte, change in disorder:
                if arriving:
                    changed = bytearray(arriving[index % len(arriving)])
                    changed[byte % len(changed)] ^= change
                    arriving.insert(index % len(arriving), bytes(changed))
            for datagram in arriving:
                circuit.send(datagram)
            given_to_tap.append(circuit.ingress())
            counted.append(circuit.counted())
    assert sent[0] == sent[1]
    assert given_to_tap[0] == given_to_tap[1]
    assert counted[0] == counted[1]
    assert len(sent[0]) == len(frames)
