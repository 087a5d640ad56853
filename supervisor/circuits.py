"""All circuits of a daemon, and all who want some: the file, commands, other machines."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import partial

import structlog

from vela.address import Endpoint, IPAddress, Remote
from vela.affinity import allowed_cpus, least_loaded
from vela.circuit import CircuitConfig, Config, Encapsulation
from vela.config import parse_circuits
from vela.errors import ConfigError, DeviceError, VelaError
from vela.key import load_key
from vela.signaling.events import CircuitRequested
from vela.signaling.messages import CloseReason, Confirm, Offer, RejectCode
from vela.supervisor.circuit import Circuit, Origin, State
from vela.supervisor.kept import Kept, is_named_by_peer
from vela.supervisor.negotiated import NegotiatedCircuit
from vela.supervisor.negotiator import Negotiator
from vela.supervisor.occupancy import Occupancy
from vela.supervisor.pseudowire import Services
from vela.supervisor.static import StaticCircuit
from vela.supervisor.status import CircuitStatus
from vela.supervisor.store import Store, Stored, StoredCircuit
from vela.supervisor.unmade import Unmade

# Between the first steps of circuits at start: a remote that sets up its ends
# takes about as long for each, and must not be asked again before it comes to it.
START_INTERVAL_S = 0.005


class Circuits:
    """Every circuit by name, whether of the configuration, of a command, or of another machine."""

    def __init__(self, config: Config, services: Services, negotiator: Negotiator) -> None:
        self._config = config
        self._services = services
        self._negotiator = negotiator
        self._circuits: dict[str, Circuit] = {}
        self._unmade = Unmade(services.loop, services.port, self._make)
        self._occupancy = Occupancy(config.daemon, self._circuits, self._unmade)
        store = Store(config.daemon.state_directory)
        self._kept = Kept(store, services.loop, self._circuits)
        self._log = structlog.get_logger()

    def set_up(self) -> None:
        """Create the configuration's circuits, and those that were kept.

        Raises VelaError where one of the configuration cannot be had; one
        that was kept is tried again later, with an error in the log.
        """
        stored = self._kept.load(self._config.daemon)
        for config in self._config.circuits:
            self._create(config, Origin.CONFIG)
        for unread in stored.unread:
            self._log.error("kept_circuit_not_started", circuit=unread.name, error=unread.error)
        left_out = []
        for kept in stored.circuits:
            try:
                self._check_kept(kept)
                self._create(kept.config, kept.origin, named_by_peer=kept.named_by_peer)
            except VelaError as err:
                left_out.append(kept)
                self._unmade.add(kept, err)
                self._log.error(
                    "kept_circuit_not_started", circuit=kept.config.name, error=str(err)
                )
        for name in stored.disabled & self._circuits.keys():
            self._circuits[name].disable()
        self._kept.set_absent(
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
                self._services.loop.guard(circuit.start)
                self._services.loop.call_later(START_INTERVAL_S, lambda: self._start_next(waiting))
                return

    def close(self) -> None:
        """Take all down; other ends are told that they come back."""
        self._kept.close()
        guard, circuits = self._services.loop.guard, tuple(self._circuits.values())
        # First, as the kernel takes 20 ms for the end of each interface.
        for circuit in circuits:
            if isinstance(circuit, NegotiatedCircuit):
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
        for circuit in self._circuits.values():
            self._services.loop.guard(circuit.check)

    def status(self) -> tuple[CircuitStatus, ...]:
        made = tuple(circuit.status() for circuit in self._circuits.values())
        return made + self._unmade.status()

    def withheld(self, confirm: Confirm, address: IPAddress) -> str:
        return self._occupancy.withheld(confirm, address) or self._unmade.withheld(confirm, address)

    def set_up_by_others(self) -> int:
        return sum(circuit.origin is Origin.PEER for circuit in self._circuits.values())

    def reload(self, config: Config) -> dict[str, str]:
        """Take over what changed; circuits that did not are not touched.

        Return those of the file that cannot be made at present, by name, and
        why. The negotiator knows the policy already.
        """
        self._config = config
        wanted = {circuit.name: circuit for circuit in config.circuits}
        for name, circuit in tuple(self._circuits.items()):
            if circuit.origin is Origin.CONFIG and wanted.get(name) != circuit.config:
                # The other end keeps it where it only changes.
                stays = name in wanted and _is_same_circuit(wanted[name], circuit.config)
                self._remove(circuit, CloseReason.STOPPING if stays else CloseReason.DELETED)
                if circuit.disabled and name in wanted:
                    self._kept.add_disabled(name)
                elif circuit.disabled:
                    self._kept.try_save()
        # Those that go said so under the key of before.
        self._apply_policy()
        for name in self._unmade.reasons(Origin.CONFIG):
            self._unmade.drop(name)
        for name, each in wanted.items():
            if name not in self._circuits:
                self._unmade.add(StoredCircuit(each, Origin.CONFIG))
        self._unmade.retry()
        return self._unmade.reasons(Origin.CONFIG)

    def add(self, name: str, settings: Mapping[str, object]) -> Circuit:
        """Set up a circuit at run time, on both machines; it outlives restarts.

        settings is a table as under [circuits]; without an id the next free
        one toward that remote is taken. Raises VelaError, and then there is
        none.
        """
        if name in self._circuits or name in self._unmade:
            raise ConfigError(f"there is a circuit {name} already")
        table = dict(settings)
        if "id" not in table:
            table["id"] = self._occupancy.free_id(str(table.get("remote", "")))
        (config,) = parse_circuits({name: table}, self._config.daemon, "velactl add")
        self._occupancy.check_free(config)
        circuit = self._create(config, Origin.COMMAND)
        self._kept.take_back(name)
        try:
            self._kept.save()
        except DeviceError:
            self._remove(circuit, CloseReason.DELETED)
            raise
        circuit.start()
        return circuit

    def delete(self, name: str) -> None:
        """Take a circuit down for good, on both machines. Raises VelaError."""
        unmade = self._unmade.find(name)
        if unmade is not None and unmade[0].origin is not Origin.CONFIG:
            # The other end is told when it resumes.
            self._unmade.drop(name)
            self._kept.take_back(name)
            self._kept.save()
            return
        circuit = self._find(name)
        if circuit.origin is Origin.CONFIG:
            raise ConfigError(f"{name} is in the configuration file; remove it there, and reload")
        if circuit.origin is Origin.PEER and circuit.state is State.UP:
            raise ConfigError(f"{name} was set up by {circuit.config.remote}; delete it there")
        self._remove(circuit, CloseReason.DELETED)
        self._kept.save()

    def disable(self, name: str) -> None:
        """Let a circuit carry nothing until enable(), across restarts, too. Raises VelaError."""
        circuit = self._find(name)
        if not circuit.disabled:
            circuit.disable()
            self._kept.save()

    def enable(self, name: str) -> None:
        """Undo disable(). Raises VelaError."""
        circuit = self._find(name)
        if circuit.disabled:
            circuit.enable()
            circuit.start()
            self._kept.save()

    def on_requested(self, requested: CircuitRequested) -> None:
        """Set up what another machine asks for, and the policy allows; or refuse it."""
        policy = self._negotiator.policy
        if policy is None:
            return
        try:
            name = requested.offer.interface or self._occupancy.free_name(policy.interfaces)
            config = _config_for(requested, name, self._services.port)
            self._check_not_kept(config)
            moved = self._moved(config)
            if moved is not None and moved.disabled:
                why = f"{config.name} was taken down on the other end"
                self._negotiator.reject(requested, RejectCode.DISABLED, why)
                return
            self._occupancy.check_free(config, moved)
        except VelaError as err:
            self._refuse(requested, RejectCode.CONFLICT, _from_here(err))
            return
        if moved is not None:
            self._log.info("circuit_moved", circuit=config.name, remote=str(config.remote))
        self._set_up_for_peer(config, requested, moved)

    def _on_offer_changed(self, circuit: NegotiatedCircuit, requested: CircuitRequested) -> None:
        """Set the circuit up as the other end wants it now; or refuse that, and leave it alone."""
        policy = self._negotiator.policy
        if policy is None:
            return
        others = self.set_up_by_others() - 1
        refused = policy.judge_new(requested.description, requested.offer, others)
        if refused is not None:
            self._refuse(requested, refused.code, refused.text)
            return
        try:
            name = requested.offer.interface
            if name is None and circuit.offer.interface is None:
                name = circuit.name
            elif name is None:
                name = self._occupancy.free_name(policy.interfaces)
            config = _config_for(requested, name, self._services.port)
            self._occupancy.check_free(config, circuit)
        except VelaError as err:
            self._refuse(requested, RejectCode.CONFLICT, _from_here(err))
            return
        self._log.info("circuit_changed_by_peer", circuit=circuit.name)
        self._set_up_for_peer(config, requested, circuit)

    def _set_up_for_peer(
        self, config: CircuitConfig, requested: CircuitRequested, replaced: Circuit | None
    ) -> None:
        """Make what another machine may have, in place of what it had."""
        if replaced is not None:
            self._remove(replaced, None)
        named_by_peer = requested.offer.interface is not None
        try:
            circuit = self._make_negotiated(config, Origin.PEER, named_by_peer)
        except VelaError as err:
            self._give_up(requested, replaced, err)
            return

        def saved(error: DeviceError | None) -> None:
            # It may have gone meanwhile, by a reload.
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
        self._kept.take_back(config.name)
        self._unmade.drop(config.name)
        self._kept.save_in_time(saved)

    def _give_up(
        self, requested: CircuitRequested, replaced: Circuit | None, error: VelaError
    ) -> None:
        """Refuse what could not be done; there is again what there was before."""
        self._log.error(
            "circuit_not_set_up",
            by=str(requested.source),
            circuit_id=requested.circuit_id,
            error=str(error),
        )
        self._negotiator.reject(requested, RejectCode.FAILED, _from_here(error))
        if replaced is None:
            return
        try:
            circuit = self._create(
                replaced.config, replaced.origin, named_by_peer=is_named_by_peer(replaced)
            )
        except VelaError as err:
            self._log.error("circuit_not_restored", circuit=replaced.name, error=str(err))
            self._kept.try_save()
        else:
            circuit.start()

    def _refuse(self, requested: CircuitRequested, code: RejectCode, text: str) -> None:
        self._log.warning(
            "circuit_refused",
            by=str(requested.source),
            circuit_id=requested.circuit_id,
            code=code.name,
            reason=text,
        )
        self._negotiator.reject(requested, code, text)

    def _make(self, wanted: StoredCircuit) -> None:
        """Make a circuit that could not be made before, and start it. Raises VelaError."""
        if wanted.origin is Origin.CONFIG:
            self._occupancy.check_free(wanted.config)
        else:
            self._check_kept(wanted)
        circuit = self._create(wanted.config, wanted.origin, named_by_peer=wanted.named_by_peer)
        if self._kept.take_back(circuit.name):
            circuit.disable()
        else:
            circuit.start()

    def _find(self, name: str) -> Circuit:
        circuit = self._circuits.get(name)
        unmade = self._unmade.find(name)
        if unmade is not None:
            raise ConfigError(f"{name} is not there: {unmade[1]}")
        if circuit is None:
            raise ConfigError(f"there is no circuit {name}")
        return circuit

    def _create(
        self,
        config: CircuitConfig,
        origin: Origin,
        *,
        named_by_peer: bool = False,
    ) -> Circuit:
        # The original VELA knows no handshake.
        if not config.autoconfigure or config.encapsulation is Encapsulation.IP:
            circuit: Circuit = StaticCircuit(config, self._services, self._cpu_for(config), origin)
        else:
            circuit = self._make_negotiated(config, origin, named_by_peer)
        self._circuits[config.name] = circuit
        return circuit

    def _make_negotiated(
        self, config: CircuitConfig, origin: Origin, named_by_peer: bool
    ) -> NegotiatedCircuit:
        return NegotiatedCircuit(
            config,
            self._services,
            self._cpu_for(config),
            origin,
            offer=_offer_of(config, origin, named_by_peer),
            key=self._key_for(config, origin),
            negotiator=self._negotiator,
            check_id=self._occupancy.check_id,
            deleted=self._on_deleted,
            offer_changed=self._on_offer_changed,
        )

    def _cpu_for(self, config: CircuitConfig) -> int:
        if config.cpu is not None:
            return config.cpu
        own = [each.cpu for each in self._circuits.values()]
        return least_loaded(allowed_cpus(), own)

    def _key_for(self, config: CircuitConfig, origin: Origin) -> bytes | None:
        if origin is not Origin.PEER and config.key_file is not None:
            return load_key(config.key_file)
        return self._negotiator.key

    def _remove(self, circuit: Circuit, reason: CloseReason | None) -> None:
        """Take a circuit down; the other end is told why, unless reason is None."""
        if isinstance(circuit, NegotiatedCircuit):
            circuit.close(reason)
        else:
            circuit.close()
        del self._circuits[circuit.name]

    def _check_kept(self, kept: StoredCircuit) -> None:
        """Raises ConfigError where a circuit that was kept may be no more."""
        if kept.origin is Origin.PEER:
            policy = self._negotiator.policy
            if policy is None:
                raise ConfigError("another machine set it up, and there is no [autoconfigure]")
            refused = policy.judge_offer(_offer_of(kept.config, kept.origin, kept.named_by_peer))
            if refused is not None:
                raise ConfigError(refused.text)
        self._occupancy.check_free(kept.config)

    def _apply_policy(self) -> None:
        """End what others set up and may not any more; let the rest go on under the new terms."""
        policy, key = self._negotiator.policy, self._negotiator.key
        for circuit in tuple(self._circuits.values()):
            if not isinstance(circuit, NegotiatedCircuit):
                continue
            if circuit.origin is not Origin.PEER:
                if circuit.config.key_file is None:
                    circuit.set_key(key)
            elif policy is None or policy.judge_offer(circuit.offer) is not None:
                self._log.warning("circuit_no_longer_allowed", circuit=circuit.name)
                self._remove(circuit, CloseReason.STOPPING)
                self._kept.try_save()
            else:
                circuit.set_key(key)
                circuit.set_policy(policy)

    def _check_not_kept(self, config: CircuitConfig) -> None:
        """Raises ConfigError where somebody else's circuit of this name waits to be made."""
        unmade = self._unmade.find(config.name)
        if unmade is None:
            return
        wanted = unmade[0]
        if wanted.origin is not Origin.PEER or wanted.config.id != config.id:
            raise ConfigError(f"there is a circuit {config.name} already")

    def _moved(self, config: CircuitConfig) -> Circuit | None:
        """Return what the same machine set up here before, when it had another address."""
        other = self._circuits.get(config.name)
        if (
            other is not None
            and other.origin is Origin.PEER
            and other.state is not State.UP
            and other.config.id == config.id
            and self._negotiator.key is not None
        ):
            return other
        return None

    def _on_deleted(self, circuit: NegotiatedCircuit) -> None:
        self._log.info("circuit_deleted_by_peer", circuit=circuit.name)
        self._remove(circuit, CloseReason.DELETED)
        self._kept.try_save()


