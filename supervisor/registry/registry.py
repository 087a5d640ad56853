"""All circuits of a daemon, and all who want some: the file, commands, other machines."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import structlog

from vela.address import IPAddress
from vela.errors import ConfigError, DeviceError, VelaError
from vela.linux.affinity import allowed_cpus, least_loaded
from vela.signaling.events import CircuitRequested
from vela.signaling.messages import CloseReason, Confirm, RejectCode
from vela.signaling.signer import Key

from ..circuit.circuit import Circuit, DataPath, Origin
from ..circuit.lifecycle import State
from ..circuit.remote import RouteSource
from ..config.conflicts import NO_ENCRYPTION, check_key
from ..config.reader import parse_circuits
from ..config.records import CircuitConfig, Config, Encapsulation, Encryption
from ..control_channel import ControlChannel
from ..keys import KeySource
from ..runtime.loop import EventLoop
from ..runtime.names import NameSource
from ..status import CircuitStatus
from . import requests
from .allocation import Allocation
from .pending import PendingCircuits
from .requests import Refuse, SetUp, Situation, offer_of
from .store import CircuitStore, StateFile, Stored, StoredCircuit, stored

# Between the first steps of circuits at start: a remote that sets up its ends takes about
# as long for each, and must not be asked again before it comes to it.
START_INTERVAL_S = 0.005


class DataPathFactory(Protocol):
    """What makes circuits' data paths: pseudowire.PseudowireFactory."""

    def __call__(self, config: CircuitConfig, cpu: int, *, await_bridge: bool = False) -> DataPath:
        """Create a circuit's interface, and what goes with it. Raises DeviceError.

        await_bridge: a bridge that does not exist is waited for.
        """


