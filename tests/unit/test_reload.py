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
    sources=(ip_network("192.0.2.0/24"),), networks=(ip_network("172.16.0.0/12"),)
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
