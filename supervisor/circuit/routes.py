"""The routes that one circuit may take: by what its operator chose, and never into itself."""

from __future__ import annotations

from typing import Protocol

from vela.address import Endpoint, IPAddress, family_of
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
    """The routes from the listening addresses, as far as the circuit may take them."""

    def __init__(self, routes: MachineRoutes, choice: UnderlayChoice, loops: LoopFinder) -> None:
        self._routes = routes
        self._choice = choice
        self._loops = loops

    def way(self, remote: Endpoint, source: IPAddress | None = None) -> tuple[ReceiveGroup, Route]:
        """Return how a remote is reached. Raises DeviceError.

        source: the address of this machine to go from, unless the operator chose another one;
        None, or of the other family: any.
        """
        if source is None or family_of(source) is not remote.family:
            found = self._routes.way_to(remote, self._choice)
        else:
            here = self._choice.source(remote.family) or source
            found = self._routes.way_from(here, remote, self._choice)
        return self._without_loop(remote, *found)

    def way_preferring(
        self, remote: Endpoint, source: IPAddress | None
    ) -> tuple[ReceiveGroup, Route]:
        """Return the same; from any address where there is none from that. Raises DeviceError."""
        if source is not None and family_of(source) is remote.family:
            try:
                return self.way(remote, source)
            except DeviceError:
                pass  # this machine may have lost the address
        return self.way(remote)

    def _without_loop(
        self, remote: Endpoint, group: ReceiveGroup, route: Route
    ) -> tuple[ReceiveGroup, Route]:
        loop = self._loops.find_loop(remote, route)
        if loop:
            raise RouteLoop(loop)
        return group, route
