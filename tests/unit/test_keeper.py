"""vela.supervisor.circuit.keeper: real workers, between a pair for the TAP and real UDP."""

from __future__ import annotations

import os
import resource
import select
import selectors
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import NoReturn

import pytest
import structlog
from forked_worker import TIMEOUT_S, Circuit, engine_of, frame, stop
from simulation import SimulatedClock
from structlog.testing import capture_logs

from lab.process import sleeps
from lab.waiting import eventually
from vela.dataplane.contract import Attachment
from vela.dataplane.counters import Slot
from vela.dataplane.engine import Engine
from vela.dataplane.handover import Direction
from vela.linux.features import ALL_FEATURES
from vela.log import configure
from vela.supervisor.circuit.keeper import (
    HANDOVER_LOOK_S,
    HANG_AFTER_CHECKS,
    LONGEST_HANDOVER_S,
    WorkerKeeper,
)
from vela.supervisor.circuit.restart import FIRST_DELAY_S, JITTER, PROOF_S
from vela.supervisor.runtime.loop import Callback, EventLoop, Ready
from vela.worker import EXIT_INTERFACE_LOST, WorkerTask

pytestmark = pytest.mark.forks

# A worker takes a frame within a hundredth of that.
TAKING_MS = 50

ENGINES = [
    pytest.param((engine, features), id=f"{engine.value} with {name}")
    for engine in (Engine.PYTHON, Engine.NATIVE)
    for name, features in (("all features", ALL_FEATURES), ("no features", frozenset()))
]
each_engine = pytest.mark.parametrize("circuit", ENGINES, indirect=True)


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    """As velad's: a worker may write to its standard error only."""
    configure("info", "console")
    yield
    structlog.reset_defaults()


@pytest.fixture
def circuit(stack: ExitStack, request: pytest.FixtureRequest) -> Circuit:
    engine, features = getattr(request, "param", (Engine.PYTHON, ALL_FEATURES))
    return Circuit(stack, engine, features)


class HeldClock(SimulatedClock):
    """Stands until the test lets time pass. Descriptors are looked at without waiting."""

    def wait(self, selector: selectors.BaseSelector, timeout_s: float | None) -> Ready:
        return selector.select(0)


def has_child() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


