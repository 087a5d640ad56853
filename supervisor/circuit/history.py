"""What one circuit did in each minute of the last day. In memory, bounded. Pure."""

from __future__ import annotations

import math
from array import array

from vela.percentile import percentile

from ..constants import MAX_HISTORY_MINUTES
from ..status import MinuteStatus, milliseconds
from .delays import JitterMeter
from .losses import Step, Tally
from .rates import Traffic

MINUTE_S = 60.0
FIGURES = 10  # of a minute, without its time

# An unknown value.
_NONE = math.nan


class History:
    """Adds a minute up, and keeps it in 4 bytes a figure: 69 kB for a day."""

    def __init__(self, now: float) -> None:
        self._began_at = now
        self._ended_at = array("d")
        self._figures = array("f")
        self._traffic: Traffic | None = None
        self._looks = self._looks_up = 0
        self._tally = Tally()
        self._round_trips_s: list[float] = []
        self._jitter = JitterMeter()

    def take_step(self, step: Step) -> None:
        """Take requests whose answers are all there or lost, a few seconds after they were sent."""
        self._tally.add(step)

    def answered(self, rtt_s: float) -> None:
        """Take a round trip."""
        self._round_trips_s.append(rtt_s)
        self._jitter.add(rtt_s)

    def look(self, now: float, traffic: Traffic, *, up: bool) -> None:
        """Take what there is now; to be called once a second."""
        before = self._traffic
        if before is None:
            self._began_at, self._traffic = now, traffic
            return
        self._looks += 1
        self._looks_up += up
        if now >= self._began_at + MINUTE_S:
            self._end(now, before, traffic)

    def status(self, clock_offset_s: float) -> tuple[MinuteStatus, ...]:
        """Return the minutes that are over, the oldest one first.

        clock_offset_s: Unix time less the time of look().
        """
        found = []
        for index, ended_at in enumerate(self._ended_at):
            start = index * FIGURES
            figures = self._figures[start : start + FIGURES]
            up, tx, rx, asked, answered, tx_loss, rx_loss, p50, p99, jitter = figures
            found.append(
                MinuteStatus(
                    time=round(clock_offset_s + ended_at),
                    up_percent=round(up, 1),
                    tx_bps=round(tx),
                    rx_bps=round(rx),
                    asked=int(asked),
                    answered=int(answered),
                    tx_loss_percent=_known(tx_loss),
                    rx_loss_percent=_known(rx_loss),
                    p50_ms=_known_ms(p50),
                    p99_ms=_known_ms(p99),
                    jitter_ms=_known_ms(jitter),
                )
            )
        return tuple(found)

    def _end(self, now: float, before: Traffic, traffic: Traffic) -> None:
        seconds = now - self._began_at
        ordered, tally = sorted(self._round_trips_s), self._tally
        loss = tally.loss()
        self._ended_at.append(now)
        self._figures.extend(
            (
                100 * self._looks_up / self._looks,
                8 * (traffic.tx_bytes - before.tx_bytes) / seconds,
                8 * (traffic.rx_bytes - before.rx_bytes) / seconds,
                tally.asked,
                tally.answered,
                _NONE if loss.tx_percent is None else loss.tx_percent,
                _NONE if loss.rx_percent is None else loss.rx_percent,
                percentile(ordered, 50) if ordered else _NONE,
                percentile(ordered, 99) if ordered else _NONE,
                self._jitter.seconds or 0.0 if ordered else _NONE,
            )
        )
        if len(self._ended_at) > MAX_HISTORY_MINUTES:
            del self._ended_at[:1]
            del self._figures[:FIGURES]
        self._began_at, self._traffic = now, traffic
        self._looks = self._looks_up = 0
        self._tally = Tally()
        self._round_trips_s.clear()


def _known(percent: float) -> float | None:
    return None if math.isnan(percent) else round(percent, 2)


def _known_ms(seconds: float) -> float | None:
    return None if math.isnan(seconds) else milliseconds(seconds)
