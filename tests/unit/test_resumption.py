"""Circuits that go on where another velad has left them: on two simulated machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from simulation import ROUTER_A, ROUTER_B, Machine, Network, network
from structlog.testing import capture_logs

from vela.address import Remote
from vela.signaling.signer import LocalKey
from vela.supervisor.circuit.standing import Standing
from vela.supervisor.config.records import AutoconfigureConfig, CircuitConfig

KEY, OTHER_KEY = LocalKey(bytes(range(32))), LocalKey(bytes(range(33, 65)))
ALLOWED = AutoconfigureConfig(sources=(ip_network("192.0.2.0/24"),))
CIRCUIT = CircuitConfig("vela0", 1, Remote(str(ROUTER_B)), keepalive=1.0)


class Pair:
    """Router A, whose velad is followed by another, and router B, which sets itself up."""

    def __init__(self, link: Network, folder: Path) -> None:
        self.link = link
        self.a = Machine(link, ROUTER_A, folder / "a", (CIRCUIT,), key=KEY)
        self.b = Machine(link, ROUTER_B, folder / "b", autoconfigure=ALLOWED, key=KEY)
        for machine in (self.a, self.b):
            machine.boot()
        link.run(5)
        assert self.words() == ["up", "up"]

    def words(self) -> list[str]:
        return [machine.states()["vela0"][0] for machine in (self.a, self.b)]

    def transitions(self, machine: Machine) -> int:
        return machine.statuses()[0].transitions

    def sent(self) -> int:
        return len([1 for _, source, _ in self.link.overheard if source.address == ROUTER_A])


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with network(1) as link:
        yield Pair(link, tmp_path)
        assert link.loop.failures == []


def test_circuit_goes_on_and_its_remote_notices_nothing(pair: Pair) -> None:
    transitions = pair.transitions(pair.b)
    standings = pair.a.hand_over()

    assert pair.a.boot(standings) == {"vela0"}
    path = pair.a.data_paths["vela0"]
    # In the turn of the loop in which it begins, and with its carrier.
    assert (path.attached is not None, path.carrier) == (True, True)
    assert pair.a.states()["vela0"] == ("up", "")
    pair.link.run(60)

    assert pair.words() == ["up", "up"]
    assert pair.transitions(pair.b) == transitions
    assert pair.a.data_paths["vela0"].attachments == 1


def test_circuit_can_be_handed_on_again(pair: Pair) -> None:
    transitions = pair.transitions(pair.b)
    for _ in range(3):
        assert pair.a.boot(pair.a.hand_over()) == {"vela0"}
        pair.link.run(10)

    assert pair.words() == ["up", "up"]
    assert pair.transitions(pair.b) == transitions


def test_circuit_of_another_machine_goes_on_too(pair: Pair) -> None:
    transitions = pair.transitions(pair.a)
    standings = pair.b.hand_over()

    assert pair.b.boot(standings) == {"vela0"}
    pair.link.run(60)

    assert pair.words() == ["up", "up"]
    assert pair.transitions(pair.a) == transitions


def test_velad_that_is_quiet_for_a_take_over_says_nothing_until_it_goes_on(pair: Pair) -> None:
    assert pair.a.registry is not None
    pair.a.registry.freeze()
    said = pair.sent()

    pair.link.run(2)
    assert pair.sent() == said
    pair.a.registry.thaw(())
    pair.link.run(20)

    assert pair.sent() > said
    assert pair.words() == ["up", "up"]
    assert pair.transitions(pair.b) == 1


def changed(standing: Standing, **changes: Any) -> Standing:
    return replace(standing, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "00" * 16},
        {"session": None},
        {"session": {"state": "nonsense"}},
        {"remote": "router.example.net"},
        {"maker": "no hexadecimal"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_circuit_that_cannot_go_on_begins_anew_and_says_why(
    pair: Pair, changes: dict[str, Any]
) -> None:
    standings = pair.a.hand_over()
    standings["vela0"] = changed(standings["vela0"], **changes)

    with capture_logs() as lines:
        assert pair.a.boot(standings) == frozenset()

    assert [line["event"] for line in lines].count("circuit_not_resumed") == 1
    assert not pair.a.data_paths["vela0"].carrier
    pair.link.run(60)
    assert pair.words() == ["up", "up"]


def test_circuit_whose_way_is_gone_begins_anew(pair: Pair) -> None:
    standings = pair.a.hand_over()
    pair.a.reachable = False

    assert pair.a.boot(standings) == frozenset()
    pair.link.run(2)
    assert pair.a.states()["vela0"][0] != "up"
    pair.a.reachable = True
    pair.link.run(120)

    assert pair.words() == ["up", "up"]


def test_circuit_that_is_no_longer_there_is_nobodys(pair: Pair) -> None:
    standings = pair.a.hand_over()
    pair.a.config = replace(pair.a.config, circuits=())

    assert pair.a.boot(standings) == frozenset()
    assert pair.a.states() == {}


def test_circuit_that_may_not_go_on_begins_anew(pair: Pair) -> None:
    standings = pair.a.hand_over()
    assert pair.a.boot() == frozenset()
    assert pair.a.registry is not None

    # It has been started already.
    assert pair.a.registry.resume(standings) == frozenset()
    pair.link.run(60)

    assert pair.words() == ["up", "up"]


def test_circuit_that_is_down_has_no_standing(pair: Pair) -> None:
    assert pair.a.registry is not None
    pair.a.registry.disable("vela0")

    assert pair.a.hand_over() == {}


def test_path_that_was_found_by_probes_is_still_known(pair: Pair) -> None:
    standings = pair.a.hand_over()
    standings["vela0"] = changed(standings["vela0"], probed_mtu=1280)

    assert pair.a.boot(standings) == {"vela0"}

    path, _ = pair.a.data_paths["vela0"].attached or (None, None)
    assert path is not None
    assert path.probed_mtu == 1280


def test_remote_that_stands_by_is_still_in_use(tmp_path: Path) -> None:
    standby = ip_address("192.0.2.3")
    circuit = replace(CIRCUIT, remote=Remote(str(ROUTER_B), standbys=(Remote(str(standby)),)))
    with network(1) as link:
        a = Machine(link, ROUTER_A, tmp_path / "a", (circuit,))
        others = [
            Machine(link, address, tmp_path / str(address), autoconfigure=ALLOWED)
            for address in (ROUTER_B, standby)
        ]
        for machine in (a, *others):
            machine.boot()
        link.run(5)
        assert a.registry is not None
        a.registry.switch("vela0", None)
        link.run(20)
        assert a.statuses()[0].remote_address == str(standby)

        assert a.boot(a.hand_over()) == {"vela0"}
        assert a.statuses()[0].remote == str(standby)
        link.run(20)

        assert a.states()["vela0"][0] == "up"
        assert a.statuses()[0].remote_address == str(standby)
        assert link.loop.failures == []
