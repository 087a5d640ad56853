"""Keeps one circuit's worker alive: starts it, notices its end or that it hangs, starts another."""

from __future__ import annotations

import random
import select
import signal
import struct
import termios
from collections.abc import Callable
from fcntl import ioctl
from functools import partial

import structlog

from vela import worker
from vela.dataplane.contract import Attachment
from vela.dataplane.counters import Counters
from vela.dataplane.exit_message import ExitMessage, describe
from vela.dataplane.handover import WAKE, Handover
from vela.linux.usage import ProcessUsage
from vela.reasons import NO_REASON, Cause, Reason
from vela.worker import WorkerTask

from ..runtime.loop import Callback, EventLoop, Timer
from ..runtime.process import Child, ExitStatus, fork
from .restart import PROOF_S, RestartPolicy

# A worker whose queue is not empty answers within a batch. This long, and it
# hangs: twice what a machine under heavy load was seen to keep one waiting.
HANG_AFTER_CHECKS = 3
CHECK_INTERVAL_S = 1.0

# A worker that is asked to make way stops with its batch, or its wait. Each look wakes one of its
# threads. On a busy host one with a frame may be kept waiting for a CPU.
HANDOVER_LOOK_S = 0.001
LONGEST_HANDOVER_S = 1.0

_INT = struct.Struct("=i")

EndFormer = Callable[[Callback], None]


