"""poll_until() of both engines: one thread for both directions, which sleeps if no frame comes."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from attached_plane import CIRCUIT, Circuit, broadcast, on_wire
from frame_keys import Keys

from lab.process import thread_sleeps
from lab.waiting import eventually
from vela.dataplane.contract import POLL_WINDOW_S
from vela.dataplane.counters import Slot
from vela.dataplane.echo import echo_request, send_echo
from vela.dataplane.key_page import KeyPage, create

TIMEOUT_S = 5.0
# A thread that polls turns at least so often in a tenth of a window, also on a busy machine.
MANY_TURNS = 10

pytestmark = pytest.mark.parametrize(
    "engine", ["python", "native", "python without rwf_nowait", "native without rwf_nowait"]
)


class Polled(Circuit):
    """A circuit whose frames a thread of the test carries."""

    @contextmanager
    def carried(self) -> Iterator[None]:
        stop = bytearray(1)
        worker = threading.Thread(
            target=self.plane.poll_until, args=(memoryview(stop), memoryview(bytearray(2)))
        )
        worker.start()
        assert worker.native_id is not None
        self._thread = worker.native_id
        try:
            yield
        finally:
            stop[0] = 1
            self.send(on_wire(broadcast(60)))
            worker.join(TIMEOUT_S)
            assert not worker.is_alive()

    @property
    def turns(self) -> int:
        return self.counters.worker[Slot.INGRESS_PROGRESS]

    def sleeps(self) -> bool:
        """No turn alone may be for want of a CPU, and a thread at rest for want of the lock of
        Python."""
        before = self.turns
        time.sleep(POLL_WINDOW_S / 10)
        return self.turns == before and thread_sleeps(os.getpid(), self._thread)

    def await_sleep(self) -> None:
        eventually(self.sleeps, TIMEOUT_S, "the thread to sleep")


def polled(stack: ExitStack, engine: str, **changes: object) -> Polled:
    circuit = Polled(stack, engine, low_latency=True, **changes)
    # As velad's are.
    for each in (circuit.attachment.receive_socket, circuit.attachment.send_socket):
        each.setblocking(True)
    return circuit


def without_room(stack: ExitStack, engine: str, **changes: object) -> tuple[Polled, socket.socket]:
    """Return a circuit that sends where little fits until it is read, and what is read there."""
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for each in (sending, receiving):
        stack.enter_context(each)
        each.settimeout(TIMEOUT_S)
    sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    return polled(stack, engine, send_socket=sending, **changes), receiving


def test_frames_cross_both_ways_in_order(engine: str, stack: ExitStack) -> None:
    circuit = polled(stack, engine)
    with circuit.carried():
        for mark in range(200):
            circuit.host.send(broadcast(60, mark))
            circuit.send(on_wire(broadcast(60, mark)))
        for mark in range(200):
            assert circuit.remote.recv(2048) == on_wire(broadcast(60, mark))
            assert circuit.host.recv(2048) == broadcast(60, mark)


@pytest.mark.parametrize("outgoing", [True, False])
def test_thread_polls_behind_a_frame_and_sleeps_when_none_follows(
    engine: str, outgoing: bool, stack: ExitStack
) -> None:
    circuit = polled(stack, engine)
    with circuit.carried():
        circuit.await_sleep()
        before, began = circuit.turns, time.monotonic()
        if outgoing:
            circuit.host.send(broadcast(60))
            assert circuit.remote.recv(2048)
        else:
            circuit.send(on_wire(broadcast(60)))
            assert circuit.host.recv(2048)
        eventually(lambda: circuit.turns - before > MANY_TURNS, TIMEOUT_S, "the thread to poll")
        circuit.await_sleep()
        assert time.monotonic() - began >= POLL_WINDOW_S


def test_echo_request_is_answered_and_wakes_nobody_for_long(engine: str, stack: ExitStack) -> None:
    circuit = polled(stack, engine)
    request = bytes([CIRCUIT, 0x41, 1]) + bytes(16)
    with circuit.carried():
        circuit.await_sleep()
        before = circuit.turns
        circuit.send(request)
        assert circuit.remote.recv(2048)
        circuit.await_sleep()
        assert circuit.turns - before <= 3


def test_frames_come_in_while_none_can_be_sent(engine: str, stack: ExitStack) -> None:
    circuit, receiving = without_room(stack, engine)
    taken, given = circuit.counters.worker, 0
    with circuit.carried():
        while taken[Slot.TX_FRAMES] == given:
            circuit.host.send(broadcast(1400, given))
            given += 1
            while taken[Slot.TX_FRAMES] < given and not circuit.sleeps():
                pass
        for mark in range(20):
            circuit.send(on_wire(broadcast(60, mark)))
            assert circuit.host.recv(2048) == broadcast(60, mark)
        # It waits for room, although there is a frame.
        circuit.await_sleep()
        for mark in range(given):
            assert receiving.recv(2048) == on_wire(broadcast(1400, mark))


def test_batch_of_large_frames_ends_before_it_has_to_wait(engine: str, stack: ExitStack) -> None:
    circuit, receiving = without_room(stack, engine, frame_limit=50_000, datagram_limit=60_000)
    large = [broadcast(40_000, mark) for mark in range(6)]
    for frame in large:
        circuit.host.send(frame)
    with circuit.carried():
        taken = circuit.counters.worker
        eventually(lambda: taken[Slot.TX_FRAMES], TIMEOUT_S, "the first batch")
        circuit.send(on_wire(broadcast(60)))
        assert circuit.host.recv(2048) == broadcast(60)
        for frame in large:
            assert receiving.recv(65536) == on_wire(frame)


def test_encrypted_circuit_opens_and_seals_and_looks_after_keys_while_it_sleeps(
    engine: str, stack: ExitStack
) -> None:
    fd = create()
    stack.callback(os.close, fd)
    page = stack.enter_context(KeyPage(fd))
    keys, frame = Keys(), broadcast(60)
    circuit = polled(stack, engine, key_page=fd)
    with circuit.carried():
        circuit.await_sleep()
        page.install(keys.phase, keys.pair, 1)
        page.send_with(keys.phase)
        eventually(
            lambda: (usage := page.usage(keys.phase)) is not None and usage.receives,
            TIMEOUT_S,
            "the key to be taken up",
        )
        circuit.send(keys.seal(1, frame))
        assert circuit.host.recv(2048) == frame
        circuit.host.send(frame)
        assert keys.open(circuit.remote.recv(2048))[1] == frame
        circuit.await_sleep()
        # It is woken for these: else they would wait for several looks at keys.
        before = circuit.turns
        request = echo_request(CIRCUIT, b"12345678", 1.0)
        for _ in range(4):
            send_echo(circuit.attachment, circuit.supervisor, request)
            assert keys.open(circuit.remote.recv(2048))[1] == request[1:]
        assert circuit.turns - before <= 8
