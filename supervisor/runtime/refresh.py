"""When to look again at what may change, or has failed."""

from __future__ import annotations

from vela.backoff import Backoff

from .loop import Callback, EventLoop, Timer

INTERVAL_S = 60.0
# After a failure: doubling.
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0


class Refresh:
    """Calls back once: in a minute, or after a back-off where something failed."""

    def __init__(self, loop: EventLoop, look: Callback) -> None:
        self._loop = loop
        self._look = look
        self._backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        self._timer: Timer | None = None

    def later(self) -> None:
        """Look in a minute, and not when it was to be before."""
        self._set(INTERVAL_S)

    def soon(self) -> None:
        """Look after a back-off, as something failed, and not when it was to be before."""
        self._set(self._backoff.next_delay_s())

    def succeed(self) -> None:
        """Begin with the first delay at the next failure."""
        self._backoff.reset()

    def cancel(self) -> None:
        """Do not look."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, delay_s: float) -> None:
        self.cancel()
        self._timer = self._loop.call_later(delay_s, self._look)
