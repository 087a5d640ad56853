"""All circuits of a daemon, whether the file, a command or another machine asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from functools import partial

import structlog

from vela.address import IPAddress
from vela.dataplane.engine import LoadedEngine
from vela.errors import ConfigError, DeviceError, VelaError
from vela.linux.features import Features
from vela.reasons import Cause
from vela.signaling.events import CircuitRequested
from vela.signaling.messages import CloseReason, Confirm
from vela.signaling.policy import PeerCircuits, Policy

from ..circuit.circuit import Circuit
from ..circuit.hooks import STOP_LIMIT_S, HookRunner
from ..circuit.lifecycle import State
from ..circuit.routes import MachineRoutes
from ..circuit.setup import Origin
from ..circuit.standing import Standing
from ..circuit.tenure import Tenure
from ..config.conflicts import check_key
from ..config.reader import parse_circuits
from ..config.records import AutoconfigureConfig, CircuitConfig, Config
from ..control_channel import ControlChannel
from ..keys import KeySource
from ..nearest import nearest
from ..runtime.descriptors import NoRoomError
from ..runtime.lines import LineLimiter
from ..runtime.loop import Callback, EventLoop, Timer
from ..runtime.names import NameSource
from ..status import CircuitStatus, RateStatus, document
from . import requests
from .allocation import Allocation
from .ciphers import Ciphers, contradiction
from .maker import CircuitMaker, DataPathFactory
from .peer_requests import FactSource, PeerRequests
from .pending import PendingCircuits
from .plan import Change, Plan, Step, make_plan
from .requests import offer_of
from .store import Ahead, CircuitStore, StateFile, Stored, StoredCircuit, record_of

# At start one circuit begins after the other, this far apart. A remote that creates its ends
# on request takes about as long for each one, and must not receive a second request before it
# has answered the first.
START_INTERVAL_S = 0.005

# Each makes the interface anew.
MAX_ID_CHANGES = 16
# How long a circuit may take to change over to another session: a round trip, on a busy machine.
SETTLE_S = 3.0
SETTLE_AGAIN_S = 0.005

RENEWALS_AT_ONCE = 32
RENEWAL_INTERVAL_S = 0.02

HOOK_KEYS = frozenset({"up", "down"})

ChangeHandler = Callable[[Mapping[str, object]], object]
"""Is told of a change of a circuit: what `velactl monitor` shows, without the time."""


class Registry:
    """The circuits by name. Creates, changes and removes them on request."""

    def __init__(
        self,
        config: Config,
        *,
        loop: EventLoop,
        names: NameSource,
        routes: MachineRoutes,
        control_channel: ControlChannel,
        keys: KeySource,
        make_data_path: DataPathFactory,
        host: FactSource,
        lines: LineLimiter,
        ciphers: Ciphers | None = None,
    ) -> None:
        """ciphers: None where no circuit is encrypted."""
        self._config = config
        self._loop = loop
        self._control_channel = control_channel
        self._frozen = False
        self._settles = False
        self._if_not_taken_over: Timer | None = None
        self._without_keys: deque[Circuit] = deque()
        self._new_engine: tuple[LoadedEngine, Features] | None = None
        self._lines = lines
        self._port = config.daemon.port
        self._circuits: dict[str, Circuit] = {}
        # Circuits that were never up and whose id nobody asked for: the ids that were taken.
        self._chosen_ids: dict[str, tuple[int, ...]] = {}
        self._leaving: dict[str, Circuit] = {}
        """Those that were removed, and whose interfaces wait for hooks."""
        self.removed = 0
        """How many circuits, so far."""
        self._hooks = HookRunner(loop)
        self._on_change: ChangeHandler | None = None
        self._pending = PendingCircuits(loop, self._port, self._create_pending)
        self._allocation = Allocation(config.daemon, self._circuits, self._pending)
        state_file = StateFile(config.daemon.state_directory)
        self._store = CircuitStore(state_file, loop, self._circuits)
        self._maker = CircuitMaker(
            self._circuits,
            self._leaving,
            self,
            loop=loop,
            names=names,
            routes=routes,
            control_channel=control_channel,
            keys=keys,
            make_data_path=make_data_path,
            ciphers=ciphers,
            port=self._port,
            hooks=self._hooks,
        )
        self._peers = PeerRequests(
            self,
            self._circuits,
            loop=loop,
            maker=self._maker,
            allocation=self._allocation,
            pending=self._pending,
            store=self._store,
            control_channel=control_channel,
            host=host,
            lines=lines,
            ciphers=ciphers,
            port=self._port,
        )
        self._log = structlog.get_logger()

    def create_all(self) -> None:
        """Create the circuits of the configuration and those of circuits.json.

        Raises VelaError if a circuit of the configuration cannot be created, but for
        want of descriptors. Then it is tried again later, as is a stored one that
        cannot be created.
        """
        stored = self._store.load(self._config.daemon)
        for config in self._config.circuits:
            try:
                self._create(config, Origin.CONFIG)
            except NoRoomError as err:
                self._pending.add(StoredCircuit(config, Origin.CONFIG), err)
                self._log.error("circuit_not_started", circuit=config.name, error=str(err))
        for unread in stored.unread:
            self._log.error("stored_circuit_not_started", circuit=unread.name, error=unread.error)
        pending = []
        for each in stored.circuits:
            try:
                self._check_stored(each)
                self.create_stored(each)
            except VelaError as err:
                pending.append(each)
                self._pending.add(each, err)
                self._log.error(
                    "stored_circuit_not_started", circuit=each.config.name, error=str(err)
                )
        for name in stored.disabled & self._circuits.keys():
            self._circuits[name].disable()
        self._store.set_absent(
            Stored(
                tuple(pending), stored.unread, frozenset(stored.disabled - self._circuits.keys())
            )
        )

    def start(self) -> None:
        """Start all circuits, one after the other."""
        self._start_next(deque(self._circuits.values()))

    def _start_next(self, waiting: deque[Circuit]) -> None:
        while waiting:
            circuit = waiting.popleft()
            # A command may have removed or started it meanwhile.
            if self._circuits.get(circuit.name) is circuit and circuit.idle:
                self._loop.guard(circuit.start)
                self._loop.call_later(START_INTERVAL_S, lambda: self._start_next(waiting))
                return

    def run_last_hooks(self, done: Callback) -> None:
        """Run the hooks that are due before close(), and call done then, or after STOP_LIMIT_S.

        The circuits still carry frames. done may be called twice.
        """
        for circuit in self._circuits.values():
            if circuit.hooks is not None:
                circuit.hooks.finish("velad stops")
        self._loop.call_later(STOP_LIMIT_S, done)
        self._hooks.when_idle(done)

    def close(self, but: Container[str] = ()) -> None:
        """Close all circuits but these. Remotes are told that they will return.

        Interfaces of whose descriptors somebody has copies stay.
        """
        self._store.close()
        guard = self._loop.guard
        circuits = [circuit for name, circuit in self._circuits.items() if name not in but]
        for circuit in (*circuits, *self._leaving.values()):
            if circuit.hooks is not None:
                guard(circuit.hooks.abandon)
        # Before the interfaces: the kernel takes 20 ms to remove each one.
        for circuit in circuits:
            guard(partial(circuit.say_goodbye, CloseReason.STOPPING))
        for circuit in circuits:
            guard(circuit.kill_worker)
        for circuit in circuits:
            guard(partial(circuit.close, leave=True))
            del self._circuits[circuit.name]

    def __len__(self) -> int:
        return len(self._circuits)

    def running(self, only: Container[str] | None = None) -> int:
        """Return how many circuits, of those with these names, are not administratively down."""
        return sum(
            not circuit.disabled
            for name, circuit in self._circuits.items()
            if only is None or name in only
        )

    def check(self) -> None:
        """Check all circuits. To be called once a second."""
        for circuit in tuple(self._circuits.values()):
            self._loop.guard(circuit.check)
        self._look_at_tenures()

    def status(self) -> tuple[CircuitStatus, ...]:
        created = tuple(circuit.status() for circuit in self._circuits.values())
        return created + self._pending.status()

    def states(self) -> Iterator[str]:
        """Yield the state of each circuit, as in the status, at less cost than status()."""
        yield from (circuit.state.word for circuit in self._circuits.values())
        yield from (State.FAILED.value for _ in self._pending.wanted())

    def rates(self) -> Iterator[tuple[str, RateStatus]]:
        """Yield the rates of each circuit that has been created, likewise."""
        yield from ((name, circuit.rates()) for name, circuit in self._circuits.items())

    def plan(self, config: Config, new_workers: tuple[str, ...] = ()) -> Plan:
        """Return what a reload with this configuration would do. Changes nothing.

        new_workers: see make_plan.
        """
        present = {
            name: circuit.config
            for name, circuit in self._circuits.items()
            if circuit.origin is Origin.CONFIG
        }
        return make_plan(present, config.circuits, new_workers=new_workers)

    def reload(self, config: Config) -> Iterator[None]:
        """Apply a configuration, a step at a time. Circuits that did not change are not touched.

        failures() then says which circuits cannot be had at present. The control channel
        must have the new policy already.
        """
        plan = self.plan(config)
        self._config = config
        if self._new_engine is not None:
            engine, self._new_engine = self._new_engine, None
            for circuit in tuple(self._circuits.values()):
                self._loop.guard(partial(self._change_engine, circuit, *engine))
                yield
        # First what goes: what it has may be wanted by others.
        for change in plan.of(Step.DELETED, Step.NEW_INTERFACE):
            self._loop.guard(partial(self._remove_planned, change))
            yield
        for name, (pending, origin) in self._pending.wanted().items():
            if origin is Origin.CONFIG and pending not in config.circuits:
                self._pending.drop(name)
        for change in plan.of(Step.LIVE, Step.NEW_WORKER):
            self._loop.guard(partial(self._change, change))
            yield
        # Only now: the circuits that were removed said goodbye under the old key.
        for circuit in tuple(self._circuits.values()):
            self._loop.guard(partial(self._apply_policy, circuit))
            yield
        for change in plan.of(Step.ADDED, Step.NEW_INTERFACE):
            if change.config is not None and change.name not in self._circuits:
                self._pending.add(StoredCircuit(change.config, Origin.CONFIG))
        for name in tuple(self._pending.wanted()):
            self._loop.guard(partial(self._pending.retry_one, name))
            yield
        for change in plan.of(Step.LIVE, Step.NEW_WORKER):
            if change.config is not None and "addresses" in change.keys:
                self._warn_of_overlap(change.config)
                yield

    def set_engine(
        self, engine: LoadedEngine, features: Features, factory: DataPathFactory
    ) -> None:
        """Let another engine carry frames: those that there are with the next reload.

        factory: what makes the data paths of further ones.
        """
        self._maker.make_data_path, self._new_engine = factory, (engine, features)

    def _change_engine(self, circuit: Circuit, engine: LoadedEngine, features: Features) -> None:
        if self._circuits.get(circuit.name) is not circuit:
            return
        try:
            circuit.change_engine(engine, features)
        except DeviceError as err:
            # The interface is gone, and is about to be made again: see Pseudowire.check().
            self._log.error("engine_not_changed", circuit=circuit.name, error=str(err))

    def failures(self) -> dict[str, str]:
        """Return the reason, by name, for each circuit of the file that cannot be created.

        Those that wait for hooks of their own are made as soon as these have ended.
        """
        reasons = self._pending.reasons(Origin.CONFIG)
        return {name: why for name, why in reasons.items() if name not in self._leaving}

    def _remove_planned(self, change: Change) -> None:
        circuit = self._circuits.get(change.name)
        if circuit is None:
            return
        # If the circuit only changes, the remote must not remove its end.
        wanted = change.config
        stays = wanted is not None and _is_same_circuit(wanted, circuit.config)
        self.remove(circuit, CloseReason.STOPPING if stays else CloseReason.DELETED)
        if circuit.taken_down and wanted is not None:
            self._store.add_disabled(change.name)
        elif circuit.taken_down:
            self._store.try_save()

    def _change(self, change: Change) -> None:
        """Change a circuit of the file. One that cannot be changed is removed, and tried again."""
        name, config, new_session = change.name, change.config, change.new_session
        circuit = self._circuits.get(name)
        if circuit is None or config is None:
            return
        try:
            self._allocation.check_free(config, (name,), unless=Origin.CONFIG)
            keys = None if new_session else circuit.frame_keys
            setup = self._maker.setup(StoredCircuit(config, Origin.CONFIG), keys)
            cpu = (
                circuit.cpu
                if config.cpu == circuit.config.cpu
                else self._maker.cpu_for(config, name)
            )
            circuit.change(setup, cpu, new_session=new_session)
        except VelaError as err:
            self.remove(circuit, CloseReason.STOPPING)
            if circuit.taken_down:
                self._store.add_disabled(name)
            self._pending.add(StoredCircuit(config, Origin.CONFIG), err)

    def add(self, name: str, settings: Mapping[str, object]) -> Circuit:
        """Create a circuit at run time, on both machines. It survives restarts.

        settings is a table as under [circuits]. Without an id the circuit gets
        the next free one toward that remote. Raises VelaError, and then creates
        nothing.
        """
        if name in self._circuits or name in self._pending:
            raise ConfigError(f"there is a circuit {name} already")
        if not HOOK_KEYS.isdisjoint(settings):
            # Members of the control group could let velad run any program of root's.
            raise ConfigError(f"velactl add: {name}: hooks are for circuits of the file")
        table = dict(settings)
        chosen = "id" not in table
        if chosen:
            remote = table.get("remote", "")
            remotes = remote if isinstance(remote, list) else [remote]
            table["id"] = self._allocation.free_id([str(each) for each in remotes])
        (config,) = parse_circuits(
            {name: table}, self._config.daemon, "velactl add", self._config.defaults
        )
        missing = tuple(check_key(config, self._config.autoconfigure))
        if missing:
            raise ConfigError(*(f"velactl add: {each}" for each in missing))
        self._allocation.check_free(config)
        circuit = self._create(config, Origin.COMMAND)
        self._store.reclaim(name)
        try:
            circuit.check_remote()
            self._store.save()
        except VelaError:
            self.remove(circuit, CloseReason.DELETED)
            raise
        if chosen:
            self._chosen_ids[name] = ()
        if not circuit.disabled:  # by a default, such as of [defaults]
            circuit.start()
        return circuit

    def takes_another_id(self, circuit: Circuit) -> bool:
        tried = self._chosen_ids.get(circuit.name)
        if tried is None or len(tried) == MAX_ID_CHANGES:
            return False
        tried = (*tried, circuit.config.id)
        try:
            remotes = [str(each) for each in circuit.config.remote.all]
            number = self._allocation.free_id(remotes, tried)
        except ConfigError:
            return False
        # Not within the circuit's own doing.
        self._loop.call_soon(partial(self._change_id, circuit, number, tried))
        return True

    def _change_id(self, circuit: Circuit, number: int, tried: tuple[int, ...]) -> None:
        """Make a circuit again with another id, as the remote has the present one with another."""
        name = circuit.name
        if self._circuits.get(name) is not circuit:
            return
        wanted = StoredCircuit(replace(circuit.config, id=number), Origin.COMMAND)
        circuit.close(None)
        del self._circuits[name]
        self._log.info("circuit_id_changed", circuit=name, circuit_id=number, taken=list(tried))
        try:
            self._allocation.check_free(wanted.config)
            fresh = self.create_stored(wanted)
        except VelaError as err:
            self._pending.add(wanted, err)
            self._log.error("circuit_not_started", circuit=name, error=str(err))
        else:
            self._chosen_ids[name] = tried
            fresh.start()
        self._store.try_save()

    def delete(self, name: str) -> None:
        """Remove a circuit on both machines. Raises VelaError."""
        pending = self._pending.find(name)
        if pending is not None and pending[0].origin is not Origin.CONFIG:
            self._store.save(Ahead(name, deleted=True))
            # The remote learns it when it asks to resume.
            self._pending.drop(name)
            self._store.reclaim(name)
            return
        circuit = self.find(name)
        if circuit.origin is Origin.CONFIG:
            raise ConfigError(f"{name} is in the configuration file; remove it there, and reload")
        if circuit.origin is Origin.PEER and circuit.state is State.UP:
            raise ConfigError(
                f"{name} was set up by {circuit.config.remote}, and is up; delete it there. "
                f"Is that machine gone for good? velactl down {name}, then velactl delete {name}"
            )
        self._store.save(Ahead(name, deleted=True))
        self.remove(circuit, CloseReason.DELETED)

    def disable(self, name: str) -> None:
        """Take a circuit administratively down, across restarts. Raises VelaError."""
        circuit = self.find(name)
        # Also where nothing changes: who hears that it is done finds it so after a restart.
        self._store.save(Ahead(name, disabled=circuit.config.enabled))
        if not circuit.disabled:
            circuit.disable()

    def restart(self, name: str) -> None:
        """Begin a circuit anew. Its interface stays. Raises VelaError."""
        pending = self._pending.find(name)
        if pending is not None:
            self._create_pending(pending[0])
            self._pending.drop(name)
            return
        circuit = self.find(name)
        if circuit.disabled:
            raise ConfigError(f"{name} is administratively down; {_how_to_enable(circuit)}")
        circuit.restart()

    def switch(self, name: str, remote: str | None) -> str:
        """Let a circuit use another of its remotes, the next if none is named, and return which.

        Raises VelaError.
        """
        circuit = self.find(name)
        if circuit.disabled:
            raise ConfigError(f"{name} is administratively down; {_how_to_enable(circuit)}")
        return str(circuit.switch(remote))

    def enable(self, name: str) -> None:
        """Undo disable(). Raises VelaError."""
        circuit = self.find(name)
        if not circuit.config.enabled:
            raise ConfigError(f"{name} is administratively down; {_how_to_enable(circuit)}")
        self._store.save(Ahead(name, disabled=False))
        if circuit.disabled:
            circuit.enable()

    def set_change_handler(self, handler: ChangeHandler) -> None:
        """Set the callback for changes of circuits."""
        self._on_change = handler

    def obstacle(self) -> str:
        """Return why another velad cannot take over at present; empty: it can."""
        if self._leaving or not self._hooks.idle:
            return "hooks run at present"
        return ""

    def once_settled(self, done: Callback) -> None:
        """Call done when no circuit changes over to another session; after SETTLE_S at the latest.

        A circuit that is handed over while it does begins anew.
        """
        self._settles = True
        if self._if_not_taken_over is not None:
            self._if_not_taken_over.cancel()
        self._await_settled(self._loop.now() + SETTLE_S, done)

    def _await_settled(self, until: float, done: Callback) -> None:
        if self._loop.now() < until and any(each.changes_over for each in self._circuits.values()):
            self._loop.call_later(SETTLE_AGAIN_S, lambda: self._await_settled(until, done))
        else:
            done()
            self._if_not_taken_over = self._loop.call_later(SETTLE_S, self._go_on_renewing)

    def _go_on_renewing(self) -> None:
        self._settles = False
        self._renew_keys()

    def freeze(self) -> None:
        """Let circuits carry frames and do nothing else, until thaw()."""
        self._frozen = True
        self._store.close()
        for circuit in self._circuits.values():
            circuit.freeze()

    def thaw(self, retired: Container[str]) -> None:
        """Undo freeze(). retired: circuits whose workers were ended, which begin anew."""
        self._frozen = False
        for name, circuit in tuple(self._circuits.items()):
            self._loop.guard(circuit.thaw)
            if name in retired and not circuit.disabled:
                self._loop.guard(circuit.restart)
        self._go_on_renewing()

    def resume(
        self, former: Mapping[str, Standing], may: Callable[[CircuitConfig], bool] = lambda _: True
    ) -> frozenset[str]:
        """Go on with what another velad's circuits did, all of them in this turn of the loop.

        may: whether a circuit of this configuration may. Return the names of those that do.
        """
        resumed = set()
        for name, standing in former.items():
            circuit = self._circuits.get(name)
            if circuit is None:
                continue
            if circuit.idle and may(circuit.config) and circuit.resume(standing):
                resumed.add(name)
                self._without_keys.append(circuit)
            elif standing.hooked and circuit.hooks is not None:
                circuit.hooks.resume()
                circuit.hooks.follow(up=False)
        self._loop.call_soon(self._renew_keys)
        return frozenset(resumed)

    def _renew_keys(self) -> None:
        """Let circuits that were resumed seek sessions with keys of this process's, few at a time.

        A handshake takes milliseconds of a CPU at either end. If hundreds begin together, the
        last ones are not through when the remote gives them up.
        """
        if self._frozen or self._settles:
            return
        under_way = sum(circuit.renews for circuit in self._circuits.values())
        # At least one: a remote that does not answer holds nobody up.
        for _ in range(max(1, RENEWALS_AT_ONCE - under_way)):
            if not self._without_keys:
                return
            self._loop.guard(self._without_keys.popleft().renew_keys)
        self._loop.call_later(RENEWAL_INTERVAL_S, self._renew_keys)

    def each(self) -> tuple[Circuit, ...]:
        """Return all circuits that there are."""
        return tuple(self._circuits.values())

    def taps(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Return the descriptors of each circuit's interface, and its index."""
        return {name: circuit.taps for name, circuit in self._circuits.items()}

    def configurations(self) -> dict[str, tuple[CircuitConfig, Origin]]:
        """Return what is in effect for each circuit, and who asked for it."""
        created = {name: (each.config, each.origin) for name, each in self._circuits.items()}
        return created | self._pending.wanted()

    def on_state_changed(self, circuit: Circuit, before: State) -> None:
        if circuit.state is State.UP:
            self._chosen_ids.pop(circuit.name, None)
        if circuit.hooks is not None:
            circuit.hooks.follow(up=circuit.state in (State.UP, State.UNMONITORED))
        self._tell(circuit, "state", was=before.word)

    def _tell(self, circuit: Circuit, event: str, **more: object) -> None:
        if self._on_change is not None:
            about: dict[str, object] = {
                "event": event,
                "circuit": circuit.name,
                "id": circuit.config.id,
                "state": circuit.state.word,
                "reason": str(circuit.reason),
                "reason_code": circuit.reason.code,
                "remote": str(circuit.remote),
                "remotes": document(circuit.remotes()),
            }
            self._on_change(about | more)

    # For requests of other machines.

    @property
    def autoconfigure(self) -> AutoconfigureConfig | None:
        return self._config.autoconfigure

    def adopt(self, circuit: Circuit) -> None:
        """Take in a circuit that was made."""
        self._circuits[circuit.name] = circuit
        self._tell(circuit, "added")

    def deferral_reason(self, confirm: Confirm, address: IPAddress) -> str:
        return self._peers.deferral_reason(confirm, address)

    def peer_circuits(self, address: IPAddress) -> PeerCircuits:
        return self._peers.peer_circuits(address)

    def handle_request(self, requested: CircuitRequested) -> None:
        self._peers.handle_request(requested)

    def on_offer_changed(self, circuit: Circuit, requested: CircuitRequested) -> None:
        self._peers.on_offer_changed(circuit, requested)

    def on_deleted(self, circuit: Circuit) -> None:
        self._log.info("circuit_deleted_by_peer", circuit=circuit.name)
        self.remove(circuit, CloseReason.DELETED)
        self._store.try_save()

    def check_id(self, circuit: Circuit, sources: tuple[IPAddress, ...]) -> None:
        self._allocation.check_id(circuit, sources)

    # Creating and removing.

    def _create_pending(self, wanted: StoredCircuit) -> None:
        """Create a circuit that could not be created before, and start it. Raises VelaError."""
        if self._frozen:
            raise ConfigError("another velad is about to take over")
        if wanted.origin is Origin.CONFIG:
            self._allocation.check_free(wanted.config)
        else:
            self._check_stored(wanted)
        circuit = self.create_stored(wanted)
        if self._store.reclaim(circuit.name):
            circuit.disable()
        elif not circuit.disabled:
            circuit.start()

    def find(self, name: str) -> Circuit:
        circuit = self._circuits.get(name)
        pending = self._pending.find(name)
        if pending is not None:
            raise ConfigError(f"circuit {name} does not exist at present: {pending[1]}")
        if circuit is None:
            names = (*self._circuits, *self._pending.wanted())
            raise ConfigError(f"there is no circuit {name}{nearest(name, names)}")
        return circuit

    def _create(self, config: CircuitConfig, origin: Origin) -> Circuit:
        return self.create_stored(StoredCircuit(config, origin))

    def create_stored(self, stored: StoredCircuit) -> Circuit:
        config = stored.config
        if stored.origin is not Origin.PEER:
            self._warn_of_overlap(config)
        else:
            remote = config.remote.address
            if remote is not None:
                self._lines.assign(config.name, remote)
            stored = replace(stored, config=self._peers.rules.applied_to(config))
        circuit = self._maker.make(stored)
        if stored.origin is Origin.PEER:
            circuit.tenure = Tenure(self._loop.now(), proven=stored.proven)
        self._circuits[circuit.name] = circuit
        if not config.enabled:
            circuit.disable()
        self._tell(circuit, "added")
        return circuit

    def remove(self, circuit: Circuit, reason: CloseReason | None) -> None:
        """Remove a circuit. Its remote is told the reason, unless that is None."""
        self.removed += 1
        del self._circuits[circuit.name]
        self._chosen_ids.pop(circuit.name, None)
        self._leaving[circuit.name] = circuit
        circuit.close(reason, lambda: self._on_gone(circuit.name))
        self._lines.release(circuit.name)
        self._tell(circuit, "removed")

    def _on_gone(self, name: str) -> None:
        """Create what has waited for the name."""
        del self._leaving[name]
        if name in self._pending:
            self._pending.retry_one(name)

    def _warn_of_overlap(self, config: CircuitConfig) -> None:
        """Tell the operator: he may mean it, as with a more specific route."""
        try:
            overlap = self._peers.find_overlap(config, (config.name,))
        except DeviceError as err:
            self._log.warning("addresses_not_compared", circuit=config.name, error=str(err))
            return
        if overlap is not None:
            self._log.warning(
                "addresses_overlap",
                circuit=config.name,
                reason=overlap.text.removeprefix(requests.ELSEWHERE),
            )

    def _look_at_tenures(self) -> None:
        """Remove what other machines set up and do not use; keep what they have used for good."""
        now = self._loop.now()
        proven = False
        for circuit in tuple(self._circuits.values()):
            tenure = circuit.tenure
            if tenure is None or circuit.disabled:
                continue
            before = tenure.proven
            # What fails is this host's own trouble.
            fails = circuit.state in (State.FAILED, State.BROKEN)
            tenure.update(now, up=circuit.state is State.UP, excused=fails)
            proven |= tenure.proven and not before
            if tenure.has_ended(now):
                self._log.info("circuit_abandoned", circuit=circuit.name)
                self.remove(circuit, CloseReason.STOPPING)
                proven = True
        if proven:
            self._store.save_in_time(lambda _: None)

    def _check_stored(self, stored: StoredCircuit) -> None:
        """Raise ConfigError if a stored circuit is no longer allowed."""
        if stored.origin is Origin.PEER:
            policy = self._control_channel.policy
            if policy is None:
                raise ConfigError("another machine set it up, and [autoconfigure] is absent")
            source = stored.config.remote.address
            offer = offer_of(stored.config, stored.origin, stored.named_by_peer)
            refused = None if source is None else policy.judge_offer(offer, source)
            if refused is not None:
                raise ConfigError(refused.text)
            why = self._cipher_contradiction(stored.config)
            if why:
                raise ConfigError(why)
        self._allocation.check_free(stored.config)

    def _set_aside(self, circuit: Circuit) -> None:
        """Remove a circuit that anybody could call, as its key is gone, until there is one."""
        stored = record_of(circuit)
        self.remove(circuit, CloseReason.STOPPING)
        if circuit.taken_down:
            self._store.add_disabled(circuit.name)
        self._store.keep(stored)
        self._pending.add(stored, ConfigError(Cause.NO_KEY.say()))
        self._store.try_save()

    def _cipher_contradiction(self, config: CircuitConfig) -> str:
        """Return why a circuit of another machine's is no longer allowed to be as encrypted."""
        autoconfigure = self._config.autoconfigure
        return "" if autoconfigure is None else contradiction(config, autoconfigure)

    def _apply_policy(self, circuit: Circuit) -> None:
        """Give a circuit the present policy. One of a peer that is no longer allowed goes."""
        policy, key = self._control_channel.policy, self._control_channel.key
        if circuit.static or self._circuits.get(circuit.name) is not circuit:
            return
        if circuit.origin is not Origin.PEER:
            if circuit.config.key_file is not None:
                return
            if key is None and circuit.config.remote.is_any and circuit.config.peer_key is None:
                self._set_aside(circuit)
            else:
                circuit.set_key(key)
        elif (
            policy is None
            or _is_refused(policy, circuit)
            or self._cipher_contradiction(circuit.config)
        ):
            self._log.warning("circuit_no_longer_allowed", circuit=circuit.name)
            self.remove(circuit, CloseReason.STOPPING)
            self._store.try_save()
        else:
            circuit.set_key(key)
            circuit.set_policy(policy)


def _how_to_enable(circuit: Circuit) -> str:
    if circuit.config.enabled:
        return f"velactl up {circuit.name} undoes that"
    return "the file says enabled = false; change that there, and reload"


def _is_refused(policy: Policy, circuit: Circuit) -> bool:
    """Tell whether a circuit that a remote set up would not be allowed now."""
    source = circuit.config.remote.address
    return source is not None and policy.judge_offer(circuit.offer, source) is not None


def _is_same_circuit(one: CircuitConfig, other: CircuitConfig) -> bool:
    """Tell whether both are one circuit for the remote: docs/protocol.md, section 1."""
    return (one.id, one.remote) == (other.id, other.remote) and one.autoconfigure
