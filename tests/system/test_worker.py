"""vela.worker: a real worker, forked as velad does it, between a pair for the TAP and real UDP."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import structlog
from forked_worker import TIMEOUT_S, Circuit, engine_of

from lab.waiting import eventually
from vela import worker
from vela.dataplane.contract import Attachment
from vela.dataplane.counters import Slot
from vela.dataplane.engine import Engine
from vela.linux.features import ALL_FEATURES, Features
from vela.log import configure
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


@pytest.fixture(params=[ALL_FEATURES, frozenset()], ids=["with all features", "without any"])
def features(request: pytest.FixtureRequest) -> Features:
    chosen: Features = request.param
    return chosen


@pytest.fixture(params=[Engine.PYTHON, Engine.NATIVE], ids=lambda engine: engine.value)
def circuit(stack: ExitStack, features: Features, request: pytest.FixtureRequest) -> Circuit:
    return Circuit(stack, request.param, features)


def test_worker_carries_both_ways_confined_pinned_and_with_nothing_else(circuit: Circuit) -> None:
    child = fork(worker.prepare(circuit.task), circuit.task.descriptors)
    try:
        circuit.exchange(50)
        # A batch is counted behind its sending.
        totals = circuit.counters.total
        eventually(
            lambda: (totals(Slot.TX_FRAMES), totals(Slot.RX_FRAMES)) == (50, 50),
            TIMEOUT_S,
            "50 frames to be counted each way",
        )

        text = Path(f"/proc/{child.pid}/status").read_text()
        status = dict(line.split(":", 1) for line in text.splitlines())
        nobody = str(circuit.task.user.uid)
        assert status["Uid"].split() == [nobody] * 4
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Threads"].strip() == "2"
        threads = [int(name) for name in os.listdir(f"/proc/{child.pid}/task")]
        # As velad's: SCHED_BATCH waits for the turn of every other program on a busy host.
        assert [os.sched_getscheduler(each) for each in threads] == [os.sched_getscheduler(0)] * 2
        assert status["Cpus_allowed_list"].strip() == str(circuit.cpu)
        opened = {int(name) for name in os.listdir(f"/proc/{child.pid}/fd")}
        assert opened == {0, 1, 2, *circuit.task.descriptors}
    finally:
        child.signal(signal.SIGTERM)
        ended = child.reap()

    assert ended.signal == signal.SIGTERM


def test_worker_sleeps_until_there_is_a_frame(circuit: Circuit) -> None:
    child = fork(worker.prepare(circuit.task), circuit.task.descriptors)
    try:
        circuit.exchange(50)
        for _ in range(20):
            circuit.exchange(1)
    finally:
        child.signal(signal.SIGTERM)
        child.reap()

    # Once more for each time that it waited: it polls where a read found nothing.
    assert all(progress <= 2 * (70 + 1) for progress in circuit.counters.progress())


def test_worker_interrupts_others_until_it_is_ready_as_frames_wait_for_it(
    circuit: Circuit,
) -> None:
    def tell_policy(_: Attachment) -> NoReturn:
        os._exit(os.sched_getscheduler(0))

    task = replace(circuit.task, engine=engine_of("probe", tell_policy))
    child = fork(worker.prepare(task), task.descriptors)

    assert child.reap().code == os.SCHED_OTHER


def test_worker_whose_loop_breaks_ends_with_a_status_of_its_own(circuit: Circuit) -> None:
    """In either thread; a broken direction must not leave half a circuit."""
    circuit.tap.shutdown(socket.SHUT_RDWR)  # reads end at once with nothing, which is no error
    child = fork(worker.prepare(circuit.task), circuit.task.descriptors[1:])

    assert child.reap().code == 70
    assert circuit.task.exit_message.read() == "egress: Bad file descriptor"


def test_worker_whose_other_loop_breaks_says_so(circuit: Circuit) -> None:
    kept = set(circuit.task.descriptors) - {circuit.receiving.fileno()}
    child = fork(worker.prepare(circuit.task), kept)

    assert child.reap().code == 70
    assert circuit.task.exit_message.read() == "ingress: Bad file descriptor"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "start: MemoryError"),
        (OSError(12, os.strerror(12)), "start: Cannot allocate memory"),
        (SystemExit(3), "start: SystemExit: 3"),
    ],
)
def test_worker_that_cannot_start_says_so(
    circuit: Circuit, error: BaseException, said: str
) -> None:
    def fail(_: Attachment) -> NoReturn:
        raise error

    task = replace(circuit.task, engine=engine_of("broken", fail))
    child = fork(worker.prepare(task), task.descriptors)

    assert child.reap().code == 70
    assert task.exit_message.read() == said