def _is_same_circuit(one: CircuitConfig, other: CircuitConfig) -> bool:
    """Tell whether the other end knows both as one: docs/protocol.md, section 1."""
    return (one.id, one.remote) == (other.id, other.remote) and one.autoconfigure


def _config_for(requested: CircuitRequested, name: str, port: int) -> CircuitConfig:
    """Return the circuit that a remote asks for; port is the local listening one."""
    offer, description = requested.offer, requested.description
    return CircuitConfig(
        name=name,
        id=requested.circuit_id,
        remote=_remote_of(requested.source, description.port, port),
        addresses=offer.addresses,
        bridge=offer.bridge,
        mac=offer.mac,
        keepalive=description.keepalive_ms / 1000,
    )


def _from_here(err: VelaError) -> str:
    """Return an error of this machine, on one line, for the operator of the other one."""
    return f"on the other end, {str(err).splitlines()[0]}"


def _remote_of(source: Endpoint, listens_on: int, port: int) -> Remote:
    return Remote(str(source.address), None if listens_on == port else listens_on)


def _offer_of(config: CircuitConfig, origin: Origin, named_by_peer: bool) -> Offer:
    """Return the settings for the other end; for a peer's circuit, those that it wanted here."""
    if origin is not Origin.PEER:
        peer = config.peer
        return Offer(peer.interface, peer.addresses, peer.bridge, peer.mac)
    return Offer(
        interface=config.name if named_by_peer else None,
        addresses=config.addresses,
        bridge=config.bridge,
        mac=config.mac,
    )
