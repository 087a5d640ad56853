"""What becomes of another machine's request for a circuit. Pure: decides, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from vela.address import Endpoint, IPAddress, Remote
from vela.errors import VelaError
from vela.signaling.events import CircuitRequested
from vela.signaling.identity import maker_of
from vela.signaling.messages import Confirm, Offer, RejectCode
from vela.signaling.policy import Policy

from ..circuit.circuit import Origin
from ..circuit.lifecycle import State
from ..config.records import CircuitConfig


class KnownCircuit(Protocol):
    """What a decision needs to know of a circuit."""

    @property
    def config(self) -> CircuitConfig: ...

    @property
    def origin(self) -> Origin: ...

    @property
    def state(self) -> State: ...

    @property
    def disabled(self) -> bool: ...

    @property
    def maker(self) -> bytes | None: ...

    @property
    def offer(self) -> Offer: ...

    @property
    def addresses(self) -> tuple[IPAddress, ...]: ...

    @property
    def sought_in_vain(self) -> bool: ...


class FreeThings(Protocol):
    """What is free among all circuits: see allocation."""

    def check_free(self, config: CircuitConfig, replaced: str | None = None) -> None: ...

    def free_name(self, pattern: str) -> str: ...


@dataclass(frozen=True, slots=True)
class SetUp:
    """Make this circuit; in place of the one called replaced, if there is one."""

    config: CircuitConfig
    named_by_peer: bool
    """The remote wanted the interface's name; else it was chosen here."""
    replaced: str | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Refuse the request; text is one line for the operator of the remote."""

    code: RejectCode
    text: str


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision depends on beside the request."""

    circuits: Mapping[str, KnownCircuit]
    pending: Mapping[str, tuple[CircuitConfig, Origin]]
    """Circuits that are wanted and cannot be made at present."""
    free: FreeThings
    policy: Policy
    port: int
    """The local listening one."""
    pending_makers: Mapping[str, bytes | None]
    """By name, which machines set up what is pending."""


def decide(requested: CircuitRequested, now: Situation) -> SetUp | Refuse:
    """Decide on a request for a circuit that this machine does not have with that address."""
    try:
        maker = maker_of(requested.confirm)
        moved = _moved(requested, maker, now)
        wanted = requested.offer.interface
        before = None if moved is None else moved.config.name
        name = wanted or before or now.free.free_name(now.policy.interfaces)
        config = config_for(requested, name, now.port)
        if _is_pending_for_another(config, maker, now):
            return Refuse(RejectCode.CONFLICT, from_here(f"there is a circuit {name} already"))
        if moved is not None and moved.disabled:
            why = f"{before} was taken down on the other end"
            return Refuse(RejectCode.DISABLED, why)
        replaced = before
        now.free.check_free(config, replaced)
    except VelaError as err:
        return Refuse(RejectCode.CONFLICT, from_here(err))
    return SetUp(config, wanted is not None, replaced)


def decide_change(
    circuit: KnownCircuit, requested: CircuitRequested, now: Situation
) -> SetUp | Refuse:
    """Decide on other settings for a circuit that the same machine set up here."""
    others = peer_circuit_count(now.circuits.values()) - 1
    refused = now.policy.judge_new(requested.description, requested.offer, others)
    if refused is not None:
        return Refuse(refused.code, refused.text)
    before = circuit.config.name
    try:
        name = requested.offer.interface
        if name is None and circuit.offer.interface is None:
            name = before
        elif name is None:
            name = now.free.free_name(now.policy.interfaces)
        config = config_for(requested, name, now.port)
        now.free.check_free(config, before)
    except VelaError as err:
        return Refuse(RejectCode.CONFLICT, from_here(err))
    return SetUp(config, requested.offer.interface is not None, before)


def deferral_reason(
    confirm: Confirm,
    address: IPAddress,
    circuits: Iterable[KnownCircuit],
    pending: Iterable[tuple[CircuitConfig, Origin]],
) -> str:
    """Return why a circuit that may be here does not answer this address; empty: there is none."""
    return _circuit_deferral(confirm, address, circuits) or _pending_deferral(
        confirm, address, pending
    )


def _circuit_deferral(
    confirm: Confirm, address: IPAddress, circuits: Iterable[KnownCircuit]
) -> str:
    """Return which circuit with this id waits, in a sentence.

    A remote that resumes waits as long as a circuit's remote is unknown: told that
    there is none, it would delete its end. A new request waits until the name was
    looked up once, or the name could keep its id from everybody for ever.
    """
    for circuit in circuits:
        if circuit.config.id != confirm.circuit_id:
            continue
        if circuit.disabled and address in circuit.addresses:
            return f"{circuit.config.name} was taken down on the other end"
        # Anybody may ask, so this names no circuit.
        if not circuit.addresses and (confirm.resuming or not circuit.sought_in_vain):
            return "a circuit with this id is still being resolved on the other end"
    return ""


def _pending_deferral(
    confirm: Confirm, address: IPAddress, pending: Iterable[tuple[CircuitConfig, Origin]]
) -> str:
    """Return that the circuit may be one that cannot be made at present, in a sentence.

    Circuits that other machines wanted do not count: the sender may be that machine.
    """
    for config, origin in pending:
        known = config.remote.address
        if (
            origin is not Origin.PEER
            and config.id == confirm.circuit_id
            and (confirm.resuming if known is None else known == address)
        ):
            return "a circuit with this id cannot be made on the other end at present"
    return ""


def peer_circuit_count(circuits: Iterable[KnownCircuit]) -> int:
    """Return how many circuits other machines have set up here."""
    return sum(circuit.origin is Origin.PEER for circuit in circuits)


def config_for(requested: CircuitRequested, name: str, port: int) -> CircuitConfig:
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


def offer_of(config: CircuitConfig, origin: Origin, named_by_peer: bool) -> Offer:
    """Return the settings for the remote; of a circuit that it set up, those it wanted here."""
    if origin is not Origin.PEER:
        peer = config.peer
        return Offer(peer.interface, peer.addresses, peer.bridge, peer.mac)
    return Offer(
        interface=config.name if named_by_peer else None,
        addresses=config.addresses,
        bridge=config.bridge,
        mac=config.mac,
    )


def from_here(err: object) -> str:
    """Return an error of this machine, on one line, for the operator of the other one."""
    return f"on the other end, {str(err).splitlines()[0]}"


def _remote_of(source: Endpoint, listens_on: int, port: int) -> Remote:
    return Remote(str(source.address), None if listens_on == port else listens_on)


def _is_pending_for_another(config: CircuitConfig, maker: bytes | None, now: Situation) -> bool:
    """Tell whether somebody else's circuit of this name waits to be made."""
    waiting = now.pending.get(config.name)
    if waiting is None:
        return False
    wanted, origin = waiting
    made_by = now.pending_makers.get(config.name)
    return origin is not Origin.PEER or wanted.id != config.id or made_by not in (None, maker)


def _moved(requested: CircuitRequested, maker: bytes | None, now: Situation) -> KnownCircuit | None:
    """Return what the same machine set up here before, when it had another address.

    A key would not say that it is the same: others may have it. One that is up is not given
    away: the machine waits until its old address is not heard any more.
    """
    if maker is None:
        return None
    for circuit in now.circuits.values():
        if (
            circuit.origin is Origin.PEER
            and circuit.maker == maker
            and circuit.config.id == requested.circuit_id
            and circuit.state is not State.UP
        ):
            return circuit
    return None