class WorkerKeeper:
    """One circuit's worker. The descriptors and counters outlive any worker of it."""

    def __init__(
        self,
        circuit: str,
        loop: EventLoop,
        counters: Counters,
        interface_lost: Callback,
        failure_changed: Callback,
        restore: Callback,
    ) -> None:
        """interface_lost is called when the worker found the interface removed; none is started.

        failure_changed is called when failure is another one than before; restore ahead of each
        worker that has a predecessor, which may have changed what their descriptors share.
        """
        self._restore = restore
        self._used = self._awaits_former = False
        self._end_former: EndFormer | None = None
        self._interface_lost = interface_lost
        self._failure_changed = failure_changed
        self._loop = loop
        self._counters = counters
        self.exit_message = ExitMessage(counters.exit_message)
        self.handover = Handover(counters.handover)
        self._log = structlog.get_logger().bind(circuit=circuit)
        self._policy = RestartPolicy(random.Random())
        self._task: WorkerTask | None = None
        self._child: Child | None = None
        self._started = 0.0
        self._retry: Timer | None = None
        self._proof: Timer | None = None
        self._leaving: Timer | None = None
        self._watches: tuple[_ProgressWatch, ...] = ()
        self._stuck: str | None = None
        self._failure = NO_REASON
        self._usage: ProcessUsage | None = None
        self.restarts = 0

    def expect_leftovers(self) -> None:
        """Say that another velad's worker has had the descriptors."""
        self._used = True

    def follow(self, end_former: EndFormer) -> None:
        """Start no worker before another velad's is gone, which has the same descriptors.

        end_former: ends that, and calls back; asked for with the first task, or the first stop().
        """
        self._used = True
        self._end_former = end_former

    @property
    def has_former(self) -> bool:
        """Whether another velad's worker still carries frames."""
        return self._end_former is not None

    def _await_former(self, end_former: EndFormer) -> None:
        if not self._awaits_former:
            self._awaits_former = True
            end_former(self._on_former_gone)

    def _on_former_gone(self) -> None:
        self._end_former = None
        if self._task is not None:
            self._spawn()

    @property
    def pid(self) -> int | None:
        """None if there is no worker, or, after a failure, none that proved to live."""
        return self._child.pid if self._child and not self._failure else None

    @property
    def failure(self) -> Reason:
        """The last worker's error where workers die again and again, else empty. See restart.py."""
        return self._failure

    def usage(self) -> tuple[float | None, int | None]:
        """Return the CPU use of the worker, in percent, and its memory, in bytes. See linux.usage.

        None: there is no worker.
        """
        if self._child is None:
            return None, None
        if self._usage is None or self._usage.pid != self._child.pid:
            self._usage = ProcessUsage(self._child.pid, self._started)
        return self._usage.measure(self._loop.now())

    def start(self, task: WorkerTask) -> None:
        """Carry the circuit with this task from now on; a worker with an earlier one is ended."""
        self.stop()
        self._task = task
        if self._end_former is None:
            self._spawn()

    def retire(self, done: Callback) -> None:
        """End the worker after its batch, and start no other until start(); then call done."""
        if self._child is None:
            self.stop()
            done()
            return
        if self._leaving is not None:
            self._leaving.cancel()

        def end() -> None:
            self.stop()
            done()

        self.handover.ask()
        self._await_handover(end, self._loop.now())

    def replace(self, task: WorkerTask) -> None:
        """Carry the circuit with this task, which has the same descriptors, from now on.

        The worker that there is ends its batch first, so that no frame is lost.
        """
        if self._child is None:
            self.start(task)
            return
        if self._leaving is not None:
            self._leaving.cancel()
        self._task = task
        self.handover.ask()
        self._await_handover(lambda: self.start(task), self._loop.now())

    def _await_handover(self, then: Callback, since: float) -> None:
        def look() -> None:
            self._leaving = None
            late = self._loop.now() - since >= LONGEST_HANDOVER_S
            if self._child is None or self.handover.done or late:
                then()
            else:
                self._await_handover(then, since)

        if self._child is not None:
            self._child.signal(WAKE)
        self._leaving = self._loop.call_later(HANDOVER_LOOK_S, look)

    def kill(self) -> None:
        """Begin to end the worker, ahead of stop() in the same turn of the loop.

        Where many are ended, all are then at it at once.
        """
        if self._child is not None:
            self._child.signal(signal.SIGKILL)

    def stop(self) -> None:
        """End the worker, and wait for it: SIGKILL, as it has nothing to clean up."""
        self._task = None
        if self._end_former is not None:
            self._await_former(self._end_former)
        for timer in (self._retry, self._proof, self._leaving):
            if timer is not None:
                timer.cancel()
        self._retry = self._proof = self._leaving = None
        if self._child is not None:
            self.kill()
            self._loop.unwatch(self._child.pidfd)
            self._child.reap()
            self._child = None
            self._counters.absorb()

    def forget(self) -> None:
        """Forget earlier deaths; the worker must be stopped."""
        self._policy = RestartPolicy(random.Random())
        self._failure = NO_REASON

    def check(self) -> None:
        """Replace a worker that does nothing while frames wait; to be called at each interval."""
        if self._child is None or self._task is None:
            return
        found = [
            watch.look(self._counters.progress(queue)) for queue, watch in enumerate(self._watches)
        ]
        stuck = next(filter(None, found), None)
        if stuck is not None:
            self._stuck = stuck
            self._log.error("worker_hung", direction=stuck, pid=self._child.pid)
            self._child.signal(signal.SIGKILL)

    def _spawn(self) -> None:
        task = self._task
        if task is None:
            return
        self._retry = None
        self._watches = tuple(_ProgressWatch(each.attachment) for each in task.queues)
        self._stuck = None
        self.exit_message.clear()
        self.handover.clear(len(task.queues))
        if self._used:
            self._restore()
        self._used = True
        self._started = self._loop.now()
        try:
            self._child = fork(worker.prepare(task), task.descriptors)
        except OSError as err:
            delay_s = self._policy.delay_s(self._started)
            self._retry = self._loop.call_later(delay_s, self._spawn)
            self._log.error("worker_not_started", error=str(err), retry_in_s=round(delay_s, 3))
            self._set_failure(Cause.WORKER_FAILED.say(error=f"start: {describe(err)}"))
            return
        self._loop.watch(self._child.pidfd, self._on_exit)
        if self._policy.failed:
            self._proof = self._loop.call_later(PROOF_S, self._on_proof)

    def _on_exit(self) -> None:
        assert self._child is not None
        child, self._child = self._child, None
        self._loop.unwatch(child.pidfd)
        for timer in (self._proof, self._leaving):
            if timer is not None:
                timer.cancel()
        self._proof = self._leaving = None
        status = child.reap()
        self._counters.absorb()
        if status.code == worker.EXIT_INTERFACE_LOST:
            self._interface_lost()
            return
        # Before the successor starts, which has a message and counters of its own.
        error = self._error(status)
        now = self._loop.now()
        uptime_s = now - self._started
        delay_s = self._policy.delay_s(now)
        self.restarts += 1
        if delay_s == 0.0:
            self._spawn()
        else:
            self._retry = self._loop.call_later(delay_s, self._spawn)
            self._set_failure(error)
        # Behind the restart: a slow terminal must not hold up frames.
        log = self._log.warning
        if status.signal == signal.SIGSYS:
            # A bug, or somebody's code: either needs a person. The kernel has logged which call.
            log = partial(self._log.error, advice="look for type=1326 in the kernel's log")
        log(
            "worker_exited",
            pid=child.pid,
            ended=str(status),
            error=str(error),
            uptime_s=round(uptime_s, 3),
            restart_in_s=round(delay_s, 3),
            successor=self.pid,
        )

    def _error(self, status: ExitStatus) -> Reason:
        """Return the reason for a worker's end, as the status shows it."""
        if self._stuck is not None:
            error = f"{self._stuck}: hung"
        elif status.signal == signal.SIGSYS:
            error = f"killed by {status} for a system call that it may not make"
        elif status.signal is not None:  # whatever it says itself
            error = f"killed by {status}"
        else:
            error = self.exit_message.read() or str(status)
        return Cause.WORKER_FAILED.say(error=error)

    def _on_proof(self) -> None:
        self._proof = None
        self._policy.proved(self._loop.now())
        self._set_failure(NO_REASON)

    def _set_failure(self, error: Reason) -> None:
        """Make the last worker's error the failure, if workers die again and again."""
        failure = error if self._policy.failed else NO_REASON
        if failure != self._failure:
            self._failure = failure
            self._failure_changed()


