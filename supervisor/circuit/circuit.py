"""One circuit: carries out the actions that its lifecycle decides.

A static circuit has no signalling channel, and its lifecycle has another table.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Protocol

import structlog

from vela.address import Endpoint, IPAddress, Remote, family_of
from vela.dataplane.engine import LoadedEngine
from vela.dataplane.frame import Elision
from vela.errors import ConfigError, DeviceError, VelaError
from vela.linux.choice import ANY_UNDERLAY
from vela.linux.features import Features
from vela.linux.underlay import UnderlayPath
from vela.mac import format_mac
from vela.rate import STEP
from vela.reasons import NO_REASON, Cause, Reason, joined, reason_of
from vela.signaling.agreement import Agreement
from vela.signaling.candidates import Candidate
from vela.signaling.encryption import Encryption as SessionEncryption
from vela.signaling.enquiry import Enquiry
from vela.signaling.events import (
    Agreed,
    CircuitRequested,
    Closed,
    Datagram,
    Down,
    EchoesArrived,
    Event,
    Heard,
    OfferChanged,
    ProbeAnswered,
    Refused,
    Rejected,
    ResolveWanted,
    Unanswered,
    Up,
)
from vela.signaling.inputs import State as SessionState
from vela.signaling.messages import (
    CloseReason,
    Description,
    RejectCode,
)
from vela.signaling.policy import Policy
from vela.signaling.session import Session
from vela.signaling.signer import Key

from ..frame_keys import CircuitKeys
from ..runtime.loop import Callback, EventLoop
from ..runtime.names import NameSource
from ..states import WELL
from ..status import (
    CircuitStatus,
    RateStatus,
    ReasonStatus,
    RemoteStatus,
    milliseconds,
)
from .asking import Asking
from .data_path import DataPath
from .echoes import Answered
from .frame_watch import FrameWatch
from .history import History
from .hooks import CircuitHooks
from .key_watch import KeyWatch
from .lifecycle import Action, Input, Lifecycle, State
from .path_prober import PathProber
from .port_switch import PortSwitch
from .primary_watch import PrimaryWatch
from .rates import RateMeter
from .remote import Listener, RemoteSearch
from .remotes import Remotes
from .routes import CircuitRoutes, MachineRoutes, RouteLoop
from .setup import Origin, Setup
from .signaling import SignalingChannel
from .standing import KEY_PROOF, Standing
from .tenure import Tenure
from .terms import (
    agreed_profile,
    describe,
    static_profile,
)
from .transitions import Transitions

# States that need no action of the operator.
_GOOD = frozenset({State.UP, State.UNMONITORED, State.CONNECTING, State.DISABLED})
# For a remote that has the changed key already.
KEY_GRACE_S = 5.0
# For a session to come up that takes the place of another one.
CHANGE_GRACE_S = 3.0
NO_ANSWER = Cause.NO_ANSWER.code
_SESSION_AT_REST = frozenset({SessionState.IDLE, SessionState.SUSPENDED, SessionState.CLOSED})


class Owner(Protocol):
    """Holds all circuits: registry.Registry."""

    def check_id(self, circuit: Circuit, sources: tuple[IPAddress, ...]) -> None:
        """Raise ConfigError if another circuit has the id toward one of these addresses."""

    def on_deleted(self, circuit: Circuit) -> None:
        """Remove a circuit that the remote set up and deleted."""

    def on_state_changed(self, circuit: Circuit, before: State) -> None:
        """Take note of another state or reason."""

    def takes_another_id(self, circuit: Circuit) -> bool:
        """Tell whether a circuit whose id is taken at the remote is to be made with another one."""

    def on_offer_changed(self, circuit: Circuit, requested: CircuitRequested) -> None:
        """Handle a request for other settings from the remote that set the circuit up."""


class Circuit:
    """A circuit from the moment it is configured until it is closed."""

    def __init__(
        self,
        setup: Setup,
        origin: Origin,
        data_path: DataPath,
        *,
        loop: EventLoop,
        names: NameSource,
        routes: MachineRoutes,
        owner: Owner,
        port: int,
        maker: bytes | None = None,
    ) -> None:
        """Create a circuit. start() or accept() begins to look for the remote.

        port: the listening port, and the port of a remote that names none.
        maker: see Session.
        """
        self.config = setup.config
        self.origin = origin
        self.offer = setup.offer
        self.disabled = False
        self.tenure: Tenure | None = None
        """Of one that the remote set up: how long it is kept."""
        self.hooks: CircuitHooks | None = None
        """Of one of the configuration file."""
        self._data_path = data_path
        self._loop = loop
        self._names = names
        self._machine_routes = routes
        self._routes = self._circuit_routes()
        self._owner = owner
        self._port = port
        self._control_channel = setup.control_channel
        self._asking = None if setup.control_channel is None else Asking(setup.control_channel)
        self._key = setup.key
        self._machine = setup.machine
        self._maker = maker
        self._frame_keys = setup.frame_keys
        self._key_watch = self._watch_keys()
        self._signaling: SignalingChannel | None = None
        self._log = self._bound_log()
        self._started = self._closed = self._moving = self._handed_over = self._frozen = False
        self._lifecycle = Lifecycle(static=self.static)
        self._inputs: deque[tuple[Input, Reason]] = deque()
        self._stepping = False
        self._logged = (State.RESOLVING, NO_REASON)
        self._transitions = Transitions(State.RESOLVING, loop.now())
        self._rates = RateMeter()
        self.history = History(loop.now())
        self._obstacle = NO_REASON
        self._bridge_mtu = data_path.bridge_mtu
        self._path: UnderlayPath | None = None
        self._agreement: Agreement | None = None
        self._prober = PathProber(loop, self._on_path_mtu)
        self._ports = PortSwitch(data_path, loop, self.apply_terms)
        self._frames = FrameWatch(self, data_path, loop, self._take, self.history)
        self._presence = self.config.underlay.presence()
        self._remotes = Remotes(self.config.remote, self.name, self, loop)
        self._remote = self._search()
        self._signaling = self._open_signaling()
        data_path.set_failure_handler(self.check)
        data_path.set_route_handler(self._on_route_changed)

    # For the registry.

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def cpu(self) -> int:
        return self._data_path.cpu

    @property
    def taps(self) -> tuple[tuple[int, ...], int]:
        """The descriptors of its interface, one for each queue, and the index of that."""
        return self._data_path.taps

    @property
    def state(self) -> State:
        return self._lifecycle.state

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why it has its state, and what it still waits for; empty: there is nothing to say."""
        # While it is up, the name does not matter.
        seeks = self.state in (State.RESOLVING, State.CONNECTING, State.DOWN, State.REJECTED)
        whys = self._remotes.explain(self.state, self._lifecycle.reason)
        trouble = self._remote.trouble if seeks else NO_REASON
        said = (
            *whys,
            self._why_no_answer() if seeks else NO_REASON,
            NO_REASON if any(trouble in each for each in whys) else trouble,
            self._frames.note if self.state is State.UP else NO_REASON,
            *self._data_path.obstacles,
            NO_REASON if self.hooks is None else self.hooks.reason,
        )
        return tuple(dict.fromkeys(filter(None, said)))

    def _why_no_answer(self) -> Reason:
        """Return what shows why the remote does not answer; empty: nothing, or it answers."""
        asking, session = self._asking, self.session
        if asking is None or session is None or self._lifecycle.reason.code != NO_ANSWER:
            return NO_REASON
        return asking.reason(session)

    @property
    def reason(self) -> Reason:
        """All of them in one."""
        return joined(self.reasons)

    @property
    def session(self) -> Session | None:
        """None: it is static."""
        return None if self._signaling is None else self._signaling.session

    @property
    def agreement(self) -> Agreement | None:
        return self._agreement

    @property
    def static(self) -> bool:
        """Whether it has no signalling."""
        return self._control_channel is None

    @property
    def idle(self) -> bool:
        """Whether it was neither started, disabled nor closed."""
        return not (self._started or self.disabled or self._closed)

    @property
    def frame_keys(self) -> CircuitKeys | None:
        """Of an encrypted circuit."""
        return self._frame_keys

    @property
    def taken_down(self) -> bool:
        """Whether a command took it down, which outlives restarts; not the file."""
        return self.disabled and self.config.enabled

    @property
    def remote(self) -> Remote:
        """The one in use."""
        return self._remotes.in_use

    def remotes(self) -> tuple[RemoteStatus, ...]:
        """Return what each of its remotes does."""
        return self._remotes.status(self.state, self._lifecycle.reason)

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """The known addresses of the remote in use."""
        return self._remote.addresses

    @property
    def idle_addresses(self) -> tuple[IPAddress, ...]:
        """The known addresses of its other remotes."""
        known = self._remotes.known_addresses().values()
        return tuple(address for addresses in known for address in addresses)

    @property
    def all_addresses(self) -> tuple[IPAddress, ...]:
        """The addresses of all its remotes; none, if those of one are not known."""
        known = (self.addresses, *self._remotes.known_addresses().values())
        return tuple(each for addresses in known for each in addresses) if all(known) else ()

    @property
    def sources(self) -> tuple[IPAddress, ...]:
        """The remote addresses toward which it uses its id at present."""
        attached = self._data_path.attached
        in_use = () if attached is None else attached[0].sources
        sought = () if self._path is None or self._signaling is None else self._path.sources
        return in_use + sought

    @property
    def sought_in_vain(self) -> bool:
        """Whether the look-up of the remote's name failed, and no address is known."""
        return self._remote.sought_in_vain

    @property
    def maker(self) -> bytes | None:
        """Which machine set it up, by identity.maker_of; None: this one, or it did not say."""
        return self._maker if self._signaling is None else self._signaling.session.maker

    def check_remote(self) -> None:
        """Raise ConfigError if a remote is an address of this machine; names are looked up."""
        for remote in self.config.remote.all:
            if remote.address is None:
                continue
            endpoint = Endpoint(remote.address, remote.port or self._port)
            try:
                group, route = self._routes.way_to(endpoint)
            except DeviceError:
                continue  # there may be a route later
            if self._remote.is_this_machine(UnderlayPath(endpoint, (), route, group)):
                own = Cause.OWN_ADDRESS.say(address=remote.address)
                raise ConfigError(f"{self.name}: {own}")

    def start(self) -> None:
        """Look for the remote, and carry frames as soon as possible."""
        self._started = True
        self._log.debug("circuit_started", remote=str(self.remote))
        self._take(Input.START)

    def accept(
        self, requested: CircuitRequested, encryption: SessionEncryption | None = None
    ) -> None:
        """Begin with the session that a remote asked for, instead of start().

        encryption: with the keys of the session, on an encrypted circuit.
        answer() must follow. Raises VelaError.
        """
        self._begin_with(requested, encryption)
        self._take(Input.ACCEPT)

    def _begin_with(
        self, requested: CircuitRequested, encryption: SessionEncryption | None = None
    ) -> None:
        """Begin with the session that a remote asked for. Raises VelaError."""
        signaling = self._require_signaling()
        self._started = True
        signaling.hold()
        # The path must be known before the first message, so that both ends agree at once.
        self._path = self._remote.path_to(requested.source.address, requested.local_address)
        signaling.session.set_local(self._description(self._path), self._loop.now())
        signaling.session.accept(requested, self._loop.now(), encryption)
        if encryption is not None and self._key_watch is not None:
            self._key_watch.expect()
        self._agreement = signaling.session.agreement
        self._carry()
        self._remote.resolve_later()

    def freeze(self) -> None:
        """Do nothing until thaw() but carry frames: another velad is about to take over."""
        self._frozen = self._remote.paused = True
        self._remotes.freeze()
        self._ports.stop()
        self._prober.stop()
        self._frames.stop()
        if self._signaling is not None:
            self._signaling.hold()

    def thaw(self) -> None:
        """Undo freeze(). The session goes on where it was."""
        self._frozen, self._remote.paused = False, self.disabled
        self._remotes.thaw()
        if self._signaling is not None:
            self._signaling.release()
        self._probe_path()

    def standing(self) -> Standing | None:
        """Return what another velad goes on with; None: it does not carry frames for good."""
        attached, member = self._data_path.attached, self._data_path.member
        if attached is None or member is None or self.state not in (State.UP, State.UNMONITORED):
            return None
        session = None if self.session is None else self.session.continuation()
        if session is None and not self.static:
            return None
        path, _ = attached
        name, index = member
        used, held, failures = self._remotes.standing
        return Standing(
            remote=str(path.endpoint.address),
            source=str(path.route.source),
            member=name,
            index=index,
            session=None if session is None else session.format(),
            key=self._key_proof(),
            listening=self._frames.wants_listening,
            probed_mtu=path.probed_mtu,
            used=used,
            held=held,
            failures=failures,
            hooked=self.hooks is not None and self.hooks.up,
            further=list(self._data_path.further_members),
        )

    def retire_worker(self, done: Callback) -> None:
        """End the worker after what it has in hand, and start no other; then call done."""
        self._data_path.retire_worker(done)

    @property
    def sending(self) -> tuple[int, ...]:
        """The descriptors of the sockets of its own that it sends from, if there are any."""
        return self._data_path.sending

    @property
    def key_page(self) -> int | None:
        """The descriptor of an encrypted circuit's key page."""
        return None if self._frame_keys is None else self._frame_keys.page_fd

    def resume(self, former: Standing) -> bool:
        """Go on as another velad's circuit did, instead of start(). False: that cannot be."""
        try:
            self._go_on(former)
        except (VelaError, ValueError, TypeError) as err:
            self._log.warning("circuit_not_resumed", error=str(err))
            if self._signaling is not None:
                self._signaling.forget()
            self._path = self._agreement = None
            self._signaling = self._open_signaling()
            return False
        self._started = True
        self._log.debug("circuit_resumed", remote=former.remote)
        if former.hooked and self.hooks is not None:
            self.hooks.resume()
        self._take(Input.RESUME)
        if self._signaling is not None:
            self._signaling.release()
        # The session knows the one address that it is with.
        self._remote.resolve()
        return True

    def _go_on(self, former: Standing) -> None:
        """Take over what a circuit did. Raises VelaError, ValueError or TypeError."""
        session, signaling = former.continuation(), self._signaling
        if (session is None) != (signaling is None) or former.key != self._key_proof():
            raise ConfigError("it has other keys than before, or has signalling, or has no longer")
        if self._remotes.resume(former.used, former.held, former.failures):
            self._remote.stop()
            self._remote = self._search()
        source = ip_address(former.source)
        path = self._remote.path_to(ip_address(former.remote), source)
        self._path = path = self._prober.resume(path, former.probed_mtu)
        if session is None or signaling is None:
            return
        signaling.hold()
        if former.listening:
            self._frames.resume_listening()
        signaling.session.set_local(self._description(path), self._loop.now())
        signaling.session.resume(session, self._loop.now())
        self._agreement = signaling.session.agreement

    def _key_proof(self) -> str | None:
        """Return what shows that another velad has the same key, and does not tell it."""
        return None if self._key is None else self._key.sign(KEY_PROOF).hex()

    def accept_change(self, setup: Setup, requested: CircuitRequested) -> None:
        """Become what the remote that set the circuit up asks for, in a session of its own.

        The name and the interface stay. answer() must follow. Raises VelaError; the
        circuit is then to be closed.
        """
        signaling = self._require_signaling()
        signaling.forget()
        self.config, self.offer = setup.config, setup.offer
        self._log = self._bound_log()
        self._data_path.change(self.config, self.cpu)
        self._remotes.change(self.config.remote)
        self._remote.stop()
        self._remote = self._search()
        begun = self._signaling = self._open_signaling()
        if self.state is State.UP:
            # Frames go on meanwhile, as both ends are about to have the session.
            self._begin_with(requested)
            self._loop.call_later(CHANGE_GRACE_S, lambda: self._miss_session(begun))
        else:
            self._lifecycle = Lifecycle(static=False)
            self.accept(requested)

    def _miss_session(self, begun: SignalingChannel | None) -> None:
        """Go down if the session that accept_change() began is not up by now."""
        if begun is None or self._signaling is not begun or self._closed:
            return
        if self.state is State.UP and begun.session.state is not SessionState.UP:
            self._take(Input.DOWN, Cause.NOT_FOLLOWED.say())

    def answer(self) -> None:
        """Tell the remote that it was accepted."""
        self._require_signaling().release()

    def close(
        self,
        reason: CloseReason | None = CloseReason.STOPPING,
        gone: Callback = lambda: None,
        *,
        leave: bool = False,
    ) -> None:
        """Remove the circuit. The remote is told the reason; None: it is told nothing.

        gone is called when its interface is gone: before this returns, unless hooks are due.
        leave: the interface stays if somebody has a copy of its descriptor.
        """
        if reason is not None:
            self.say_goodbye(reason)
        elif self._signaling is not None:
            self._signaling.forget()
        self._closed = True
        self._remotes.stop()
        self._remote.stop()
        self._prober.stop()
        self._ports.stop()
        self._frames.stop()
        due = not self._handed_over and self.hooks is not None and self.hooks.due
        if due:
            self._show_carrier(False)
            self._data_path.detach()
        elif not self._handed_over and leave:
            self._data_path.leave()
        elif not self._handed_over:
            self._data_path.close()
        self._close_keys()
        if due and self.hooks is not None:
            self.hooks.finish("the circuit is removed", lambda: self._go_at_last(gone))
        else:
            self._has_gone(gone)

    def _go_at_last(self, gone: Callback) -> None:
        self._data_path.close()
        self._has_gone(gone)

    def _has_gone(self, gone: Callback) -> None:
        # A velad that refuses to start logs nothing but the reason.
        if self._started and not self._handed_over:
            self._log.info("circuit_closed")
        gone()

    def _close_keys(self) -> None:
        if self._key_watch is not None:
            self._key_watch.close()
        if self._frame_keys is not None:
            self._frame_keys.close()

    def hand_over(self) -> DataPath:
        """Leave the interface to another circuit, which gets it. close() is to follow."""
        self._handed_over = True
        self._show_carrier(False)
        self._data_path.detach()
        return self._data_path

    def say_goodbye(self, reason: CloseReason) -> None:
        """Tell the remote the reason, before close()."""
        if self._signaling is not None and not self.disabled:
            self._signaling.leave(reason)

    def kill_worker(self) -> None:
        """Kill the worker, before close() in the same turn of the loop."""
        self._data_path.kill_worker()

    def disable(self) -> None:
        """Take the circuit down until enable(). The interface stays, without carrier."""
        if self._remotes.begin_anew():
            self._remote.stop()
            self._remote = self._search()
        self.disabled = self._remote.paused = True
        self._frames.begin_anew()
        self._obstacle = NO_REASON  # check() looks again
        self._take(Input.DISABLE)

    def enable(self) -> None:
        """Undo disable(), and start."""
        self.disabled = self._remote.paused = False
        self._started = True
        self._signaling = self._open_signaling()
        self._take(Input.ENABLE)

    def restart(self) -> None:
        """Begin anew: search, session and worker. The interface stays."""
        self.disable()
        self.enable()

    def change(self, setup: Setup, cpu: int, *, new_session: bool) -> None:
        """Become what setup says, with the same name and id. The interface stays.

        The worker stays if nothing changes that it was told. new_session: the present
        session cannot go on with it. Raises VelaError; the circuit is then to be closed.
        """
        before, self.config = self.config, setup.config
        self._log = self._bound_log()
        if new_session:
            self._begin_anew(setup, cpu)
            return
        self._data_path.change(self.config, cpu)
        self._machine = setup.machine
        if setup.offer != self.offer:
            self.offer = setup.offer
            if self._signaling is not None:
                self._signaling.session.set_offer(self.offer, self._loop.now())
        self.set_key(setup.key)
        if self._remotes.change(self.config.remote) or self.config.family != before.family:
            self._look_elsewhere()
        if self.config.enabled != before.enabled:
            self._follow_file()
        elif self._started and not self.disabled:
            self.apply_terms()

    def change_engine(self, engine: LoadedEngine, features: Features) -> None:
        """Let another engine carry frames, on the same interface. Raises VelaError."""
        self._data_path.change_engine(engine, features)
        if self._started and not self.disabled:
            self.apply_terms()

    def _begin_anew(self, setup: Setup, cpu: int) -> None:
        """End the session, and begin another one with the same interface."""
        disabled, started = self.disabled or not self.config.enabled, self._started
        if not self.disabled:
            self.disable()
        self._close_keys()
        self._frame_keys = setup.frame_keys
        self._key_watch = self._watch_keys()
        self._remote.stop()
        self._data_path.change(self.config, cpu)
        self._control_channel, self.offer = setup.control_channel, setup.offer
        self._asking = None if setup.control_channel is None else Asking(setup.control_channel)
        self._key, self._machine = setup.key, setup.machine
        self._lifecycle = Lifecycle(static=self.static)
        self._path = self._agreement = None
        self._moving = self.disabled = False
        self._remotes.change(self.config.remote)
        self._routes = self._circuit_routes()
        self._presence = self.config.underlay.presence()
        self._remote = self._search()
        self._signaling = self._open_signaling()
        if disabled:
            self.disable()
        elif started:
            self.start()

    def _follow_file(self) -> None:
        """Go down or up administratively, as the file says now."""
        if not self.config.enabled and not self.disabled:
            self.disable()
        elif self.config.enabled and self.disabled:
            self.enable()

    def _look_elsewhere(self) -> None:
        """Look for the remote by another name. The session goes on until its address is known."""
        self._remote.stop()
        self._remote = self._search()
        self._remote.paused = self.disabled
        self._moving = not self.disabled
        if self._started or self.disabled:
            self._remote.resolve()

    def switch(self, wanted: str | None) -> Remote:
        """Use another of its remotes at once, and return it; see Remotes.switch."""
        return self._remotes.switch(wanted)

    def use_remote(self, why: str) -> None:
        """Leave the remote that was in use for the one that is to be used now."""
        self._require_signaling().leave(CloseReason.STOPPING)
        self._path = self._agreement = None
        self._moving = False
        self._frames.begin_anew()
        self._remote.stop()
        self._remote = self._search()
        self._signaling = self._open_signaling()
        self._log.info("remote_switched", remote=str(self.remote), reason=str(why))
        self._take(Input.SWITCHED)
        self._remote.resolve()

    def watch_primary(
        self, primary: Remote, on_answer: Callback, on_silence: Callable[[Reason], None]
    ) -> PrimaryWatch:
        """Ask the primary at intervals, while another remote is in use."""
        channel = self._control_channel
        if channel is None:
            raise RuntimeError(f"{self.name} is static")

        def search(listener: Listener) -> RemoteSearch:
            return self._search_for(primary, listener)

        def ask(enquiry: Enquiry, paths: tuple[UnderlayPath, ...]) -> list[Datagram]:
            candidates = [Candidate(each.endpoint, self._source_of(each)) for each in paths]
            keys = self._frame_keys
            ciphers = None if keys is None else keys.offer
            return enquiry.ask(candidates, self._description(None), self.offer, self._key, ciphers)

        return PrimaryWatch(
            self.config.id,
            self._loop,
            channel,
            self.config.underlay,
            search,
            ask,
            on_answer,
            on_silence,
        )

    def apply_terms(self) -> None:
        """Tell the remote what this end offers now, and carry frames by it."""
        if self._frozen:
            return
        try:
            in_use = self._path if self._signaling is None else self._path_in_use() or self._path
            if self._signaling is not None and in_use is not None:
                description = self._description(in_use)
                self._signaling.session.set_local(description, self._loop.now())
            if self._data_path.attached is not None:
                self._carry()
        except VelaError as err:
            self._take(Input.FAILED, reason_of(err))
        if self._signaling is not None:
            self._signaling.pump()
        if self.state is State.FAILED:
            self._remote.resolve()

    def set_policy(self, policy: Policy) -> None:
        """Apply this policy to later requests of the remote."""
        if self._signaling is not None:
            self._signaling.session.set_policy(policy)

    def set_key(self, key: Key | None) -> None:
        """Use this key from now on.

        The session goes on until both ends have begun another one under the changed key;
        one that the remote set up no longer than KEY_GRACE_S.
        """
        if key == self._key:
            return
        self._key = key
        if self._frame_keys is not None:
            self._frame_keys.set_psk(key)
        if self._signaling is None or self.disabled:
            return
        if not self._signaling.session.set_key(key, self._loop.now()):
            self.restart()
            return
        self._signaling.pump()
        if self.origin is Origin.PEER:
            # Who has only the key before is no longer allowed here.
            former = self._signaling, self._signaling.session.local_nonces[:1]
            self._loop.call_later(KEY_GRACE_S, lambda: self._end_session(*former))

    def _end_session(self, signaling: SignalingChannel, nonces: tuple[int, ...]) -> None:
        """Begin anew if there is still the session with this nonce."""
        is_former = self._signaling is signaling and signaling.session.local_nonces[:1] == nonces
        if is_former and nonces and not (self._closed or self.disabled):
            self.restart()

    def check(self) -> None:
        """Check the interface and the worker. To be called once a second."""
        before = self._obstacle
        traffic = self._data_path.traffic()
        now = self._loop.now()
        self._rates.sample(traffic, now)
        self.history.look(now, traffic, up=self.state.word in WELL)
        self._prober.note_traffic(traffic.tx_frames)
        try:
            self._data_path.check()
        except VelaError as err:
            self._obstacle = reason_of(err)
            if self._obstacle != before:
                self._log.error("circuit_broken", error=str(self._obstacle))
            self._take(Input.BROKEN, self._obstacle)
        else:
            self._obstacle = NO_REASON
            if before:
                self._log.info("circuit_mended")
                self._take(Input.MENDED)
            self._look_at_bridge()
        self._look_at_underlay()
        self._frames.check()
        if self._key_watch is not None:
            worker = self._data_path.worker_status()
            self._key_watch.check(None if worker is None else worker.restarts)

    def _look_at_bridge(self) -> None:
        """Offer another MTU if the interface joined its bridge, or lost it."""
        bridge_mtu = self._data_path.bridge_mtu
        if bridge_mtu == self._bridge_mtu:
            return
        self._bridge_mtu = bridge_mtu
        if self._data_path.attached is None:
            return
        try:
            self._carry()
        except VelaError as err:
            self._take(Input.FAILED, reason_of(err))
            return
        if self._signaling is not None:
            self._signaling.pump()

    def _look_at_underlay(self) -> None:
        """Follow the chosen device and source address as they come and go."""
        if self.config.underlay == ANY_UNDERLAY or self.disabled or not self._started:
            return
        presence = self.config.underlay.presence()
        if presence == self._presence:
            return
        self._presence = presence
        _, obstacle = presence
        if obstacle and self._data_path.attached is not None:
            self._take(Input.CUT_OFF, obstacle)
        else:
            self._remote.resolve()

    def ask_remote(self, size: int) -> None:
        """Let the remote's supervisor answer, if it has the session, by a probe of this size."""
        if self._signaling is not None and self._signaling.session.probe(size):
            self._signaling.pump()

    def ping(self, size: int, answered: Answered) -> None:
        """Ask the remote's worker once. See FrameWatch.ping. Raises VelaError."""
        self._frames.ping(size, answered)

    def rates(self) -> RateStatus:
        return self._rates.rates()

    def status(self) -> CircuitStatus:
        config, attached = self.config, self._data_path.attached
        endpoint = attached[0].endpoint if attached else None
        session = self.session
        heard_at = None if session is None else session.last_heard_at
        now = self._loop.now()
        return CircuitStatus(
            name=config.name,
            id=config.id,
            origin=self.origin.value,
            description=config.description,
            state=self.state.word,
            reason=str(self.reason),
            reason_code=self.reason.code,
            reasons=ReasonStatus.of(self.reasons),
            since_seconds=round(self._transitions.since_s(now), 3),
            transitions=self._transitions.count(now),
            remote=str(self.remote),
            remotes=self.remotes(),
            remote_address=str(endpoint.address) if endpoint else None,
            remote_port=endpoint.port if endpoint else self.remote.port or self._port,
            family=endpoint.family.value if endpoint else None,
            mtu=self._data_path.mtu,
            path_mtu=attached[0].mtu if attached else None,
            source_port=self._data_path.frame_port,
            encapsulation=config.encapsulation.value,
            elision=attached is not None and attached[1].elision is not Elision.NEVER,
            encryption=config.encryption.value,
            cipher=None if self._key_watch is None else self._key_watch.status(),
            asking=None
            if session is None or self._asking is None
            else self._asking.status(session, now),
            rtt_ms=milliseconds(None if session is None else session.rtt_s),
            last_heard_seconds=None if heard_at is None else round(now - heard_at, 3),
            loss=self._frames.loss(),
            delay_ms=self._frames.delays.status(),
            rates=self.rates(),
            worker=self._data_path.worker_status(),
            counters=self._data_path.counter_status(),
        )

    # From the search for the remote.

    def on_unresolved(self, reason: Reason) -> None:
        self._take(Input.UNRESOLVED, reason)

    def on_no_route(self, reason: Reason) -> None:
        self._take(Input.NO_ROUTE, reason)

    def on_routed(self, paths: tuple[UnderlayPath, ...]) -> None:
        if self._moving:
            self._moving = False
            self._leave_former_remote(paths[0])
        try:
            self._aim(paths)
        except VelaError as err:
            self._take(Input.FAILED, reason_of(err))
            return
        self._take(Input.ROUTED)
        if self._signaling is not None:
            self._signaling.pump()

    def _on_route_changed(self) -> None:
        """Stop sending at once where the route now leads into this circuit, or look again."""
        if self.disabled or self._closed:
            return
        attached = self._data_path.attached
        if attached is None:
            self._remote.resolve()
            return
        try:
            self._routes.way_from(attached[0].route.source, attached[0].endpoint)
        except RouteLoop as err:
            self._take(Input.CUT_OFF, reason_of(err))
        except DeviceError as err:
            cause = err.__cause__
            # If there is just no route now, and it stays so, the session goes down by itself.
            if isinstance(cause, OSError) and cause.errno == errno.EADDRNOTAVAIL:
                self._leave_former_address(attached[0])

    def _leave_former_address(self, path: UnderlayPath) -> None:
        """Begin a session from another address, as this machine has lost the one of the present.

        Not where the remote set the circuit up: it knows this end by that address, and seeks it.
        """
        if self._signaling is None or self.origin is Origin.PEER:
            return
        try:
            self._routes.way_to(path.endpoint)
        except DeviceError:
            return
        reason = Cause.SOURCE_LOST.say(address=path.route.source)
        self._signaling.session.give_up(reason, self._loop.now())
        self._signaling.pump()

    def _leave_former_remote(self, path: UnderlayPath) -> None:
        """End the session with a machine that the remote's new name does not lead to."""
        if self._signaling is None:
            return
        session = self._signaling.session
        remote, port = session.remote, path.endpoint.port
        if remote is None or (remote.address in path.sources and self._reaches(remote, port)):
            return
        self._signaling.leave(CloseReason.DELETED)
        self._data_path.detach()
        self._path = self._agreement = None
        self._signaling = self._open_signaling()
        self._take(Input.SWITCHED, Cause.REMOTE_CHANGED.say())

    def _reaches(self, remote: Endpoint, port: int) -> bool:
        """Tell whether a remote is the one at this port; behind a NAT it shows another one."""
        return port in (remote.port, self._agreement.remote_port if self._agreement else None)

    # From signalling.

    def _on_event(self, event: Event) -> None:
        if self.state is State.UP and isinstance(event, Unanswered | Rejected):
            # Of a session that took the place of another one, and was never up itself.
            self._take(Input.DOWN, Cause.NOT_FOLLOWED.say())
        match event:
            case Agreed(agreement):
                self._agreement = agreement
                self._take(Input.AGREED)
            case Up():
                remote = self._require_signaling().session.remote
                if remote is not None:
                    self._remote.use(remote.address)
                if self._frames.awaited:
                    self._frames.follow()
                else:
                    self._take(Input.UP)
            case Down(reason):
                self._frames.session_lost()
                self._take(Input.DOWN, reason)
            case Unanswered(reason):
                self._take(Input.UNANSWERED, reason)
            case Rejected(RejectCode.DISABLED):
                self._take(Input.REMOTE_DISABLED, event.reason)
            case Rejected(RejectCode.NO_SUCH_CIRCUIT) if self.origin is Origin.PEER:
                # The remote deleted it, and its message was lost.
                self._take(Input.DELETED)
            case Rejected(RejectCode.ID_TAKEN) if self._owner.takes_another_id(self):
                pass
            case Heard():
                self._ports.heard()
            case Rejected():
                self._take(Input.REJECTED, event.reason)
            case Refused(source, code, text):
                self._log.warning("circuit_refused", by=str(source), code=code.name, reason=text)
            case ProbeAnswered(size):
                self._prober.answered(size)
            case EchoesArrived(number):
                self._frames.reported(number)
            case ResolveWanted():
                self._remote.resolve()
            case OfferChanged(requested):
                self._owner.on_offer_changed(self, requested)
            case Closed() if self.origin is Origin.PEER:
                self._take(Input.DELETED)
            case Closed(by_remote):
                cause = Cause.REMOTE_DELETED if by_remote else Cause.CLOSED
                self._take(Input.CLOSED, cause.say())
            case _:
                pass

    # Steps of the lifecycle.

    def _take(self, happened: Input, reason: Reason = NO_REASON) -> None:
        """Take an input and carry out its actions. Inputs that arrive meanwhile wait."""
        if self._frozen:
            return
        self._inputs.append((happened, reason))
        if self._stepping:
            return
        self._stepping = True
        try:
            while self._inputs and not self._closed:
                self._step(*self._inputs.popleft())
        finally:
            self._inputs.clear()
            self._stepping = False

    def _step(self, happened: Input, reason: Reason) -> None:
        step = self._lifecycle.take(happened, reason)
        try:
            for action in step.actions:
                _DO[action](self)
                if self._closed:
                    return
        except VelaError as err:
            # Before the inputs that wait: they assume a circuit that carries frames.
            self._inputs.appendleft((Input.FAILED, reason_of(err)))
            return
        self._frames.follow()
        self._remotes.note(happened, self.state, reason)
        self._log_change()

    def _log_change(self) -> None:
        state, reason = now = (self.state, self._lifecycle.reason)
        if now == self._logged:
            return
        before, self._logged = self._logged[0], now
        if State.UP in (before, state):
            self._probe_path()
        self._transitions.record(state, self._loop.now())
        self._owner.on_state_changed(self, before)
        level = "info" if not reason or state in _GOOD else "warning"
        # Every circuit passes through these states at its start.
        if state in (State.RESOLVING, State.CONNECTING) and not reason:
            level = "debug"
        about: dict[str, object] = {"origin": self.origin.value, "mtu": self._data_path.mtu}
        if self._data_path.attached is not None:
            path, profile = self._data_path.attached
            about |= {"remote": str(path.endpoint), "elision": profile.elision.name.lower()}
        about |= {"state": state.word, "reason": str(reason)}
        getattr(self._log, level)("circuit_state_changed", **about)

    # Actions of the lifecycle.

    def _resolve(self) -> None:
        self._remote.resolve()

    def _resolve_soon(self) -> None:
        self._remote.resolve_soon()

    def _reuse_path(self) -> None:
        if self._path is None:
            self._remote.resolve()
        else:
            self.on_routed((self._path,))

    def _seek(self) -> None:
        signaling = self._require_signaling()
        if signaling.session.state in _SESSION_AT_REST:
            signaling.session.start(self._loop.now())
        signaling.pump()

    def _suspend(self) -> None:
        signaling = self._require_signaling()
        reason = self._lifecycle.reason
        # Only one end may have noticed.
        is_mac = reason.code == Cause.DUPLICATE_MAC.code
        code = RejectCode.MAC if is_mac else RejectCode.FAILED
        signaling.session.suspend(f"on the other end, {reason}", code)
        signaling.pump()

    def _leave(self) -> None:
        self._require_signaling().leave(CloseReason.STOPPING)
        self._agreement = None
        # Another circuit may use the id toward this address while this one is disabled.
        self._path = None

    def _carry(self) -> None:
        """Attach sockets and worker by agreement or configuration. Raises VelaError."""
        if self._signaling is None:
            if self._path is not None:
                profile = static_profile(self.config, self._path, self._data_path.bridge_mtu)
                self._data_path.attach(self._path, profile)
                self._data_path.limit(self.config.rate)
            return
        session, agreement = self._signaling.session, self._agreement
        if agreement is None or session.remote is None:
            return
        # By the present one: the agreement may be of a session that failed for it.
        if agreement.remote_mac == self._data_path.local_mac:
            mac = format_mac(agreement.remote_mac)
            raise ConfigError(Cause.DUPLICATE_MAC.say(mac=mac))
        # Behind a NAT only the translated port leads back.
        port = session.remote.port if agreement.nat else agreement.remote_port
        path = self._path_to(Endpoint(session.remote.address, port))
        # The session may be with another address than the one that was asked.
        session.set_local(self._description(path), self._loop.now())
        page = None if self._frame_keys is None else self._frame_keys.page_fd
        profile = agreed_profile(self.config, agreement, path, self._data_path.bridge_mtu)
        profile = self._ports.until_heard(path, profile, up=self.state is State.UP)
        self._data_path.attach(path, profile, page)
        rate_kbit = agreement.rate_kbit
        self._data_path.limit(None if rate_kbit is None else rate_kbit * STEP)
        self._data_path.expect_frames_from(agreement.frame_port, agreement.frame_ports)
        # The remote is told which port they leave from, now that it is known.
        session.set_local(self._description(path), self._loop.now())
        if self._ports.begun():
            session.await_heard(self._loop.now())

    def _follow_route(self) -> None:
        """Attach again if the route to the remote in use has changed.

        The agreement may stay the same, if the MTU is configured or the remote's is
        smaller. The worker still needs the MTU of the new route.
        """
        in_use, attached = self._path_in_use(), self._data_path.attached
        if in_use is not None and attached is not None and attached[0].route != in_use.route:
            self._carry()
            self._probe_path()

    def _release(self) -> None:
        self._ports.stop()
        self._data_path.detach()

    def _carrier_on(self) -> None:
        self._show_carrier(True)

    def _carrier_off(self) -> None:
        self._show_carrier(False)

    def _remove(self) -> None:
        self._show_carrier(False)
        self._owner.on_deleted(self)

    def _show_carrier(self, carrier: bool) -> None:
        try:
            self._data_path.set_carrier(carrier)
        except DeviceError as err:
            self._log.error("carrier_not_set", error=str(err))

    def _bound_log(self) -> Any:
        """Return a log whose lines name the circuit."""
        config = self.config
        log = structlog.get_logger().bind(circuit=config.name, circuit_id=config.id)
        return log.bind(description=config.description) if config.description else log

    def _watch_keys(self) -> KeyWatch | None:
        keys = self._frame_keys
        return None if keys is None else KeyWatch(keys, self._loop)

    # Signalling, and the paths to the remote.

    def _circuit_routes(self) -> CircuitRoutes:
        return CircuitRoutes(self._machine_routes, self.config.underlay, self._data_path)

    def _search(self) -> RemoteSearch:
        return self._search_for(self.remote, self)

    def _search_for(self, remote: Remote, listener: Listener) -> RemoteSearch:
        bind = self.config.bind
        return RemoteSearch(
            remote,
            self.config.family or (None if bind is None else family_of(bind)),
            self._port,
            self._loop,
            self._names,
            self._routes,
            listener,
            local_address=self._local_address if listener is self else lambda: None,
        )

    def _open_signaling(self) -> SignalingChannel | None:
        channel = self._control_channel
        if channel is None:
            return None
        session = Session(
            self.config.id,
            self._description(None),
            remote=None,
            key=self._key,
            cookies=channel.cookies,
            randomness=channel.randomness,
            offer=self.offer,
            policy=channel.policy if self.origin is Origin.PEER else None,
            machine=self._machine,
            maker=self.maker,
            frame_keys=self._frame_keys,
            echoes_arrived=self._data_path.echoes_arrived,
        )
        signaling = SignalingChannel(
            session, self._loop, channel, self._on_event, self.config.underlay
        )
        if self._key_watch is not None:
            self._key_watch.follow(signaling)
        return signaling

    def _require_signaling(self) -> SignalingChannel:
        if self._signaling is None:
            raise RuntimeError(f"{self.name} is static")
        return self._signaling

    def _aim(self, paths: tuple[UnderlayPath, ...]) -> None:
        """Let the session look for the remote there, the best path first. Raises VelaError."""
        signaling, path = self._signaling, paths[0]
        # A loopback address in the configuration is no mistake: another velad may listen there.
        if not path.endpoint.address.is_loopback and self._remote.is_this_machine(path):
            raise ConfigError(Cause.OWN_ADDRESS.say(address=path.endpoint.address))
        if signaling is not None:
            # Before the first message: the remote would take both circuits for one.
            self._owner.check_id(self, path.sources)
        self._path = path
        if signaling is None:
            self._remote.use(path.endpoint.address)
            return
        now = self._loop.now()
        signaling.expect_from(path.sources)
        in_use = self._path_in_use() if self.state is State.UP else path
        if in_use is not None:
            signaling.session.set_local(self._description(in_use), now)
        candidates = [Candidate(each.endpoint, self._source_of(each)) for each in paths]
        signaling.session.set_remotes(candidates, now)

    def _description(self, path: UnderlayPath | None) -> Description:
        """Return the description of this end. Raises ConfigError if the path is too narrow."""
        data_path = self._data_path
        return describe(
            self.config,
            path,
            data_path.local_mac,
            self._port,
            data_path.abilities,
            frame_port=self._ports.port,
            frame_ports=self._ports.count,
            bridge_mtu=data_path.bridge_mtu,
            from_listening=self._frames.wants_listening,
        )

    def _local_address(self) -> IPAddress | None:
        """Return the local address that the remote uses; None: any."""
        if self._signaling is None:
            return None
        # A remote that set the circuit up knows this end by the address that it asked.
        if self.state is State.UP or self.origin is Origin.PEER:
            return self._signaling.session.local_address
        return None

    def _source_of(self, path: UnderlayPath) -> IPAddress | None:
        """Return the local address to ask from; None: the kernel chooses."""
        if path.route.source in (self._local_address(), self.config.bind):
            return path.route.source
        return None if path.group.address.is_unspecified else path.group.address

    def _path_in_use(self) -> UnderlayPath | None:
        """Return the path to the remote of the session; None: there is none at present."""
        remote = self._require_signaling().session.remote
        try:
            return None if remote is None else self._path_to(remote)
        except DeviceError:
            return None  # if it stays so, the session goes down by itself

    def _path_to(self, endpoint: Endpoint) -> UnderlayPath:
        """Return the path from the session's local address to an endpoint. Raises DeviceError."""
        source = self._require_signaling().session.local_address
        if source is None:
            group, route = self._routes.way_to(endpoint)
        else:
            group, route = self._routes.way_from(source, endpoint)
        return self._prober.narrow(UnderlayPath(endpoint, (endpoint.address,), route, group))

    def _probe_path(self) -> None:
        """Find out how large packets to the remote may be, while the session is up."""
        attached, signaling = self._data_path.attached, self._signaling
        if attached is not None and signaling is not None and self.state is State.UP:
            self._prober.start(attached[0], signaling)
        else:
            self._prober.stop()

    def _on_path_mtu(self) -> None:
        path = self._path_in_use()
        if path is not None:
            self._log.info("path_mtu_changed", path_mtu=path.mtu, route_mtu=path.route.mtu)
            self.apply_terms()


_DO = {
    Action.RESOLVE: Circuit._resolve,
    Action.RESOLVE_SOON: Circuit._resolve_soon,
    Action.REUSE_PATH: Circuit._reuse_path,
    Action.SEEK: Circuit._seek,
    Action.SUSPEND: Circuit._suspend,
    Action.LEAVE: Circuit._leave,
    Action.CARRY: Circuit._carry,
    Action.FOLLOW_ROUTE: Circuit._follow_route,
    Action.RELEASE: Circuit._release,
    Action.CARRIER_ON: Circuit._carrier_on,
    Action.CARRIER_OFF: Circuit._carrier_off,
    Action.REMOVE: Circuit._remove,
}