class Kept:
    """A keeper, on a loop that the test turns."""

    def __init__(self, circuit: Circuit) -> None:
        self.clock = HeldClock()
        self.loop = EventLoop(self.clock)
        self.circuit = circuit
        self.failures: list[str] = []
        """Each failure that was reported; empty: the end of one."""
        self.lost = self.restored = 0
        """How often the interface was reported lost, and descriptors were restored."""
        self.keeper = WorkerKeeper(
            "vela0",
            self.loop,
            circuit.counters,
            self._on_interface_lost,
            self._on_failure_changed,
            self._restore,
        )

    def start(self, make: Callable[[Attachment], NoReturn] | None = None) -> None:
        """Let the keeper start workers, or such as make instead of the data path."""
        task = self.circuit.task
        self.keeper.start(task if make is None else self.task(make))

    def task(self, make: Callable[[Attachment], NoReturn]) -> WorkerTask:
        return replace(self.circuit.task, engine=engine_of("broken", make))

    def close(self) -> None:
        self.keeper.stop()
        self.loop.close()

    def _on_interface_lost(self) -> None:
        self.lost += 1

    def _on_failure_changed(self) -> None:
        self.failures.append(str(self.keeper.failure))

    def _restore(self) -> None:
        self.restored += 1

    @property
    def pid(self) -> int:
        assert self.keeper.pid is not None
        return self.keeper.pid

    def turn(self, step_s: float = 0.0) -> None:
        """Let so much time pass, and the loop do what is due then."""
        self.clock.pass_time(step_s)
        for _ in range(2):
            self.loop.call_soon(self.loop.stop)
            self.loop.run()

    def turn_until(self, met: Callable[[], object], step_s: float = 0.0) -> None:
        """Turn the loop until then; step_s: time that passes with each turn."""

        def turned() -> object:
            self.turn(step_s)
            return met()

        eventually(turned, TIMEOUT_S, "what the test turns the loop for", 0.001)

    def turn_until_failure_changes(self) -> str:
        """Return the failure; empty: it is over."""
        before = len(self.failures)
        self.turn_until(lambda: len(self.failures) > before)
        assert len(self.failures) == before + 1
        return self.failures[-1]

    def turn_until_replaced(self, pid: int) -> None:
        self.turn_until(lambda: self.keeper.pid not in (None, pid), HANDOVER_LOOK_S)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill the worker, and see another one."""
        killed = self.pid
        os.kill(killed, number)
        self.turn_until_replaced(killed)

    def fail(self) -> None:
        """Let workers die until that is a failure."""
        for _ in range(2):
            self.kill()
        os.kill(self.pid, signal.SIGKILL)
        assert self.turn_until_failure_changes() == "worker: killed by SIGKILL"

    def recover(self) -> None:
        """Let the time pass until there is another worker, and until that has proved to live."""
        self.turn(FIRST_DELAY_S)
        self.turn(PROOF_S)
        assert self.failures[-1] == ""

    def hang(self) -> None:
        """Let the worker hang, and be looked at until that is noticed."""
        stop(self.pid)
        self.circuit.host.send(frame(1))
        for _ in range(1 + HANG_AFTER_CHECKS):
            self.keeper.check()


@pytest.fixture
def idle(circuit: Circuit) -> Iterator[Kept]:
    """A keeper that has started no worker yet."""
    made = Kept(circuit)
    yield made
    made.close()


@pytest.fixture
def kept(idle: Kept) -> Kept:
    idle.start()
    return idle


def is_alive(pidfd: int) -> bool:
    return not select.select([pidfd], [], [], 0)[0]


@contextmanager
def watched(pid: int) -> Iterator[int]:
    """Yield a pidfd of a process."""
    pidfd = os.pidfd_open(pid)
    try:
        yield pidfd
    finally:
        os.close(pidfd)


@each_engine
def test_killed_worker_is_replaced_and_what_waited_is_carried(kept: Kept) -> None:
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
    assert kept.failures == []


def test_frames_of_a_worker_that_was_killed_stay_counted(kept: Kept) -> None:
    def counted() -> int:
        return kept.circuit.counters.total(Slot.TX_FRAMES)

    kept.circuit.exchange(5)
    eventually(lambda: counted() == 5, TIMEOUT_S, "five frames to be counted")
    kept.kill()
    # They are out of the worker's reach.
    assert kept.circuit.counters.worker[Slot.TX_FRAMES] == 0
    assert counted() == 5
    kept.circuit.exchange(5)
    eventually(lambda: counted() == 10, TIMEOUT_S, "ten frames to be counted")


def test_stopped_keeper_leaves_no_worker_and_starts_none(kept: Kept) -> None:
    with watched(kept.pid) as worker_fd:
        kept.keeper.stop()
        assert not is_alive(worker_fd)

    kept.turn(60)
    assert kept.keeper.pid is None
    assert kept.keeper.restarts == 0


def test_stopped_keeper_does_not_try_again_what_has_failed(kept: Kept) -> None:
    kept.fail()

    kept.keeper.stop()
    kept.turn(60)

    assert not has_child()


def test_worker_that_is_killed_ahead_of_the_stop_is_not_replaced(kept: Kept) -> None:
    with watched(kept.pid) as worker_fd:
        kept.keeper.kill()
        kept.keeper.stop()
        assert not is_alive(worker_fd)

    kept.turn()
    assert kept.keeper.pid is None
    assert kept.keeper.restarts == 0
    kept.keeper.kill()  # there is none


@each_engine
@pytest.mark.parametrize("direction", ["egress", "ingress"])
def test_worker_that_hangs_while_frames_wait_is_replaced(kept: Kept, direction: str) -> None:
    kept.circuit.exchange(1)
    hung = kept.pid
    stop(hung)
    if direction == "egress":
        kept.circuit.host.send(frame(1))
    else:
        kept.circuit.remote.sendto(b"\x07" + frame(1), kept.circuit.receiving.getsockname())

    with watched(hung) as alive:
        # The first look sees the progress made so far.
        for _ in range(HANG_AFTER_CHECKS):
            kept.keeper.check()
            assert is_alive(alive)
        kept.keeper.check()
        kept.turn_until_replaced(hung)

    receiver, sent = kept.circuit.host, frame(1)
    if direction == "egress":
        receiver, sent = kept.circuit.remote, b"\x07" + sent
    assert receiver.recv(2048) == sent


@each_engine
def test_worker_that_has_nothing_to_do_is_left_alone(kept: Kept) -> None:
    kept.circuit.exchange(1)
    sleeping = kept.pid
    stop(sleeping)
    for _ in range(3 * HANG_AFTER_CHECKS):
        kept.keeper.check()
    os.kill(sleeping, signal.SIGCONT)

    kept.circuit.exchange(1)
    assert kept.pid == sleeping


def test_worker_that_goes_on_between_the_looks_is_left_alone(kept: Kept) -> None:
    busy = kept.pid
    for mark in range(3 * HANG_AFTER_CHECKS):
        kept.circuit.exchange(1)
        stop(busy)
        kept.circuit.host.send(frame(mark))
        for _ in range(HANG_AFTER_CHECKS):
            kept.keeper.check()
        os.kill(busy, signal.SIGCONT)
        assert kept.circuit.remote.recv(2048) == b"\x07" + frame(mark)

    assert kept.pid == busy


def test_worker_that_waits_for_the_underlay_does_not_hang(idle: Kept, stack: ExitStack) -> None:
    """What it has sent has not left: its output queue is full."""
    sending, unread = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in (sending, unread):
        stack.enter_context(end)
    sending.send(frame(0))
    task = idle.circuit.task
    attachment = replace(task.attachment, send_socket=sending)
    idle.keeper.start(replace(task, attachment=attachment))
    stop(idle.pid)
    idle.circuit.host.send(frame(1))

    with capture_logs() as lines:
        for _ in range(3 * HANG_AFTER_CHECKS):
            idle.keeper.check()
        assert lines == []
        # It has left.
        unread.recv(2048)
        for _ in range(HANG_AFTER_CHECKS):
            idle.keeper.check()

    (line,) = lines
    assert (line["event"], line["direction"]) == ("worker_hung", "egress")


def test_third_death_is_a_failure_until_a_worker_has_proved_to_live(kept: Kept) -> None:
    for _ in range(2):
        kept.kill()
    assert kept.failures == []
    os.kill(kept.pid, signal.SIGKILL)

    assert kept.turn_until_failure_changes() == "worker: killed by SIGKILL"
    assert kept.keeper.pid is None
    kept.turn(FIRST_DELAY_S)
    # There is one, which carries frames; it has not proved to live.
    kept.circuit.exchange(5)
    assert kept.keeper.pid is None
    assert kept.failures == ["worker: killed by SIGKILL"]
    kept.turn(PROOF_S)
    assert kept.failures[1:] == [""]
    kept.circuit.exchange(5)

    # The next death, so soon, is a failure again.
    os.kill(kept.pid, signal.SIGTERM)
    assert kept.turn_until_failure_changes() == "worker: killed by SIGTERM"
    assert kept.keeper.restarts == 4


def test_single_death_long_after_a_failure_is_none(kept: Kept) -> None:
    kept.fail()
    kept.recover()

    kept.turn(60)
    kept.kill()

    assert kept.failures[1:] == [""]


def test_failed_worker_is_tried_again_after_a_while_and_not_before(kept: Kept) -> None:
    kept.fail()

    kept.turn((1 - JITTER) * FIRST_DELAY_S - 0.001)
    assert not has_child()
    kept.turn(JITTER * FIRST_DELAY_S + 0.001)
    assert has_child()


def test_deaths_that_are_forgotten_are_no_failure(kept: Kept) -> None:
    kept.fail()
    kept.keeper.stop()
    kept.keeper.forget()
    assert str(kept.keeper.failure) == ""

    kept.start()
    for _ in range(2):
        kept.kill()

    assert len(kept.failures) == 1


def test_failure_is_what_the_last_worker_said(kept: Kept) -> None:
    def fail(_: Attachment) -> NoReturn:
        raise OSError(12, os.strerror(12))

    kept.start(fail)
    assert kept.turn_until_failure_changes() == "worker: start: Cannot allocate memory"

    # A new task does not end the failure, a worker that lives does.
    kept.start()
    assert str(kept.keeper.failure) == "worker: start: Cannot allocate memory"
    kept.turn(PROOF_S)
    assert kept.failures[1:] == [""]


def test_what_a_worker_said_is_not_said_of_the_next(idle: Kept) -> None:
    def fail(_: Attachment) -> NoReturn:
        raise OSError(12, os.strerror(12))

    idle.start(fail)
    assert idle.turn_until_failure_changes() == "worker: start: Cannot allocate memory"

    idle.start(lambda _: os._exit(3))
    assert idle.turn_until_failure_changes() == "worker: exit status 3"


def test_failure_of_a_worker_that_said_nothing_is_its_exit_status(idle: Kept) -> None:
    idle.start(lambda _: os._exit(3))

    assert idle.turn_until_failure_changes() == "worker: exit status 3"


def test_worker_that_is_killed_for_a_system_call_says_so_and_is_an_error(idle: Kept) -> None:
    def die(_: Attachment) -> NoReturn:
        os.kill(os.getpid(), signal.SIGSYS)
        raise AssertionError("it lives")

    with capture_logs() as lines:
        idle.start(die)
        assert (
            idle.turn_until_failure_changes()
            == "worker: killed by SIGSYS for a system call that it may not make"
        )

    ends = [line for line in lines if line["event"] == "worker_exited"]
    assert [line["log_level"] for line in ends] == ["error"] * len(ends)
    assert "type=1326" in ends[0]["advice"]


def test_end_of_a_worker_is_logged_with_its_successor(kept: Kept) -> None:
    killed = kept.pid
    with capture_logs() as lines:
        kept.kill()

    (line,) = lines
    assert (line["event"], line["log_level"]) == ("worker_exited", "warning")
    assert (line["pid"], line["successor"]) == (killed, kept.pid)
    assert (line["ended"], line["restart_in_s"]) == ("SIGKILL", 0.0)


def test_worker_that_cannot_be_forked_is_a_failure_and_tried_again(idle: Kept) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        idle.start()
        # One that was never there has been tried three times.
        assert idle.turn_until_failure_changes() == "worker: start: Too many open files"
        assert not has_child()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    idle.recover()
    idle.circuit.exchange(5)


def test_workers_that_hang_are_a_failure(kept: Kept) -> None:
    kept.circuit.exchange(1)
    for _ in range(2):
        hung = kept.pid
        kept.hang()
        kept.turn_until_replaced(hung)
    kept.hang()

    assert kept.turn_until_failure_changes() == "worker: egress: hung"


def test_worker_that_is_killed_behind_one_that_hung_did_not_hang(kept: Kept) -> None:
    hung = kept.pid
    kept.hang()
    kept.turn_until_replaced(hung)
    kept.kill()
    os.kill(kept.pid, signal.SIGKILL)

    assert kept.turn_until_failure_changes() == "worker: killed by SIGKILL"


def test_worker_that_finds_the_interface_gone_is_reported_and_not_replaced(idle: Kept) -> None:
    idle.start(lambda _: os._exit(EXIT_INTERFACE_LOST))
    idle.turn_until(lambda: idle.lost)

    idle.turn(60)

    assert idle.lost == 1
    assert not has_child()
    assert (idle.failures, idle.keeper.restarts) == ([], 0)


def test_descriptors_are_restored_ahead_of_each_worker_but_the_first(kept: Kept) -> None:
    assert kept.restored == 0

    kept.kill()
    assert kept.restored == 1
    kept.start()
    assert kept.restored == 2


def test_descriptors_of_another_velad_are_restored_ahead_of_the_first_worker(idle: Kept) -> None:
    idle.keeper.expect_leftovers()

    idle.start()

    assert idle.restored == 1
    assert not idle.keeper.has_former


class Former:
    """Another velad's worker: it ends when the test says so."""

    def __init__(self) -> None:
        self.gone: list[Callback] = []

    def end(self, gone: Callback) -> None:
        self.gone.append(gone)


