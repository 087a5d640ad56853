"""All circuits of a daemon, whether the file, a command or another machine asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

import structlog

from vela.address import IPAddress, IPNetwork
from vela.errors import ConfigError, DeviceError, RemoteProtocolError, VelaError
from vela.linux.affinity import allowed_cpus, least_loaded
from vela.signaling.events import CircuitRequested
from vela.signaling.messages import CloseReason, Confirm, RejectCode
from vela.signaling.policy import PeerCircuits, Policy
from vela.signaling.signer import Key

from ..circuit.circuit import Circuit, DataPath, Origin
from ..circuit.lifecycle import State
from ..circuit.remote import RouteSource
from ..circuit.tenure import Tenure
from ..config.conflicts import check_key
from ..config.reader import parse_circuits
from ..config.records import CircuitConfig, Config, Encapsulation, Encryption
from ..control_channel import ControlChannel
from ..frame_keys import CircuitKeys
from ..keys import KeySource
from ..nearest import nearest
from ..runtime.lines import LineLimiter
from ..runtime.loop import EventLoop
from ..runtime.names import NameSource
from ..status import CircuitStatus
from . import requests
from .allocation import Allocation
from .changes import ChangeLimiter
from .ciphers import Answered, Ciphers, contradiction
from .facts import HostFacts
from .pending import PendingCircuits
from .requests import Refuse, SetUp, Situation, offer_of
from .store import CircuitStore, StateFile, Stored, StoredCircuit, record_of

# At start one circuit begins after the other, this far apart. A remote that creates its ends
# on request takes about as long for each one, and must not receive a second request before it
# has answered the first.
START_INTERVAL_S = 0.005

TOO_OFTEN = "circuits are set up and changed too often; the next change has to wait"


ChangeHandler = Callable[[Mapping[str, object]], object]
"""Is told of a change of a circuit: what `velactl monitor` shows, without the time."""


class DataPathFactory(Protocol):
    """Creates the data paths of circuits: pseudowire.PseudowireFactory."""

    def __call__(
        self, config: CircuitConfig, cpu: int, *, await_bridge: bool = False, shielded: bool = False
    ) -> DataPath:
        """Create a circuit's interface, counters and sockets. Raises DeviceError.

        await_bridge: create the interface even if its bridge does not exist yet.
        shielded: it is an error if router advertisements cannot be kept out.
        """


class FactSource(Protocol):
    """What knows this host's addresses and routes: host.HostNetwork."""

    def facts(self, wanted: tuple[IPNetwork, ...]) -> HostFacts:
        """Return what may matter to who wants addresses of these networks. Raises DeviceError."""


