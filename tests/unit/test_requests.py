"""vela.supervisor.registry.requests: what becomes of another machine's request, as tables."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from vela.address import Endpoint, IPAddress, Remote
from vela.errors import ConfigError
from vela.signaling.events import CircuitRequested
from vela.signaling.identity import maker_of
from vela.signaling.messages import Capability, Confirm, Description, Offer, RejectCode
from vela.signaling.policy import PeerCircuits, Policy
from vela.supervisor.circuit.lifecycle import State
from vela.supervisor.circuit.setup import Origin
from vela.supervisor.config.records import CircuitConfig
from vela.supervisor.registry.facts import HostFacts, KnownAddress, KnownRoute
from vela.supervisor.registry.requests import (
    HostRules,
    Refuse,
    SetUp,
    Situation,
    count_peer_circuits,
    decide,
    decide_change,
    deferral_reason,
    find_overlap,
)

ROUTER = ip_address("192.0.2.9")
DESCRIPTION = Description(bytes.fromhex("02005e100001"), 1471, Capability(0), 48621, 2500)
OFFER = Offer(interface="vela7", addresses=(ip_interface("172.16.0.2/30"),))
POLICY = Policy(
    accept=True,
    sources=None,
    networks=(ip_network("172.16.0.0/12"),),
    bridges=(),
    interfaces="vela*",
    max_circuits=2,
    max_circuits_per_remote=2,
)


@dataclass
class Known:
    config: CircuitConfig
    origin: Origin = Origin.PEER
    state: State = State.DOWN
    disabled: bool = False
    offer: Offer = OFFER
    addresses: tuple[IPAddress, ...] = (ip_address("192.0.2.8"),)
    idle_addresses: tuple[IPAddress, ...] = ()
    sought_in_vain: bool = False
    maker: bytes | None = None


@dataclass
class Free:
    """What is free: everything, but for these."""

    taken: str = ""
    name: str = "vela3"
    asked: list[tuple[CircuitConfig, Container[str]]] = field(default_factory=list)

    def check_free(self, config: CircuitConfig, replaced: Container[str] = ()) -> None:
        self.asked.append((config, replaced))
        if self.taken:
            raise ConfigError(self.taken, "and more")

    def free_name(self, pattern: str) -> str:
        if not self.name:
            raise ConfigError(f"no interface name that matches {pattern!r} is free")
        return self.name


def circuit(name: str = "vela7", id: int = 7, remote: str = "192.0.2.8") -> CircuitConfig:
    return CircuitConfig(name, id, Remote(remote))


def request(
    offer: Offer = OFFER, *, resuming: bool = False, machine: bytes | None = None
) -> CircuitRequested:
    confirm = Confirm(7, 1, 2, 3, DESCRIPTION, offer, resuming, machine=machine)
    return CircuitRequested(Endpoint(ROUTER, 48621), confirm)


MACHINE, ANOTHER = bytes(range(16)), bytes(range(16, 32))
MAKER, OTHER_MAKER = (maker_of(request(machine=each).confirm) for each in (MACHINE, ANOTHER))


def situation(
    *circuits: Known,
    pending: tuple[tuple[CircuitConfig, Origin], ...] = (),
    free: Free | None = None,
    pending_maker: bytes | None = None,
) -> Situation:
    return Situation(
        circuits={each.config.name: each for each in circuits},
        pending={config.name: (config, origin) for config, origin in pending},
        free=free or Free(),
        policy=POLICY,
        port=48621,
        pending_makers={config.name: pending_maker for config, _ in pending},
    )


def test_request_that_fits_becomes_the_circuit_that_was_asked_for() -> None:
    free = Free()

    decision = decide(request(), situation(free=free))

    wanted = CircuitConfig(
        name="vela7",
        id=7,
        remote=Remote("192.0.2.9"),
        addresses=(ip_interface("172.16.0.2/30"),),
        keepalive=2.5,
    )
    assert decision == SetUp(wanted, named_by_peer=True, replaced=None)
    assert free.asked == [(wanted, ())]


@pytest.mark.parametrize("accept_ra", [False, True])
@pytest.mark.parametrize("bridge", [None, "br-lan"])
def test_circuit_takes_router_advertisements_where_the_operator_says_so_and_in_no_bridge(
    accept_ra: bool, bridge: str | None
) -> None:
    offer = replace(OFFER, bridge=bridge, addresses=() if bridge else OFFER.addresses)
    policy = replace(POLICY, bridges=("br-lan",))

    rules = HostRules(accept_ra=accept_ra)
    decision = decide(request(offer), replace(situation(), policy=policy, rules=rules))

    assert isinstance(decision, SetUp)
    assert decision.config.accept_ra == (accept_ra and bridge is None)


@pytest.mark.parametrize("said", [False, True])
def test_circuit_tells_hosts_of_packets_too_big_where_the_operator_says_so(said: bool) -> None:
    rules = HostRules(packet_too_big=said)

    decision = decide(request(), replace(situation(), rules=rules))

    assert isinstance(decision, SetUp)
    assert decision.config.packet_too_big == said


def test_request_without_a_name_gets_a_free_one() -> None:
    decision = decide(request(replace(OFFER, interface=None)), situation())

    assert isinstance(decision, SetUp)
    assert (decision.config.name, decision.named_by_peer) == ("vela3", False)


def test_remote_that_listens_on_another_port_is_remembered_with_it() -> None:
    asked = request()
    confirm = replace(asked.confirm, description=replace(DESCRIPTION, port=4000))

    decision = decide(replace(asked, confirm=confirm), situation())

    assert isinstance(decision, SetUp)
    assert decision.config.remote == Remote("192.0.2.9", 4000)


@pytest.mark.parametrize(
    ("free", "offer", "text"),
    [
        (Free(taken="172.16.0.2 is taken"), OFFER, "on the other end, 172.16.0.2 is taken"),
        (
            Free(name=""),
            replace(OFFER, interface=None),
            "on the other end, no interface name that matches 'vela*' is free",
        ),
    ],
)
def test_request_for_what_is_taken_is_refused_in_one_line(
    free: Free, offer: Offer, text: str
) -> None:
    assert decide(request(offer), situation(free=free)) == Refuse(RejectCode.CONFLICT, text)


@pytest.mark.parametrize(
    ("known", "machine", "replaced"),
    [
        (Known(circuit(), maker=MAKER), MACHINE, "vela7"),
        (Known(circuit(name="vela1"), maker=MAKER), MACHINE, "vela1"),  # wants another name now
        (Known(circuit(), maker=MAKER), ANOTHER, None),  # another holder of the key
        (Known(circuit(), maker=MAKER), None, None),
        (Known(circuit()), MACHINE, None),  # nothing shows that it is the same machine
        (Known(circuit()), None, None),
        (Known(circuit(), state=State.UP, maker=MAKER), MACHINE, None),
        (Known(circuit(), origin=Origin.CONFIG, maker=MAKER), MACHINE, None),
        (Known(circuit(id=8), maker=MAKER), MACHINE, None),
    ],
)
def test_machine_with_a_new_address_takes_its_circuit_along_and_no_other_machine_does(
    known: Known, machine: bytes | None, replaced: str | None
) -> None:
    free = Free()

    decision = decide(request(machine=machine), situation(known, free=free))

    assert isinstance(decision, SetUp)
    assert decision.replaced == replaced
    assert free.asked[0][1] == (() if replaced is None else (replaced,))


def test_machine_with_a_new_address_that_names_no_interface_keeps_its_name() -> None:
    asked = request(replace(OFFER, interface=None), machine=MACHINE)

    decision = decide(asked, situation(Known(circuit(name="vela1"), maker=MAKER)))

    assert isinstance(decision, SetUp)
    assert (decision.config.name, decision.replaced) == ("vela1", "vela1")


@pytest.mark.parametrize(("maker", "refused"), [(MAKER, False), (None, False), (OTHER_MAKER, True)])
def test_name_of_another_machines_circuit_that_waits_to_be_made_is_taken(
    maker: bytes | None, refused: bool
) -> None:
    waiting = ((circuit(), Origin.PEER),)

    decision = decide(request(machine=MACHINE), situation(pending=waiting, pending_maker=maker))

    assert isinstance(decision, Refuse) is refused


def test_moved_circuit_that_is_disabled_here_is_not_set_up() -> None:
    known = Known(circuit(), disabled=True, maker=MAKER)

    assert decide(request(machine=MACHINE), situation(known)) == Refuse(
        RejectCode.DISABLED, "vela7 was taken down on the other end"
    )


@pytest.mark.parametrize(
    ("waiting", "origin", "refused"),
    [
        (circuit(), Origin.CONFIG, True),
        (circuit(), Origin.COMMAND, True),
        (circuit(id=8), Origin.PEER, True),
        (circuit(), Origin.PEER, False),  # probably the very same one
        (circuit(name="vela1"), Origin.CONFIG, False),
    ],
)
def test_name_of_a_circuit_that_waits_to_be_made_is_taken(
    waiting: CircuitConfig, origin: Origin, refused: bool
) -> None:
    decision = decide(request(), situation(pending=((waiting, origin),)))

    conflict = Refuse(RejectCode.CONFLICT, "on the other end, there is a circuit vela7 already")
    assert (decision == conflict) is refused


@pytest.mark.parametrize(
    ("named_before", "named_now", "name", "named_by_peer"),
    [
        ("vela7", "vela9", "vela9", True),
        ("vela7", None, "vela3", False),  # the remote gives the name up
        (None, None, "vela7", False),
        (None, "vela9", "vela9", True),
    ],
)
def test_change_of_a_circuit_keeps_a_name_that_was_chosen_here(
    named_before: str | None, named_now: str | None, name: str, named_by_peer: bool
) -> None:
    known = Known(circuit(), offer=replace(OFFER, interface=named_before))

    decision = decide_change(known, request(replace(OFFER, interface=named_now)), situation(known))

    assert isinstance(decision, SetUp)
    assert (decision.config.name, decision.named_by_peer) == (name, named_by_peer)
    assert decision.replaced == "vela7"


def test_change_counts_the_circuits_of_others_without_the_one_that_changes() -> None:
    known, second, third = (Known(circuit(f"vela{each}", each)) for each in (7, 1, 2))

    within = decide_change(known, request(), situation(known, second))
    beyond = decide_change(known, request(), situation(known, second, third))

    assert isinstance(within, SetUp)
    assert isinstance(beyond, Refuse)
    assert beyond.code is RejectCode.TOO_MANY


def test_change_to_what_the_policy_forbids_is_refused() -> None:
    known = Known(circuit())
    elsewhere = replace(OFFER, addresses=(ip_interface("10.0.0.2/30"),))

    decision = decide_change(known, request(elsewhere), situation(known))

    assert isinstance(decision, Refuse)
    assert decision.code is RejectCode.ADDRESS


RESOLVING = "a circuit with this id is still being resolved on the other end"
PENDING = "a circuit with this id cannot be made on the other end at present"


@pytest.mark.parametrize(
    ("known", "resuming", "reason"),
    [
        (Known(circuit()), True, ""),
        (Known(circuit(), addresses=()), False, RESOLVING),
        (Known(circuit(), addresses=(), sought_in_vain=True), False, ""),
        (Known(circuit(), addresses=(), sought_in_vain=True), True, RESOLVING),
        (Known(circuit(id=8), addresses=()), True, ""),
        (Known(circuit(), disabled=True), False, ""),
        (
            Known(circuit(), disabled=True, addresses=(ROUTER,)),
            False,
            "vela7 was taken down on the other end",
        ),
    ],
)
def test_request_waits_for_a_circuit_that_may_be_the_one(
    known: Known, resuming: bool, reason: str
) -> None:
    confirm = request(resuming=resuming).confirm

    assert deferral_reason(confirm, ROUTER, [known], []) == reason


@pytest.mark.parametrize(
    ("waiting", "origin", "resuming", "reason"),
    [
        (circuit(remote="192.0.2.9"), Origin.CONFIG, False, PENDING),
        (circuit(remote="192.0.2.8"), Origin.CONFIG, False, ""),
        (circuit(remote="router9.example.net"), Origin.CONFIG, False, ""),
        (circuit(remote="router9.example.net"), Origin.COMMAND, True, PENDING),
        (circuit(remote="192.0.2.9"), Origin.PEER, True, ""),
        (circuit(id=8, remote="192.0.2.9"), Origin.CONFIG, True, ""),
    ],
)
def test_request_waits_for_a_circuit_that_cannot_be_made_at_present(
    waiting: CircuitConfig, origin: Origin, resuming: bool, reason: str
) -> None:
    confirm = request(resuming=resuming).confirm

    assert deferral_reason(confirm, ROUTER, [], [(waiting, origin)]) == reason


def test_count_of_circuits_of_others() -> None:
    known = [Known(circuit(), origin=origin) for origin in (*Origin, Origin.PEER)]

    assert count_peer_circuits(known, ROUTER) == PeerCircuits(2, 0)


def test_count_of_circuits_of_one_machine_takes_all_its_addresses_for_one() -> None:
    """An IPv6 host has a whole /64 (RFC 4291, section 2.5.4)."""
    known = [
        Known(circuit(), addresses=(ip_address("2001:db8::1"),)),
        Known(circuit(), addresses=(ip_address("2001:db8::2"),)),
        Known(circuit(), addresses=(ip_address("2001:db8:0:1::1"),)),
        Known(circuit(), addresses=(ip_address("192.0.2.1"),)),
        Known(circuit(), origin=Origin.CONFIG, addresses=(ip_address("2001:db8::3"),)),
    ]

    counted = [
        count_peer_circuits(known, ip_address(each))
        for each in ("2001:db8::9", "192.0.2.1", "192.0.2.2")
    ]

    assert counted == [PeerCircuits(4, 2), PeerCircuits(4, 1), PeerCircuits(4, 0)]


FACTS = HostFacts(
    addresses=(
        KnownAddress(ip_interface("172.17.0.1/16"), ip_network("172.17.0.0/16"), "docker0"),
        KnownAddress(ip_interface("172.20.0.1/24"), ip_network("172.20.0.0/24"), "lan0"),
        KnownAddress(ip_interface("172.31.0.1/32"), ip_network("172.31.0.1/32"), "lo"),
        # The other end of a point-to-point interface.
        KnownAddress(ip_interface("172.30.0.1/24"), ip_network("172.29.0.0/24"), "ppp0"),
        KnownAddress(ip_interface("fd00:20::1/64"), ip_network("fd00:20::/64"), "lan0"),
        KnownAddress(ip_interface("fe80::1/64"), ip_network("fe80::/64"), "lan0"),
        KnownAddress(ip_interface("172.16.16.2/30"), ip_network("172.16.16.0/30"), "vela0"),
    ),
    routes=(
        KnownRoute(ip_network("172.24.0.0/16"), "lan0"),
        KnownRoute(ip_network("172.25.1.0/24"), ""),
        KnownRoute(ip_network("10.0.0.0/8"), "lan0"),
        KnownRoute(ip_network("0.0.0.0/0"), "lan0"),
        KnownRoute(ip_network("::/0"), "lan0"),
        KnownRoute(ip_network("172.28.0.0/16"), "vela7"),
    ),
)
HAS = replace(circuit("vela0", 1), addresses=(ip_interface("172.16.16.2/30"),))


def overlap(*addresses: str, replaced: str | None = None, networks: str = "") -> tuple[str, str]:
    wanted = replace(
        circuit("vela7", remote="192.0.2.9"),
        addresses=tuple(ip_interface(each) for each in addresses),
    )
    aside = tuple(ip_network(each) for each in networks.split())
    gone = () if replaced is None else (replaced,)
    found = find_overlap(wanted, gone, [Known(HAS)], FACTS, aside)
    return ("", "") if found is None else (found.code.name, found.text)


@pytest.mark.parametrize(
    ("wanted", "code", "what"),
    [
        # Of another circuit: equal, larger, smaller.
        ("172.16.16.1/30", "CONFLICT", "172.16.16.2/30 of vela0"),
        ("172.16.16.0/31", "CONFLICT", "172.16.16.2/30 of vela0"),
        ("172.16.16.9/24", "CONFLICT", "172.16.16.2/30 of vela0"),
        # Of the host.
        ("172.17.0.5/16", "ADDRESS", "172.17.0.1/16 of the interface docker0"),
        ("172.17.9.1/30", "ADDRESS", "172.17.0.1/16 of the interface docker0"),
        ("172.20.0.200/25", "ADDRESS", "172.20.0.1/24 of the interface lan0"),
        ("172.20.0.1/24", "ADDRESS", "172.20.0.1/24 of the interface lan0"),
        ("172.31.0.2/24", "ADDRESS", "172.31.0.1/32 of the interface lo"),
        ("172.29.0.2/30", "ADDRESS", "172.30.0.1/24 of the interface ppp0"),
        ("172.30.0.2/30", "ADDRESS", "172.30.0.1/24 of the interface ppp0"),
        ("fd00:20::9/64", "ADDRESS", "fd00:20::1/64 of the interface lan0"),
        # Routes that are not the default one.
        ("172.24.1.1/30", "ADDRESS", "the route to 172.24.0.0/16"),
        ("172.25.0.1/16", "ADDRESS", "the route to 172.25.1.0/24"),
        # Remotes.
        ("192.0.2.1/28", "ADDRESS", "192.0.2.8, the remote of vela0"),
        ("192.0.2.9/32", "ADDRESS", "192.0.2.9, the remote of this circuit"),
    ],
)
def test_address_that_overlaps_is_refused_in_words(wanted: str, code: str, what: str) -> None:
    expected = (code, f"on the other end, {wanted} overlaps with {what}")
    assert overlap(wanted) == expected
    # Also as one of several.
    assert overlap("172.26.0.1/30", wanted) == expected


@pytest.mark.parametrize(
    "wanted",
    [
        "172.16.16.5/30",
        "172.18.0.1/16",
        "172.26.0.1/30",
        "fd00:21::1/64",
        "fe80::1/64",
        "8.8.8.9/30",
    ],
)
def test_address_that_nothing_has_is_allowed_also_where_a_default_route_leads(wanted: str) -> None:
    assert overlap(wanted) == ("", "")


def test_what_a_changed_circuit_has_itself_is_no_overlap() -> None:
    assert overlap("172.28.0.1/24")[0] == "ADDRESS"
    assert overlap("172.28.0.1/24", replaced="vela7") == ("", "")
    assert overlap("172.16.16.1/30", replaced="vela0") == ("", "")


def test_route_that_was_there_when_networks_were_set_aside_from_it_is_no_overlap() -> None:
    assert overlap("10.255.1.1/30")[0] == "ADDRESS"
    assert overlap("10.255.1.1/30", networks="10.255.0.0/16") == ("", "")
    # But of what is set aside, a route may have a part.
    assert overlap("172.24.1.1/30", networks="172.16.0.0/12")[0] == "ADDRESS"
    assert overlap("10.9.1.1/30", networks="10.255.0.0/16 172.16.0.0/12")[0] == "ADDRESS"
