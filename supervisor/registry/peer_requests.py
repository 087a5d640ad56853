"""Requests of other machines: for circuits of theirs, new ones and changed ones, and what follows.

What becomes of a request is decided in requests and change_sets; here it is carried out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from vela.address import IPAddress, IPNetwork
from vela.errors import ConfigError, DeviceError, RemoteProtocolError, VelaError
from vela.signaling.events import CircuitRequested
from vela.signaling.identity import maker_of
from vela.signaling.limiter import host_of
from vela.signaling.messages import CloseReason, Confirm, RejectCode
from vela.signaling.policy import PeerCircuits, Policy

from ..circuit.circuit import Circuit
from ..circuit.data_path import DataPath
from ..circuit.lifecycle import State
from ..circuit.setup import Origin
from ..circuit.tenure import Tenure
from ..config.effects import Effect, difference
from ..config.records import AutoconfigureConfig, CircuitConfig
from ..control_channel import ControlChannel
from ..runtime.lines import LineLimiter
from ..runtime.loop import EventLoop
from . import requests
from .allocation import Allocation
from .change_sets import Asked, ChangeSets
from .changes import ChangeLimiter
from .ciphers import Answered, Ciphers
from .facts import NO_FACTS, HostFacts
from .maker import CircuitMaker
from .pending import PendingCircuits
from .requests import HostRules, Refuse, SetUp, Situation
from .store import CircuitStore, StoredCircuit, record_of
from .takeovers import Takeovers

TOO_OFTEN = "circuits are set up and changed too often; the next change has to wait"


class FactSource(Protocol):
    """What knows this host's addresses and routes: host.HostNetwork."""

    def facts(self, wanted: tuple[IPNetwork, ...]) -> HostFacts:
        """Return what may matter to who wants addresses of these networks. Raises DeviceError."""


class Home(Protocol):
    """Holds the circuits: registry.Registry."""

    @property
    def autoconfigure(self) -> AutoconfigureConfig | None: ...

    def adopt(self, circuit: Circuit) -> None:
        """Take in a circuit that was made."""

    def create_stored(self, stored: StoredCircuit) -> Circuit:
        """Make a circuit as it was stored, and take it in. Raises VelaError."""

    def remove(self, circuit: Circuit, reason: CloseReason | None) -> None:
        """Remove a circuit. Its remote is told the reason, unless that is None."""


