"""Early loss where the TAP's queue stands: by itself, and through each engine.

RFC 8289. What a queue is here: frames in the pair that stands for the TAP, of which a batch leaves
some behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

import pytest
from attached_plane import CIRCUIT, LOCAL, PLANES, REMOTE, Circuit, broadcast, queued
from packets import UDP, Packet, ethertype, virtio_header, word_sum

from vela.dataplane.backlog import INTERVAL_MS, LEAST_FRAME, MEMORY_MS, PAUSE_MS, Backlog
from vela.dataplane.counters import Slot

BATCH = 64
LASTING_S = INTERVAL_MS / 1000 + 0.01
ECT0, CE = 2, 3
CS5, CS6 = 40 << 2, 48 << 2


@pytest.fixture(params=PLANES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def losses(backlog: Backlog, first_ms: int, last_ms: int) -> list[int]:
    """Return when a frame is lost of those that are read each millisecond."""
    return [now for now in range(first_ms, last_ms + 1) if backlog.is_due(now)]


def test_queue_that_lasts_loses_a_frame_each_interval_and_then_more_often() -> None:
    # From the first frame: 100 ms; then 100/sqrt(1), 100/sqrt(2), 100/sqrt(3), 100/sqrt(4).
    assert losses(Backlog(), 1000, 1430) == [1100, 1200, 1270, 1327, 1377, 1421]


def test_queue_that_runs_empty_within_the_interval_loses_nothing() -> None:
    backlog = Backlog()

    for start in range(0, 10_000, INTERVAL_MS):
        assert losses(backlog, start, start + INTERVAL_MS - 1) == []
        backlog.ran_empty()


def test_queue_that_ran_empty_is_another_one() -> None:
    backlog = Backlog()
    assert losses(backlog, 0, 100) == [100]

    backlog.ran_empty()

    assert losses(backlog, 101, 201) == [201]


def test_losses_follow_each_other_no_faster_than_the_shortest_pause() -> None:
    lost = losses(Backlog(), 0, 20_000)

    pauses = [after - before for before, after in pairwise(lost)]
    assert pauses == sorted(pauses, reverse=True)
    # 100 / sqrt(625).
    assert pauses[630:] == [PAUSE_MS] * len(pauses[630:])
    assert len(pauses) > 1000


def test_queue_that_soon_stands_again_begins_with_its_rate_of_losses() -> None:
    backlog = Backlog()
    assert len(losses(backlog, 0, 999)) == 28

    backlog.ran_empty()
    again = losses(backlog, 1000, 1150)

    # 100/sqrt(27) and so on.
    assert again == [1100, 1119, 1137]


def test_queue_that_stands_again_late_begins_anew() -> None:
    backlog = Backlog()
    losses(backlog, 0, 999)

    backlog.ran_empty()
    start = 2000 + MEMORY_MS

    assert losses(backlog, start, start + 250) == [start + 100, start + 200]


def ip_frame(size: int, mark: int = 0, tos: int = 0, link: bytes = b"\xff" * 6 + LOCAL) -> bytes:
    """An IPv4 frame of size bytes."""
    packet = Packet(
        protocol=UDP,
        identification=mark,
        traffic_class=tos,
        payload=bytes(size - 14 - 20 - 8),
    )
    return link + ethertype(4) + packet.finished()


def marks(datagrams: list[bytes]) -> list[int]:
    """Return which frames these are, by the identification of their packets."""
    return [int.from_bytes(datagram[1 + 14 + 4 :][:2], "big") for datagram in datagrams]


def standing(circuit: Circuit, frames: list[bytes]) -> list[bytes]:
    """Return what becomes of frames that are read when others have stood before them for long."""
    for _ in range(BATCH):
        circuit.host.send(ip_frame(LEAST_FRAME))
    for frame in frames:
        circuit.host.send(frame)
    circuit.plane.egress()
    before = queued(circuit.remote)
    assert len(before) == BATCH
    assert circuit.counters.worker[Slot.TX_BACKLOG] == 0
    time.sleep(LASTING_S)  # it is time that it is about
    circuit.plane.egress()
    return queued(circuit.remote)


def test_frame_of_a_queue_that_stands_is_lost_and_those_behind_it_are_not(
    engine: str, stack: ExitStack
) -> None:
    circuit = Circuit(stack, engine)

    sent = standing(circuit, [ip_frame(LEAST_FRAME, mark) for mark in range(1, 6)])

    assert marks(sent) == [2, 3, 4, 5]
    assert circuit.counters.worker[Slot.TX_BACKLOG] == 1
    assert circuit.counters.worker[Slot.TX_FRAMES] == BATCH + 4
    assert circuit.counters.worker[Slot.TX_BYTES] == (BATCH + 4) * LEAST_FRAME


def test_frame_that_knows_ecn_is_marked_instead(engine: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, engine)

    sent = standing(circuit, [ip_frame(LEAST_FRAME, mark, ECT0) for mark in range(1, 4)])

    packets = [datagram[1 + 14 :] for datagram in sent]
    assert marks(sent) == [1, 2, 3]
    assert [packet[1] for packet in packets] == [CE, ECT0, ECT0]
    assert all(word_sum(packet[:20]) == 0xFFFF for packet in packets)
    assert Slot.TX_BACKLOG not in circuit.counted()
    assert circuit.counters.worker[Slot.TX_MARKED] == 1


@pytest.mark.parametrize(
    "spared",
    [
        pytest.param(ip_frame(LEAST_FRAME - 1, 1), id="short"),
        pytest.param(broadcast(LEAST_FRAME), id="not ip"),
        pytest.param(ip_frame(LEAST_FRAME, 1, CS6), id="routing protocol"),
    ],
)
def test_frame_that_is_not_what_the_queue_is_made_of_is_spared(
    engine: str, stack: ExitStack, spared: bytes
) -> None:
    circuit = Circuit(stack, engine)

    sent = standing(circuit, [spared, ip_frame(LEAST_FRAME, 2, CS5)])

    assert sent == [bytes([CIRCUIT]) + spared]
    assert circuit.counters.worker[Slot.TX_BACKLOG] == 1


def test_queue_that_ran_empty_in_between_loses_nothing(engine: str, stack: ExitStack) -> None:
    circuit = Circuit(stack, engine)
    circuit.egress(*[ip_frame(LEAST_FRAME)] * 3)

    time.sleep(LASTING_S)
    sent = circuit.egress(*[ip_frame(LEAST_FRAME, mark) for mark in range(3)])

    assert marks(sent) == [0, 1, 2]


@pytest.mark.parametrize("name", ["python", "native"])
def test_frame_after_a_full_batch_and_a_pause_is_not_lost(name: str, stack: ExitStack) -> None:
    """A batch that ends with the last frame there is has not seen that it was the last."""
    circuit = Circuit(stack, name)
    circuit.tap.setblocking(True)
    stop = bytearray(1)
    worker = threading.Thread(
        target=circuit.plane.egress_until, args=(memoryview(stop), memoryview(bytearray(2)))
    )
    for mark in range(BATCH):
        circuit.host.send(ip_frame(LEAST_FRAME, mark))
    worker.start()
    try:
        assert [circuit.remote.recv(2000) for _ in range(BATCH)]
        time.sleep(LASTING_S)
        circuit.host.send(ip_frame(LEAST_FRAME, 100))
        assert marks([circuit.remote.recv(2000)]) == [100]
    finally:
        stop[0] = 1
        circuit.host.send(ip_frame(LEAST_FRAME, 101))
        worker.join()


def test_of_a_frame_to_be_cut_one_segment_is_lost(stack: ExitStack) -> None:
    circuit = Circuit(stack, "native", virtio_header=True)
    packet = Packet(payload=b"".join(bytes([number]) * 400 for number in range(5)))
    link = REMOTE + LOCAL + ethertype(4)
    single = Packet(protocol=UDP, payload=bytes(LEAST_FRAME))
    for _ in range(BATCH):
        circuit.host.send(virtio_header(single, 14) + link + single.unfinished())
    for _ in range(2):
        circuit.host.send(virtio_header(packet, 14, 400) + link + packet.unfinished())
    circuit.plane.egress()
    assert len(queued(circuit.remote)) == BATCH

    time.sleep(LASTING_S)
    circuit.plane.egress()

    contents = [datagram[-400:][0] for datagram in queued(circuit.remote)]
    assert contents == [1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert circuit.counters.worker[Slot.TX_BACKLOG] == 1
    assert circuit.counters.worker[Slot.TX_FRAMES] == BATCH + 9
