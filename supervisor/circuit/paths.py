"""How one circuit's remote is reached from this machine, by what the operator chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vela.address import Endpoint, IPAddress, Remote, family_of
from vela.errors import ConfigError, DeviceError
from vela.linux.choice import ANY_UNDERLAY
from vela.linux.underlay import UnderlayPath
from vela.reasons import Cause, Reason
from vela.signaling.candidates import Candidate

from ..config.records import CircuitConfig
from ..runtime.loop import EventLoop
from ..runtime.names import NameSource
from .caller_wait import CallerWait
from .caller_wait import Listener as CallerListener
from .path_prober import PathProber
from .remote import Listener, RemoteSearch, leads_here
from .routes import CircuitRoutes, LoopFinder, MachineRoutes


class Paths:
    """Knows the paths, the device and the source address that a circuit may use."""

    def __init__(
        self,
        config: CircuitConfig,
        port: int,
        loop: EventLoop,
        names: NameSource,
        routes: MachineRoutes,
        loops: LoopFinder,
        prober: PathProber,
    ) -> None:
        self.port = port
        """That is listened on, and the port of a remote that names none."""
        self._loop = loop
        self._names = names
        self._prober = prober
        self._machine_routes = routes
        self._loops = loops
        self._found: tuple[UnderlayPath, ...] = ()
        self._choose(config)

    def begin_anew(self, config: CircuitConfig) -> None:
        """Take another choice of the operator's."""
        self._choose(config)

    def _choose(self, config: CircuitConfig) -> None:
        self._choice = config.underlay
        self._routes = CircuitRoutes(self._machine_routes, self._choice, self._loops)
        self._presence = self._choice.presence()

    def search(
        self,
        config: CircuitConfig,
        remote: Remote,
        listener: Listener,
        local_address: Callable[[], IPAddress | None] = lambda: None,
    ) -> RemoteSearch:
        """Return a search for a remote, which begins nothing yet. local_address: see there."""
        bind = config.bind
        return RemoteSearch(
            remote,
            config.family or (None if bind is None else family_of(bind)),
            self.port,
            self._loop,
            self._names,
            self._routes,
            listener,
            local_address=local_address,
        )

    def wait(self, config: CircuitConfig, listener: CallerListener) -> CallerWait:
        """Return what there is instead of a search where the other end calls."""
        return CallerWait(config.family, config.bind, self.port, self._loop, self._routes, listener)

    @contextmanager
    def found(self, paths: tuple[UnderlayPath, ...]) -> Iterator[None]:
        """Within the block, know these, which were found in this turn of the loop."""
        self._found = paths
        try:
            yield
        finally:
            self._found = ()

    def to(self, endpoint: Endpoint, source: IPAddress | None) -> UnderlayPath:
        """Return the path to an endpoint. source: None: any. Raises DeviceError."""
        # A look at a route is a dozen system calls, and each circuit looks once a minute.
        for found in self._found:
            if found.endpoint == endpoint and source in (None, found.route.source):
                path = UnderlayPath(endpoint, (endpoint.address,), found.route, found.group)
                return self._prober.narrow(path)
        group, route = self._routes.way(endpoint, source)
        return self._prober.narrow(UnderlayPath(endpoint, (endpoint.address,), route, group))

    def check_remote(self, config: CircuitConfig) -> None:
        """Raise ConfigError if a remote is an address of this machine; names are looked up."""
        for remote in config.remote.all:
            if remote.address is None:
                continue
            endpoint = Endpoint(remote.address, remote.port or self.port)
            try:
                group, route = self._routes.way(endpoint)
            except DeviceError:
                continue  # there may be a route later
            if leads_here(UnderlayPath(endpoint, (), route, group), self.port):
                own = Cause.OWN_ADDRESS.say(address=remote.address)
                raise ConfigError(f"{config.name}: {own}")

    def check_path(self, path: UnderlayPath) -> None:
        """Raise ConfigError if a path leads to this machine.

        A loopback address in the configuration is no mistake: another velad may listen there.
        """
        address = path.endpoint.address
        if not address.is_loopback and leads_here(path, self.port):
            raise ConfigError(Cause.OWN_ADDRESS.say(address=address))

    def candidates(
        self, paths: tuple[UnderlayPath, ...], *known: IPAddress | None
    ) -> tuple[Candidate, ...]:
        """Return where to ask by these paths. known: local addresses to ask from, whatever else.

        Elsewhere the kernel chooses, unless the group that would hear the answer has an address.
        """
        return tuple(Candidate(each.endpoint, _source(each, known)) for each in paths)

    def change_of_underlay(self) -> Reason | None:
        """Return the obstacle since the device or the address has changed; empty: there is none.

        None: nothing has changed since the last call.
        """
        if self._choice == ANY_UNDERLAY:
            return None
        presence = self._choice.presence()
        if presence == self._presence:
            return None
        self._presence = presence
        return presence[1]


def _source(path: UnderlayPath, known: tuple[IPAddress | None, ...]) -> IPAddress | None:
    if path.route.source in known:
        return path.route.source
    return None if path.group.address.is_unspecified else path.group.address
