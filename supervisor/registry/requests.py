"""What becomes of another machine's request for a circuit. Pure: decides, and changes nothing."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from vela.address import Endpoint, IPAddress, IPInterface, IPNetwork, Remote
from vela.errors import VelaError
from vela.signaling.events import CircuitRequested
from vela.signaling.identity import maker_of
from vela.signaling.limiter import host_of
from vela.signaling.messages import Confirm, Offer, RejectCode
from vela.signaling.policy import PeerCircuits, Policy

from ..circuit.lifecycle import State
from ..circuit.setup import Origin
from ..config.records import CircuitConfig
from .facts import HostFacts

ELSEWHERE = "on the other end, "
ANOTHER_CALLS_TEXT = (
    "another machine behind this address has the circuit id on the other end; take another id"
)
_Known = TypeVar("_Known", bound="KnownCircuit")


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
    def idle_addresses(self) -> tuple[IPAddress, ...]: ...

    @property
    def sought_in_vain(self) -> bool: ...


class FreeThings(Protocol):
    """What is free among all circuits: see allocation."""

    def check_free(self, config: CircuitConfig, replaced: Container[str] = ()) -> None: ...

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
class HostRules:
    """What this machine's operator says of all circuits that others set up here."""

    accept_ra: bool = False
    packet_too_big: bool = False

    def applied_to(self, config: CircuitConfig) -> CircuitConfig:
        """Return such a circuit as it is on this machine."""
        # The bridge's own switch decides about what comes in by a port.
        accept_ra = self.accept_ra and config.bridge is None
        return replace(config, accept_ra=accept_ra, packet_too_big=self.packet_too_big)


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
    rules: HostRules = HostRules()
    silent: Container[str] = ()
    """Circuits that are up, and whose remotes do not answer any more."""


def decide(requested: CircuitRequested, now: Situation) -> SetUp | Refuse:
    """Decide on a request for a circuit that this machine does not have with that address."""
    if _is_called_from(requested, now):
        return Refuse(RejectCode.ID_TAKEN, ANOTHER_CALLS_TEXT)
    try:
        maker = maker_of(requested.confirm)
        moved = _moved(requested, maker, now)
        wanted = requested.offer.interface
        before = None if moved is None else moved.config.name
        name = wanted or before or _free_name(requested, now)
        config = config_for(requested, name, now.port, now.rules)
        if _is_pending_for_another(config, maker, now):
            return Refuse(RejectCode.CONFLICT, from_here(f"there is a circuit {name} already"))
        if moved is not None and moved.disabled:
            why = f"{before} was taken down on the other end"
            return Refuse(RejectCode.DISABLED, why)
        now.free.check_free(config, () if before is None else (before,))
    except VelaError as err:
        return Refuse(RejectCode.CONFLICT, from_here(err))
    return SetUp(config, wanted is not None, before)


def decide_change(
    circuit: KnownCircuit, requested: CircuitRequested, now: Situation
) -> SetUp | Refuse:
    """Decide on other settings for a circuit that the same machine set up here.

    Other circuits may be in the way: see change_sets.
    """
    source = requested.source.address
    others = count_peer_circuits(
        (each for each in now.circuits.values() if each is not circuit), source
    )
    refused = now.policy.judge_new(requested.description, requested.offer, source, others)
    if refused is not None:
        return Refuse(refused.code, refused.text)
    before = circuit.config.name
    try:
        name = requested.offer.interface
        if name is None and circuit.offer.interface is None:
            name = before
        elif name is None:
            name = _free_name(requested, now)
        config = config_for(requested, name, now.port, now.rules)
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
        if circuit.config.remote.is_any:
            # Another key may be meant, but not where there is just one.
            if circuit.disabled and circuit.config.key_file is None:
                return f"{circuit.config.name} was taken down on the other end"
            continue
        if circuit.disabled and address in circuit.addresses:
            return f"{circuit.config.name} was taken down on the other end"
        if address in circuit.idle_addresses:
            return "this end stands by: the other one uses another remote of its list"
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
        known = [each.address for each in config.remote.all]
        if (
            origin is not Origin.PEER
            and config.id == confirm.circuit_id
            and (address in known or (confirm.resuming and None in known))
        ):
            return "a circuit with this id cannot be made on the other end at present"
    return ""


def count_peer_circuits(circuits: Iterable[KnownCircuit], address: IPAddress) -> PeerCircuits:
    """Return how many circuits other machines have set up here, and the one at an address."""
    host = host_of(address)
    of_peers = [circuit for circuit in circuits if circuit.origin is Origin.PEER]
    return PeerCircuits(
        len(of_peers),
        sum(any(host_of(each) == host for each in circuit.addresses) for circuit in of_peers),
    )


class Holder(Protocol):
    """A circuit with addresses: one that is there, or one that will be."""

    @property
    def config(self) -> CircuitConfig: ...

    @property
    def addresses(self) -> tuple[IPAddress, ...]: ...


