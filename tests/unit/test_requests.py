"""vela.supervisor.registry.requests: what becomes of another machine's request, as tables."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from vela.address import Endpoint, IPAddress, Remote
from vela.errors import ConfigError
from vela.signaling.events import CircuitRequested
from vela.signaling.identity import maker_of
from vela.signaling.messages import Capability, Confirm, Description, Offer, RejectCode
from vela.signaling.policy import Policy
from vela.supervisor.circuit.circuit import Origin
from vela.supervisor.circuit.lifecycle import State
from vela.supervisor.config.records import CircuitConfig
from vela.supervisor.registry.requests import (
    Refuse,
    SetUp,
    Situation,
    decide,
    decide_change,
    deferral_reason,
    peer_circuit_count,
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
)


@dataclass
class Known:
    config: CircuitConfig
    origin: Origin = Origin.PEER
    state: State = State.DOWN
    disabled: bool = False
    offer: Offer = OFFER
    addresses: tuple[IPAddress, ...] = (ip_address("192.0.2.8"),)
    sought_in_vain: bool = False
    maker: bytes | None = None


@dataclass
class Free:
    """What is free: everything, but for these."""

    taken: str = ""
    name: str = "vela3"
    asked: list[tuple[CircuitConfig, str | None]] = field(default_factory=list)

    def check_free(self, config: CircuitConfig, replaced: str | None = None) -> None:
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
    assert free.asked == [(wanted, None)]


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
    assert free.asked[0][1] == replaced


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
    free = Free()

    decision = decide_change(
        known, request(replace(OFFER, interface=named_now)), situation(known, free=free)
    )

    assert isinstance(decision, SetUp)
    assert (decision.config.name, decision.named_by_peer) == (name, named_by_peer)
    assert decision.replaced == "vela7"
    assert free.asked == [(decision.config, "vela7")]


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

    assert peer_circuit_count(known) == 2
