"""The search for a circuit's remote: name to addresses, address to route, repeatedly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vela.address import Endpoint, Family, IPAddress, Remote
from vela.errors import DeviceError
from vela.linux.underlay import UnderlayPath
from vela.reasons import NO_REASON, Cause, Reason, joined, reason_of
from vela.signaling.candidates import interleaved

from ..runtime.loop import EventLoop
from ..runtime.names import NameSource, NameWatch
from ..runtime.resolver import Answer
from .routes import CircuitRoutes


class Listener(Protocol):
    """Is told the results of the search: whereabouts.Whereabouts."""

    def on_unresolved(self, reason: Reason) -> None: ...

    def on_no_route(self, reason: Reason) -> None: ...

    def on_routed(self, paths: tuple[UnderlayPath, ...]) -> None:
        """Take the paths to all addresses that have one, the best first."""


class RemoteSearch:
    """Resolves a circuit's remote as long as the circuit exists."""

    def __init__(
        self,
        remote: Remote,
        family: Family | None,
        port: int,
        loop: EventLoop,
        names: NameSource,
        routes: CircuitRoutes,
        listener: Listener,
        local_address: Callable[[], IPAddress | None],
    ) -> None:
        """port: used if the remote names none.

        local_address returns the local address that the remote uses, if known.
        Routes from that address are preferred.
        """
        self._remote = remote
        self._own_port = port
        self._port = remote.port or port
        self._routes = routes
        self._listener = listener
        self._local_address = local_address
        self._watch = NameWatch(loop, names, remote.host, family, self._on_answer, self._on_delay)
        self._resolved: tuple[IPAddress, ...] = ()
        self._favourite: IPAddress | None = None
        self.paused = False
        """While true, addresses are still looked up, and the listener is not told."""
        self.trouble = NO_REASON
        """Why the last look-up of the name has no result; empty: it has one."""

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """The known addresses of the remote."""
        known = self._remote.address
        return self._resolved if known is None else (known,)

    @property
    def sought_in_vain(self) -> bool:
        """Whether the look-up of the name failed, and no address is known."""
        return not self.addresses and self._watch.failed

    def resolve(self) -> None:
        """Look up the remote and its route now."""
        self._watch.look()

    def resolve_soon(self) -> None:
        """Look them up after a back-off, because something failed."""
        self._watch.look_again()

    def resolve_later(self) -> None:
        """Look them up in a minute."""
        self._watch.look_later(failed=False)

    def stop(self) -> None:
        """Stop the search. The listener is told nothing more."""
        self._watch.stop()

    def use(self, address: IPAddress) -> None:
        """Prefer this address from now on, as the remote answers there."""
        self._favourite = address

    def path_to(self, address: IPAddress, local_address: IPAddress | None = None) -> UnderlayPath:
        """Return the path to one address of the remote. Raises DeviceError if it has no route.

        local_address: the source; None: the one that the remote uses, or any.
        """
        return self._paths((address,), local_address)[0]

    def _paths(
        self, addresses: tuple[IPAddress, ...], local_address: IPAddress | None = None
    ) -> tuple[UnderlayPath, ...]:
        """Return the paths to all addresses that have a route, in the order to ask them.

        Raises DeviceError if none has, with the reason for each address.
        """
        source = local_address or self._local_address()
        sources = tuple(sorted(addresses, key=str))
        paths, obstacles = [], []
        # What worked last comes first.
        for address in sorted(interleaved(addresses), key=lambda each: each != self._favourite):
            endpoint = Endpoint(address, self._port)
            try:
                group, route = self._routes.way_preferring(endpoint, source)
            except DeviceError as err:
                obstacles.append(reason_of(err))
            else:
                paths.append(UnderlayPath(endpoint, sources, route, group))
        if not paths:
            raise DeviceError(joined(obstacles))
        # A name may have an address of this machine among others, as anycast has.
        elsewhere = tuple(each for each in paths if not leads_here(each, self._own_port))
        return elsewhere or tuple(paths)

    def _on_delay(self, why: str) -> None:
        self.trouble = Cause.NAME_UNRESOLVED.say(error=why)
        if not self.paused:
            self._listener.on_unresolved(self.trouble)

    def _on_answer(self, answer: Answer) -> bool:
        """Tell the listener the result of a look-up. Return whether there is a route."""
        failed = Cause.NAME_UNRESOLVED
        self.trouble = failed.say(error=answer.error) if answer.error else NO_REASON
        if self.paused:
            self._resolved = answer.addresses or self._resolved
            return answer.error is None
        if answer.error is not None:
            self._listener.on_unresolved(self.trouble)
            return False
        self._resolved = answer.addresses
        try:
            paths = self._paths(answer.addresses)
        except DeviceError as err:
            self._listener.on_no_route(reason_of(err))
            return False
        self._listener.on_routed(paths)
        return True


def leads_here(path: UnderlayPath, own_port: int) -> bool:
    """Tell whether a path leads to the daemon that asks: a local address, and its own port."""
    address = path.endpoint.address
    is_local = address.is_loopback or path.route.source == address
    return is_local and path.endpoint.port == own_port
