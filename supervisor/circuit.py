"""What all circuits have in common: a pseudowire, a state, and a remote to be found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum

import structlog

from vela.circuit import (
    CircuitConfig,
    Encapsulation,
    Endpoint,
    IPAddress,
    SourcePort,
)
from vela.encapsulation import Elision
from vela.errors import ConfigError, DeviceError, VelaError
from vela.mtu import MIN_IPV6_MTU, tap_mtu
from vela.resolver import Answer
from vela.supervisor.loop import Timer
from vela.supervisor.pseudowire import Path, Pseudowire, Services
from vela.supervisor.status import CircuitStatus
from vela.underlay import ReceiveGroup, Route

# Names change their addresses, and routes their MTU: looked at again this often.
REFRESH_INTERVAL_S = 60.0
# After a failure sooner, and later each time.
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0


class State(Enum):
    """As the status names them."""

    RESOLVING = "resolving"
    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"
    REJECTED = "rejected"
    UNMONITORED = "unmonitored"
    DISABLED = "disabled"
    FAILED = "failed"


class Origin(Enum):
    """Who wants a circuit."""

    CONFIG = "config"
    PEER = "peer"  # the other end set it up
    COMMAND = "command"


# What an operator need not look at.
_GOOD = frozenset({State.UP, State.UNMONITORED, State.CONNECTING, State.DISABLED})


class Circuit(ABC):
    """A circuit that is kept alive, whatever becomes of its remote."""

    def __init__(self, config: CircuitConfig, services: Services, cpu: int, origin: Origin) -> None:
        """Create the interface. Raises DeviceError, and then there is none."""
        self.config = config
        self.origin = origin
        self._services = services
        self._log = structlog.get_logger().bind(circuit=config.name, circuit_id=config.id)
        self._state = State.RESOLVING
        self._reason = ""
        self._broken = ""
        self._timer: Timer | None = None
        self._failures = 0
        self._started = self._closed = False
        # A name's, when it was last looked up.
        self._addresses: tuple[IPAddress, ...] = ()
        self.disabled = False
        # Whoever asks for a circuit now, by a command or from another machine, is told at once.
        self._wire = Pseudowire(
            config, services, cpu, self.check, await_bridge=origin is Origin.CONFIG
        )

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def cpu(self) -> int:
        return self._wire.cpu

    @property
    def state(self) -> State:
        return State.FAILED if self._broken else self._state

    @property
    def idle(self) -> bool:
        """Whether it was neither started nor taken down."""
        return not (self._started or self.disabled or self._closed)

    def start(self) -> None:
        """Look for the remote, and carry frames as soon as that is possible."""
        self._started = True
        self._log.debug("circuit_started", remote=str(self.config.remote))
        self._refresh()

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Its remote's, as far as they are known."""
        known = self.config.remote.address
        return self._addresses if known is None else (known,)

    @property
    def sources(self) -> tuple[IPAddress, ...]:
        """The addresses toward which it has its id at present."""
        attached = self._wire.attached
        return () if attached is None else attached[0].sources

    def kill_worker(self) -> None:
        """Begin to end the worker, ahead of close() in the same turn of the loop."""
        self._wire.kill_worker()

    @property
    def unresolved(self) -> bool:
        """Whether no address of its remote's is known."""
        return not self.addresses

    @property
    def sought_in_vain(self) -> bool:
        """Whether it is unresolved although its remote was looked up."""
        return self.unresolved and self._failures > 0

    def close(self) -> None:
        """Take everything down; the interface is gone afterwards."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._wire.close()
        # Where velad refuses to start, why is the one thing it says.
        if self._started:
            self._log.info("circuit_closed")

    def disable(self) -> None:
        """Carry nothing until enable(); the interface stays, without carrier."""
        self.disabled = True
        if self._timer is not None:
            self._timer.cancel()
        self._wire.detach()
        self._wire.set_carrier(False)
        self._broken = ""  # check() looks again
        self._become(State.DISABLED)
        # Who its remote is stays known: that one is told.
        self._refresh()

    def enable(self) -> None:
        """Undo disable(); start() is still to be called."""
        self.disabled = False
        self._become(State.RESOLVING)

    def check(self) -> None:
        """Look after the interface and the worker; to be called once a second."""
        try:
            self._wire.check()
        except VelaError as err:
            if str(err) != self._broken:
                self._log.error("circuit_broken", error=str(err))
            self._broken = str(err)
        else:
            if self._broken:
                self._log.info("circuit_mended")
            self._broken = ""

    def status(self) -> CircuitStatus:
        remote, attached = self.config.remote, self._wire.attached
        endpoint = attached[0].endpoint if attached else None
        return CircuitStatus(
            name=self.config.name,
            id=self.config.id,
            origin=self.origin.value,
            state=self.state.value,
            reason="; ".join(filter(None, (self._broken or self._reason, self._wire.obstacle))),
            remote=str(remote),
            remote_address=str(endpoint.address) if endpoint else None,
            remote_port=endpoint.port if endpoint else remote.port or self._services.port,
            family=endpoint.family.value if endpoint else None,
            mtu=self._wire.mtu,
            encapsulation=self.config.encapsulation.value,
            elision=attached is not None and attached[1].elision is not Elision.NEVER,
            rtt_ms=self._rtt_ms(),
            last_heard_seconds=self._last_heard_seconds(),
            worker=self._wire.worker_status(),
            counters=self._wire.counter_status(),
        )

    @abstractmethod
    def _on_path(self, path: Path) -> None:
        """Take note of the way to the remote, each time it was looked at. May raise VelaError."""

    @abstractmethod
    def _on_no_path(self, reason: str) -> None:
        """Take note that there is no way to the remote."""

    def _rtt_ms(self) -> float | None:
        return None

    def _last_heard_seconds(self) -> float | None:
        return None

    def _show_carrier(self, carrier: bool) -> None:
        try:
            self._wire.set_carrier(carrier)
        except DeviceError as err:
            self._log.error("carrier_not_set", error=str(err))

    def _fail(self, reason: str) -> None:
        """Take note that this machine cannot carry the circuit at present."""
        self._become(State.FAILED, reason)

    def _become(self, state: State, reason: str = "", *, again: bool = False) -> None:
        """Show a state, and why; again: it is for the log as it was."""
        if (state, reason) != (self._state, self._reason):
            level = "info" if not reason or state in _GOOD else "warning"
            if again:
                level = "debug"
            if state in (State.RESOLVING, State.CONNECTING) and not reason:
                level = "debug"  # on its way, as every circuit is at first
            about = {"origin": self.origin.value, "mtu": self._wire.mtu}
            if self._wire.attached is not None:
                path, profile = self._wire.attached
                about |= {"remote": str(path.endpoint), "elision": profile.elision.name.lower()}
            getattr(self._log, level)(
                "circuit_state_changed", state=state.value, reason=reason, **about
            )
        self._state, self._reason = state, reason

    def _refresh(self) -> None:
        """Look the remote up, and the way to it."""
        self._services.names.ask(self.config.remote.host, self.config.family, self._on_answer)

    def _on_answer(self, answer: Answer) -> None:
        if self._closed:
            return
        if self.disabled:
            self._addresses = answer.addresses or self._addresses
            self._refresh_later(failed=answer.error is not None)
            return
        failed = True
        try:
            failed = not self._take_answer(answer)
        finally:
            self._refresh_later(failed=failed)

    def _take_answer(self, answer: Answer) -> bool:
        """Go on with what is known of the remote now; tell whether it can be reached."""
        if answer.error is not None:
            # One that is known stays in use while its name server is away.
            if self._wire.attached is None:
                self._become(State.RESOLVING, answer.error)
            return False
        self._addresses = answer.addresses
        try:
            path = self._choose(answer.addresses, self._here())
        except DeviceError as err:
            self._on_no_path(str(err))
            return False
        try:
            self._on_path(path)
        except VelaError as err:
            self._fail(str(err))
            return False
        return True

    def _refresh_later(self, *, failed: bool) -> None:
        self._failures = self._failures + 1 if failed else 0
        delay_s = REFRESH_INTERVAL_S
        if failed:
            delay_s = min(FIRST_RETRY_S * 2 ** min(self._failures - 1, 16), LONGEST_RETRY_S)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._services.loop.call_later(delay_s, self._refresh)

    def _here(self) -> IPAddress | None:
        """Return the address of this machine that the remote speaks to; None: any will do."""
        return None

    def _choose(self, addresses: tuple[IPAddress, ...], here: IPAddress | None) -> Path:
        """Return the first address, by precedence, that there is a way to.

        From here, if there is one from there. Raises DeviceError, saying of each why not.
        """
        port = self.config.remote.port or self._services.port
        obstacles = []
        for address in sorted(addresses, key=self._precedence):
            endpoint = Endpoint(address, port)
            try:
                group, route = self._way_to(endpoint, here)
            except DeviceError as err:
                obstacles.append(str(err))
                continue
            return Path(endpoint, tuple(sorted(addresses, key=str)), route, group)
        raise DeviceError("; ".join(dict.fromkeys(obstacles)))

    def _precedence(self, address: IPAddress) -> tuple[float, bool]:
        """Return what sorts the remote's addresses, the one to take first; equals stay in order."""
        attached = self._wire.attached
        return 0.0, attached is not None and attached[0].endpoint.address != address

    def _way_to(self, endpoint: Endpoint, here: IPAddress | None) -> tuple[ReceiveGroup, Route]:
        reception = self._services.reception
        if here is not None and here.version == endpoint.address.version:
            try:
                return reception.way_from(here, endpoint)
            except DeviceError:
                pass  # this machine may have lost the address
        return reception.way_to(endpoint)

    def _own_mtu(self, path: Path) -> int:
        """Return the TAP MTU that is configured, or that the path allows. Raises ConfigError."""
        if self.config.mtu is not None:
            return self.config.mtu
        mtu = tap_mtu(path.route.mtu, path.endpoint.family)
        if mtu < MIN_IPV6_MTU and any(each.version == 6 for each in self.config.addresses):
            raise ConfigError(
                f"the way to the remote leaves an MTU of {mtu}, and IPv6 needs {MIN_IPV6_MTU}"
            )
        return mtu

    def _source_port(self, path: Path) -> int | None:
        """Return the port to send from; None: one of the circuit's own."""
        wanted = self.config.source_port
        if isinstance(wanted, int):
            return wanted
        # The original VELA has one port for both ways.
        shared = wanted is SourcePort.LISTEN or self.config.encapsulation is Encapsulation.IP
        return path.group.port if shared else None
