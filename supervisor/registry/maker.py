"""Makes circuits: from what is configured or stored to what a circuit works with."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Protocol

from vela.errors import ConfigError, VelaError
from vela.linux.affinity import allowed_cpus, least_loaded
from vela.reasons import Cause
from vela.signaling.signer import Key

from ..circuit.circuit import Circuit, Owner
from ..circuit.data_path import DataPath
from ..circuit.hooks import HookRunner
from ..circuit.routes import MachineRoutes
from ..circuit.setup import Origin, Setup
from ..config.records import CircuitConfig, Encapsulation, Encryption, Latency
from ..control_channel import ControlChannel
from ..frame_keys import CircuitKeys
from ..keys import KeySource
from ..runtime.loop import EventLoop
from ..runtime.names import NameSource
from .ciphers import Ciphers
from .requests import offer_of
from .store import StoredCircuit


class DataPathFactory(Protocol):
    """Creates the data paths of circuits: pseudowire.PseudowireFactory."""

    def __call__(
        self, config: CircuitConfig, cpu: int, *, await_bridge: bool = False, shielded: bool = False
    ) -> DataPath:
        """Create a circuit's interface, counters and sockets. Raises DeviceError.

        await_bridge: create the interface even if its bridge does not exist yet.
        shielded: it is an error if router advertisements cannot be kept out.
        """


class CircuitMaker:
    """Has what all circuits are made with."""

    def __init__(
        self,
        circuits: Mapping[str, Circuit],
        leaving: Container[str],
        owner: Owner,
        *,
        loop: EventLoop,
        names: NameSource,
        routes: MachineRoutes,
        control_channel: ControlChannel,
        keys: KeySource,
        make_data_path: DataPathFactory,
        ciphers: Ciphers | None,
        port: int,
        hooks: HookRunner,
    ) -> None:
        """circuits: those that there are. leaving: names of those whose interfaces wait for hooks.

        owner: theirs. ciphers: None where none is encrypted.
        """
        self._circuits = circuits
        self._leaving = leaving
        self._hooks = hooks
        self._owner = owner
        self._loop = loop
        self._names = names
        self._routes = routes
        self._control_channel = control_channel
        self._keys = keys
        self.make_data_path = make_data_path
        self._ciphers = ciphers
        self._port = port

    def make(
        self,
        stored: StoredCircuit,
        frame_keys: CircuitKeys | None = None,
        data_path: DataPath | None = None,
    ) -> Circuit:
        """Create a circuit. Raises VelaError.

        frame_keys: of an encrypted one, closed if that fails; None: they are made.
        data_path: of the circuit that it follows, likewise.
        """
        config, origin = stored.config, stored.origin
        try:
            if config.name in self._leaving:
                if frame_keys is not None:
                    frame_keys.close()
                raise ConfigError(
                    f"{config.name}: the former circuit of this name runs its down hook"
                )
            setup = self.setup(stored, frame_keys)
        except VelaError:
            if data_path is not None:
                data_path.close()
            raise
        try:
            # A command or another machine must learn at once that the bridge is missing.
            data_path = data_path or self.make_data_path(
                config,
                self.cpu_for(config),
                await_bridge=origin is Origin.CONFIG,
                shielded=origin is Origin.PEER,
            )
        except VelaError:
            if setup.frame_keys is not None:
                setup.frame_keys.close()
            raise
        circuit = Circuit(
            setup,
            origin,
            data_path,
            loop=self._loop,
            names=self._names,
            routes=self._routes,
            owner=self._owner,
            port=self._port,
            maker=stored.maker,
        )
        # Those of commands have the hooks of [defaults], if any.
        if origin is not Origin.PEER:
            circuit.hooks = self._hooks.hooks_of(circuit)
        return circuit

    def setup(self, stored: StoredCircuit, frame_keys: CircuitKeys | None = None) -> Setup:
        """Return what a circuit is. Raises VelaError. frame_keys: see make()."""
        config, origin = stored.config, stored.origin
        offer = offer_of(config, origin, stored.named_by_peer)
        # The original VELA has no handshake.
        if not config.autoconfigure or config.encapsulation is Encapsulation.IP:
            return Setup(config, None, offer)
        key = self._key_for(config, origin)
        if config.remote.is_any and key is None and config.peer_key is None:
            raise ConfigError(Cause.NO_KEY.say())
        if frame_keys is None and config.encryption is Encryption.REQUIRED:
            if self._ciphers is None:
                raise ConfigError(f"{config.name}: encryption is required, and cannot be had")
            frame_keys = self._ciphers.keys_of(config, key)
        machine = self._token_for(config, origin)
        return Setup(config, self._control_channel, offer, key, machine, frame_keys)

    def cpu_for(self, config: CircuitConfig, changed: str | None = None) -> int:
        """Return the first CPU of a circuit's worker; changed: its name, if the circuit exists."""
        if config.cpus:
            return config.cpus[0]
        others = [each for name, each in self._circuits.items() if name != changed]
        polled = {
            cpu for each in others if each.config.latency is Latency.LOW for cpu in each.config.cpus
        }
        return least_loaded(allowed_cpus(), [each.cpu for each in others], polled)

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
