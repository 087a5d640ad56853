"""What a reload does to the circuits of the file, on two simulated machines: see simulation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from simulation import ROUTER_A, ROUTER_B, Machine, Network, RecordingDataPath, network

from vela.address import Remote
from vela.signaling.signer import LocalKey
from vela.supervisor.config.records import AutoconfigureConfig, CircuitConfig, PeerConfig

ALLOWED = AutoconfigureConfig(
    sources=(ip_network("192.0.2.0/24"),),
    networks=(ip_network("172.16.0.0/12"),),
    max_circuits_per_remote=64,
)
KEY, OTHER_KEY = LocalKey(bytes(range(32))), LocalKey(bytes(range(33, 65)))
ROUTER_C = ip_address("192.0.2.3")


def circuit(number: int, **changes: Any) -> CircuitConfig:
    made = CircuitConfig(
        f"vela{number}",
        number + 1,
        Remote(str(ROUTER_B)),
        addresses=(ip_interface(f"172.16.{number}.1/30"),),
        peer=PeerConfig(f"vela{number}", (ip_interface(f"172.16.{number}.2/30"),)),
    )
    return replace(made, **changes)


class Pair:
    """Router A with circuits of a file, and routers B and C, which set themselves up."""

    def __init__(self, link: Network, folder: Path) -> None:
        self.link = link
        self.a = Machine(link, ROUTER_A, folder / "a", (circuit(0),), key=KEY)
        self.b = Machine(link, ROUTER_B, folder / "b", autoconfigure=ALLOWED, key=KEY)
        self.c = Machine(link, ROUTER_C, folder / "c", autoconfigure=ALLOWED, key=KEY)
        for machine in (self.b, self.c, self.a):
            machine.boot()
        link.run(3)

    def reload(self, *circuits: CircuitConfig) -> dict[str, str]:
        return self.a.reload(replace(self.a.config, circuits=circuits))

    def path_of(self, name: str = "vela0") -> RecordingDataPath:
        return self.a.data_paths[name]

    def states(self, machine: Machine) -> dict[str, str]:
        return {name: state for name, (state, _) in machine.states().items()}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with network(1) as link:
        made = Pair(link, tmp_path)
        assert made.states(made.a) == made.states(made.b) == {"vela0": "up"}
        yield made
        assert link.loop.failures == []


def test_changed_keepalive_is_agreed_on_and_nothing_else_happens(pair: Pair) -> None:
    path, other = pair.path_of(), pair.b.data_paths["vela0"]
    before = (path.attachments, other.attachments)

    pair.reload(circuit(0, keepalive=0.5))
    carried = pair.link.carried
    pair.link.run(10)

    assert pair.path_of() is path
    assert pair.b.data_paths["vela0"] is other
    assert (path.attachments, other.attachments) == before
    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up"}
    # 20 each way, and not 2.
    assert pair.link.carried - carried > 30


def test_changed_mtu_is_told_at_once_and_both_ends_go_on_with_it(pair: Pair) -> None:
    path = pair.path_of()

    pair.reload(circuit(0, mtu=1300))
    pair.link.run(0.1)

    assert pair.path_of() is path
    assert (path.mtu, pair.b.data_paths["vela0"].mtu) == (1300, 1300)
    assert path.attachments == 2
    assert path.carrier


def test_settings_of_the_other_end_change_there_while_frames_go_on_here(pair: Pair) -> None:
    path = pair.path_of()

    address = ip_interface("172.16.0.6/30")
    pair.reload(circuit(0, peer=PeerConfig("vela0", (address,))))
    pair.link.run(5)

    assert pair.path_of() is path
    assert path.attachments == 1
    assert pair.b.data_paths["vela0"].config.addresses == (address,)
    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up"}


def test_settings_that_were_refused_are_asked_for_at_once_when_they_change(pair: Pair) -> None:
    pair.reload(circuit(0, peer=PeerConfig("vela0", (ip_interface("10.9.9.9/24"),))))
    pair.link.run(60)
    assert pair.states(pair.a) == {"vela0": "rejected"}

    pair.reload(circuit(0))
    pair.link.run(1)

    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up"}


def test_other_name_of_the_same_machine_changes_nothing(pair: Pair) -> None:
    path = pair.path_of()
    pair.a.names["router.example.net"] = (ROUTER_B,)

    pair.reload(circuit(0, remote=Remote("router.example.net")))
    pair.link.run(5)

    assert pair.path_of() is path
    assert path.attachments == 1
    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up"}


def test_name_that_does_not_resolve_leaves_the_circuit_where_it_is(pair: Pair) -> None:
    pair.reload(circuit(0, remote=Remote("nowhere.example.net")))
    pair.link.run(30)
    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up"}

    pair.a.names["nowhere.example.net"] = (ROUTER_C,)
    pair.link.run(90)
    assert pair.states(pair.a) == pair.states(pair.c) == {"vela0": "up"}


def test_circuit_moves_to_another_machine_and_goes_at_the_one_before(pair: Pair) -> None:
    path = pair.path_of()

    pair.reload(circuit(0, remote=Remote(str(ROUTER_C))))
    pair.link.run(5)

    assert pair.path_of() is path
    assert path.attached is not None
    assert path.attached[0].endpoint.address == ROUTER_C
    assert pair.states(pair.a) == pair.states(pair.c) == {"vela0": "up"}
    assert pair.states(pair.b) == {}


def test_circuits_that_exchange_their_remotes_are_up_within_seconds(pair: Pair) -> None:
    one, other = circuit(0), circuit(1, id=1, remote=Remote(str(ROUTER_C)))
    pair.reload(one, other)
    pair.link.run(5)
    assert pair.states(pair.a) == {"vela0": "up", "vela1": "up"}

    pair.reload(replace(one, remote=other.remote), replace(other, remote=one.remote))
    pair.link.run(10)

    assert pair.states(pair.a) == {"vela0": "up", "vela1": "up"}
    assert pair.states(pair.b) == {"vela1": "up"}
    assert pair.states(pair.c) == {"vela0": "up"}


def test_session_goes_on_under_its_own_keys_until_the_other_end_has_the_changed_one(
    pair: Pair, tmp_path: Path
) -> None:
    path = pair.path_of()
    key_file = tmp_path / "key"
    key_file.write_bytes(bytes(range(33, 65)))

    pair.reload(circuit(0, key_file=key_file))
    pair.link.run(60)
    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up"}

    pair.b.key = OTHER_KEY
    pair.b.reload(replace(pair.b.config, autoconfigure=replace(ALLOWED, max_circuits=9)))
    pair.link.run(60)
    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up"}
    assert pair.path_of() is path
    assert path.attachments == 1

    pair.b.crash()
    pair.b.boot()
    pair.link.run(60)
    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up"}


def test_static_circuit_begins_to_shake_hands_and_ceases_on_the_same_interface(pair: Pair) -> None:
    path = pair.path_of()

    pair.reload(circuit(0, autoconfigure=False, peer=PeerConfig()))
    pair.link.run(5)
    assert pair.states(pair.a) == {"vela0": "unmonitored"}
    assert path.carrier

    pair.reload(circuit(0))
    pair.link.run(40)
    assert pair.path_of() is path
    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up"}


def test_circuit_that_the_file_switches_off_and_on_keeps_its_interface(pair: Pair) -> None:
    path = pair.path_of()
    pair.reload(circuit(0, enabled=False, keepalive=1.0))
    pair.link.run(3)
    assert pair.states(pair.a) == {"vela0": "disabled"}

    pair.reload(circuit(0))
    pair.link.run(40)

    assert pair.path_of() is path
    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up"}


def test_other_id_is_another_circuit_on_both_machines(pair: Pair) -> None:
    path = pair.path_of()

    pair.reload(circuit(0, id=9))
    pair.link.run(5)

    assert pair.path_of() is not path
    assert path.closed
    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up"}


def swapped(one: CircuitConfig, other: CircuitConfig) -> tuple[CircuitConfig, CircuitConfig]:
    """Return two circuits with each other's addresses, on both ends."""
    return (
        replace(
            one, addresses=other.addresses, peer=replace(one.peer, addresses=other.peer.addresses)
        ),
        replace(
            other, addresses=one.addresses, peer=replace(other.peer, addresses=one.peer.addresses)
        ),
    )


