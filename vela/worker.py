"""The process that carries one circuit: confined, pinned, blocking loops, until it is killed.

Two loops carry a queue, one for each direction, on one CPU; one that polls, where the delay counts.

In goes a WorkerTask; out come an exit status, the counters, an exit message, and log lines. It
opens nothing and has nothing to clean up, so SIGTERM keeps its default action. It reads nothing
from the network before all threads can make only the system calls that carrying frames takes.
"""

from __future__ import annotations

import _thread
import errno
import gc
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import structlog

from vela.dataplane.contract import Attachment, DataPlane
from vela.dataplane.engine import LoadedEngine
from vela.dataplane.exit_message import ExitMessage
from vela.dataplane.handover import Direction, Handover
from vela.linux.affinity import pin
from vela.linux.pages import SharedPage
from vela.linux.sandbox import User, confine, seal
from vela.linux.seccomp import Filter

# sysexits.h: EX_UNAVAILABLE, EX_SOFTWARE
EXIT_INTERFACE_LOST = 69
EXIT_CRASHED = 70

# What a TAP's descriptor says when its interface was removed; drivers/net/tun.c,
# tun_ring_recv and tun_get.
_INTERFACE_LOST = (errno.EFAULT, errno.EBADFD)

# The two threads hand the interpreter to each other at every blocking call;
# the default of 5 ms is what a frame would wait where one of them computes.
SWITCH_INTERVAL_S = 0.0005

Directions = tuple[Direction, ...]
Until = Callable[[memoryview, memoryview], None]
Loop = tuple[Until, Directions]

# Made ahead of any fork, and bound where there is something to say: that alone would copy 340 KB of
# the supervisor's memory.
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Queue:
    """What two threads of a worker carry, or one, and the CPU that they run on."""

    attachment: Attachment
    cpu: int


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """All that a worker knows."""

    circuit: str
    engine: LoadedEngine
    attachment: Attachment
    page: SharedPage
    """Its counters, exit message and handover; all others are unmapped in it."""
    exit_message: ExitMessage
    handover: Handover
    cpu: int
    user: User
    supervisor_pid: int
    filter: Filter | None
    """Of its system calls: vela.linux.sandbox.worker_filter."""
    further: tuple[Queue, ...] = ()
    """Queues beside that of the attachment. They have the same key page."""

    @property
    def queues(self) -> tuple[Queue, ...]:
        return Queue(self.attachment, self.cpu), *self.further

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the worker uses; everything else is closed in it."""
        attachment = self.attachment
        key_page = () if attachment.key_page is None else (attachment.key_page,)
        return *key_page, *(fd for each in self.queues for fd in _descriptors(each.attachment))


def _descriptors(attachment: Attachment) -> tuple[int, ...]:
    return (
        attachment.tap_fd,
        attachment.receive_socket.fileno(),
        attachment.send_socket.fileno(),
        attachment.divert_socket.fileno(),
    )


def prepare(task: WorkerTask) -> Callable[[], NoReturn]:
    """Return what a fork of the calling process carries the circuit's frames with.

    What can be made ahead of the fork is made here: the fork then shares it.
    """
    return partial(_run, task, [task.engine.prepare(each.attachment) for each in task.queues])


def _run(task: WorkerTask, planes: Sequence[Callable[[], DataPlane]]) -> NoReturn:
    """planes: what makes the data path of each queue."""
    about = {"circuit": task.circuit, "pid": os.getpid()}

    def forward(until: Until, directions: Directions, queue: int = 0) -> NoReturn:
        try:
            until(handover.asked, handover.states(queue))
            for direction in directions:
                handover.stop(direction, queue)
            # Until it is killed: nobody releases it.
            while True:
                never.acquire()
        except BaseException as err:
            if isinstance(err, OSError) and err.errno in _INTERFACE_LOST:
                os._exit(EXIT_INTERFACE_LOST)
            try:
                name = " and ".join(direction.name.lower() for direction in directions)
                task.exit_message.write(name, err)
                log.exception("worker_crashed", direction=name, **about)
            finally:
                os._exit(EXIT_CRASHED)

    handover = task.handover
    never = _thread.allocate_lock()
    never.acquire()
    started, sealed = _thread.allocate_lock(), _thread.allocate_lock()
    started.acquire()
    sealed.acquire()

    def pin_to(cpu: int) -> None:
        try:
            pin(cpu)
        except OSError as err:
            # It was there when the supervisor looked; slower, but frames go on.
            log.warning("cpu_not_pinned", cpu=cpu, error=str(err), **about)

    def begin(until: Until, directions: Directions, queue: int, cpu: int) -> NoReturn:
        if queue:
            pin_to(cpu)
        started.release()
        sealed.acquire()
        # For the next one.
        sealed.release()
        forward(until, directions, queue)

    def start(until: Until, directions: Directions, queue: int, cpu: int) -> None:
        # What threading.Thread keeps account of, nobody here asks for.
        _thread.start_new_thread(begin, (until, directions, queue, cpu))
        started.acquire()

    try:
        pin_to(task.cpu)
        confine(task.user, task.supervisor_pid)
        task.page.unmap_others()
        gc.disable()  # the loops make no cycles
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        # The first one is of this thread.
        (first, *others), *further = (
            _loops(make(), queue.attachment)
            for make, queue in zip(planes, task.queues, strict=True)
        )
        for loop in others:
            start(*loop, 0, task.cpu)
        for number, (queue, loops) in enumerate(zip(task.further, further, strict=True), start=1):
            for loop in loops:
                start(*loop, number, queue.cpu)
        # No thread has to be able to start one any more.
        # TAP and socket, and the way to the supervisor; else at most the socket and that way.
        seal(task.filter, polled=3 if task.attachment.low_latency else 2)
        sealed.release()
    except BaseException as err:
        task.exit_message.write("start", err)
        raise
    forward(*first)


def _loops(plane: DataPlane, attachment: Attachment) -> tuple[Loop, ...]:
    """Return the loops of a queue, each with the directions that it carries."""
    if attachment.low_latency:
        return ((plane.poll_until, (Direction.EGRESS, Direction.INGRESS)),)
    return (
        (plane.egress_until, (Direction.EGRESS,)),
        (plane.ingress_until, (Direction.INGRESS,)),
    )
