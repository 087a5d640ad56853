"""How long frames were held up around a point of time, by the kernel's time stamps. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lab.capture import Packet
from lab.frames import read

Times = Mapping[int, int]
"""Of frames with one mark: by number, Unix time in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Passage:
    """When frames with one mark went into one interface, and when they came out of another."""

    departures: Times
    arrivals: Times

    @property
    def missing(self) -> list[int]:
        """Return the numbers of those that went in and did not come out, in order."""
        return sorted(self.departures.keys() - self.arrivals.keys())

    def outage_ms(self, since_ns: int, until_ns: int) -> float:
        """Return the longest that a frame which departed before until_ns was kept after since_ns.

        Milliseconds; of a frame that had departed before, only the time since
        then counts. Zero where all had arrived by then. What did not arrive
        does not count: see missing.
        """
        return max(
            (
                (arrival_ns - max(self.departures[number], since_ns)) / 1e6
                for number, arrival_ns in self.arrivals.items()
                if arrival_ns > since_ns and self.departures[number] < until_ns
            ),
            default=0.0,
        )

    def unseen_ms(self, since_ns: int) -> float:
        """Return how long after a point of time no frame departed, in milliseconds.

        So much of an outage that began then may have gone unseen. Infinite if
        none departed any more.
        """
        first_ns = min((each for each in self.departures.values() if each > since_ns), default=None)
        return float("inf") if first_ns is None else (first_ns - since_ns) / 1e6


def passage(mark: str, went: Iterable[Packet], came: Iterable[Packet]) -> Passage:
    """Match by number what captures saw go out by one interface and come in by the other.

    Raises ValueError if one came in twice, or without having gone out.
    """
    departures = dict(_numbers(mark, (packet for packet in went if packet.outgoing)))
    arrivals: dict[int, int] = {}
    for number, time_ns in _numbers(mark, (packet for packet in came if not packet.outgoing)):
        if number in arrivals:
            raise ValueError(f"{mark} {number} came twice")
        if number not in departures:
            raise ValueError(f"{mark} {number} came from nowhere")
        arrivals[number] = time_ns
    return Passage(departures, arrivals)


def _numbers(mark: str, packets: Iterable[Packet]) -> Iterable[tuple[int, int]]:
    for packet in packets:
        found = read(packet.data)
        if found is not None and found[0] == mark:
            yield found[1], packet.time_ns