def addresses(machine: Machine) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(str(each) for each in path.config.addresses)
        for name, path in machine.data_paths.items()
    }


def test_circuits_that_exchange_their_addresses_are_changed_as_a_set_and_back(pair: Pair) -> None:
    before = (circuit(0), circuit(1))
    pair.reload(*before)
    pair.link.run(5)
    paths = dict(pair.a.data_paths), dict(pair.b.data_paths)
    first = addresses(pair.b)

    pair.reload(*swapped(*before))
    pair.link.run(2)

    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up", "vela1": "up"}
    assert addresses(pair.a) == {"vela0": ("172.16.1.1/30",), "vela1": ("172.16.0.1/30",)}
    assert addresses(pair.b) == {"vela0": ("172.16.1.2/30",), "vela1": ("172.16.0.2/30",)}
    pair.reload(*before)
    pair.link.run(2)
    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up", "vela1": "up"}
    assert addresses(pair.b) == first
    # On the interfaces, and with the workers, that there were.
    for machine, before_it in zip((pair.a, pair.b), paths, strict=True):
        assert all(machine.data_paths[name] is path for name, path in before_it.items())


def test_addresses_that_go_round_among_many_circuits_are_changed_as_a_set(pair: Pair) -> None:
    ring = [circuit(number) for number in range(20)]
    pair.reload(*ring)
    pair.link.run(10)

    moved = [swapped(one, other)[0] for one, other in zip(ring, [*ring[1:], ring[0]], strict=True)]
    pair.reload(*moved)
    pair.link.run(5)

    assert set(pair.states(pair.a).values()) == set(pair.states(pair.b).values()) == {"up"}
    assert addresses(pair.b)["vela0"] == ("172.16.1.2/30",)
    assert addresses(pair.b)["vela19"] == ("172.16.0.2/30",)