class PeerRequests:
    """Carries out what other machines ask for, as far as the policy allows it."""

    def __init__(
        self,
        home: Home,
        circuits: Mapping[str, Circuit],
        *,
        loop: EventLoop,
        maker: CircuitMaker,
        allocation: Allocation,
        pending: PendingCircuits,
        store: CircuitStore,
        control_channel: ControlChannel,
        host: FactSource,
        lines: LineLimiter,
        ciphers: Ciphers | None,
        port: int,
    ) -> None:
        """circuits: those that home holds. port: the local listening one."""
        self._home = home
        self._circuits = circuits
        self._loop = loop
        self._maker = maker
        self._allocation = allocation
        self._pending = pending
        self._store = store
        self._control_channel = control_channel
        self._host = host
        self._lines = lines
        self._ciphers = ciphers
        self._port = port
        self._changes = ChangeLimiter()
        self._sets = ChangeSets()
        self._takeovers = Takeovers(loop, self.handle_request)
        self._log = structlog.get_logger()

    def deferral_reason(self, confirm: Confirm, address: IPAddress) -> str:
        """Return why a circuit that may exist here cannot answer now; see requests."""
        return requests.deferral_reason(
            confirm, address, self._circuits.values(), self._pending.wanted().values()
        )

    def peer_circuits(self, address: IPAddress) -> PeerCircuits:
        return requests.count_peer_circuits(self._circuits.values(), address)

    def handle_request(self, requested: CircuitRequested) -> None:
        """Create or refuse a circuit that another machine asks for, or wait for what decides it."""
        maker = maker_of(requested.confirm)
        present = requests.find_of_maker(requested, maker, self._circuits.values())
        is_up = present is not None and present.state is State.UP
        if present is not None and is_up and self._takeovers.must_wait(present, requested):
            return
        situation = self._situation()
        if situation is None:
            return
        answered = self._answer_handshake(requested)
        if answered is None:
            return
        decision = requests.decide(requested, situation)
        replaced = kept = None
        if isinstance(decision, SetUp):
            before = () if decision.replaced is None else (decision.replaced,)
            decision = self._admit(requested, decision, situation.policy, before)
        if isinstance(decision, Refuse):
            answered.close()
            self._refuse(requested, decision)
            return
        if decision.replaced is not None:
            remote = str(decision.config.remote)
            self._log.info("circuit_moved", circuit=decision.config.name, remote=remote)
            replaced = self._circuits[decision.replaced]
            if _has_same_interface(answered.complete(decision.config), replaced.config):
                kept = replaced.hand_over()
            self._home.remove(replaced, None)
        self._set_up_for_peer(decision, requested, answered, replaced, kept)

    def on_offer_changed(self, circuit: Circuit, requested: CircuitRequested) -> None:
        """Apply the settings that the circuit's remote now asks for, or refuse them."""
        situation = self._situation()
        if situation is None:
            return
        name, now = circuit.name, self._loop.now()
        wanted = requests.decide_change(circuit, requested, situation)
        if isinstance(wanted, Refuse):
            self._refuse(requested, wanted)
            return
        self._sets.ask(name, requested, wanted, now)
        members = self._sets.members(name, self._allocation.in_the_way)
        if isinstance(members, set):
            if self._are_of(members, requested) and self._sets.may_wait(name, now):
                return  # it is repeated
            members = {name: Asked(requested, wanted, now, now)}
        if not self._change_together(members, requested, situation.policy):
            self._sets.refuse(name)

    def _are_of(self, names: Iterable[str], requested: CircuitRequested) -> bool:
        """Tell whether circuits are all of the machine that asks: it may want to change them."""
        host = host_of(requested.source.address)
        circuits = [self._circuits.get(name) for name in names]
        return all(
            each is not None and each.origin is Origin.PEER and host in map(host_of, each.addresses)
            for each in circuits
        )

    def _change_together(
        self, members: Mapping[str, Asked], latest: CircuitRequested, policy: Policy
    ) -> bool:
        """Change circuits of one machine as a set; latest: its last request, which is answered.

        Return whether that was not refused.
        """
        names, now = members.keys(), self._loop.now()
        for name, each in members.items():
            others = [other.wanted for key, other in members.items() if key != name]
            decision = self._admit(each.requested, each.wanted, policy, names, others)
            if isinstance(decision, Refuse):
                self._refuse(latest, decision)
                return False
        answers: dict[str, Answered] = {}
        for name, each in members.items():
            if not each.awaits_answer(now):
                continue
            answered = self._answer_handshake(each.requested)
            if answered is None:
                for given in answers.values():
                    given.close()
                return True
            answers[name] = answered
        self._sets.forget(*names)
        present = {name: self._circuits[name] for name in names}
        stay = {
            name
            for name, each in members.items()
            if _changes_live(present[name], each.wanted.config, answers.get(name, Answered()))
        }
        for name in names - stay:
            self._home.remove(present[name], None)
        for name, each in members.items():
            self._log.info("circuit_changed_by_peer", circuit=name)
            circuit = present[name]
            if name not in answers:
                self._change_unasked(circuit, each.wanted, stays=name in stay)
            elif name in stay:
                self._change_for_peer(circuit, each)
            else:
                self._set_up_for_peer(each.wanted, each.requested, answers[name], circuit)
        return True

    def _change_unasked(self, circuit: Circuit, wanted: SetUp, *, stays: bool) -> None:
        """Change a circuit whose machine does not wait for an answer: it is told when it is asked.

        stays: on the interface that there is; else the circuit was removed.
        """
        before = circuit.config
        config = replace(wanted.config, encryption=before.encryption, peer_key=before.peer_key)
        stored = StoredCircuit(config, Origin.PEER, wanted.named_by_peer, circuit.maker)
        try:
            if stays:
                setup = self._maker.setup(stored)
                circuit.change(setup, circuit.cpu, new_session=True)
            else:
                made = self._home.create_stored(stored)
                made.tenure = circuit.tenure
                made.start()
        except VelaError as err:
            self._log.error("circuit_not_restored", circuit=before.name, error=str(err))
            if stays:
                self._home.remove(circuit, None)
        self._store.save_in_time(lambda _: None)

    def _answer_handshake(self, requested: CircuitRequested) -> Answered | None:
        """Answer the handshake of a circuit that is to be encrypted.

        Nothing is created for a stranger. None: the handshake is wrong, or comes too fast.
        """
        autoconfigure, ciphers = self._home.autoconfigure, self._ciphers
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
            rules=self.rules,
            silent=self._takeovers.are_silent(),
        )

    @property
    def rules(self) -> HostRules:
        """What holds for circuits that others set up here."""
        autoconfigure = self._home.autoconfigure
        if autoconfigure is None:
            return HostRules()
        return HostRules(autoconfigure.accept_ra, autoconfigure.packet_too_big)

    def _admit(
        self,
        requested: CircuitRequested,
        decision: SetUp,
        policy: Policy,
        replaced: Collection[str],
        instead: Collection[SetUp] = (),
    ) -> SetUp | Refuse:
        """Return the decision, or why this host cannot do it, or not so often.

        replaced: names of circuits that go, or change. instead: what comes in their place,
        beside the decision.
        """
        limits = policy.limits(requested.source.address)
        config = decision.config
        coming = [each.config for each in instead]
        try:
            self._allocation.check_free(config, replaced, instead=coming)
            overlap = self.find_overlap(config, replaced, limits.networks, coming)
        except ConfigError as err:
            return Refuse(RejectCode.CONFLICT, requests.from_here(err))
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

    def find_overlap(
        self,
        config: CircuitConfig,
        replaced: Collection[str],
        networks: tuple[IPNetwork, ...] = (),
        instead: Iterable[CircuitConfig] = (),
    ) -> Refuse | None:
        """See requests. Raises DeviceError. instead: see _admit."""
        if not config.addresses:
            return None
        facts = self._host.facts(tuple(each.network for each in config.addresses))
        overlap = requests.find_overlap(config, replaced, self._circuits.values(), facts, networks)
        coming = [_Coming(each) for each in instead]
        return overlap or requests.find_overlap(config, (), coming, NO_FACTS)

    def _change_for_peer(self, circuit: Circuit, asked: Asked) -> None:
        """Change a circuit as the machine that set it up asks. Its interface stays."""
        wanted, requested = asked.wanted, asked.requested
        before = record_of(circuit)
        try:
            setup = self._maker.setup(
                StoredCircuit(wanted.config, Origin.PEER, wanted.named_by_peer)
            )
            circuit.accept_change(setup, requested)
        except VelaError as err:
            self._home.remove(circuit, None)
            self._give_up(requested, before, circuit.tenure, err)
            return
        self._save_for_peer(circuit, requested, None)

    def _set_up_for_peer(
        self,
        decision: SetUp,
        requested: CircuitRequested,
        answered: Answered,
        replaced: Circuit | None,
        kept: DataPath | None = None,
    ) -> None:
        """Create a circuit that another machine asked for.

        replaced: the one of before, removed. kept: its data path, if that is used again.
        """
        config = answered.complete(decision.config)
        before = None if replaced is None else record_of(replaced)
        tenure = Tenure(self._loop.now()) if replaced is None else replaced.tenure
        self._lines.assign(config.name, requested.source.address)
        try:
            circuit = self._maker.make(
                StoredCircuit(config, Origin.PEER, decision.named_by_peer), answered.keys, kept
            )
        except VelaError as err:
            self._give_up(requested, before, tenure, err)
            return
        try:
            circuit.accept(requested, answered.encryption)
        except VelaError as err:
            circuit.close(None)
            self._give_up(requested, before, tenure, err)
            return
        circuit.tenure = tenure
        self._home.adopt(circuit)
        self._save_for_peer(circuit, requested, before)

    def _save_for_peer(
        self, circuit: Circuit, requested: CircuitRequested, before: StoredCircuit | None
    ) -> None:
        """Answer the machine that asked for a circuit as soon as it is saved."""
        name = circuit.name

        def saved(error: DeviceError | None) -> None:
            # A reload may have removed it meanwhile.
            if self._circuits.get(name) is not circuit:
                return
            if error is None:
                circuit.answer()
                return
            self._home.remove(circuit, None)
            self._give_up(requested, before, circuit.tenure, error)

        self._store.reclaim(name)
        self._pending.drop(name)
        self._store.save_in_time(saved)

    def _give_up(
        self,
        requested: CircuitRequested,
        before: StoredCircuit | None,
        tenure: Tenure | None,
        error: VelaError,
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
        if before is None:
            return
        try:
            circuit = self._home.create_stored(before)
            circuit.tenure = tenure
        except VelaError as err:
            self._log.error("circuit_not_restored", circuit=before.config.name, error=str(err))
            self._store.try_save()
        else:
            if not circuit.disabled:
                circuit.start()

    def _refuse(self, requested: CircuitRequested, refusal: Refuse) -> None:
        self._control_channel.refuse(requested, refusal.code, refusal.text)


@dataclass(frozen=True, slots=True)
class _Coming:
    """A circuit that is about to be made."""

    config: CircuitConfig

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        remotes = self.config.remote.all
        return tuple(each.address for each in remotes if each.address is not None)


def _has_same_interface(one: CircuitConfig, other: CircuitConfig) -> bool:
    """Tell whether two configurations differ in nothing that an interface is made with."""
    alike = replace(other, remote=one.remote, keepalive=one.keepalive, peer_key=one.peer_key)
    return one == alike


def _changes_live(circuit: Circuit, config: CircuitConfig, answered: Answered) -> bool:
    """Tell whether a circuit of another machine keeps its interface.

    An encrypted one gets other keys; of a bridge that is missing the machine must learn at once.
    """
    before = circuit.config
    return (
        difference(before, config).effect is not Effect.NEW_INTERFACE
        and before.bridge == config.bridge
        and circuit.frame_keys is None
        and answered.keys is None
    )
