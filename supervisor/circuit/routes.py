"""The routes that one circuit may take: by what its operator chose, and never into itself."""

from __future__ import annotations

from typing import Protocol

from vela.address import Endpoint, IPAddress
from vela.errors import DeviceError
from vela.linux.choice import UnderlayChoice
from vela.linux.underlay import ReceiveGroup, Route
from vela.reasons import Reason


class RouteLoop(DeviceError):
    """The route to the remote leads into the circuit itself."""


class MachineRoutes(Protocol):
    """Knows the routes from the listening addresses: demux.Demux."""

    def way_from(
        self, here: IPAddress, remote: Endpoint, choice: UnderlayChoice
    ) -> tuple[ReceiveGroup, Route]: ...

    def way_to(self, remote: Endpoint, choice: UnderlayChoice) -> tuple[ReceiveGroup, Route]: ...


class LoopFinder(Protocol):
    """Knows the circuit's interface: pseudowire.Pseudowire."""

    def find_loop(self, remote: Endpoint, route: Route) -> Reason:
        """Return why the circuit cannot send to a remote by this route; empty: it can."""


class CircuitRoutes:
    """A remote.RouteSource."""

    def __init__(self, routes: MachineRoutes, choice: UnderlayChoice, loops: LoopFinder) -> None:
        self._routes = routes
        self._choice = choice
        self._loops = loops

    def way_from(self, here: IPAddress, remote: Endpoint) -> tuple[ReceiveGroup, Route]:
        """Return how a remote is reached from an address of this machine. Raises DeviceError."""
        source = self._choice.source(remote.family) or here
        return self._without_loop(remote, *self._routes.way_from(source, remote, self._choice))

    def way_to(self, remote: Endpoint) -> tuple[ReceiveGroup, Route]:
        """Return how a remote is reached. Raises DeviceError."""
        return self._without_loop(remote, *self._routes.way_to(remote, self._choice))

    def _without_loop(
        self, remote: Endpoint, group: ReceiveGroup, route: Route
    ) -> tuple[ReceiveGroup, Route]:
        loop = self._loops.find_loop(remote, route)
        if loop:
            raise RouteLoop(loop)
        return group, route
