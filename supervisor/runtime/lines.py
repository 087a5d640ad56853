"""Which lines about other machines the log takes. Pure; memory is bounded."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from vela.address import IPAddress
from vela.signaling.limiter import TokenBucket, host_of

# Of one machine: what became of its requests, and whatever else is said of its circuits.
OTHER_RATE, OTHER_BURST = 1 / 30, 10.0
# States of its circuits, each once within two minutes; of a machine with few, thirty: whoever
# looks into a circuit that goes up and down must see it.
STATE_PERIOD_S, LEAST_STATES = 120.0, 30.0
STATE_EVENT = "circuit_state_changed"

SUMMARY_INTERVAL_S = 60.0
MAX_SOURCES = 1024

_Host = tuple[int, int]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What the log did not take of the lines about one machine."""

    source: str
    lines: int
    events: Mapping[str, int]


class _Source:
    def __init__(self, shown: str, now: float) -> None:
        self.shown = shown
        self.left_out: Counter[str] = Counter()
        self._others = TokenBucket(OTHER_RATE, OTHER_BURST)
        self._states = TokenBucket(LEAST_STATES / STATE_PERIOD_S, LEAST_STATES)
        # It begins full; what comes on top later must not be lost.
        self._states.refill(now)

    def allow_states(self, circuits: int) -> None:
        """Have room for a state of each circuit, of as many as there ever were."""
        more = circuits - self._states.burst
        if more > 0:
            self._states.widen(more)
            self._states.rate = self._states.burst / STATE_PERIOD_S

    def take(self, event: str, now: float) -> bool:
        return (self._states if event == STATE_EVENT else self._others).take(now)


class LineLimiter:
    """Takes lines about a machine as long as they are few; the rest it counts."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._circuits: dict[str, IPAddress] = {}
        self._sources: OrderedDict[_Host, _Source] = OrderedDict()
        self._summed_up_at = now()

    def assign(self, circuit: str, source: IPAddress) -> None:
        """Let lines about a circuit count as ones about the machine that set it up."""
        self._circuits[circuit] = source
        host = host_of(source)
        self._source(source).allow_states(
            sum(host_of(each) == host for each in self._circuits.values())
        )

    def release(self, circuit: str) -> None:
        """Forget whose circuit it was."""
        self._circuits.pop(circuit, None)

    def admits(self, line: Mapping[str, object]) -> bool:
        """Tell whether the log takes a line, by its keys: "by", an endpoint, or "circuit"."""
        if "uid" in line:
            return True  # a command of an operator
        address = _address_in(line.get("by")) or self._circuits.get(str(line.get("circuit")))
        if address is None:
            return True
        source = self._source(address)
        event = str(line.get("event"))
        if source.take(event, self._now()):
            return True
        source.left_out[event] += 1
        return False

    def summaries(self) -> tuple[LeftOut, ...]:
        """Return what was left out in the last minute; nothing, while it is not over."""
        now = self._now()
        if now - self._summed_up_at < SUMMARY_INTERVAL_S:
            return ()
        self._summed_up_at = now
        found = []
        for source in self._sources.values():
            if source.left_out:
                events = dict(source.left_out)
                found.append(LeftOut(source.shown, sum(events.values()), events))
                source.left_out.clear()
        return tuple(found)

    def _source(self, address: IPAddress) -> _Source:
        host = host_of(address)
        source = self._sources.get(host)
        if source is None:
            source = self._sources[host] = _Source(str(address), self._now())
            if len(self._sources) > MAX_SOURCES:
                self._sources.popitem(last=False)
        self._sources.move_to_end(host)
        return source


def _address_in(endpoint: object) -> IPAddress | None:
    """Return the address of "192.0.2.1:48621" or "[2001:db8::1]:48621"."""
    host = str(endpoint).rpartition(":")[0].strip("[]")
    try:
        return ip_address(host)
    except ValueError:
        return None