def test_worker_starts_when_the_former_one_of_another_velad_is_gone(idle: Kept) -> None:
    former = Former()
    idle.keeper.follow(former.end)
    assert idle.keeper.has_former
    assert former.gone == []

    idle.start()
    idle.start()
    idle.turn()
    assert not has_child()
    (gone,) = former.gone
    gone()

    assert not idle.keeper.has_former
    idle.circuit.exchange(5)
    assert idle.restored == 1


def test_keeper_that_is_stopped_ends_the_former_worker_and_starts_none(idle: Kept) -> None:
    former = Former()
    idle.keeper.follow(former.end)

    idle.keeper.stop()
    (gone,) = former.gone
    gone()

    assert not idle.keeper.has_former
    assert not has_child()
    idle.start()
    idle.circuit.exchange(1)
    assert len(former.gone) == 1


@each_engine
def test_idle_worker_takes_nothing_that_comes_as_it_is_about_to_be_killed(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that it took then would be lost, if the kill came before it is written."""
    before, circuit, kill = kept.pid, kept.circuit, kept.keeper.kill
    circuit.exchange(1)
    eventually(lambda: sleeps(before), TIMEOUT_S, "the worker to wait for frames")
    written = select.poll()
    for each in (circuit.host, circuit.remote):
        written.register(each, select.POLLIN)
    found = []

    def kill_late() -> None:
        circuit.host.send(frame(1))
        circuit.remote.sendto(b"\x07" + frame(1), circuit.receiving.getsockname())
        found.append(written.poll(TAKING_MS))
        kill()

    monkeypatch.setattr(kept.keeper, "kill", kill_late)
    kept.keeper.replace(circuit.task)
    kept.turn_until_replaced(before)
    monkeypatch.undo()

    assert found == [[]]
    assert circuit.remote.recv(2048) == b"\x07" + frame(1)
    assert circuit.host.recv(2048) == frame(1)
    assert kept.keeper.restarts == 0


def test_worker_that_is_replaced_leaves_what_it_has_not_read_to_its_successor(kept: Kept) -> None:
    before = kept.pid
    kept.circuit.exchange(1)
    for mark in range(10):
        kept.circuit.host.send(frame(mark))
        kept.circuit.remote.sendto(b"\x07" + frame(mark), kept.circuit.receiving.getsockname())
    kept.keeper.replace(kept.circuit.task)
    for mark in range(10, 20):
        kept.circuit.host.send(frame(mark))
        kept.circuit.remote.sendto(b"\x07" + frame(mark), kept.circuit.receiving.getsockname())

    kept.turn_until_replaced(before)

    for mark in range(20):
        assert kept.circuit.remote.recv(2048) == b"\x07" + frame(mark)
        assert kept.circuit.host.recv(2048) == frame(mark)


def test_worker_that_is_replaced_twice_has_one_successor_with_the_last_task(kept: Kept) -> None:
    before = kept.pid
    with watched(before) as first:
        kept.keeper.replace(kept.task(lambda _: os._exit(3)))
        kept.keeper.replace(kept.circuit.task)
        kept.turn_until_replaced(before)
        assert not is_alive(first)

    kept.turn(60)
    assert kept.restored == 1
    kept.circuit.exchange(5)
    assert kept.keeper.restarts == 0


def test_worker_that_does_not_make_way_is_replaced_all_the_same(kept: Kept) -> None:
    """One that is stopped with a frame waiting neither says that it is done nor sleeps."""
    before = kept.pid
    kept.circuit.exchange(1)
    stop(before)
    kept.circuit.host.send(frame(1))

    kept.keeper.replace(kept.circuit.task)
    kept.turn_until_replaced(before)

    assert kept.circuit.remote.recv(2048) == b"\x07" + frame(1)


def test_worker_that_has_made_way_is_replaced_at_the_next_look(kept: Kept) -> None:
    before = kept.pid
    kept.circuit.exchange(1)
    stop(before)  # so that the test speaks for it
    kept.keeper.handover.clear()
    kept.keeper.replace(kept.circuit.task)
    kept.turn(HANDOVER_LOOK_S)
    assert kept.pid == before

    for direction in Direction:
        kept.keeper.handover.stop(direction)
    kept.turn(HANDOVER_LOOK_S)

    assert kept.pid != before


def test_worker_that_dies_before_it_makes_way_is_followed_by_one_with_the_new_task(
    kept: Kept,
) -> None:
    kept.start(lambda _: os._exit(3))
    dying = kept.pid

    kept.keeper.replace(kept.circuit.task)
    kept.turn_until_replaced(dying)

    kept.circuit.exchange(5)
    assert kept.keeper.restarts == 1
    # Once.
    kept.turn(LONGEST_HANDOVER_S)
    assert kept.restored == 2


def test_replacement_where_there_is_no_worker_starts_one(idle: Kept) -> None:
    idle.keeper.replace(idle.circuit.task)

    idle.circuit.exchange(5)
    assert idle.restored == 0


def test_retired_worker_is_gone_when_that_is_told_and_has_no_successor(kept: Kept) -> None:
    kept.circuit.exchange(1)
    told: list[int | None] = []

    with watched(kept.pid) as retired:
        kept.keeper.retire(lambda: told.append(kept.keeper.pid))
        assert told == []
        assert bytes(kept.keeper.handover.asked) == b"\1"
        kept.turn_until(lambda: told, HANDOVER_LOOK_S)
        assert not is_alive(retired)

    assert told == [None]
    kept.circuit.host.send(frame(7))
    kept.turn(60)
    assert kept.keeper.pid is None
    # Until there is a task again.
    kept.start()
    assert kept.circuit.remote.recv(2048) == b"\x07" + frame(7)


def test_retirement_where_there_is_no_worker_is_told_at_once_and_ends_the_retries(
    kept: Kept,
) -> None:
    kept.fail()
    told: list[bool] = []

    kept.keeper.retire(lambda: told.append(True))

    assert told == [True]
    kept.turn(60)
    assert not has_child()


def test_retirement_takes_the_place_of_a_replacement(kept: Kept) -> None:
    kept.keeper.replace(kept.circuit.task)
    told: list[bool] = []

    kept.keeper.retire(lambda: told.append(True))
    kept.turn_until(lambda: told, HANDOVER_LOOK_S)
    kept.turn(60)

    assert (told, kept.keeper.pid) == ([True], None)
    assert kept.restored == 0


def test_usage_is_of_the_worker_that_there_is(kept: Kept) -> None:
    for _ in range(2):
        kept.turn(1)
        cpu, memory = kept.keeper.usage()
        assert cpu is not None
        assert memory is not None
        assert memory > 0
        kept.kill()

    kept.keeper.stop()
    assert kept.keeper.usage() == (None, None)


def test_checks_without_a_worker_do_nothing(idle: Kept) -> None:
    idle.circuit.host.send(frame(1))
    for _ in range(3 * HANG_AFTER_CHECKS):
        idle.keeper.check()

    idle.start()

    assert idle.circuit.remote.recv(2048) == b"\x07" + frame(1)
    assert idle.keeper.restarts == 0
