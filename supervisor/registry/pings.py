"""In-circuit echo requests that an operator asks for, one at a time for each client."""

from __future__ import annotations

from typing import Protocol

from vela.errors import VelaError
from vela.signaling.limiter import TokenBucket
from vela.wire import MAX_UDP_PAYLOAD

from ..circuit.circuit import Circuit
from ..constants import DEFAULT_PING
from ..control_socket import Later
from ..runtime.loop import EventLoop
from ..status import milliseconds

WAIT_S = 2.0
"""For an answer."""
RATE, BURST = 200.0, 200.0
"""Of all clients together: each takes the supervisor a tenth of a millisecond."""


class Circuits(Protocol):
    """Knows circuits by name: registry.Registry."""

    def find(self, name: str) -> Circuit:
        """Raise VelaError if there is none."""


class Pings:
    """Asks the workers of remotes, and says how long their answers took."""

    def __init__(self, loop: EventLoop, circuits: Circuits) -> None:
        self._loop = loop
        self._circuits = circuits
        self._bucket = TokenBucket(RATE, BURST)

    def ask(self, name: str, size: object = None) -> Later:
        """Ask once. The reply has the round trip, in milliseconds; null: there was no answer.

        size: see Circuit.ping. Raises VelaError.
        """
        if size is None:
            size = DEFAULT_PING
        if type(size) is not int or not 0 < size <= MAX_UDP_PAYLOAD:
            raise VelaError(f"size: {size} is no number of bytes")
        if not self._bucket.take(self._loop.now()):
            raise VelaError(f"more than {RATE:g} pings a second; try with a longer interval")
        later = Later()

        def answered(rtt_s: float) -> None:
            if not timer.over:
                timer.cancel()
                later.give({"rtt_ms": milliseconds(rtt_s)})

        self._circuits.find(name).ping(size, answered)
        timer = self._loop.call_later(WAIT_S, lambda: later.give({"rtt_ms": None}))
        return later
