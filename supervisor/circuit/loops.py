"""Routes that lead a circuit's packets into the circuit itself: at once, or through other circuits.

One circuit may carry another. A circle may not be: each packet would come back larger than it was,
and none would reach the remote.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from vela.address import Endpoint, IPAddress
from vela.errors import DeviceError
from vela.linux.choice import ANY_UNDERLAY, UnderlayChoice
from vela.linux.underlay import Route, find_route
from vela.reasons import NO_REASON, Cause, Reason

# VLANs on each other, and circuits that carry each other.
MAX_LINKS = 8


class Links(Protocol):
    """Knows interfaces and routes: linux.netlink.Netlink."""

    def lower_link(self, index: int) -> int | None:
        """Return the interface that this one stands on; None: there is none."""

    def describe_route(self, source: IPAddress, remote: IPAddress, choice: UnderlayChoice) -> str:
        """Return a route as `ip route` writes it."""


@dataclass(frozen=True, slots=True)
class Aim:
    """Where a circuit sends to."""

    circuit: str
    source: IPAddress
    remote: Endpoint
    choice: UnderlayChoice = ANY_UNDERLAY


def _route_of(aim: Aim) -> Route | None:
    try:
        return find_route(aim.source, aim.remote, aim.choice)
    except OSError:
        return None


class Carriers:
    """The circuits of this machine by the index of their interface."""

    def __init__(self, links: Links, route_of: Callable[[Aim], Route | None] = _route_of) -> None:
        """route_of returns the present route; None: there is none."""
        self._links = links
        self._route_of = route_of
        self._aims: dict[int, Aim] = {}

    def aim(self, index: int, aim: Aim) -> None:
        """Note where the circuit with this interface sends to, or tries to."""
        self._aims[index] = aim

    def forget(self, index: int) -> None:
        """Forget a circuit, or an interface that is gone."""
        self._aims.pop(index, None)

    def find_loop(self, index: int, aim: Aim, route: Route) -> Reason:
        """Return why the route of the circuit with this interface cannot be; empty: it can."""
        passed = {index}
        through = ""
        following: Route | None = route
        while following is not None:
            carrier = self._carrier(following, index)
            if carrier is None:
                return NO_REASON
            if carrier in passed:
                return self._describe(aim, through)
            passed.add(carrier)
            next_aim = self._aims.get(carrier)
            if next_aim is None:
                return NO_REASON
            through = through or next_aim.circuit
            following = self._route_of(next_aim)
        return NO_REASON

    def _carrier(self, route: Route, own: int) -> int | None:
        """Return the index of the circuit's interface that a route leads into; None: into none."""
        index = route.interface
        with suppress(DeviceError):  # the interface has just gone
            for _ in range(MAX_LINKS):
                if index is None or index == own or index in self._aims:
                    return index
                index = self._links.lower_link(index)
        return None

    def _describe(self, aim: Aim, through: str) -> Reason:
        try:
            route = self._links.describe_route(aim.source, aim.remote.address, aim.choice)
        except DeviceError:  # it has just gone
            route = f"to {aim.remote.address}"
        if through:
            return Cause.ROUTE_CIRCLE.say(route=route, circuit=through)
        return Cause.ROUTE_LOOP.say(route=route)
