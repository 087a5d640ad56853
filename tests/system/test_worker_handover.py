"""A worker that makes way for another one, and the keeper that replaces it: no frame is lost."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
import structlog
from forked_worker import TIMEOUT_S, Circuit, frame, stop

from lab.process import await_single_thread, sleeps
from lab.waiting import eventually
from vela import worker
from vela.dataplane.counters import Slot
from vela.dataplane.engine import Engine
from vela.dataplane.handover import WAKE
from vela.linux.features import ALL_FEATURES
from vela.log import configure
from vela.supervisor.circuit.keeper import WorkerKeeper
from vela.supervisor.runtime.loop import EventLoop
from vela.supervisor.runtime.process import fork

pytestmark = [
    pytest.mark.forks,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    """As velad's: a worker may write to its standard error only."""
    configure("info", "console")
    yield
    structlog.reset_defaults()


@pytest.fixture(params=[Engine.PYTHON, Engine.NATIVE], ids=lambda engine: engine.value)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


@pytest.fixture(params=[False, True], ids=["normal", "low latency"])
def circuit(stack: ExitStack, engine: Engine, request: pytest.FixtureRequest) -> Circuit:
    return Circuit(stack, engine, ALL_FEATURES, low_latency=request.param)


def give(circuit: Circuit, mark: int) -> None:
    """Send a frame in each direction."""
    circuit.host.send(frame(mark))
    circuit.remote.sendto(b"\x07" + frame(mark), circuit.receiving.getsockname())


def test_worker_that_is_asked_ends_its_batch_and_leaves_the_rest_to_its_successor(
    circuit: Circuit,
) -> None:
    first = fork(worker.prepare(circuit.task), circuit.task.descriptors)
    try:
        circuit.exchange(1)
        eventually(lambda: sleeps(first.pid), TIMEOUT_S, "the worker to wait for frames")
        circuit.task.handover.ask()

        def is_done() -> bool:
            first.signal(WAKE)
            return circuit.task.handover.done

        eventually(is_done, TIMEOUT_S, "the worker to stop")
        for mark in range(20):
            give(circuit, mark)
        assert first.pid in {int(name) for name in os.listdir("/proc") if name.isdecimal()}
    finally:
        first.signal(signal.SIGKILL)
        first.reap()

    circuit.task.handover.clear()
    successor = fork(worker.prepare(circuit.task), circuit.task.descriptors)
    try:
        for mark in range(20):
            assert circuit.remote.recv(2048) == b"\x07" + frame(mark)
            assert circuit.host.recv(2048) == frame(mark)
    finally:
        successor.signal(signal.SIGKILL)
        successor.reap()


def test_native_engine_does_not_need_the_interpreter_between_batches(stack: ExitStack) -> None:
    circuit = Circuit(stack, Engine.NATIVE, ALL_FEATURES)
    frames = 100
    for mark in range(frames):
        circuit.remote.sendto(b"\x07" + frame(mark), circuit.receiving.getsockname())
    plane = circuit.task.engine.make(circuit.task.attachment)
    counters, stop = circuit.counters.worker, memoryview(bytearray(1))
    started, ended = _thread.allocate_lock(), _thread.allocate_lock()
    started.acquire()
    ended.acquire()

    def forward() -> None:
        started.release()
        plane.ingress_until(stop, memoryview(bytearray(2)))
        ended.release()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(10 * TIMEOUT_S)
    try:
        _thread.start_new_thread(forward, ())
        started.acquire()
        # The interpreter stays here: nothing below gives it away.
        deadline = time.monotonic() + TIMEOUT_S
        while counters[Slot.RX_FRAMES] < frames and time.monotonic() < deadline:
            pass
        assert counters[Slot.RX_FRAMES] == frames
        assert counters[Slot.INGRESS_PROGRESS] > 1
    finally:
        sys.setswitchinterval(interval)
        stop[0] = 1
        circuit.remote.sendto(b"\x07" + frame(0), circuit.receiving.getsockname())
        ended.acquire(timeout=TIMEOUT_S)
        await_single_thread(TIMEOUT_S)


class Kept:
    """A keeper with a worker, and its loop."""

    def __init__(self, circuit: Circuit) -> None:
        self.loop = EventLoop()
        self.circuit = circuit
        self.keeper = WorkerKeeper(
            "vela0", self.loop, circuit.counters, self.nothing, self.nothing, self.nothing
        )
        self.keeper.start(circuit.task)

    def nothing(self) -> None:
        pass

    def turn_until_replaced(self, pid: int | None) -> None:
        def look() -> None:
            if self.keeper.pid != pid:
                self.loop.stop()
            else:
                self.loop.call_later(0.001, look)

        self.loop.call_soon(look)
        expired = self.loop.call_later(TIMEOUT_S, self.loop.stop)
        self.loop.run()
        expired.cancel()
        assert self.keeper.pid != pid


@pytest.fixture
def kept(circuit: Circuit) -> Iterator[Kept]:
    made = Kept(circuit)
    yield made
    made.keeper.stop()
    made.loop.close()


def test_worker_without_frames_is_replaced_at_once(kept: Kept) -> None:
    before = kept.keeper.pid
    assert before is not None
    kept.circuit.exchange(1)
    eventually(lambda: sleeps(before), TIMEOUT_S, "the worker to wait for frames")

    kept.keeper.replace(replace(kept.circuit.task, circuit="vela0"))
    kept.turn_until_replaced(before)

    kept.circuit.exchange(10)
    assert kept.keeper.restarts == 0


def test_worker_under_load_is_replaced_and_no_frame_is_lost(kept: Kept) -> None:
    def send(marks: range) -> None:
        for mark in marks:
            give(kept.circuit, mark)

    for start in range(0, 1000, 50):
        before = kept.keeper.pid
        send(range(start, start + 45))
        kept.keeper.replace(kept.circuit.task)
        # As many as fit the pair that stands for the TAP while nobody reads it.
        send(range(start + 45, start + 50))
        kept.turn_until_replaced(before)
        for mark in range(start, start + 50):
            assert kept.circuit.remote.recv(2048) == b"\x07" + frame(mark)
            assert kept.circuit.host.recv(2048) == frame(mark)


def test_worker_that_dies_before_it_makes_way_is_followed_by_one_with_the_new_task(
    kept: Kept,
) -> None:
    before = kept.keeper.pid
    assert before is not None
    kept.circuit.exchange(1)
    stop(before)
    # As one that is stopped with a frame in hand.
    kept.keeper.handover.clear()
    kept.keeper.replace(kept.circuit.task)
    kept.keeper.kill()
    kept.turn_until_replaced(before)

    kept.circuit.exchange(10)
    assert kept.keeper.restarts == 1
