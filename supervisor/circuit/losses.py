"""How many frames get lost between the two ends, by the echo requests that get lost. Pure.

docs/protocol.md, section 5. A request that has no answer got lost on its way out, or its answer on
its way back. Which one it was, the remote knows: in each KEEPALIVE it says how many requests
reached it. So requests are counted in steps, from one KEEPALIVE to the next, each with

    asked       requests sent
    answered    those that were answered, within LATE_S
    arrived     those that reached the remote; unknown if it does not say
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..status import LossStatus

WINDOW_S = 300.0
"""What the status is about."""

LATE_S = 3.0
"""An answer that takes longer is as good as lost."""

STEP_S = 5.0
"""Of a remote that says nothing."""
LEAST_STEP_S = 1.0
"""KEEPALIVEs may follow each other sooner: those between are passed over."""
MISSED_REPORTS = 2.5
"""As many intervals without a KEEPALIVE end a step, too."""


@dataclass(slots=True)
class Tally:
    """Sums of steps. A step has arrived, or not: so do those of them that have it."""

    asked: int = 0
    answered: int = 0
    known_asked: int = 0
    """In steps of which it is known how many requests arrived; so the next two."""
    known_answered: int = 0
    known_arrived: int = 0

    def add(self, step: Step, sign: int = 1) -> None:
        """Add a step; sign -1: take it off."""
        self.asked += sign * step.asked
        self.answered += sign * step.answered
        if step.arrived is not None:
            self.known_asked += sign * step.asked
            self.known_answered += sign * step.answered
            self.known_arrived += sign * step.arrived

    def loss(self) -> LossStatus:
        """Return the loss in percent. Null: nothing was asked, or the remote does not say."""
        # What the remote says is no more than a claim: there is no more to be divided than what
        # got lost.
        lost = self.known_asked - self.known_answered
        lost_out = min(max(self.known_asked - self.known_arrived, 0), lost)
        return LossStatus(
            tx_percent=_percent(lost_out, self.known_asked),
            rx_percent=_percent(lost - lost_out, self.known_asked - lost_out),
            round_trip_percent=_percent(self.asked - self.answered, self.asked),
        )


@dataclass(slots=True)
class Step:
    """Requests between two moments."""

    begun_at: float
    ended_at: float = 0.0
    asked: int = 0
    answered: int = 0
    arrived: int | None = None


@dataclass(slots=True, eq=False)
class Probe:
    """One request. step: what it counts in; None: it is answered, or it was too late."""

    asked_at: float
    step: Step | None


class LossMeter:
    """Counts one circuit's requests and their answers. Times are monotonic seconds."""

    def __init__(self, settled: Callable[[Step], None] = lambda _: None) -> None:
        """settled: takes each step when no answer to its requests can come any more."""
        self._settled = settled
        self._tally = Tally()
        self._open = Step(0.0)
        self._ended: deque[Step] = deque()
        self._in_window: deque[Step] = deque()
        self._young: deque[Probe] = deque()
        self._begun = False
        self._report_s = STEP_S
        self._arrived_before: int | None = None
        self._round_trip_s = 0.0

    def asked(self, now: float) -> Probe:
        """Take a request that is sent now."""
        self._advance(now)
        probe = Probe(now, self._open)
        self._open.asked += 1
        self._young.append(probe)
        return probe

    def answered(self, probe: Probe, now: float) -> None:
        """Take an answer. The first one of all shows that the remote does answer.

        What was asked before it does not count: the remote's worker may just have been starting.
        """
        step, probe.step = probe.step, None
        round_trip_s = now - probe.asked_at
        if not self._begun:
            self._forget(now)
            self._begun = True
        elif step is None or round_trip_s > LATE_S:
            return
        else:
            step.answered += 1
        self._round_trip_s = round_trip_s

    def reported(self, arrived: int, interval_s: float, now: float) -> None:
        """Take what a KEEPALIVE says.

        arrived: requests that have reached the remote, counted from any moment on.
        interval_s: between KEEPALIVEs.
        """
        if not self._begun:
            return
        self._report_s = interval_s
        before = self._arrived_before
        if before is None or arrived < before:  # it counts anew
            self._end_step(now, None, now - self._round_trip_s)
        elif now >= self._open.begun_at + LEAST_STEP_S:
            self._end_step(now, arrived - before, now - self._round_trip_s)
        else:
            return
        self._arrived_before = arrived

    def clear(self, now: float) -> None:
        """Begin anew: the path is another one. What got lost on this one is settled."""
        if self._begun:
            self._advance(now)
            for probe in self._young:
                if probe.step is not None:  # its answer is not overdue
                    probe.step.asked -= 1
                    probe.step.arrived = None
            for step in (*self._ended, self._open):
                self._settled(step)
        self._forget(now)
        self._begun = False

    def status(self, now: float) -> LossStatus:
        """Return the loss in the last WINDOW_S, and a few seconds in which answers may come."""
        self._advance(now)
        return self._tally.loss()

    def _forget(self, now: float) -> None:
        self._tally, self._open = Tally(), Step(now)
        self._ended.clear()
        self._in_window.clear()
        for probe in self._young:
            probe.step = None
        self._young.clear()
        self._arrived_before, self._report_s = None, STEP_S

    def _advance(self, now: float) -> None:
        """Do what is due by the time."""
        while self._young and self._young[0].asked_at <= now - LATE_S:
            self._young.popleft()
        if not self._begun:
            return
        longest_s = STEP_S
        if self._arrived_before is not None:
            longest_s = max(MISSED_REPORTS * self._report_s, STEP_S)
        if now >= self._open.begun_at + longest_s:
            self._arrived_before = None
            self._end_step(now, None, now - LATE_S)
        while self._ended and self._ended[0].ended_at <= now - LATE_S:
            step = self._ended.popleft()
            self._tally.add(step)
            self._in_window.append(step)
            self._settled(step)
        # The last one stays: there are intervals that are longer.
        while len(self._in_window) > 1 and self._in_window[0].ended_at <= now - WINDOW_S - LATE_S:
            self._tally.add(self._in_window.popleft(), -1)

    def _end_step(self, now: float, arrived: int | None, horizon: float) -> None:
        """Begin another step, with the requests since horizon that are still under way.

        horizon: by when the remote had to be asked, to know of it when it last spoke.
        """
        ended, begun = self._open, Step(now)
        for probe in reversed(self._young):
            if probe.asked_at <= horizon:
                break
            if probe.step is ended:
                ended.asked -= 1
                begun.asked += 1
                probe.step = begun
        ended.ended_at, ended.arrived = now, arrived
        self._ended.append(ended)
        self._open = begun


def _percent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 2) if whole else None
