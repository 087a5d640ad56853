"""A static circuit on a simulated machine, and what a machine does with names: see simulation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from simulation import ROUTER_A, ROUTER_B, Machine, Network, network

from vela.address import Remote
from vela.dataplane.frame import Elision
from vela.supervisor.config.records import (
    AutoconfigureConfig,
    CircuitConfig,
    Encapsulation,
    PeerConfig,
    SourcePort,
)
from vela.supervisor.status import LossStatus

REMOTE_MAC = bytes.fromhex("02005e100002")
STATIC = CircuitConfig(
    "vela0",
    1,
    Remote("router.example.net"),
    autoconfigure=False,
    peer=PeerConfig(mac=REMOTE_MAC, checksum_offload=True),
)


@pytest.fixture
def link() -> Iterator[Network]:
    with network(1) as made:
        yield made
        assert made.loop.failures == []


def machine_with(link: Network, folder: Path, config: CircuitConfig) -> Machine:
    machine = Machine(link, ROUTER_A, folder, (config,))
    machine.names["router.example.net"] = (ROUTER_B,)
    machine.boot()
    link.run(2)
    return machine


@pytest.mark.parametrize(
    ("changes", "elision", "partial_checksums", "source_port"),
    [
        ({}, Elision.KNOWN, True, None),
        ({"peer": PeerConfig(mac=REMOTE_MAC)}, Elision.KNOWN, False, None),
        ({"peer": PeerConfig()}, Elision.NEVER, False, None),
        ({"encapsulation": Encapsulation.ETHERNET}, Elision.NEVER, False, None),
        # The original VELA uses one port both ways.
        ({"encapsulation": Encapsulation.IP}, Elision.ALWAYS, False, 48621),
        ({"source_port": SourcePort.LISTEN}, Elision.KNOWN, True, 48621),
        ({"source_port": 50000}, Elision.KNOWN, True, 50000),
    ],
)
def test_static_circuit_carries_frames_as_configured(
    link: Network,
    tmp_path: Path,
    changes: dict[str, object],
    elision: Elision,
    partial_checksums: bool,
    source_port: int | None,
) -> None:
    machine = machine_with(link, tmp_path, replace(STATIC, **changes))  # type: ignore[arg-type]

    assert machine.states() == {"vela0": ("unmonitored", "")}
    made = machine.data_paths["vela0"]
    assert made.carrier
    assert made.attached is not None
    path, profile = made.attached
    assert path.endpoint.address == ROUTER_B
    assert (profile.mtu, profile.elision) == (1471, elision)
    assert profile.partial_checksums is partial_checksums
    assert profile.source_port == source_port


def test_static_circuit_follows_its_remote_and_stays_while_the_name_server_is_away(
    link: Network, tmp_path: Path
) -> None:
    machine = machine_with(link, tmp_path, STATIC)
    made = machine.data_paths["vela0"]

    machine.names.clear()
    link.run(130)
    assert machine.states() == {"vela0": ("unmonitored", "")}

    machine.names["router.example.net"] = (ip_address("192.0.2.3"),)
    link.run(61)
    assert machine.states() == {"vela0": ("unmonitored", "")}
    assert made.attached is not None
    assert made.attached[0].endpoint.address == ip_address("192.0.2.3")
    assert made.attachments == 2


def test_static_circuit_asks_a_remote_that_answers_every_second_and_measures(
    link: Network, tmp_path: Path
) -> None:
    machine = machine_with(link, tmp_path / "a", STATIC)
    there = replace(STATIC, remote=Remote(str(ROUTER_A)))
    other = Machine(link, ROUTER_B, tmp_path / "b", (there,))
    other.boot()
    link.run(40)
    link.answer_loss = 0.2
    link.run(300)

    for each in (machine, other):
        assert each.states() == {"vela0": ("unmonitored", "")}
        (circuit,) = each.statuses()
        # Nobody says what reached it. Four standard deviations of 300 requests.
        assert (circuit.loss.tx_percent, circuit.loss.rx_percent) == (None, None)
        assert circuit.loss.round_trip_percent == pytest.approx(20, abs=9.3)
        assert circuit.delay_ms.p50 == pytest.approx(1.0)

    # What no longer answers takes nothing down.
    other.crash()
    link.run(400)
    assert machine.states() == {"vela0": ("unmonitored", "")}
    assert machine.data_paths["vela0"].carrier
    (circuit,) = machine.statuses()
    assert circuit.loss.round_trip_percent == 100


@pytest.mark.parametrize(("changes", "most"), [({}, 14), ({"encapsulation": Encapsulation.IP}, 0)])
def test_static_circuit_whose_remote_never_answers_asks_rarely_and_says_nothing_of_loss(
    link: Network, tmp_path: Path, changes: dict[str, object], most: int
) -> None:
    machine = machine_with(link, tmp_path, replace(STATIC, **changes))  # type: ignore[arg-type]
    link.run(120)

    assert machine.states() == {"vela0": ("unmonitored", "")}
    assert min(most, 1) <= link.echoes <= most
    (circuit,) = machine.statuses()
    assert circuit.loss == LossStatus(None, None, None)
    assert circuit.delay_ms.p50 is None


def test_static_circuit_without_a_route_is_down_and_comes_back(
    link: Network, tmp_path: Path
) -> None:
    machine = machine_with(link, tmp_path, STATIC)
    machine.reachable = False
    link.run(61)
    state, reason = machine.states()["vela0"]
    assert (state, reason) == ("down", "no way to 192.0.2.2: Network is unreachable")
    assert not machine.data_paths["vela0"].carrier
    assert machine.data_paths["vela0"].attached is None

    machine.reachable = True
    link.run(31)
    assert machine.states() == {"vela0": ("unmonitored", "")}


def test_static_circuit_that_is_broken_shows_why_and_goes_on_with_the_known_path(
    link: Network, tmp_path: Path
) -> None:
    machine = machine_with(link, tmp_path, STATIC)
    made = machine.data_paths["vela0"]
    made.broken = "worker: egress: Operation not supported"
    link.run(2)
    assert machine.states() == {"vela0": ("failed", "worker: egress: Operation not supported")}
    assert not made.carrier

    machine.names.clear()  # the name server is away as well
    made.broken = ""
    link.run(2)
    assert machine.states() == {"vela0": ("unmonitored", "")}
    assert made.carrier


def test_static_circuit_that_is_disabled_carries_nothing(link: Network, tmp_path: Path) -> None:
    machine = machine_with(link, tmp_path, STATIC)
    assert machine.registry is not None
    machine.registry.disable("vela0")
    assert machine.states() == {"vela0": ("disabled", "")}
    assert machine.data_paths["vela0"].attached is None

    machine.registry.enable("vela0")
    link.run(1)
    assert machine.states() == {"vela0": ("unmonitored", "")}


def test_static_circuit_whose_name_never_resolves_says_so(link: Network, tmp_path: Path) -> None:
    machine = machine_with(link, tmp_path, replace(STATIC, remote=Remote("nowhere.example.net")))

    assert machine.states() == {
        "vela0": ("resolving", "nowhere.example.net: no such name"),
    }


def test_machines_in_from_are_known_by_name_and_reload_leaves_one_chain_of_look_ups(
    link: Network, tmp_path: Path
) -> None:
    allowed = AutoconfigureConfig(
        sources=("router1.example.net",), networks=(ip_network("172.16.0.0/12"),)
    )
    b = Machine(link, ROUTER_B, tmp_path / "b", autoconfigure=allowed)
    b.names["router1.example.net"] = (ROUTER_A,)
    b.boot()
    for _ in range(5):  # each within the millisecond in which the look-up is under way
        b.channel.set_policy(allowed, None)
    link.run(1)
    begun = len(b.asked)
    link.run(60)

    assert len(b.asked) == begun + 1

    a = Machine(link, ROUTER_A, tmp_path / "a")
    a.boot()
    a.add("vela0", {"remote": str(ROUTER_B)})
    link.run(3)
    assert a.states() == {"vela0": ("up", "")}
