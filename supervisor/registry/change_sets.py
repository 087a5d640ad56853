"""Changes that one machine asks for at once, of circuits that are in each other's way. Pure.

Two circuits exchange their addresses: each request by itself is a conflict with the other circuit
as it is now. So a request waits for those of the circuits that are in its way. The machine repeats
it meanwhile. When all are there, they are judged, and made, as a set. What was refused for
lack of the others is remembered for a while: their requests may come later, as messages get lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from vela.address import IPAddress
from vela.signaling.events import CircuitRequested
from vela.signaling.limiter import host_of

from ..config.records import CircuitConfig
from .requests import SetUp

# From the first request of a circuit, which is repeated for 2.5 s. A machine with hundreds of
# circuits asks for all of them within that.
WAIT_S = 2.0
# A request that is not repeated any more was given up, and is not answered.
FRESH_S = 2.5
# Who was refused asks again after 30 s at most; who still has a session, after 300 s.
REMEMBERED_S = 600.0

InTheWay = Callable[[CircuitConfig, str], set[str]]
"""Returns the names of the circuits, but for the one of this name, that have what it wants."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a machine wants a circuit of its own to become."""

    requested: CircuitRequested
    wanted: SetUp
    since: float
    """When it was asked for first, in monotonic seconds."""
    last: float
    refused: bool = False

    def awaits_answer(self, now: float) -> bool:
        """Tell whether the machine still repeats it."""
        return not self.refused and now - self.last < FRESH_S

    @property
    def source(self) -> IPAddress:
        return self.requested.source.address


class ChangeSets:
    """Requests that wait, by the name of the circuit as it is now. At most one for each."""

    def __init__(self) -> None:
        self._asked: dict[str, Asked] = {}

    def ask(self, name: str, requested: CircuitRequested, wanted: SetUp, now: float) -> None:
        """Take note of a request, or of its repetition."""
        self._asked = {
            key: each for key, each in self._asked.items() if now - each.last < REMEMBERED_S
        }
        before = self._asked.get(name)
        since = now
        if before is not None and before.awaits_answer(now):
            since = before.since if before.wanted.config == wanted.config else now
        self._asked[name] = Asked(requested, wanted, since, now)

    def refuse(self, name: str) -> None:
        """Take note that a request was refused."""
        if name in self._asked:
            self._asked[name] = replace(self._asked[name], refused=True)

    def forget(self, *names: str) -> None:
        for name in names:
            self._asked.pop(name, None)

    def may_wait(self, name: str, now: float) -> bool:
        """Tell whether the request for this circuit may wait for others."""
        return now - self._asked[name].since < WAIT_S

    def members(self, name: str, in_the_way: InTheWay) -> dict[str, Asked] | set[str]:
        """Return the requests that can only be carried out together, with the one for this circuit.

        If there is none yet for circuits that are in the way: their names.
        """
        host = host_of(self._asked[name].source)
        found = {name: self._asked[name]}
        missing: set[str] = set()
        unseen = [name]
        while unseen:
            member = unseen.pop()
            for other in in_the_way(found[member].wanted.config, member):
                asked = self._asked.get(other)
                if other in found:
                    continue
                if asked is None or host_of(asked.source) != host:
                    missing.add(other)
                else:
                    found[other] = asked
                    unseen.append(other)
        return missing or found
