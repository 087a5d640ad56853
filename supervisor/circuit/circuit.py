"""One circuit: carries out the actions that its lifecycle decides.

A static circuit has no signalling channel, and its lifecycle has another table.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Protocol

import structlog

from vela.address import Endpoint, IPAddress, Remote
from vela.dataplane.engine import LoadedEngine
from vela.errors import ConfigError, DeviceError, VelaError
from vela.linux.features import Features
from vela.reasons import NO_REASON, Cause, Reason, joined, reason_of
from vela.signaling.agreement import Agreement
from vela.signaling.encryption import Encryption as SessionEncryption
from vela.signaling.events import (
    Agreed,
    CircuitRequested,
    Closed,
    Down,
    EchoesArrived,
    Event,
    Heard,
    Moved,
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
    Offer,
    RejectCode,
)
from vela.signaling.policy import Policy
from vela.signaling.session import Session
from vela.signaling.signer import Key

from ..config.records import CircuitConfig
from ..frame_keys import CircuitKeys
from ..runtime.loop import Callback, EventLoop
from ..runtime.names import NameSource
from ..status import (
    CircuitStatus,
    RateStatus,
    RemoteStatus,
)
from .carriage import Carriage
from .data_path import DataPath
from .dialogue import Dialogue, Mark
from .echoes import Answered
from .frame_watch import FrameWatch
from .history import History
from .hooks import CircuitHooks
from .lifecycle import Action, Input, State
from .path_prober import PathProber
from .paths import Paths
from .port_switch import PortSwitch
from .rates import RateMeter
from .report import report
from .routes import MachineRoutes
from .setup import Origin, Setup
from .signaling import SignalingChannel
from .standing import Standing
from .stepper import Stepper
from .tenure import Tenure
from .transitions import Transitions
from .whereabouts import Whereabouts

# States that need no action of the operator.
_GOOD = frozenset({State.UP, State.UNMONITORED, State.CONNECTING, State.DISABLED})
# For a remote that has the changed key already.
KEY_GRACE_S = 5.0
# For a session to come up that takes the place of another one.
CHANGE_GRACE_S = 3.0
NO_ANSWER = Cause.NO_ANSWER.code


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
        self.origin = origin
        self.disabled = False
        self.tenure: Tenure | None = None
        """Of one that the remote set up: how long it is kept."""
        self.hooks: CircuitHooks | None = None
        """Of one of the configuration file."""
        self._data_path = data_path
        self._loop = loop
        self._owner = owner
        self._dialogue = Dialogue(
            setup,
            loop,
            passive=origin is Origin.PEER,
            maker=maker,
            describe=lambda: self._carriage.describe(None),
            echoes_arrived=data_path.echoes_arrived,
            on_event=self._on_event,
        )
        self.log = self._bound_log()
        self.started = self._handed_over = False
        self._steps = Stepper(self._carry_out, self._on_step, static=self.static)
        self._logged = (State.RESOLVING, NO_REASON)
        self._transitions = Transitions(State.RESOLVING, loop.now())
        self._rates = RateMeter()
        self.history = History(loop.now())
        self._obstacle = NO_REASON
        self._prober = PathProber(loop, self._on_path_mtu)
        self._ports = PortSwitch(data_path, loop, self.apply_terms)
        self._frames = FrameWatch(self, data_path, loop, self._steps.take, self.history)
        self._paths = Paths(self.config, port, loop, names, routes, data_path, self._prober)
        self._carriage = Carriage(
            self,
            self._dialogue,
            data_path,
            loop,
            self._paths,
            self._ports,
            self._prober,
            self._frames,
        )
        self._whereabouts = Whereabouts(
            self,
            self._dialogue,
            data_path,
            loop,
            self._paths,
            self._carriage,
            self._frames,
            self._steps,
        )
        self._dialogue.open()
        data_path.set_failure_handler(self.check)
        data_path.set_route_handler(self._whereabouts.on_route_changed)

    # For the registry.

    @property
    def config(self) -> CircuitConfig:
        return self._dialogue.setup.config

    @property
    def offer(self) -> Offer:
        """See Setup."""
        return self._dialogue.setup.offer

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
        return self._steps.state

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why it has its state, and what it still waits for; empty: there is nothing to say."""
        # While it is up, the name does not matter.
        seeks = self.state in (State.RESOLVING, State.CONNECTING, State.DOWN, State.REJECTED)
        whys = self._whereabouts.remotes.explain(self.state, self._steps.reason)
        trouble = self._whereabouts.trouble if seeks else NO_REASON
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
        return self._dialogue.why_no_answer() if self._steps.reason.code == NO_ANSWER else NO_REASON

    @property
    def reason(self) -> Reason:
        """All of them in one."""
        return joined(self.reasons)

    @property
    def session(self) -> Session | None:
        """None: it is static."""
        return self._dialogue.session

    @property
    def agreement(self) -> Agreement | None:
        return self._dialogue.agreement

    @property
    def static(self) -> bool:
        """Whether it has no signalling."""
        return self._dialogue.setup.control_channel is None

    @property
    def idle(self) -> bool:
        """Whether it was neither started, disabled nor closed."""
        return not (self.started or self.disabled or self._steps.stopped)

    @property
    def frame_keys(self) -> CircuitKeys | None:
        """Of an encrypted circuit."""
        return self._dialogue.setup.frame_keys

    @property
    def taken_down(self) -> bool:
        """Whether a command took it down, which outlives restarts; not the file."""
        return self.disabled and self.config.enabled

    @property
    def remote(self) -> Remote:
        """The one in use."""
        return self._whereabouts.in_use

    def remotes(self) -> tuple[RemoteStatus, ...]:
        """Return what each of its remotes does."""
        return self._whereabouts.remotes.status(self.state, self._steps.reason)

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """The known addresses of the remote in use."""
        return self._whereabouts.addresses

    @property
    def remote_endpoint(self) -> Endpoint | None:
        """Where the remote of the session is, or the one that is asked; None: not known."""
        return self._dialogue.remote

    @property
    def idle_addresses(self) -> tuple[IPAddress, ...]:
        """The known addresses of its other remotes."""
        return self._whereabouts.idle_addresses

    @property
    def all_addresses(self) -> tuple[IPAddress, ...]:
        """The addresses of all its remotes; none, if those of one are not known."""
        return self._whereabouts.all_addresses

    @property
    def sources(self) -> tuple[IPAddress, ...]:
        """The remote addresses toward which it uses its id at present."""
        attached = self._data_path.attached
        in_use = () if attached is None else attached[0].sources
        sought = self._carriage.sought
        return in_use if sought is None or self.static else in_use + sought.sources

    @property
    def sought_in_vain(self) -> bool:
        """Whether the look-up of the remote's name failed, and no address is known."""
        return self._whereabouts.search.sought_in_vain

    @property
    def maker(self) -> bytes | None:
        """Which machine set it up, by identity.maker_of; None: this one, or it did not say."""
        return self._dialogue.maker

    def check_id(self, sources: tuple[IPAddress, ...]) -> None:
        """Raise ConfigError if another circuit has the id toward one of these addresses."""
        self._owner.check_id(self, sources)

    def check_remote(self) -> None:
        """Raise ConfigError if a remote is an address of this machine; names are looked up."""
        self._paths.check_remote(self.config)

    def start(self) -> None:
        """Look for the remote, and carry frames as soon as possible."""
        self.started = True
        self.log.debug("circuit_started", remote=str(self.remote))
        self._steps.take(Input.START)

    def accept(
        self, requested: CircuitRequested, encryption: SessionEncryption | None = None
    ) -> None:
        """Begin with the session that a remote asked for, instead of start().

        encryption: with the keys of the session, on an encrypted circuit.
        answer() must follow. Raises VelaError.
        """
        self._begin_with(requested, encryption)
        self._steps.take(Input.ACCEPT)

    def _begin_with(
        self, requested: CircuitRequested, encryption: SessionEncryption | None = None
    ) -> None:
        """Begin with the session that a remote asked for. Raises VelaError."""
        self.started = True
        self._dialogue.hold()
        # The path must be known before the first message, so that both ends agree at once.
        path = self._whereabouts.search.path_to(requested.source.address, requested.local_address)
        self._carriage.sought = path
        self._dialogue.accept(requested, self._carriage.describe(path), encryption)
        self._carriage.carry()
        self._whereabouts.search.resolve_later()

    def freeze(self) -> None:
        """Do nothing until thaw() but carry frames: another velad is about to take over."""
        self._steps.paused = True
        self._whereabouts.pause(True)
        self._whereabouts.remotes.freeze()
        self._ports.stop()
        self._prober.stop()
        self._frames.stop()
        self._dialogue.hold()

    def thaw(self) -> None:
        """Undo freeze(). The session goes on where it was."""
        self._steps.paused = False
        self._whereabouts.pause(self.disabled)
        self._whereabouts.remotes.thaw()
        self._dialogue.release()
        self._carriage.probe()

    def renew_keys(self) -> None:
        """Seek a session with keys of this process's, after resume(). It may be too late for it."""
        if self.state is State.UP:
            self._dialogue.renew_keys()

    @property
    def renews(self) -> bool:
        """Whether it is up, and seeks another session."""
        return self.state is State.UP and self._dialogue.renews

    @property
    def changes_over(self) -> bool:
        """Whether it is up, and another session takes the place of the one that it has."""
        return self.state is State.UP and self._dialogue.changes_over

    def standing(self) -> Standing | None:
        """Return what another velad goes on with; None: it does not carry frames for good."""
        attached, member = self._data_path.attached, self._data_path.member
        if attached is None or member is None or self.state not in (State.UP, State.UNMONITORED):
            return None
        session = self._dialogue.continuation()
        if session is None and not self.static:
            return None
        return Standing.of(
            attached[0],
            member,
            session,
            self._dialogue.key_proof,
            self._whereabouts.remotes.standing,
            listening=self._frames.wants_listening,
            hooked=self.hooks is not None and self.hooks.up,
            maker=self.maker,
            further=self._data_path.further_members,
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
        return None if self.frame_keys is None else self.frame_keys.page_fd

    @property
    def sequences(self) -> int:
        """Of counters, that there is room for in that page; 1: there is none."""
        return 1 if self.frame_keys is None else self.frame_keys.sequences

    def resume(self, former: Standing) -> bool:
        """Go on as another velad's circuit did, instead of start(). False: that cannot be."""
        try:
            self._go_on(former)
        except (VelaError, ValueError, TypeError) as err:
            self.log.warning("circuit_not_resumed", error=str(err))
            if not self._data_path.has_former:  # which may have to go on itself
                self._show_carrier(False)
            self._dialogue.forget()
            self._whereabouts.session_anew()
            return False
        self.started = True
        self.log.debug("circuit_resumed", remote=former.remote)
        if former.hooked and self.hooks is not None:
            self.hooks.resume()
        self._steps.take(Input.RESUME)
        self._dialogue.release()
        # The session knows the one address that it is with.
        self._whereabouts.resolve()
        return True

    def _go_on(self, former: Standing) -> None:
        """Take over what a circuit did. Raises VelaError, ValueError or TypeError."""
        session = former.continuation()
        if (session is None) != self.static or former.key != self._dialogue.key_proof:
            raise ConfigError("it has other keys than before, or has signalling, or has no longer")
        if self._whereabouts.remotes.resume(former.used, former.held, former.failures):
            self._whereabouts.search_anew()
        source = ip_address(former.source)
        path = self._whereabouts.search.path_to(ip_address(former.remote), source)
        self._carriage.sought = path = self._prober.resume(path, former.probed_mtu)
        if session is None:
            return
        self._dialogue.hold()
        if former.listening:
            self._frames.resume_listening()
        maker = None if former.maker is None else bytes.fromhex(former.maker)
        self._dialogue.resume(session, self._carriage.describe(path), maker)

    def accept_change(self, setup: Setup, requested: CircuitRequested) -> None:
        """Become what the remote that set the circuit up asks for, in a session of its own.

        The name and the interface stay. answer() must follow. Raises VelaError; the
        circuit is then to be closed.
        """
        self._dialogue.forget()
        self._dialogue.setup = replace(self._dialogue.setup, config=setup.config, offer=setup.offer)
        self.log = self._bound_log()
        self._data_path.change(self.config, self.cpu)
        self._whereabouts.remotes.change(self.config.remote)
        self._whereabouts.search_anew()
        self._dialogue.open()
        if self.state is State.UP:
            # Frames go on meanwhile, as both ends are about to have the session.
            self._begin_with(requested)
            begun = self._dialogue.channel
            self._loop.call_later(CHANGE_GRACE_S, lambda: self._miss_session(begun))
        else:
            self._steps.begin_anew(static=False)
            self.accept(requested)

    def _miss_session(self, begun: SignalingChannel | None) -> None:
        """Go down if the session that accept_change() began is not up by now."""
        if begun is None or self._dialogue.channel is not begun or self._steps.stopped:
            return
        if self.state is State.UP and begun.session.state is not SessionState.UP:
            self._steps.take(Input.DOWN, Cause.NOT_FOLLOWED.say())

    def answer(self) -> None:
        """Tell the remote that it was accepted."""
        self._dialogue.release()

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
        else:
            self._dialogue.forget()
        self._steps.stop()
        self._whereabouts.stop()
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
        self._dialogue.close_keys()
        if due and self.hooks is not None:
            self.hooks.finish("the circuit is removed", lambda: self._go_at_last(gone))
        else:
            self._has_gone(gone)

    def _go_at_last(self, gone: Callback) -> None:
        self._data_path.close()
        self._has_gone(gone)

    def _has_gone(self, gone: Callback) -> None:
        # A velad that refuses to start logs nothing but the reason.
        if self.started and not self._handed_over:
            self.log.info("circuit_closed")
        gone()

    def hand_over(self) -> DataPath:
        """Leave the interface to another circuit, which gets it. close() is to follow."""
        self._handed_over = True
        self._show_carrier(False)
        self._data_path.detach()
        return self._data_path

    def say_goodbye(self, reason: CloseReason) -> None:
        """Tell the remote the reason, before close()."""
        if not self.disabled:
            self._dialogue.leave(reason)

    def kill_worker(self) -> None:
        """Kill the worker, before close() in the same turn of the loop."""
        self._data_path.kill_worker()

    def disable(self) -> None:
        """Take the circuit down until enable(). The interface stays, without carrier."""
        self._whereabouts.return_to_first()
        self.disabled = True
        self._whereabouts.pause(True)
        self._frames.begin_anew()
        self._obstacle = NO_REASON  # check() looks again
        self._steps.take(Input.DISABLE)

    def enable(self) -> None:
        """Undo disable(), and start."""
        self.disabled = False
        self._whereabouts.pause(False)
        self.started = True
        self._dialogue.open()
        self._steps.take(Input.ENABLE)

    def restart(self) -> None:
        """Begin anew: search, session and worker. The interface stays."""
        self.disable()
        self.enable()

    def change(self, setup: Setup, cpu: int, *, new_session: bool) -> None:
        """Become what setup says, with the same name and id. The interface stays.

        The worker stays if nothing changes that it was told. new_session: the present
        session cannot go on with it. Raises VelaError; the circuit is then to be closed.
        """
        before = self._dialogue.setup
        self._dialogue.setup = replace(before, config=setup.config)
        self.log = self._bound_log()
        if new_session:
            self._begin_anew(setup, cpu)
            return
        self._data_path.change(self.config, cpu)
        self._dialogue.change(
            replace(self._dialogue.setup, machine=setup.machine, offer=setup.offer)
        )
        self.set_key(setup.key)
        is_other = self._whereabouts.remotes.change(self.config.remote)
        if is_other or self.config.family != before.config.family:
            self._whereabouts.look_elsewhere()
        if self.config.enabled != before.config.enabled:
            self._follow_file()
        elif self.started and not self.disabled:
            self.apply_terms()

    def change_engine(self, engine: LoadedEngine, features: Features) -> None:
        """Let another engine carry frames, on the same interface. Raises VelaError."""
        self._data_path.change_engine(engine, features)
        if self.started and not self.disabled:
            self.apply_terms()

    def _begin_anew(self, setup: Setup, cpu: int) -> None:
        """End the session, and begin another one with the same interface."""
        disabled, started = self.disabled or not self.config.enabled, self.started
        if not self.disabled:
            self.disable()
        self._dialogue.begin_anew(setup)
        self._data_path.change(self.config, cpu)
        self._steps.begin_anew(static=self.static)
        self._carriage.sought = None
        self.disabled = False
        self._whereabouts.begin_anew()
        self._dialogue.open()
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

    def switch(self, wanted: str | None) -> Remote:
        """Use another of its remotes at once, and return it; see Remotes.switch."""
        return self._whereabouts.remotes.switch(wanted)

    def apply_terms(self) -> None:
        """Tell the remote what this end offers now, and carry frames by it."""
        if self._steps.paused:
            return
        try:
            self._carriage.apply_terms()
        except VelaError as err:
            self._steps.take(Input.FAILED, reason_of(err))
        self._dialogue.pump()
        if self.state is State.FAILED:
            self._whereabouts.resolve()

    def set_policy(self, policy: Policy) -> None:
        """Apply this policy to later requests of the remote."""
        self._dialogue.set_policy(policy)

    def set_key(self, key: Key | None) -> None:
        """Use this key from now on.

        The session goes on until both ends have begun another one under the changed key;
        one that the remote set up no longer than KEY_GRACE_S.
        """
        if key == self._dialogue.setup.key:
            return
        self._dialogue.setup = replace(self._dialogue.setup, key=key)
        if self.frame_keys is not None:
            self.frame_keys.set_psk(key)
        if self.static or self.disabled:
            return
        if not self._dialogue.follow_key():
            self.restart()
            return
        if self.origin is Origin.PEER:
            # Who has only the key before is no longer allowed here.
            former = self._dialogue.mark()
            self._loop.call_later(KEY_GRACE_S, lambda: self._end_session(former))

    def _end_session(self, former: Mark) -> None:
        """Begin anew if there is still this session."""
        _, nonces = former
        is_there = self._dialogue.mark() == former
        if is_there and nonces and not (self._steps.stopped or self.disabled):
            self.restart()

    def check(self) -> None:
        """Check the interface and the worker. To be called once a second."""
        before = self._obstacle
        traffic = self._data_path.traffic()
        now = self._loop.now()
        self._rates.sample(traffic, now)
        self.history.look(now, traffic, up=self.state in (State.UP, State.UNMONITORED))
        self._prober.note_traffic(traffic.tx_frames)
        try:
            self._data_path.check()
        except VelaError as err:
            self._obstacle = reason_of(err)
            if self._obstacle != before:
                self.log.error("circuit_broken", error=str(self._obstacle))
            self._steps.take(Input.BROKEN, self._obstacle)
        else:
            self._obstacle = NO_REASON
            if before:
                self.log.info("circuit_mended")
                self._steps.take(Input.MENDED)
            self._look_at_bridge()
        self._whereabouts.look_at_underlay()
        self._frames.check()
        worker = self._data_path.worker_status() if self.frame_keys is not None else None
        self._dialogue.check_keys(None if worker is None else worker.restarts)

    def _look_at_bridge(self) -> None:
        """Offer another MTU if the interface joined its bridge, or lost it."""
        if not self._carriage.bridge_changed() or self._data_path.attached is None:
            return
        try:
            self._carriage.carry()
        except VelaError as err:
            self._steps.take(Input.FAILED, reason_of(err))
            return
        self._dialogue.pump()

    def announce(self) -> None:
        self._dialogue.announce()

    def ask_remote(self, size: int) -> None:
        """Let the remote's supervisor answer, if it has the session, by a probe of this size."""
        self._dialogue.probe(size)

    def ping(self, size: int, answered: Answered) -> None:
        """Ask the remote's worker once. See FrameWatch.ping. Raises VelaError."""
        self._frames.ping(size, answered)

    def rates(self) -> RateStatus:
        return self._rates.rates()

    def status(self) -> CircuitStatus:
        return report(
            self,
            self._dialogue,
            self._data_path,
            self._frames,
            self._transitions,
            now=self._loop.now(),
            port=self._paths.port,
        )

    # From signalling.

    def _on_event(self, event: Event) -> None:
        if self.state is State.UP and isinstance(event, Unanswered | Rejected):
            # Of a session that took the place of another one, and was never up itself.
            self._steps.take(Input.DOWN, Cause.NOT_FOLLOWED.say())
        match event:
            case Agreed(agreement):
                self._dialogue.agreement = agreement
                self._steps.take(Input.AGREED)
            case Up():
                remote = self._dialogue.remote
                if remote is not None:
                    self._whereabouts.search.use(remote.address)
                if self._frames.awaited:
                    self._frames.follow()
                else:
                    self._steps.take(Input.UP)
            case Down(reason):
                self._frames.session_lost()
                self._steps.take(Input.DOWN, reason)
            case Unanswered(reason):
                self._steps.take(Input.UNANSWERED, reason)
            case Rejected(RejectCode.DISABLED):
                self._steps.take(Input.REMOTE_DISABLED, event.reason)
            case Rejected(RejectCode.NO_SUCH_CIRCUIT) if self.origin is Origin.PEER:
                # The remote deleted it, and its message was lost.
                self._steps.take(Input.DELETED)
            case Rejected(RejectCode.ID_TAKEN) if self._owner.takes_another_id(self):
                pass
            case Heard():
                self._ports.heard()
            case Moved(remote):
                self.log.info("remote_moved", remote=str(remote))
            case Rejected():
                self._steps.take(Input.REJECTED, event.reason)
            case Refused(source, code, text):
                self.log.warning("circuit_refused", by=str(source), code=code.name, reason=text)
            case ProbeAnswered(size):
                self._prober.answered(size)
            case EchoesArrived(number):
                self._frames.reported(number)
            case ResolveWanted():
                self._whereabouts.resolve()
            case OfferChanged(requested):
                self._owner.on_offer_changed(self, requested)
            case Closed() if self.origin is Origin.PEER:
                self._steps.take(Input.DELETED)
            case Closed(by_remote):
                cause = Cause.REMOTE_DELETED if by_remote else Cause.CLOSED
                self._steps.take(Input.CLOSED, cause.say())
            case _:
                pass

    # Steps of the lifecycle.

    def _carry_out(self, action: Action) -> None:
        """Raises VelaError."""
        _DO[action](self)

    def _on_step(self, happened: Input, reason: Reason) -> None:
        self._frames.follow()
        self._whereabouts.remotes.note(happened, self.state, reason)
        self._log_change()

    def _log_change(self) -> None:
        state, reason = now = (self.state, self._steps.reason)
        if now == self._logged:
            return
        before, self._logged = self._logged[0], now
        if State.UP in (before, state):
            self._carriage.probe()
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
        getattr(self.log, level)("circuit_state_changed", **about)

    # Actions of the lifecycle.

    def _seek(self) -> None:
        self._dialogue.seek()

    def _suspend(self) -> None:
        channel = self._dialogue.require()
        reason = self._steps.reason
        # Only one end may have noticed.
        is_mac = reason.code == Cause.DUPLICATE_MAC.code
        code = RejectCode.MAC if is_mac else RejectCode.FAILED
        channel.session.suspend(f"on the other end, {reason}", code)
        channel.pump()

    def _leave(self) -> None:
        self._dialogue.leave(CloseReason.STOPPING)
        self._dialogue.agreement = None
        # Another circuit may use the id toward this address while this one is disabled.
        self._carriage.sought = None

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
            self.log.error("carrier_not_set", error=str(err))

    def _bound_log(self) -> Any:
        """Return a log whose lines name the circuit."""
        config = self.config
        log = structlog.get_logger().bind(circuit=config.name, circuit_id=config.id)
        return log.bind(description=config.description) if config.description else log

    def _on_path_mtu(self) -> None:
        path = self._carriage.path_in_use()
        if path is not None:
            self.log.info("path_mtu_changed", path_mtu=path.mtu, route_mtu=path.route.mtu)
            self.apply_terms()


_DO = {
    Action.RESOLVE: lambda circuit: circuit._whereabouts.resolve(),
    Action.RESOLVE_SOON: lambda circuit: circuit._whereabouts.resolve_soon(),
    Action.REUSE_PATH: lambda circuit: circuit._whereabouts.reuse_path(),
    Action.SEEK: Circuit._seek,
    Action.SUSPEND: Circuit._suspend,
    Action.LEAVE: Circuit._leave,
    Action.CARRY: lambda circuit: circuit._carriage.carry(),
    Action.FOLLOW_ROUTE: lambda circuit: circuit._carriage.follow_route(),
    Action.RELEASE: lambda circuit: circuit._carriage.release(),
    Action.CARRIER_ON: Circuit._carrier_on,
    Action.CARRIER_OFF: Circuit._carrier_off,
    Action.REMOVE: Circuit._remove,
}
