"""vela.worker: a real worker, forked as velad does it, between a pair for the TAP and real UDP."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
import structlog
from forked_worker import TIMEOUT_S, Circuit, engine_of, frame

from lab.waiting import eventually
from vela import worker
from vela.dataplane.contract import Attachment
from vela.dataplane.counters import Slot
from vela.dataplane.engine import Engine
from vela.linux.features import ALL_FEATURES, Features
from vela.log import configure
from vela.supervisor.circuit.keeper import HANG_AFTER_CHECKS, WorkerKeeper
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


def stop(pid: int) -> None:
    """Stop a process, and wait until each of its threads has."""
    os.kill(pid, signal.SIGSTOP)
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    eventually(
        lambda: all("\nState:\tT" in (thread / "status").read_text() for thread in threads),
        TIMEOUT_S,
        f"process {pid} to stop",
    )


class CircuitStore:
    """A keeper on a loop that the test turns."""

    def __init__(self, circuit: Circuit) -> None:
        self.loop = EventLoop()
        self.circuit = circuit
        self.failures: list[str] = []
        self.keeper = WorkerKeeper(
            "vela0",
            self.loop,
            circuit.counters,
            pytest.fail,
            self._on_failure_changed,
            lambda: None,
        )
        self.keeper.start(circuit.task)

    def _on_failure_changed(self) -> None:
        self.failures.append(self.keeper.failure)
        self.loop.stop()

    @property
    def pid(self) -> int:
        assert self.keeper.pid is not None
        return self.keeper.pid

    def turn_until_failure_changes(self) -> str:
        """Return the failure; empty: it is over."""
        before = len(self.failures)
        expired = self.loop.call_later(TIMEOUT_S, self.loop.stop)
        self.loop.run()
        expired.cancel()
        assert len(self.failures) == before + 1, "no change"
        return self.failures[-1]

    def turn_until_replaced(self, pid: int) -> None:
        expired = self.loop.call_later(TIMEOUT_S, self.loop.stop)

        def look() -> None:
            if self.keeper.pid not in (None, pid):
                self.loop.stop()
            else:
                self.loop.call_later(0.01, look)

        look()
        self.loop.run()
        expired.cancel()
        assert self.keeper.pid not in (None, pid), "no successor"


@pytest.fixture
def kept(circuit: Circuit) -> Iterator[CircuitStore]:
    made = CircuitStore(circuit)
    yield made
    made.keeper.stop()
    made.loop.close()


def test_keeper_replaces_a_killed_worker_and_what_waited_is_carried(kept: CircuitStore) -> None:
    kept.circuit.exchange(1)
    killed = kept.pid
    stop(killed)
    for mark in range(20):
        kept.circuit.host.send(frame(mark))
    os.kill(killed, signal.SIGKILL)

    kept.turn_until_replaced(killed)

    assert [kept.circuit.remote.recv(2048) for _ in range(20)] == [
        b"\x07" + frame(mark) for mark in range(20)
    ]
    kept.circuit.exchange(5)
    assert kept.keeper.restarts == 1


def test_keeper_stopped_leaves_no_worker_and_starts_none(kept: CircuitStore) -> None:
    worker_fd = os.pidfd_open(kept.pid)
    kept.keeper.stop()

    assert kept.keeper.pid is None
    assert select.select([worker_fd], [], [], 0)[0]
    os.close(worker_fd)
    kept.loop.call_later(0.1, kept.loop.stop)
    kept.loop.run()
    assert kept.keeper.pid is None
    assert kept.keeper.restarts == 0


@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_keeper_replaces_a_worker_that_hangs_while_frames_wait(
    kept: CircuitStore, direction: str
) -> None:
    kept.circuit.exchange(1)
    hung = kept.pid
    stop(hung)
    if direction == "egress":
        kept.circuit.host.send(frame(1))
    else:
        kept.circuit.remote.sendto(b"\x07" + frame(1), kept.circuit.receiving.getsockname())
    alive = os.pidfd_open(hung)

    # The first look sees the progress made so far.
    for _ in range(HANG_AFTER_CHECKS):
        kept.keeper.check()
        assert not select.select([alive], [], [], 0)[0]
    kept.keeper.check()

    kept.turn_until_replaced(hung)
    os.close(alive)
    if direction == "egress":
        assert kept.circuit.remote.recv(2048) == b"\x07" + frame(1)
    else:
        assert kept.circuit.host.recv(2048) == frame(1)


def test_keeper_leaves_a_worker_alone_that_has_nothing_to_do(kept: CircuitStore) -> None:
    kept.circuit.exchange(1)
    idle = kept.pid
    stop(idle)
    for _ in range(3 * HANG_AFTER_CHECKS):
        kept.keeper.check()
    os.kill(idle, signal.SIGCONT)

    kept.circuit.exchange(1)
    assert kept.pid == idle


def test_keeper_reports_the_failure_and_that_a_worker_proved_to_live(kept: CircuitStore) -> None:
    for _ in range(2):
        killed = kept.pid
        os.kill(killed, signal.SIGKILL)
        kept.turn_until_replaced(killed)
    assert kept.failures == []
    os.kill(kept.pid, signal.SIGKILL)

    assert kept.turn_until_failure_changes() == "worker: killed by SIGKILL"
    assert kept.keeper.pid is None
    failed_at = kept.loop.now()
    assert kept.turn_until_failure_changes() == ""
    # The first delay is at least 0.4 s, and the proof takes 1 s.
    assert kept.loop.now() - failed_at >= 1.4
    kept.circuit.exchange(5)

    # The next death, so soon, fails it again.
    os.kill(kept.pid, signal.SIGTERM)
    assert kept.turn_until_failure_changes() == "worker: killed by SIGTERM"
    assert kept.keeper.restarts == 4


def test_keeper_reports_what_the_last_worker_said(kept: CircuitStore) -> None:
    def fail(_: Attachment) -> NoReturn:
        raise OSError(12, os.strerror(12))

    broken = replace(kept.circuit.task, engine=engine_of("broken", fail))
    kept.keeper.start(broken)

    assert kept.turn_until_failure_changes() == "worker: start: Cannot allocate memory"
    # A new task does not end the failure, a worker that lives does.
    kept.keeper.start(kept.circuit.task)
    assert kept.keeper.failure == "worker: start: Cannot allocate memory"
    assert kept.turn_until_failure_changes() == ""


def test_keeper_reports_the_exit_status_of_a_worker_that_said_nothing(kept: CircuitStore) -> None:
    def leave(_: Attachment) -> NoReturn:
        os._exit(3)

    silent = replace(kept.circuit.task, engine=engine_of("silent", leave))
    kept.keeper.start(silent)

    assert kept.turn_until_failure_changes() == "worker: exit status 3"


def test_keeper_reports_that_no_process_could_be_started(kept: CircuitStore) -> None:
    kept.keeper.stop()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        kept.keeper.start(kept.circuit.task)
        assert kept.turn_until_failure_changes() == "worker: start: Too many open files"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert kept.turn_until_failure_changes() == ""


def test_keeper_reports_workers_that_hang(kept: CircuitStore) -> None:
    kept.circuit.exchange(1)
    for _ in range(2):
        hung = kept.pid
        hang(kept)
        kept.turn_until_replaced(hung)
    hang(kept)

    assert kept.turn_until_failure_changes() == "worker: egress: hung"


def hang(kept: CircuitStore) -> None:
    """Let the worker hang until that is noticed."""
    stop(kept.pid)
    kept.circuit.host.send(frame(1))
    for _ in range(1 + HANG_AFTER_CHECKS):
        kept.keeper.check()