class Registry:
    """The circuits by name. Creates, changes and removes them on request."""

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
        host: FactSource,
        lines: LineLimiter,
        ciphers: Ciphers | None = None,
    ) -> None:
        """ciphers: None where no circuit is encrypted."""
        self._config = config
        self._loop = loop
        self._names = names
        self._routes = routes
        self._control_channel = control_channel
        self._keys = keys
        self._make_data_path = make_data_path
        self._host = host
        self._lines = lines
        self._ciphers = ciphers
        self._changes = ChangeLimiter()
        self._port = config.daemon.port
        self._circuits: dict[str, Circuit] = {}
        self._on_change: ChangeHandler | None = None
        self._pending = PendingCircuits(loop, self._port, self._create_pending)
        self._allocation = Allocation(config.daemon, self._circuits, self._pending)
        state_file = StateFile(config.daemon.state_directory)
        self._store = CircuitStore(state_file, loop, self._circuits)
        self._log = structlog.get_logger()

    def create_all(self) -> None:
        """Create the circuits of the configuration and those of circuits.json.

        Raises VelaError if a circuit of the configuration cannot be created. A
        stored one that cannot be created is logged, and tried again later.
        """
        stored = self._store.load(self._config.daemon)
        for config in self._config.circuits:
            self._create(config, Origin.CONFIG)
        for unread in stored.unread:
            self._log.error("stored_circuit_not_started", circuit=unread.name, error=unread.error)
        pending = []
        for each in stored.circuits:
            try:
                self._check_stored(each)
                self._create_stored(each)
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

    def close(self) -> None:
        """Close all circuits. Remotes are told that they will return."""
        self._store.close()
        guard, circuits = self._loop.guard, tuple(self._circuits.values())
        # Before the interfaces: the kernel takes 20 ms to remove each one.
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
        """Check all circuits. To be called once a second."""
        for circuit in tuple(self._circuits.values()):
            self._loop.guard(circuit.check)
        self._look_at_tenures()

    def status(self) -> tuple[CircuitStatus, ...]:
        created = tuple(circuit.status() for circuit in self._circuits.values())
        return created + self._pending.status()

    def reload(self, config: Config) -> dict[str, str]:
        """Apply a new configuration. Circuits that did not change are not touched.

        Return the reason, by name, for each circuit of the file that cannot be
        created at present. The control channel must have the new policy already.
        """
        self._config = config
        wanted = {circuit.name: circuit for circuit in config.circuits}
        for name, circuit in tuple(self._circuits.items()):
            if circuit.origin is Origin.CONFIG and wanted.get(name) != circuit.config:
                # If the circuit only changes, the remote must not remove its end.
                stays = name in wanted and _is_same_circuit(wanted[name], circuit.config)
                self._remove(circuit, CloseReason.STOPPING if stays else CloseReason.DELETED)
                if circuit.taken_down and name in wanted:
                    self._store.add_disabled(name)
                elif circuit.taken_down:
                    self._store.try_save()
        # Only now: the circuits that were removed said goodbye under the old key.
        self._apply_policy()
        for name in self._pending.reasons(Origin.CONFIG):
            self._pending.drop(name)
        for name, each in wanted.items():
            if name not in self._circuits:
                self._pending.add(StoredCircuit(each, Origin.CONFIG))
        self._pending.retry()
        return self._pending.reasons(Origin.CONFIG)

    def add(self, name: str, settings: Mapping[str, object]) -> Circuit:
        """Create a circuit at run time, on both machines. It survives restarts.

        settings is a table as under [circuits]. Without an id the circuit gets
        the next free one toward that remote. Raises VelaError, and then creates
        nothing.
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
            circuit.check_remote()
            self._store.save()
        except VelaError:
            self._remove(circuit, CloseReason.DELETED)
            raise
        circuit.start()
        return circuit

    def delete(self, name: str) -> None:
        """Remove a circuit on both machines. Raises VelaError."""
        pending = self._pending.find(name)
        if pending is not None and pending[0].origin is not Origin.CONFIG:
            # The remote learns it when it asks to resume.
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
        """Take a circuit administratively down, across restarts. Raises VelaError."""
        circuit = self._find(name)
        if not circuit.disabled:
            circuit.disable()
            self._store.save()

    def restart(self, name: str) -> None:
        """Begin a circuit anew. Its interface stays. Raises VelaError."""
        pending = self._pending.find(name)
        if pending is not None:
            self._create_pending(pending[0])
            self._pending.drop(name)
            return
        circuit = self._find(name)
        if circuit.disabled:
            raise ConfigError(f"{name} is administratively down; {_how_to_enable(circuit)}")
        circuit.restart()

    def enable(self, name: str) -> None:
        """Undo disable(). Raises VelaError."""
        circuit = self._find(name)
        if not circuit.config.enabled:
            raise ConfigError(f"{name} is administratively down; {_how_to_enable(circuit)}")
        if circuit.disabled:
            circuit.enable()
            self._store.save()

    def set_change_handler(self, handler: ChangeHandler) -> None:
        """Set the callback for changes of circuits."""
        self._on_change = handler

    def configurations(self) -> dict[str, tuple[CircuitConfig, Origin]]:
        """Return what is in effect for each circuit, and who asked for it."""
        created = {name: (each.config, each.origin) for name, each in self._circuits.items()}
        return created | self._pending.wanted()

    def on_state_changed(self, circuit: Circuit, before: State) -> None:
        self._tell(circuit, "state", was=before.word)

    def _tell(self, circuit: Circuit, event: str, **more: object) -> None:
        if self._on_change is not None:
            about: dict[str, object] = {
                "event": event,
                "circuit": circuit.name,
                "id": circuit.config.id,
                "state": circuit.state.word,
                "reason": circuit.reason,
                "remote": str(circuit.config.remote),
            }
            self._on_change(about | more)

    # Requests of other machines.

    def deferral_reason(self, confirm: Confirm, address: IPAddress) -> str:
        """Return why a circuit that may exist here cannot answer now; see requests."""
        return requests.deferral_reason(
            confirm, address, self._circuits.values(), self._pending.wanted().values()
        )

    def peer_circuits(self, address: IPAddress) -> PeerCircuits:
        return requests.count_peer_circuits(self._circuits.values(), address)

    def handle_request(self, requested: CircuitRequested) -> None:
        """Create or refuse a circuit that another machine asks for."""
        situation = self._situation()
        if situation is None:
            return
        answered = self._answer_handshake(requested)
        if answered is None:
            return
        decision = self._admit(requested, requests.decide(requested, situation), situation.policy)
        if isinstance(decision, Refuse):
            answered.close()
            self._refuse(requested, decision)
            return
        if decision.replaced is not None:
            remote = str(decision.config.remote)
            self._log.info("circuit_moved", circuit=decision.config.name, remote=remote)
        self._set_up_for_peer(decision, requested, answered)

    def on_offer_changed(self, circuit: Circuit, requested: CircuitRequested) -> None:
        """Apply the settings that the circuit's remote now asks for, or refuse them."""
        situation = self._situation()
        if situation is None:
            return
        answered = self._answer_handshake(requested)
        if answered is None:
            return
        decision = requests.decide_change(circuit, requested, situation)
        decision = self._admit(requested, decision, situation.policy)
        if isinstance(decision, Refuse):
            answered.close()
            self._refuse(requested, decision)
            return
        self._log.info("circuit_changed_by_peer", circuit=circuit.name)
        self._set_up_for_peer(decision, requested, answered)

    def _answer_handshake(self, requested: CircuitRequested) -> Answered | None:
        """Answer the handshake of a circuit that is to be encrypted.

        Nothing is created for a stranger. None: the handshake is wrong, or comes too fast.
        """
        autoconfigure, ciphers = self._config.autoconfigure, self._ciphers
        if self._control_channel.ciphers is None or autoconfigure is None or ciphers is None:
            return Answered()
        try:
            answered = ciphers.answer(
                requested, autoconfigure, self._control_channel.key, self._loop.now()
            )
        except RemoteProtocolError as err:
            self._control_channel.count_dropped(err, requested.source)
            return None
        except VelaError as err:
            self._log.error("circuit_not_set_up", by=str(requested.source), error=str(err))
            return None
        return answered

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
            accept_ra=self._peers_accept_ra,
        )

    @property
    def _peers_accept_ra(self) -> bool:
        autoconfigure = self._config.autoconfigure
        return autoconfigure is not None and autoconfigure.accept_ra

    def _admit(
        self, requested: CircuitRequested, decision: SetUp | Refuse, policy: Policy
    ) -> SetUp | Refuse:
        """Return the decision, or why this host cannot do it, or not so often."""
        if isinstance(decision, Refuse):
            return decision
        limits = policy.limits(requested.source.address)
        try:
            overlap = self._find_overlap(decision.config, decision.replaced, limits.networks)
        except DeviceError as err:
            return Refuse(RejectCode.FAILED, requests.from_here(err))
        if overlap is not None:
            return overlap
        if not self._changes.take(
            requested.source.address,
            requested.circuit_id,
            limits.max_circuits,
            self._loop.now(),
        ):
            return Refuse(RejectCode.FAILED, requests.from_here(TOO_OFTEN))
        return decision

    def _find_overlap(
        self, config: CircuitConfig, replaced: str | None, networks: tuple[IPNetwork, ...] = ()
    ) -> Refuse | None:
        """See requests. Raises DeviceError."""
        if not config.addresses:
            return None
        facts = self._host.facts(tuple(each.network for each in config.addresses))
        return requests.find_overlap(config, replaced, self._circuits.values(), facts, networks)

    def _set_up_for_peer(
        self, decision: SetUp, requested: CircuitRequested, answered: Answered
    ) -> None:
        """Create a circuit that another machine asked for, and remove the one that it replaces."""
        config = answered.complete(decision.config)
        replaced = None if decision.replaced is None else self._circuits[decision.replaced]
        kept = None
        if replaced is not None:
            if _has_same_interface(config, replaced.config):
                kept = replaced.hand_over()
            self._remove(replaced, None)
        self._lines.assign(config.name, requested.source.address)
        try:
            circuit = self._make(
                StoredCircuit(config, Origin.PEER, decision.named_by_peer), answered.keys, kept
            )
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
            circuit.accept(requested, answered.encryption)
        except VelaError as err:
            circuit.close(None)
            self._give_up(requested, replaced, err)
            return
        circuit.tenure = Tenure(self._loop.now()) if replaced is None else replaced.tenure
        self._circuits[config.name] = circuit
        self._tell(circuit, "added")
        self._store.reclaim(config.name)
        self._pending.drop(config.name)
        self._store.save_in_time(saved)

    def _give_up(
        self, requested: CircuitRequested, replaced: Circuit | None, error: VelaError
    ) -> None:
        """Refuse a request that could not be carried out, and restore the circuit of before."""
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
            circuit = self._create_stored(record_of(replaced))
            circuit.tenure = replaced.tenure
        except VelaError as err:
            self._log.error("circuit_not_restored", circuit=replaced.name, error=str(err))
            self._store.try_save()
        else:
            circuit.start()

    def _refuse(self, requested: CircuitRequested, refusal: Refuse) -> None:
        # The remote of a disabled circuit asks again and again; that is no event.
        if refusal.code is not RejectCode.DISABLED:
            self._log.warning(
                "circuit_refused",
                by=str(requested.source),
                circuit_id=requested.circuit_id,
                code=refusal.code.name,
                reason=refusal.text,
            )
        self._control_channel.reject(requested, refusal.code, refusal.text)

    # Creating and removing.

    def _create_pending(self, wanted: StoredCircuit) -> None:
        """Create a circuit that could not be created before, and start it. Raises VelaError."""
        if wanted.origin is Origin.CONFIG:
            self._allocation.check_free(wanted.config)
        else:
            self._check_stored(wanted)
        circuit = self._create_stored(wanted)
        if self._store.reclaim(circuit.name):
            circuit.disable()
        elif not circuit.disabled:
            circuit.start()

    def _find(self, name: str) -> Circuit:
        circuit = self._circuits.get(name)
        pending = self._pending.find(name)
        if pending is not None:
            raise ConfigError(f"circuit {name} does not exist at present: {pending[1]}")
        if circuit is None:
            names = (*self._circuits, *self._pending.wanted())
            raise ConfigError(f"there is no circuit {name}{nearest(name, names)}")
        return circuit

    def _create(self, config: CircuitConfig, origin: Origin) -> Circuit:
        return self._create_stored(StoredCircuit(config, origin))

    def _create_stored(self, stored: StoredCircuit) -> Circuit:
        config = stored.config
        if stored.origin is not Origin.PEER:
            self._warn_of_overlap(config)
        else:
            remote = config.remote.address
            if remote is not None:
                self._lines.assign(config.name, remote)
            accept_ra = self._peers_accept_ra and config.bridge is None
            stored = replace(stored, config=replace(config, accept_ra=accept_ra))
        circuit = self._make(stored)
        if stored.origin is Origin.PEER:
            circuit.tenure = Tenure(self._loop.now(), proven=stored.proven)
        self._circuits[circuit.name] = circuit
        if not config.enabled:
            circuit.disable()
        self._tell(circuit, "added")
        return circuit

    def _make(
        self,
        stored: StoredCircuit,
        frame_keys: CircuitKeys | None = None,
        data_path: DataPath | None = None,
    ) -> Circuit:
        """Create a circuit. Raises VelaError.

        frame_keys: of an encrypted one, closed if that fails; None: they are made.
        data_path: of the circuit that it follows, likewise.
        """
        try:
            if data_path is None:
                return self._make_with(stored, frame_keys, self._make_new_data_path)
            return self._make_with(stored, frame_keys, lambda _: data_path)
        except VelaError:
            if data_path is not None:
                data_path.close()
            raise

    def _make_new_data_path(self, stored: StoredCircuit) -> DataPath:
        """Create the interface and what belongs to it. Raises VelaError."""
        # A command or another machine must learn at once that the bridge is missing.
        return self._make_data_path(
            stored.config,
            self._cpu_for(stored.config),
            await_bridge=stored.origin is Origin.CONFIG,
            shielded=stored.origin is Origin.PEER,
        )

    def _make_with(
        self,
        stored: StoredCircuit,
        frame_keys: CircuitKeys | None,
        make_data_path: Callable[[StoredCircuit], DataPath],
    ) -> Circuit:
        config, origin = stored.config, stored.origin
        # The original VELA has no handshake.
        static = not config.autoconfigure or config.encapsulation is Encapsulation.IP
        key = None if static else self._key_for(config, origin)
        machine = None if static else self._token_for(config, origin)
        if frame_keys is None and config.encryption is Encryption.REQUIRED:
            if self._ciphers is None:
                raise ConfigError(f"{config.name}: encryption is required, and cannot be had")
            frame_keys = self._ciphers.keys_of(config, key)
        try:
            data_path = make_data_path(stored)
        except VelaError:
            if frame_keys is not None:
                frame_keys.close()
            raise
        return Circuit(
            config,
            origin,
            data_path,
            loop=self._loop,
            names=self._names,
            routes=self._routes,
            owner=self,
            port=self._port,
            control_channel=None if static else self._control_channel,
            offer=offer_of(config, origin, stored.named_by_peer),
            key=key,
            machine=machine,
            maker=stored.maker,
            frame_keys=frame_keys,
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
        """Remove a circuit. Its remote is told the reason, unless that is None."""
        circuit.close(reason)
        del self._circuits[circuit.name]
        self._lines.release(circuit.name)
        self._tell(circuit, "removed")

    def _warn_of_overlap(self, config: CircuitConfig) -> None:
        """Tell the operator: he may mean it, as with a more specific route."""
        try:
            overlap = self._find_overlap(config, config.name)
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
                self._remove(circuit, CloseReason.STOPPING)
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

    def _cipher_contradiction(self, config: CircuitConfig) -> str:
        """Return why a circuit of another machine's is no longer allowed to be as encrypted."""
        autoconfigure = self._config.autoconfigure
        return "" if autoconfigure is None else contradiction(config, autoconfigure)

    def _apply_policy(self) -> None:
        """Remove peers' circuits that are no longer allowed. The others get the new policy."""
        policy, key = self._control_channel.policy, self._control_channel.key
        for circuit in tuple(self._circuits.values()):
            if circuit.static:
                continue
            if circuit.origin is not Origin.PEER:
                if circuit.config.key_file is None:
                    circuit.set_key(key)
            elif (
                policy is None
                or _is_refused(policy, circuit)
                or self._cipher_contradiction(circuit.config)
            ):
                self._log.warning("circuit_no_longer_allowed", circuit=circuit.name)
                self._remove(circuit, CloseReason.STOPPING)
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


def _has_same_interface(one: CircuitConfig, other: CircuitConfig) -> bool:
    """Tell whether two configurations differ in nothing that an interface is made with."""
    alike = replace(other, remote=one.remote, keepalive=one.keepalive, peer_key=one.peer_key)
    return one == alike


def _is_same_circuit(one: CircuitConfig, other: CircuitConfig) -> bool:
    """Tell whether both are one circuit for the remote: docs/protocol.md, section 1."""
    return (one.id, one.remote) == (other.id, other.remote) and one.autoconfigure