def test_circuits_that_exchange_ids_and_addresses_are_up_within_seconds(pair: Pair) -> None:
    before = (circuit(0), circuit(1))
    pair.reload(*before)
    pair.link.run(5)

    one, other = swapped(*before)
    for wanted in ((replace(one, id=2), replace(other, id=1)), before):
        pair.reload(*wanted)
        pair.link.run(10)
        assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up", "vela1": "up"}
        assert addresses(pair.b)["vela0"] == tuple(map(str, wanted[0].peer.addresses))


def test_address_of_a_circuit_that_does_not_change_is_refused_after_a_while(pair: Pair) -> None:
    one, other = circuit(0), circuit(1)
    pair.reload(one, other)
    pair.link.run(5)

    taken = replace(one, peer=replace(one.peer, addresses=other.peer.addresses))
    pair.reload(taken, replace(other, peer=PeerConfig("vela1", other.peer.addresses)))
    # The file itself would be refused for that, but not where two files of two machines say so.
    pair.link.run(1)
    assert pair.states(pair.a)["vela0"] == "up"
    pair.link.run(9)

    state, reason = pair.a.states()["vela0"]
    assert state == "rejected"
    assert "172.16.1.2 is taken by circuits.vela1.addresses" in reason
    assert pair.states(pair.a)["vela1"] == "up"


def test_address_of_another_machines_circuit_is_refused_at_once(pair: Pair) -> None:
    foreign = CircuitConfig(
        "vela9", 9, Remote("192.0.2.77"), addresses=(ip_interface("172.16.9.2/30"),)
    )
    pair.b.reload(replace(pair.b.config, circuits=(foreign,)))
    pair.link.run(1)

    pair.reload(circuit(0, peer=PeerConfig("vela0", (ip_interface("172.16.9.2/30"),))))
    pair.link.run(0.5)

    state, reason = pair.a.states()["vela0"]
    assert state == "rejected"
    assert "172.16.9.2 is taken by circuits.vela9.addresses" in reason


@pytest.mark.parametrize("seed", range(20))
def test_lost_messages_only_delay_a_set(pair: Pair, seed: int) -> None:
    before = (circuit(0), circuit(1))
    pair.reload(*before)
    pair.link.run(5)
    pair.link.dice.seed(seed)
    pair.link.loss = 0.3

    pair.reload(*swapped(*before))
    pair.link.run(60)
    pair.link.loss = 0.0
    pair.link.run(330)

    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up", "vela1": "up"}
    assert addresses(pair.b) == {"vela0": ("172.16.1.2/30",), "vela1": ("172.16.0.2/30",)}


def test_machine_that_goes_away_while_its_change_is_made_is_down_here(pair: Pair) -> None:
    path = pair.b.data_paths["vela0"]
    changed = circuit(0, peer=PeerConfig("vela0", (ip_interface("172.16.0.6/30"),)))
    pair.reload(changed)
    # As soon as the change is made there, nothing of A arrives any more.
    for _ in range(1000):
        pair.link.run(0.001)
        if path.config.addresses == changed.peer.addresses:
            break
    pair.link.silence(ROUTER_A)
    assert pair.b.states()["vela0"][0] == "up"

    pair.link.run(4)

    assert (pair.states(pair.b)["vela0"], path.carrier) == ("down", False)
    pair.link.silence(None)
    pair.link.run(60)
    assert pair.states(pair.a) == pair.states(pair.b) == {"vela0": "up"}
