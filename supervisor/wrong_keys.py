"""Machines that ask with a wrong key: for the status and the log of the end that knows.

Anybody can send such messages in anybody's name: memory, and the lines of the log, are bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import structlog

from vela.address import Endpoint, IPAddress
from vela.errors import RemoteProtocolError
from vela.signaling.limiter import TokenBucket

from .status import WrongKeyStatus

MAX_MACHINES = 16
# A machine asks once a second at first, every 30 s after five minutes.
FORGOTTEN_AFTER_S = 120.0
# Of the log: one line a minute about a machine; about all together ten, and then six a minute.
MACHINE_RATE, ALL_RATE, ALL_BURST = 1 / 60, 0.1, 10.0


@dataclass(slots=True)
class _Machine:
    messages: int
    error: str
    at: float
    lines: TokenBucket


class WrongKeys:
    """The last machines, by address. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._machines: OrderedDict[IPAddress, _Machine] = OrderedDict()
        self._lines = TokenBucket(ALL_RATE, ALL_BURST)
        self._log = structlog.get_logger()

    def note(self, source: Endpoint, err: RemoteProtocolError, now: float) -> None:
        """Take note of a message of a machine that was not made with the key of this end."""
        self._forget(now)
        machine = self._machines.get(source.address)
        if machine is None:
            machine = _Machine(0, "", now, TokenBucket(MACHINE_RATE, 1.0))
            self._machines[source.address] = machine
            if len(self._machines) > MAX_MACHINES:
                self._machines.popitem(last=False)
        self._machines.move_to_end(source.address)
        machine.messages += 1
        machine.error, machine.at = err.detail, now
        if machine.lines.take(now) and self._lines.take(now):
            self._log.warning(
                "wrong_key", by=str(source), error=err.detail, messages=machine.messages
            )

    def status(self, now: float) -> tuple[WrongKeyStatus, ...]:
        """Return the machines, the latest first."""
        self._forget(now)
        return tuple(
            WrongKeyStatus(str(address), each.messages, round(now - each.at, 3), each.error)
            for address, each in reversed(self._machines.items())
        )

    def _forget(self, now: float) -> None:
        while self._machines:
            address, oldest = next(iter(self._machines.items()))
            if now - oldest.at < FORGOTTEN_AFTER_S:
                return
            del self._machines[address]