class _ProgressWatch:
    """Compares the progress of a worker's queue with what waits for it, look by look."""

    def __init__(self, attachment: Attachment) -> None:
        """attachment: of the queue."""
        self._progress = (-1, -1)  # of no worker
        self._stalls = [0, 0]
        self._tap, self._receiver = attachment.tap_fd, attachment.receive_socket.fileno()
        self._sender = attachment.send_socket
        self._waiting = select.poll()
        for fd in (self._tap, self._receiver):
            self._waiting.register(fd, select.POLLIN)

    def look(self, progress: tuple[int, int]) -> str | None:
        """Return the direction that hangs, if one does."""
        readable = [fd for fd, events in self._waiting.poll(0) if events & select.POLLIN]
        if not readable:
            self._stalls[:] = 0, 0
            self._progress = progress
            return None
        idle = (
            # Full output queues are the underlay's doing: a worker may wait for it.
            self._tap not in readable or self._unsent() > 0,
            self._receiver not in readable,
        )
        for direction in range(2):
            if idle[direction] or progress[direction] != self._progress[direction]:
                self._stalls[direction] = 0
            else:
                self._stalls[direction] += 1
        self._progress = progress
        for direction, name in enumerate(("egress", "ingress")):
            if self._stalls[direction] >= HANG_AFTER_CHECKS:
                return name
        return None

    def _unsent(self) -> int:
        """Return how many bytes the sending socket has that have not left."""
        answer = ioctl(self._sender.fileno(), termios.TIOCOUTQ, _INT.pack(0))
        return int(_INT.unpack(answer)[0])
