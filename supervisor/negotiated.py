"""A circuit that both ends agree on by the handshake, and know to be up or down."""

from __future__ import annotations

from collections.abc import Callable

from vela.circuit import CircuitConfig, Encapsulation, Endpoint, IPAddress, PeerConfig
from vela.encapsulation import Elision
from vela.errors import DeviceError, VelaError
from vela.negotiation import (
    Agreed,
    Agreement,
    Capability,
    CircuitRequested,
    Closed,
    CloseReason,
    Description,
    Down,
    Event,
    OfferChanged,
    Policy,
    RejectCode,
    Rejected,
    ResolveWanted,
    Session,
    Unanswered,
    Up,
)
from vela.negotiation import State as SessionState
from vela.supervisor.circuit import Circuit, Origin, State
from vela.supervisor.conversation import Conversation
from vela.supervisor.negotiator import Negotiator
from vela.supervisor.pseudowire import PROVISIONAL_MTU, Path, Profile, Services

CircuitHandler = Callable[["NegotiatedCircuit"], None]
IdCheck = Callable[["NegotiatedCircuit", tuple[IPAddress, ...]], None]
OfferHandler = Callable[["NegotiatedCircuit", CircuitRequested], None]


class NegotiatedCircuit(Circuit):
    """Has its carrier while each end hears that the other one hears it."""

    def __init__(
        self,
        config: CircuitConfig,
        services: Services,
        cpu: int,
        origin: Origin,
        *,
        offer: PeerConfig,
        key: bytes | None,
        negotiator: Negotiator,
        check_id: IdCheck,
        deleted: CircuitHandler,
        offer_changed: OfferHandler,
    ) -> None:
        """Create the interface. Raises DeviceError, and then there is none.

        offer is what the remote shall get; of a circuit that the remote set
        up, what it wanted here. check_id raises ConfigError where another
        circuit has the id toward one of these addresses. deleted is called
        when the other end deleted such a circuit, offer_changed when it wants
        it otherwise.
        """
        super().__init__(config, services, cpu, origin)
        self.offer = offer
        self._key = key
        self._negotiator = negotiator
        self._check_id = check_id
        self._deleted = deleted
        self._offer_changed = offer_changed
        self._path: Path | None = None
        self._agreement: Agreement | None = None
        self._is_up = self._was_up = False
        # The address that works, or is tried; and when others were tried in vain.
        self._favourite: IPAddress | None = None
        self._silent: dict[IPAddress, float] = {}
        self._conversation = self._converse()

    def start(self) -> None:
        super().start()
        self._session.start(self._conversation.now())
        self._conversation.pump()

    def accept(self, requested: CircuitRequested) -> None:
        """Begin with what a remote asked for, in place of start(); answer() is to follow.

        Raises VelaError.
        """
        self._started = True
        self._conversation.hold()
        now = self._conversation.now()
        # Known before it is spoken of, so that both ends agree at once.
        self._path = self._choose((requested.source.address,), requested.here)
        self._session.set_local(self._describe(self._path), now)
        self._session.accept(requested, now)
        self._agreement = self._session.agreement
        self._carry()
        self._refresh_later(failed=False)

    def answer(self) -> None:
        """Tell the remote that it was accepted."""
        self._conversation.release()

    def close(self, reason: CloseReason | None = CloseReason.STOPPING) -> None:
        """Take everything down here; tell the other end whether it is for good, or nothing."""
        if reason is None:
            self._conversation.forget()
        else:
            self.say_goodbye(reason)
        super().close()

    def say_goodbye(self, reason: CloseReason) -> None:
        """Tell the other end, ahead of close()."""
        if not self.disabled:
            self._conversation.leave(reason)

    def disable(self) -> None:
        super().disable()
        self._is_up = False
        self._agreement = None
        self._conversation.leave(CloseReason.STOPPING)
        # Another circuit may have the id toward there by then.
        self._path = None

    def enable(self) -> None:
        super().enable()
        # Looked for anew by start(): on one that has become too narrow, nothing could be said.
        self._path = None
        self._conversation = self._converse()

    def set_policy(self, policy: Policy) -> None:
        """Take over what others may set up here from now on."""
        self._session.policy = policy

    def set_key(self, key: bytes | None) -> None:
        """Use this key from now on; another one takes another session."""
        if key == self._key:
            return
        self._key = key
        if not self.disabled:
            self.disable()
            self.enable()
            self.start()

    @property
    def sources(self) -> tuple[IPAddress, ...]:
        known = () if self._path is None else self._path.sources
        return super().sources + known

    def check(self) -> None:
        super().check()
        if self.disabled:
            return
        suspended = self._session.state is SessionState.SUSPENDED
        if self._broken and not (suspended and self._reason == self._broken):
            self._suspend(self._broken)
            self._become(State.DOWN if self._was_up else State.CONNECTING, self._broken)
        elif not self._broken and suspended and self._state is not State.FAILED:
            self._become(State.DOWN if self._was_up else State.CONNECTING)
            self._seek_again()

    @property
    def _session(self) -> Session:
        return self._conversation.session

    def _converse(self) -> Conversation:
        session = Session(
            self.config.id,
            self._describe(self._path),
            remote=self._path.endpoint if self._path else None,
            here=self._from(self._path) if self._path else None,
            key=self._key,
            cookies=self._negotiator.cookies,
            randomness=self._negotiator.randomness,
            offer=self.offer,
            policy=self._negotiator.policy if self.origin is Origin.PEER else None,
        )
        return Conversation(session, self._services.loop, self._negotiator, self._on_event)

    def _on_path(self, path: Path) -> None:
        # Before anything is sent: the other end knows both as one.
        self._check_id(self, path.sources)
        self._path = path
        self._favourite = path.endpoint.address
        now = self._conversation.now()
        self._conversation.expect_from(path.sources)
        in_use = self._path_in_use() if self._is_up else path
        if in_use is not None:
            self._session.set_local(self._describe(in_use), now)
        self._session.set_remote(path.endpoint, now, self._from(path))
        if self._state is State.FAILED:
            self._carry()
            self._become(State.DOWN if self._was_up else State.CONNECTING)
            self._seek_again()
        elif not self._was_up and self._state in (State.RESOLVING, State.DOWN):
            self._become(State.CONNECTING)
        self._conversation.pump()
        # Where the MTU is configured, or the other end's is smaller, that of the
        # route changes and nothing else: both agree as before, and the worker
        # must know all the same.
        attached = self._wire.attached
        if self._is_up and in_use and attached and attached[0].route != in_use.route:
            self._attach()

    def _try_another(self) -> None:
        """Seek the remote at the address that was longest not tried, if its name has several."""
        if self._path is None:
            return
        tried, now = self._path.endpoint.address, self._conversation.now()
        self._silent = {
            each: now if each == tried else self._silent.get(each, 0.0) for each in self._addresses
        }
        if len(self._addresses) < 2:
            return
        try:
            self._on_path(self._choose(self._addresses, self._here()))
        except DeviceError as err:
            self._on_no_path(str(err))
        except VelaError as err:
            self._fail(str(err))

    def _precedence(self, address: IPAddress) -> tuple[float, bool]:
        return self._silent.get(address, 0.0), address != self._favourite

    def _path_in_use(self) -> Path | None:
        """Return the way to where the session is; None: at the moment there is none."""
        remote = self._session.remote
        try:
            return None if remote is None else self._path_to(remote)
        except DeviceError:
            return None  # the session tells, if it stays so

    def _here(self) -> IPAddress | None:
        # Who set the circuit up knows this end by the address that it asked.
        return self._session.here if self._is_up or self.origin is Origin.PEER else None

    def _from(self, path: Path) -> IPAddress | None:
        """Return where to seek the remote from; None: whichever address the kernel takes."""
        return path.route.source if path.route.source == self._here() else _bound(path)

    def _on_no_path(self, reason: str) -> None:
        # One that is up goes down by itself, when it hears nothing any more.
        if not self._is_up:
            self._become(State.DOWN, reason)

    def _rtt_ms(self) -> float | None:
        rtt_s = self._session.rtt_s
        return None if rtt_s is None else round(rtt_s * 1000, 3)

    def _last_heard_seconds(self) -> float | None:
        at = self._session.last_heard_at
        return None if at is None else round(self._conversation.now() - at, 3)

    def _describe(self, path: Path | None) -> Description:
        """Return what this end says of itself. Raises ConfigError where the path is too narrow."""
        capabilities = Capability(0)
        if self.config.encapsulation is Encapsulation.AUTO:
            capabilities |= Capability.ELISION
        if self._services.engine.offloads:
            capabilities |= Capability.NATIVE_ENGINE
            # They are left in elided packets only.
            if Capability.ELISION in capabilities:
                capabilities |= Capability.CHECKSUM_OFFLOAD
        return Description(
            mac=self._wire.local_mac,
            mtu=(self.config.mtu or PROVISIONAL_MTU) if path is None else self._own_mtu(path),
            capabilities=capabilities,
            port=self._services.port,
            keepalive_ms=round(self.config.keepalive * 1000),
            own=Endpoint(path.route.source, self._services.port) if path else None,
        )

    def _on_event(self, event: Event) -> None:
        match event:
            case Agreed(agreement):
                self._agreement = agreement
                self._attach()
            case Up():
                self._is_up = self._was_up = True
                self._silent.clear()
                if self._session.remote is not None:
                    self._favourite = self._session.remote.address
                self._attach()
            case Down(reason):
                self._is_up = False
                self._show_carrier(False)
                self._become(State.DOWN, reason)
            case Unanswered(reason):
                # In turn for ever: the log has it once.
                again = bool(self._silent)
                state = State.DOWN if self._was_up else State.CONNECTING
                self._become(state, reason, again=again)
                self._try_another()
            case Rejected(RejectCode.DISABLED, reason):
                self._become(State.DOWN, reason)
            case Rejected(RejectCode.NO_SUCH_CIRCUIT, _) if self.origin is Origin.PEER:
                # It was deleted there while this end could not be told.
                self._deleted(self)
            case Rejected(_, reason):
                self._become(State.REJECTED, reason)
            case ResolveWanted():
                self._refresh()
            case OfferChanged(requested):
                self._offer_changed(self, requested)
            case Closed(by_remote):
                self._on_closed(by_remote)
            case _:
                pass

    def _on_closed(self, by_remote: bool) -> None:
        self._is_up = False
        self._show_carrier(False)
        if self.origin is Origin.PEER:
            self._deleted(self)
            return
        # This end still wants it, and asks for it again.
        self._become(State.DOWN, "the other end deleted it" if by_remote else "closed")
        self._session.start(self._conversation.now())

    def _attach(self) -> None:
        """Carry frames as agreed; the carrier is there once it is up."""
        try:
            self._carry()
        except VelaError as err:
            self._fail(str(err))
            self._refresh_later(failed=True)
            return
        if self._is_up:
            self._show_carrier(True)
            self._become(State.UP)

    def _carry(self) -> None:
        """Carry frames as agreed, without carrier. Raises VelaError."""
        agreement, remote = self._agreement, self._session.remote
        if agreement is None or remote is None:
            return
        # A translated port is the one that leads back.
        port = remote.port if agreement.nat else agreement.remote_port
        path = self._path_to(Endpoint(remote.address, port))
        # The session may be with another address than was sought.
        self._session.set_local(self._describe(path), self._conversation.now())
        profile = Profile(
            mtu=agreement.mtu,
            elision=Elision.KNOWN if agreement.elision else Elision.NEVER,
            remote_mac=agreement.remote_mac,
            leave_checksums=agreement.elision and agreement.checksum_offload,
            source_port=path.group.port if agreement.nat else self._source_port(path),
        )
        self._wire.attach(path, profile)

    def _fail(self, reason: str) -> None:
        self._suspend(reason)
        super()._fail(reason)

    def _suspend(self, reason: str) -> None:
        """Let the other end know, which else would have carrier toward nothing."""
        self._is_up = False
        self._show_carrier(False)
        self._session.suspend(f"on the other end, {reason}")
        self._conversation.pump()

    def _seek_again(self) -> None:
        if not self._broken and self._session.state is SessionState.SUSPENDED:
            self._session.start(self._conversation.now())
            self._conversation.pump()

    def _path_to(self, endpoint: Endpoint) -> Path:
        """Return the way to where the session's remote is. Raises DeviceError."""
        reception, here = self._services.reception, self._session.here
        if here is None:
            group, route = reception.way_to(endpoint)
        else:
            group, route = reception.way_from(here, endpoint)
        return Path(endpoint, (endpoint.address,), route, group)


def _bound(path: Path) -> IPAddress | None:
    """Return the address that a path's sockets are bound to; None: to all of them."""
    return None if path.group.address.is_unspecified else path.group.address