def find_overlap(
    config: CircuitConfig,
    replaced: Container[str],
    circuits: Iterable[Holder],
    facts: HostFacts,
    networks: tuple[IPNetwork, ...] = (),
) -> Refuse | None:
    """Return why a circuit's addresses would take packets from where they go now; None: they don't.

    Circuits called as in replaced do not count, nor do their interfaces. networks
    are those that the operator set aside for circuits: a route that leads to
    more than one of them does not count for addresses in it, as it was there
    when they were set aside.
    """
    others = [each for each in circuits if each.config.name not in replaced]
    names = {each.config.name for each in others}
    for wanted in config.addresses:
        # Each link has its own.
        if wanted.version == 6 and wanted.is_link_local:
            continue
        subnet = wanted.network
        for other in others:
            for address in other.config.addresses:
                if _overlap(subnet, address.network):
                    why = f"{address} of {other.config.name}"
                    return _overlaps(RejectCode.CONFLICT, wanted, why)
        remotes = [
            (each, other.config.name)
            for other in others
            for each in (*other.addresses, *_addresses_of(other.config))
        ]
        remotes += [(each, "this circuit") for each in _addresses_of(config)]
        for remote, name in remotes:
            if remote in subnet:
                return _overlaps(RejectCode.ADDRESS, wanted, f"{remote}, the remote of {name}")
        for known in facts.addresses:
            if known.interface in names or known.interface in replaced:
                continue  # its circuit was looked at above
            if _overlap(subnet, known.subnet) or known.address.ip in subnet:
                why = f"{known.address} of the interface {known.interface}"
                return _overlaps(RejectCode.ADDRESS, wanted, why)
        for route in facts.routes:
            set_aside = any(
                _contains(route.network, each) and _contains(each, subnet) for each in networks
            )
            if (
                route.network.prefixlen
                and not set_aside
                and route.interface not in replaced
                and _overlap(subnet, route.network)
            ):
                return _overlaps(RejectCode.ADDRESS, wanted, f"the route to {route.network}")
    return None


def subnets_overlap(one: CircuitConfig, other: CircuitConfig) -> bool:
    """Tell whether an address of one circuit is in a subnet of the other, or its subnet is."""
    return any(
        _overlap(mine.network, theirs.network)
        for mine in one.addresses
        for theirs in other.addresses
        if not (mine.version == 6 and mine.is_link_local)
    )


def _overlaps(code: RejectCode, wanted: IPInterface, what: str) -> Refuse:
    return Refuse(code, from_here(f"{wanted} overlaps with {what}"))


def _addresses_of(config: CircuitConfig) -> list[IPAddress]:
    """Return the addresses of those of a circuit's remotes that are no names."""
    return [each.address for each in config.remote.all if each.address is not None]


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return _contains(one, other) or _contains(other, one)


def _contains(outer: IPNetwork, inner: IPNetwork) -> bool:
    return (
        outer.version == inner.version
        and outer.prefixlen <= inner.prefixlen
        and inner.network_address in outer
    )


def config_for(
    requested: CircuitRequested, name: str, port: int, rules: HostRules
) -> CircuitConfig:
    """Return the circuit that a remote asks for; port is the local listening one."""
    offer, description = requested.offer, requested.description
    config = CircuitConfig(
        name=name,
        id=requested.circuit_id,
        remote=_remote_of(requested.source, description.port, port),
        addresses=offer.addresses,
        bridge=offer.bridge,
        mac=offer.mac,
        keepalive=description.keepalive_ms / 1000,
    )
    return rules.applied_to(config)


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
    return ELSEWHERE + str(err).splitlines()[0]


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


def _is_called_from(requested: CircuitRequested, now: Situation) -> bool:
    """Tell whether a circuit whose remote is any has the id, and its remote is at this address."""
    return any(
        circuit.config.remote.is_any
        and circuit.config.id == requested.circuit_id
        and requested.source.address in circuit.addresses
        for circuit in now.circuits.values()
    )


def _free_name(requested: CircuitRequested, now: Situation) -> str:
    return now.free.free_name(now.policy.limits(requested.source.address).interfaces)


def _moved(requested: CircuitRequested, maker: bytes | None, now: Situation) -> KnownCircuit | None:
    """Return what the same machine set up here before, when it had another address.

    A key would not say that it is the same: others may have it. One that is up is not given
    away while the old address is heard.
    """
    circuit = find_of_maker(requested, maker, now.circuits.values())
    if circuit is None or (circuit.state is State.UP and circuit.config.name not in now.silent):
        return None
    return circuit


def find_of_maker(
    requested: CircuitRequested, maker: bytes | None, circuits: Iterable[_Known]
) -> _Known | None:
    """Return the circuit with this id that the same machine set up here."""
    if maker is None:
        return None
    for circuit in circuits:
        if (
            circuit.origin is Origin.PEER
            and circuit.maker == maker
            and circuit.config.id == requested.circuit_id
        ):
            return circuit
    return None
