"""A source port that a reload changes: the remote hears of it before frames leave from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest
from simulation import ROUTER_A, ROUTER_B, Machine, Network, network

from vela.address import Remote
from vela.signaling.signer import LocalKey
from vela.supervisor.circuit.port_switch import LONGEST_WAIT_S
from vela.supervisor.config.records import (
    AutoconfigureConfig,
    CircuitConfig,
    Config,
    PeerConfig,
    SourcePort,
)

OWN, LISTENING = 50001, 48621
KEY = LocalKey(b"shared by all machines of a network")
CIRCUIT = CircuitConfig(
    "vela0",
    1,
    Remote(str(ROUTER_B)),
    addresses=(ip_interface("172.16.16.1/30"),),
    keepalive=1.0,
    peer=PeerConfig(addresses=(ip_interface("172.16.16.2/30"),)),
)
ALLOWED = AutoconfigureConfig(networks=(ip_network("172.16.0.0/12"),))


class Ends:
    """A has a circuit with B, which can become deaf."""

    def __init__(self, net: Network, folder: Path) -> None:
        self.net = net
        self.a = Machine(net, ROUTER_A, folder / "a", (CIRCUIT,), None, KEY)
        self.b = Machine(net, ROUTER_B, folder / "b", (), ALLOWED, KEY)
        for machine in (self.a, self.b):
            machine.boot()
        net.run(5)

    def reload(self, port: SourcePort | int) -> None:
        self.a.reload(Config(circuits=(self.configured(port),)))

    @staticmethod
    def configured(port: SourcePort | int) -> CircuitConfig:
        return replace(CIRCUIT, source_port=port)

    @property
    def leaves_from(self) -> int | None:
        return self.a.data_paths["vela0"].frame_port

    @property
    def taken_from(self) -> int | None:
        return self.b.data_paths["vela0"].frames_from


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Ends]:
    with network(1) as net:
        yield Ends(net, tmp_path)
        assert net.loop.failures == []


@pytest.mark.parametrize("port", [SourcePort.LISTEN, 50123])
def test_frames_leave_from_another_port_once_the_other_end_knows(
    both: Ends, port: SourcePort | int
) -> None:
    number = LISTENING if port is SourcePort.LISTEN else port
    assert (both.leaves_from, both.taken_from) == (OWN, OWN)
    seen = []
    both.reload(port)
    for _ in range(100):
        seen.append((both.leaves_from, both.taken_from))
        both.net.run(0.0002)

    assert seen[0] == (OWN, OWN)
    assert seen[-1] == (number, number)
    # In between it is told, and what is on its way is right: demux takes both for a while.
    assert (OWN, number) in seen
    assert (number, OWN) not in seen
    assert both.a.states() == {"vela0": ("up", "")}


def test_other_end_that_does_not_answer_is_waited_for_and_not_for_ever(both: Ends) -> None:
    both.net.silence(ROUTER_B)
    both.reload(50123)
    both.net.run(LONGEST_WAIT_S - 0.1)
    assert both.leaves_from == OWN
    both.net.run(0.2)

    assert both.leaves_from == 50123


def test_what_the_other_end_is_to_know_is_repeated_until_it_has_heard(both: Ends) -> None:
    """Not only with the next keepalive, which may be far away."""
    both.net.silence(ROUTER_A)
    both.reload(50123)
    both.net.run(0.1)
    both.net.silence(None)
    both.net.run(0.6)

    assert (both.leaves_from, both.taken_from) == (50123, 50123)


def test_port_that_is_changed_back_meanwhile_is_the_one_in_use(both: Ends) -> None:
    both.net.silence(ROUTER_B)
    both.reload(50123)
    both.net.run(0.1)
    both.reload(SourcePort.AUTO)
    both.net.silence(None)
    both.net.run(LONGEST_WAIT_S + 1)

    assert (both.leaves_from, both.taken_from) == (OWN, OWN)


def test_port_that_is_changed_again_meanwhile_is_told_anew(both: Ends) -> None:
    both.net.silence(ROUTER_B)
    both.reload(50123)
    both.net.run(0.1)
    both.reload(50124)
    both.net.run(0.1)
    assert both.leaves_from == OWN
    both.net.silence(None)
    both.net.run(1)

    assert (both.leaves_from, both.taken_from) == (50124, 50124)


def test_other_changes_do_not_wait_for_it(both: Ends) -> None:
    both.net.silence(ROUTER_B)
    changed = replace(both.configured(50123), mtu=1300)
    both.a.reload(Config(circuits=(changed,)))

    made = both.a.data_paths["vela0"]
    assert made.attached is not None
    assert (made.attached[1].mtu, both.leaves_from) == (1300, OWN)


def test_circuit_that_goes_down_meanwhile_comes_back_by_the_port_it_is_to_have(both: Ends) -> None:
    both.net.silence(ROUTER_B)
    both.reload(50123)
    both.net.run(10)
    assert both.a.states()["vela0"][0] == "down"
    both.net.silence(None)
    both.net.run(5)

    assert both.a.states()["vela0"][0] == "up"
    assert (both.leaves_from, both.taken_from) == (50123, 50123)


def test_circuit_without_a_session_changes_at_once(tmp_path: Path) -> None:
    with network(1) as net:
        static = replace(CIRCUIT, autoconfigure=False)
        machine = Machine(net, ROUTER_A, tmp_path, (static,))
        machine.boot()
        net.run(2)
        machine.reload(Config(circuits=(replace(static, source_port=50123),)))

        assert machine.data_paths["vela0"].frame_port == 50123
