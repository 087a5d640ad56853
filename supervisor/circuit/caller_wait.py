"""In place of the search for a remote, where a circuit names none: the other end calls."""

from __future__ import annotations

from typing import Protocol

from vela.address import Endpoint, Family, IPAddress
from vela.linux.underlay import UnderlayPath
from vela.reasons import NO_REASON, Cause, Reason

from ..runtime.loop import EventLoop
from ..runtime.refresh import Refresh
from .routes import CircuitRoutes


class Listener(Protocol):
    """Is told of the wait, and knows where the remote is: whereabouts.Whereabouts."""

    def on_awaits(self) -> None:
        """Wait for a call, or go on with the session that there is, by its present route."""

    @property
    def remote_endpoint(self) -> Endpoint | None:
        """Where the remote of the session is; None: there is no session."""


class CallerWait:
    """What a circuit has instead of a RemoteSearch when its remote is any."""

    sought_in_vain = True
    """Nothing is looked up, so nobody has to wait for that."""

    def __init__(
        self,
        family: Family | None,
        bind: IPAddress | None,
        port: int,
        loop: EventLoop,
        routes: CircuitRoutes,
        listener: Listener,
    ) -> None:
        """family, bind: what the circuit chooses. port: the listening one."""
        self._family = family
        self._bind = bind
        self._own_port = port
        self._loop = loop
        self._routes = routes
        self._listener = listener
        self._refresh = Refresh(loop, self.resolve)
        self._stopped = False
        self.paused = False
        """While true, the circuit is told nothing."""

    @property
    def trouble(self) -> Reason:
        """That the other end has not called; empty: it has."""
        called = self._listener.remote_endpoint is not None
        return NO_REASON if called else Cause.AWAITING_CALL.say()

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Where the remote is."""
        remote = self._listener.remote_endpoint
        return () if remote is None else (remote.address,)

    def hears(self, source: Endpoint, local_address: IPAddress) -> bool:
        """Tell whether the other end may call from there, and at this address of the machine."""
        if self._bind is not None:
            return local_address == self._bind
        return self._family in (None, source.family)

    def path_to(self, address: IPAddress, local_address: IPAddress | None = None) -> UnderlayPath:
        """Return the path to an address. Raises DeviceError if it has no route.

        local_address: the source; None: any.
        """
        endpoint = Endpoint(address, self._own_port)
        group, route = self._routes.way(endpoint, local_address)
        return UnderlayPath(endpoint, (address,), route, group)

    def resolve(self) -> None:
        """Wait for a call; where there is a session, look at its route now, and each minute."""
        self._refresh.later()
        self._loop.call_soon(self._tell)

    def resolve_soon(self) -> None:
        """Wait for a call after a back-off, because something failed."""
        self._refresh.soon()

    def resolve_later(self) -> None:
        """Look at the route in a minute."""
        self._refresh.later()

    def stop(self) -> None:
        self._stopped = True
        self._refresh.cancel()

    def use(self, address: IPAddress) -> None:
        """Take note that the remote was heard there."""
        self._refresh.succeed()

    def _tell(self) -> None:
        if not (self._stopped or self.paused):
            self._listener.on_awaits()
