"""Runs the threads of one worker on one CPU, or the ingress thread on another: see placement.py."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from vela.linux.affinity import allowed_cpus, pin_thread
from vela.linux.idle_cpus import LEAST_PERIOD_S, IdleCpus
from vela.linux.usage import thread_times

from ..runtime.loop import EventLoop, Timer
from .placement import PERIOD_S, Look, Placement
from .rates import Traffic

Worker = tuple[int | None, int]
"""Its process id, None if there is none, and its CPU, where both threads of a new one run."""

LEAST_RATE = 10e6
"""Bytes per second. Fewer take no CPU worth a look."""
LEAST_FRAMES = 10000
"""A second, likewise."""


class Spread:
    """Follows the load of one circuit."""

    def __init__(
        self,
        circuit: str,
        loop: EventLoop,
        idle: IdleCpus,
        worker: Callable[[], Worker],
        traffic: Callable[[], Traffic],
    ) -> None:
        """idle: of all circuits, of which no two are to choose the same idle CPU at once.

        worker, traffic: return the present worker, and what the circuit has carried in all.
        """
        self._loop = loop
        self._idle = idle
        self._present = worker
        self._carried = traffic
        self._log = structlog.get_logger().bind(circuit=circuit)
        self._placement = Placement()
        self._worker: Worker = (None, -1)
        self._refused = False
        self._seen: tuple[float, Traffic] | None = None
        self._before: tuple[float, Traffic, float] | None = None
        self._timer: Timer | None = None

    @property
    def ingress_cpu(self) -> int | None:
        """The CPU of the worker's ingress thread; None: the worker's own."""
        return self._placement.apart if self._present() == self._worker else None

    def check(self) -> None:
        """Look whether the worker is busy; to be called once a second."""
        present = self._present()
        if present != self._worker:
            self.stop()
            self._worker = present
        before, self._seen = self._seen, (self._loop.now(), self._carried())
        if present[0] is None or self._refused or self._timer is not None or before is None:
            return
        if _is_busy(before, self._seen):
            self._look()

    def stop(self) -> None:
        """Follow no longer: there is no such worker any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._placement.join()
        self._worker = None, -1
        self._refused = False
        self._before = None

    def _look(self) -> None:
        """Look at a busy worker, and again soon."""
        self._timer = None
        pid, cpu = self._worker
        threads = {} if pid is None or self._present() != self._worker else thread_times(pid)
        if len(threads) != 2 or pid not in threads:
            self.stop()
            return
        now, traffic, used = self._loop.now(), self._carried(), sum(threads.values())
        idle = self._idle.shares(now)
        before, self._before = self._before, (now, traffic, used)
        was = self._placement.apart
        if before is not None and was is None and not _is_busy(before[:2], (now, traffic)):
            self._before = None
            return
        if before is not None and cpu in idle and now - before[0] >= LEAST_PERIOD_S:
            others = [each for each in allowed_cpus() if each != cpu and each in idle]
            other = max(others, key=lambda each: idle[each], default=None)
            look = Look(
                rate=(_bytes(traffic) - _bytes(before[1])) / (now - before[0]),
                used=(used - before[2]) / (now - before[0]),
                idle=idle[cpu],
                other=other,
                other_idle=0.0 if other is None else idle[other],
            )
            self._placement.look(look, now)
        if self._placement.apart != was:
            # The egress thread is the process's first one. Ids wrap around: the other may be less.
            (ingress,) = threads.keys() - {pid}
            if not self._move(ingress):
                return
        self._timer = self._loop.call_later(PERIOD_S, self._look)

    def _move(self, ingress: int) -> bool:
        """Move the ingress thread where it is to be. Return whether there is more to do."""
        _, cpu = self._worker
        target = cpu if self._placement.apart is None else self._placement.apart
        try:
            pin_thread(ingress, target)
        except OSError as err:
            # It has ended, or the CPU is gone, or this is not permitted.
            self._refused = True
            self._placement.join()
            self._log.warning("thread_not_pinned", cpu=target, error=str(err))
            return False
        self._idle.take(target)
        self._log.debug("thread_moved", cpu=target)
        return True


def _is_busy(before: tuple[float, Traffic], after: tuple[float, Traffic]) -> bool:
    seconds = after[0] - before[0]
    least_bytes, least_frames = LEAST_RATE * seconds, LEAST_FRAMES * seconds
    sent = _bytes(after[1]) - _bytes(before[1])
    return sent >= least_bytes or _frames(after[1]) - _frames(before[1]) >= least_frames


def _bytes(traffic: Traffic) -> int:
    return traffic.tx_bytes + traffic.rx_bytes


def _frames(traffic: Traffic) -> int:
    return traffic.tx_frames + traffic.rx_frames
