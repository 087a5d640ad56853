"""In-circuit echo requests of one circuit: who waits for which answer, and what the path does."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Hashable

from vela.backoff import Jitter
from vela.dataplane.echo import IDENTIFIER, answered_request, echo_request
from vela.signaling.crossing import Crossing

from ..runtime.loop import SLACK_S, Callback, EventLoop, Timer
from ..status import NOT_MEASURED, LossStatus
from .delays import DelayMeter
from .history import History
from .losses import LossMeter, Probe

JITTER = 0.1
# Requests without an answer that are remembered: those of pings for as long as they may be answered
# (losses.LATE_S, pings.RATE). A path that loses some must not fill memory with them.
MOST_OUTSTANDING = 1024
REMEMBERED_S = 30.0

Answered = Callable[[float], None]
"""Takes the round trip, in seconds."""


class Echoes:
    """Asks the remote's worker, and takes its answers."""

    def __init__(
        self,
        loop: EventLoop,
        send: Callable[[bytes], None],
        carries: Callable[[], bool],
        on_changed: Callback,
        on_missing: Callback,
        history: History,
    ) -> None:
        """Ask nothing yet.

        send: sends a request from where frames leave. carries: tells whether this end can carry
        frames. on_changed: crosses or blocked changed. on_missing: the one before the request that
        was just sent had no answer. history: notes what is asked and answered.
        """
        self._loop = loop
        self._send = send
        self._carries = carries
        self._on_changed = on_changed
        self._on_missing = on_missing
        self._history = history
        self._crossing = Crossing(Jitter(random.Random(), shorter=JITTER))
        self._delays = DelayMeter()
        self._losses = LossMeter(history.take_step)
        self._path: Hashable = None
        self._circuit_id, self._interval_s = 0, 0.0
        self._outstanding: dict[bytes, tuple[Probe, Answered]] = {}
        self._timer: Timer | None = None
        self._timer_at = math.inf

    @property
    def running(self) -> bool:
        """Whether it asks by itself."""
        return self._crossing.running

    @property
    def crosses(self) -> bool:
        """Whether frames cross both ways, as far as is known."""
        return self._crossing.crosses

    @property
    def blocked(self) -> bool:
        """Whether no frames have crossed from the beginning, for longer than by chance."""
        return self._crossing.blocked

    @property
    def delays(self) -> DelayMeter:
        return self._delays

    def loss(self) -> LossStatus:
        return self._losses.status(self._loop.now()) if self.running else NOT_MEASURED[0]

    def watch(
        self,
        path: Hashable,
        circuit_id: int,
        interval_s: float,
        *,
        crosses: bool,
        delay_s: float = 0.0,
        rarely: bool = False,
    ) -> None:
        """Ask from now on, if that is not what is done already.

        path: all that tells it from others. The others: see Crossing.start.
        """
        if self._crossing.running and self._path == (path, interval_s):
            return
        self._path, self._circuit_id, self._interval_s = (path, interval_s), circuit_id, interval_s
        self._forget()
        now = self._loop.now()
        self._crossing.start(interval_s, now, crosses=crosses, delay_s=delay_s, rarely=rarely)
        self._set_timer()

    def stop(self) -> None:
        """Ask no more by itself."""
        if not self.running:
            return
        self._crossing.stop()
        self._forget()
        self._path = None
        self._set_timer()

    def ask(self, circuit_id: int, answered: Answered, size: int = 0) -> None:
        """Send one request. answered is called when the answer comes, if it does.

        size: of the datagram, in bytes of UDP payload.
        """
        now, identifier = self._loop.now(), os.urandom(IDENTIFIER)
        self._forget_old(now)
        self._outstanding[identifier] = self._losses.asked(now), answered
        self._send(echo_request(circuit_id, identifier, now, size))

    def take(self, datagram: memoryview, age_s: float) -> bool:
        """Take a message that the worker passed on; False: it answers nothing that was asked.

        age_s: how many seconds ago it passed it on: what this process did meanwhile is no delay of
        the path's.
        """
        identifier = answered_request(datagram)
        found = None if identifier is None else self._outstanding.pop(identifier, None)
        if found is None:
            return False
        probe, answered = found
        now = max(probe.asked_at, self._loop.now() - age_s)
        self._losses.answered(probe, now)
        answered(now - probe.asked_at)
        return True

    def reported(self, arrived: int) -> None:
        """Take how many requests have reached the remote's worker, by what it says."""
        self._losses.reported(arrived, self._interval_s, self._loop.now())

    def _forget_old(self, now: float) -> None:
        """Leave room for another request."""
        outstanding = self._outstanding
        while outstanding:
            oldest = next(iter(outstanding))
            young = outstanding[oldest][0].asked_at > now - REMEMBERED_S
            if young and len(outstanding) < MOST_OUTSTANDING:
                return
            del outstanding[oldest]

    def _forget(self) -> None:
        """Forget what was measured: the path is another one."""
        self._outstanding.clear()
        self._delays.clear()
        self._losses.clear(self._loop.now())

    def _take_own(self, rtt_s: float) -> None:
        now, crossing = self._loop.now(), self._crossing
        self._delays.add(rtt_s)
        self._history.answered(rtt_s)
        known = crossing.crosses
        crossing.answered(now - rtt_s, now)
        if not known:
            self._set_timer()
            if crossing.crosses:
                self._on_changed()

    def _on_timer(self) -> None:
        self._timer = None
        before = self.crosses, self.blocked
        if self._crossing.handle_timer(self._loop.now(), carries=self._carries()):
            self.ask(self._circuit_id, self._take_own)
            if self._crossing.unanswered >= 2:
                self._on_missing()
        self._set_timer()
        if (self.crosses, self.blocked) != before:
            self._on_changed()

    def _set_timer(self) -> None:
        at = self._crossing.next_timer()
        if self._timer is not None:
            # One that comes too early finds nothing to do: cheaper than another one each time.
            if self._timer_at <= at < math.inf:
                return
            self._timer.cancel()
            self._timer = None
        if at < math.inf:
            slack_s = SLACK_S if self.crosses else 0.0
            self._timer, self._timer_at = self._loop.call_at(at, self._on_timer, slack_s), at