class Registry:
    """Every circuit by name, whether of the configuration, of a command, or of another machine."""

    def __init__(
        self,
        config: Config,
        *,
        loop: EventLoop,
        names: NameSource,
        routes: RouteSource,
        control_channel: ControlChannel,
        keys: KeySource,
        make_data_path: DataPathFactory,
    ) -> None:
        self._config = config
        self._loop = loop
        self._names = names
        self._routes = routes
        self._control_channel = control_channel
        self._keys = keys
        self._make_data_path = make_data_path
        self._port = config.daemon.port
        self._circuits: dict[str, Circuit] = {}
        self._pending = PendingCircuits(loop, self._port, self._create_pending)
        self._allocation = Allocation(config.daemon, self._circuits, self._pending)
        state_file = StateFile(config.daemon.state_directory)
        self._store = CircuitStore(state_file, loop, self._circuits)
        self._log = structlog.get_logger()

    def create_all(self) -> None:
        """Create the configuration's circuits, and those that were kept.

        Raises VelaError where one of the configuration cannot be had; one
        that was kept is tried again later, with an error in the log.
        """
        stored = self._store.load(self._config.daemon)
        for config in self._config.circuits:
            self._create(config, Origin.CONFIG)
        for unread in stored.unread:
            self._log.error("kept_circuit_not_started", circuit=unread.name, error=unread.error)
        left_out = []
        for kept in stored.circuits:
            try:
                self._check_kept(kept)
                self._create_kept(kept)
            except VelaError as err:
                left_out.append(kept)
                self._pending.add(kept, err)
                self._log.error(
                    "kept_circuit_not_started", circuit=kept.config.name, error=str(err)
                )
        for name in stored.disabled & self._circuits.keys():
            self._circuits[name].disable()
        self._store.set_absent(
            Stored(
                tuple(left_out), stored.unread, frozenset(stored.disabled - self._circuits.keys())
            )
        )

    def start(self) -> None:
        """Let all look for their remotes, one after the other."""
        self._start_next(deque(self._circuits.values()))

    def _start_next(self, waiting: deque[Circuit]) -> None:
        while waiting:
            circuit = waiting.popleft()
            # It may have gone, or been started by a command, meanwhile.
            if self._circuits.get(circuit.name) is circuit and circuit.idle:
                self._loop.guard(circuit.start)
                self._loop.call_later(START_INTERVAL_S, lambda: self._start_next(waiting))
                return

    def close(self) -> None:
        """Take all down; remotes are told that they come back."""
        self._store.close()
        guard, circuits = self._loop.guard, tuple(self._circuits.values())
        # First, as the kernel takes 20 ms for the end of each interface.
        for circuit in circuits:
            guard(partial(circuit.say_goodbye, CloseReason.STOPPING))
        for circuit in circuits:
            guard(circuit.kill_worker)
        for circuit in circuits:
            guard(circuit.close)
        self._circuits.clear()

    def __len__(self) -> int:
        return len(self._circuits)

    def check(self) -> None:
        """Look after all; to be called once a second."""
        for circuit in tuple(self._circuits.values()):
            self._loop.guard(circuit.check)

    def status(self) -> tuple[CircuitStatus, ...]:
        created = tuple(circuit.status() for circuit in self._circuits.values())
        return created + self._pending.status()

    def reload(self, config: Config) -> dict[str, str]:
        """Take over what changed; circuits that did not are not touched.

        Return those of the file that cannot be made at present, by name, and
        why. The control_channel knows the policy already.
        """
        self._config = config
        wanted = {circuit.name: circuit for circuit in config.circuits}
        for name, circuit in tuple(self._circuits.items()):
            if circuit.origin is Origin.CONFIG and wanted.get(name) != circuit.config:
                # The other end keeps it where it only changes.
                stays = name in wanted and _is_same_circuit(wanted[name], circuit.config)
                self._remove(circuit, CloseReason.STOPPING if stays else CloseReason.DELETED)
                if circuit.disabled and name in wanted:
                    self._store.add_disabled(name)
                elif circuit.disabled:
                    self._store.try_save()
        # Those that go said so under the key of before.
        self._apply_policy()
        for name in self._pending.reasons(Origin.CONFIG):
            self._pending.drop(name)
        for name, each in wanted.items():
            if name not in self._circuits:
                self._pending.add(StoredCircuit(each, Origin.CONFIG))
        self._pending.retry()
        return self._pending.reasons(Origin.CONFIG)

    def add(self, name: str, settings: Mapping[str, object]) -> Circuit:
        """Set up a circuit at run time, on both machines; it outlives restarts.

        settings is a table as under [circuits]; without an id the next free
        one toward that remote is taken. Raises VelaError, and then there is
        none.
        """
        if name in self._circuits or name in self._pending:
            raise ConfigError(f"there is a circuit {name} already")
        table = dict(settings)
        if "id" not in table:
            table["id"] = self._allocation.free_id(str(table.get("remote", "")))
        (config,) = parse_circuits({name: table}, self._config.daemon, "velactl add")
        missing = tuple(check_key(config, self._config.autoconfigure))
        if missing:
            raise ConfigError(*(f"velactl add: {each}" for each in missing))
        self._allocation.check_free(config)
        circuit = self._create(config, Origin.COMMAND)
        self._store.reclaim(name)
        try:
            self._store.save()
        except DeviceError:
            self._remove(circuit, CloseReason.DELETED)
            raise
        circuit.start()
        return circuit

    def delete(self, name: str) -> None:
        """Take a circuit down for good, on both machines. Raises VelaError."""
        unmade = self._pending.find(name)
        if unmade is not None and unmade[0].origin is not Origin.CONFIG:
            # The other end is told when it resumes.
            self._pending.drop(name)
            self._store.reclaim(name)
            self._store.save()
            return
        circuit = self._find(name)
        if circuit.origin is Origin.CONFIG:
            raise ConfigError(f"{name} is in the configuration file; remove it there, and reload")
        if circuit.origin is Origin.PEER and circuit.state is State.UP:
            raise ConfigError(f"{name} was set up by {circuit.config.remote}; delete it there")
        self._remove(circuit, CloseReason.DELETED)
        self._store.save()

    def disable(self, name: str) -> None:
        """Let a circuit carry nothing until enable(), across restarts, too. Raises VelaError."""
        circuit = self._find(name)
        if not circuit.disabled:
            circuit.disable()
            self._store.save()

    def enable(self, name: str) -> None:
        """Undo disable(). Raises VelaError."""
        circuit = self._find(name)
        if circuit.disabled:
            circuit.enable()
            self._store.save()

    # What control messages of other machines lead to.

    def deferral_reason(self, confirm: Confirm, address: IPAddress) -> str:
        """Return why a circuit that may be here does not answer; see requests."""
        return requests.deferral_reason(
            confirm, address, self._circuits.values(), self._pending.wanted().values()
        )

    def peer_circuit_count(self) -> int:
        return requests.peer_circuit_count(self._circuits.values())

    def handle_request(self, requested: CircuitRequested) -> None:
        """Set up what another machine asks for, and the policy allows; or refuse it."""
        situation = self._situation()
        if situation is None:
            return
        decision = requests.decide(requested, situation)
        if isinstance(decision, Refuse):
            self._refuse(requested, decision)
            return
        if decision.replaced is not None:
            remote = str(decision.config.remote)
            self._log.info("circuit_moved", circuit=decision.config.name, remote=remote)
        self._set_up_for_peer(decision, requested)

    def on_offer_changed(self, circuit: Circuit, requested: CircuitRequested) -> None:
        """Set the circuit up as its remote wants it now; or refuse that, and leave it alone."""
        situation = self._situation()
        if situation is None:
            return
        decision = requests.decide_change(circuit, requested, situation)
        if isinstance(decision, Refuse):
            self._refuse(requested, decision)
            return
        self._log.info("circuit_changed_by_peer", circuit=circuit.name)
        self._set_up_for_peer(decision, requested)

    def on_deleted(self, circuit: Circuit) -> None:
        self._log.info("circuit_deleted_by_peer", circuit=circuit.name)
        self._remove(circuit, CloseReason.DELETED)
        self._store.try_save()

    def check_id(self, circuit: Circuit, sources: tuple[IPAddress, ...]) -> None:
        self._allocation.check_id(circuit, sources)

    def _situation(self) -> Situation | None:
        policy = self._control_channel.policy
        if policy is None:
            return None
        return Situation(
            circuits=self._circuits,
            pending=self._pending.wanted(),
            free=self._allocation,
            policy=policy,
            port=self._port,
            pending_makers=self._pending.makers(),
        )

    def _set_up_for_peer(self, decision: SetUp, requested: CircuitRequested) -> None:
        """Make what another machine may have, in place of what it had."""
        config = decision.config
        replaced = None if decision.replaced is None else self._circuits[decision.replaced]
        if replaced is not None:
            self._remove(replaced, None)
        try:
            circuit = self._make(StoredCircuit(config, Origin.PEER, decision.named_by_peer))
        except VelaError as err:
            self._give_up(requested, replaced, err)
            return

        def saved(error: DeviceError | None) -> None:
            # A reload may have removed it meanwhile.
            if self._circuits.get(config.name) is not circuit:
                return
            if error is None:
                circuit.answer()
                return
            self._remove(circuit, None)
            self._give_up(requested, replaced, error)

        try:
            circuit.accept(requested)
        except VelaError as err:
            circuit.close(None)
            self._give_up(requested, replaced, err)
            return
        self._circuits[config.name] = circuit
        self._store.reclaim(config.name)
        self._pending.drop(config.name)
        self._store.save_in_time(saved)

    def _give_up(
        self, requested: CircuitRequested, replaced: Circuit | None, error: VelaError
    ) -> None:
        """Refuse what could not be done, and restore what there was before."""
        self._log.error(
            "circuit_not_set_up",
            by=str(requested.source),
            circuit_id=requested.circuit_id,
            error=str(error),
        )
        text = requests.from_here(error)
        self._control_channel.reject(requested, RejectCode.FAILED, text)
        if replaced is None:
            return
        try:
            circuit = self._create_kept(stored(replaced))
        except VelaError as err:
            self._log.error("circuit_not_restored", circuit=replaced.name, error=str(err))
            self._store.try_save()
        else:
            circuit.start()

    def _refuse(self, requested: CircuitRequested, refusal: Refuse) -> None:
        # What is disabled here is asked for again and again, as it should be.
        if refusal.code is not RejectCode.DISABLED:
            self._log.warning(
                "circuit_refused",
                by=str(requested.source),
                circuit_id=requested.circuit_id,
                code=refusal.code.name,
                reason=refusal.text,
            )
        self._control_channel.reject(requested, refusal.code, refusal.text)

    # Making and removing.

    def _create_pending(self, wanted: StoredCircuit) -> None:
        """Create a circuit that could not be created before, and start it. Raises VelaError."""
        if wanted.origin is Origin.CONFIG:
            self._allocation.check_free(wanted.config)
        else:
            self._check_kept(wanted)
        circuit = self._create_kept(wanted)
        if self._store.reclaim(circuit.name):
            circuit.disable()
        else:
            circuit.start()

    def _find(self, name: str) -> Circuit:
        circuit = self._circuits.get(name)
        pending = self._pending.find(name)
        if pending is not None:
            raise ConfigError(f"{name} is not there: {pending[1]}")
        if circuit is None:
            raise ConfigError(f"there is no circuit {name}")
        return circuit

    def _create(self, config: CircuitConfig, origin: Origin) -> Circuit:
        return self._create_kept(StoredCircuit(config, origin))

    def _create_kept(self, kept: StoredCircuit) -> Circuit:
        circuit = self._make(kept)
        self._circuits[circuit.name] = circuit
        return circuit

    def _make(self, kept: StoredCircuit) -> Circuit:
        config, origin = kept.config, kept.origin
        if config.encryption is Encryption.REQUIRED:
            raise ConfigError(f"{config.name}: {NO_ENCRYPTION}")
        # The original VELA knows no handshake.
        static = not config.autoconfigure or config.encapsulation is Encapsulation.IP
        key = None if static else self._key_for(config, origin)
        return Circuit(
            config,
            origin,
            # A command, or another machine, is told at once what is missing.
            self._make_data_path(
                config, self._cpu_for(config), await_bridge=origin is Origin.CONFIG
            ),
            loop=self._loop,
            names=self._names,
            routes=self._routes,
            owner=self,
            port=self._port,
            control_channel=None if static else self._control_channel,
            offer=offer_of(config, origin, kept.named_by_peer),
            key=key,
            machine=None if static else self._token_for(config, origin),
            maker=kept.maker,
        )

    def _cpu_for(self, config: CircuitConfig) -> int:
        if config.cpu is not None:
            return config.cpu
        own = [each.cpu for each in self._circuits.values()]
        return least_loaded(allowed_cpus(), own)

    def _key_for(self, config: CircuitConfig, origin: Origin) -> Key | None:
        if origin is not Origin.PEER and config.key_file is not None:
            return self._keys.load(config.key_file)
        return self._control_channel.key

    def _token_for(self, config: CircuitConfig, origin: Origin) -> bytes | None:
        """Return what tells this machine from others, where it sets a circuit up elsewhere."""
        if origin is Origin.PEER:
            return None
        # The key is no part of it: who changes it is the same machine.
        return self._keys.token(f"{config.id} {config.remote}".encode())

    def _remove(self, circuit: Circuit, reason: CloseReason | None) -> None:
        """Take a circuit down; its remote is told why, unless reason is None."""
        circuit.close(reason)
        del self._circuits[circuit.name]

    def _check_kept(self, kept: StoredCircuit) -> None:
        """Raise ConfigError where a circuit that was kept is no longer allowed."""
        if kept.origin is Origin.PEER:
            policy = self._control_channel.policy
            if policy is None:
                raise ConfigError("another machine set it up, and there is no [autoconfigure]")
            refused = policy.judge_offer(offer_of(kept.config, kept.origin, kept.named_by_peer))
            if refused is not None:
                raise ConfigError(refused.text)
        self._allocation.check_free(kept.config)

    def _apply_policy(self) -> None:
        """Remove what others set up and may not any more; the rest goes on under the new terms."""
        policy, key = self._control_channel.policy, self._control_channel.key
        for circuit in tuple(self._circuits.values()):
            if circuit.static:
                continue
            if circuit.origin is not Origin.PEER:
                if circuit.config.key_file is None:
                    circuit.set_key(key)
            elif policy is None or policy.judge_offer(circuit.offer) is not None:
                self._log.warning("circuit_no_longer_allowed", circuit=circuit.name)
                self._remove(circuit, CloseReason.STOPPING)
                self._store.try_save()
            else:
                circuit.set_key(key)
                circuit.set_policy(policy)


def _is_same_circuit(one: CircuitConfig, other: CircuitConfig) -> bool:
    """Tell whether the remote knows both as one: docs/protocol.md, section 1."""
    return (one.id, one.remote) == (other.id, other.remote) and one.autoconfigure
