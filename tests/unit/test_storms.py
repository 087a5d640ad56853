"""Storms: whatever happens to two machines, their circuit heals, and nothing fails on the way.

The real registry, circuits, lifecycle and sessions, on simulated time: see simulation.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from simulation import ROUTER_A, ROUTER_B, Machine, Network, network
from thorough import first_of

from vela.address import Endpoint, Remote
from vela.signaling.signer import LocalKey
from vela.supervisor.config.records import AutoconfigureConfig, CircuitConfig, PeerConfig

ATTACKER = ip_address("192.0.2.66")
SEEDS = range(60)
FRESH_SEEDS = 20
"""Of each run; the failing one is named."""

CIRCUIT = CircuitConfig(
    name="vela0",
    id=1,
    remote=Remote(str(ROUTER_B)),
    addresses=(ip_interface("172.16.16.1/30"),),
    keepalive=1.0,
    peer=PeerConfig(interface="vela0", addresses=(ip_interface("172.16.16.2/30"),)),
)
ALLOWED = AutoconfigureConfig(
    sources=(ip_network("192.0.2.0/24"),), networks=(ip_network("172.16.0.0/12"),)
)


class Storm:
    """What may happen to router A, which has the circuit, and router B, which sets itself up."""

    def __init__(self, weather: Network, folder: Path) -> None:
        self.network, self.dice = weather, weather.dice
        self.a = Machine(weather, ROUTER_A, folder / "a", (CIRCUIT,))
        self.b = Machine(weather, ROUTER_B, folder / "b", autoconfigure=ALLOWED)
        self.happened: list[str] = []

    def begin(self) -> None:
        machines = [self.a, self.b]
        self.dice.shuffle(machines)
        for machine in machines:
            machine.boot()
            self.network.run(self.dice.uniform(0, 2))

    def blow(self) -> None:
        """Let one thing happen, and some time pass."""
        event = self.dice.choice(self.events)
        self.happened.append(event.__name__)
        event(self)
        self.network.run(self.dice.choice((0.01, 0.2, 1.0, 4.0, 12.0)))

    def _one(self) -> Machine:
        return self.dice.choice((self.a, self.b))

    def change_weather(self) -> None:
        self.network.loss = self.dice.choice((0.0, 0.1, 0.5, 1.0))
        self.network.duplication = self.dice.choice((0.0, 0.3))
        self.network.longest_delay_s = self.dice.choice((0.002, 0.2, 1.5))

    def restart_orderly(self) -> None:
        machine = self._one()
        machine.stop()
        self.network.run(self.dice.uniform(0, 3))
        machine.boot()

    def crash_and_restart(self) -> None:
        machine = self._one()
        machine.crash()
        self.network.run(self.dice.uniform(0, 8))
        machine.boot()

    def reload_with_changes(self) -> None:
        changed = replace(
            CIRCUIT,
            keepalive=self.dice.choice((0.5, 1.0, 2.0)),
            mtu=self.dice.choice((None, 1400)),
            peer=replace(
                CIRCUIT.peer,
                addresses=(
                    ip_interface(
                        self.dice.choice(("172.16.16.2/30", "172.17.0.2/30", "10.9.9.2/30"))
                    ),
                ),
            ),
        )
        self.a.reload(replace(self.a.config, circuits=(changed,)))

    def delete_and_restore(self) -> None:
        self.a.reload(replace(self.a.config, circuits=()))
        self.network.run(self.dice.uniform(0, 3))
        self.a.reload(replace(self.a.config, circuits=(CIRCUIT,)))

    def forbid_and_allow(self) -> None:
        self.b.reload(replace(self.b.config, autoconfigure=None))
        self.network.run(self.dice.uniform(0, 3))
        self.b.reload(replace(self.b.config, autoconfigure=ALLOWED))

    def disable_and_enable(self) -> None:
        machine = self._one()
        registry = machine.registry
        assert registry is not None
        machine.try_command(lambda: registry.disable("vela0"))
        self.network.run(self.dice.uniform(0, 5))
        machine.try_command(lambda: registry.enable("vela0"))

    def break_and_mend(self) -> None:
        for path in self._one().data_paths.values():
            path.broken = "the worker is broken"
        self.network.run(self.dice.uniform(0, 5))
        self.mend()

    def refuse_to_carry(self) -> None:
        machine = self._one()
        machine.refusals["vela0"] = "no more sockets"
        for path in machine.data_paths.values():
            path.refusal = "no more sockets"
        self.network.run(self.dice.uniform(0, 8))
        self.mend()

    def lose_route(self) -> None:
        machine = self._one()
        machine.reachable = False
        self.network.run(self.dice.uniform(0, 90))
        machine.reachable = True

    def mend(self) -> None:
        for machine in (self.a, self.b):
            machine.refusals.clear()
            for path in machine.data_paths.values():
                path.broken = path.refusal = ""

    events: tuple[Callable[[Storm], None], ...] = (
        change_weather,
        change_weather,
        restart_orderly,
        crash_and_restart,
        reload_with_changes,
        delete_and_restore,
        forbid_and_allow,
        disable_and_enable,
        break_and_mend,
        refuse_to_carry,
        lose_route,
    )

    def calm_down(self) -> None:
        self.network.loss = self.network.duplication = 0.0
        self.network.longest_delay_s = 0.002
        self.mend()
        self.a.reload(replace(self.a.config, circuits=(CIRCUIT,)))
        # The longest back-off there is, and what it takes to come up.
        self.network.run(120.0)

    def check_state_fits_the_data_path(self) -> None:
        for machine in (self.a, self.b):
            for name, (state, reason) in machine.states().items():
                path = machine.data_paths.get(name)
                if path is None or path.closed:
                    assert state == "failed", (name, state, reason)
                    continue
                assert path.carrier == (state == "up"), (name, state, reason)
                if state in ("up", "unmonitored"):
                    assert path.attached is not None
                if state in ("failed", "rejected"):
                    assert reason


class AttackedStorm(Storm):
    """Somebody without the key is on the path: what was said comes again, from anywhere."""

    def __init__(self, weather: Network, folder: Path) -> None:
        super().__init__(weather, folder)
        self.a.key = self.b.key = LocalKey(b"the key of both")

    def attack(self: Storm) -> None:
        overheard, anywhere = self.network.overheard, (ROUTER_A, ROUTER_B, ATTACKER)
        for _ in range(self.dice.choice((1, 30))):
            if not overheard:
                return
            data, source, to = self.dice.choice(overheard[-self.dice.choice((3, 1000)) :])
            source = Endpoint(self.dice.choice((source.address, *anywhere)), source.port)
            to = self.dice.choice((to, Endpoint(self.dice.choice(anywhere[:2]), to.port)))
            self.network.forge(data, source, to)
            self.network.run(self.dice.choice((0.0, 0.001, 0.3)))

    events = (*Storm.events, *[attack] * 6)


@pytest.mark.parametrize("seed", first_of(SEEDS, 5))
def test_circuit_heals_after_a_storm_with_an_attacker_in_it(seed: int, tmp_path: Path) -> None:
    weather_a_storm(seed, tmp_path, AttackedStorm)


@pytest.mark.parametrize("seed", first_of(SEEDS, 5))
def test_circuit_heals_after_a_storm(seed: int, tmp_path: Path) -> None:
    weather_a_storm(seed, tmp_path)


@pytest.mark.parametrize("number", first_of(range(FRESH_SEEDS), 2))
def test_circuit_heals_after_a_storm_that_nobody_has_seen(number: int, tmp_path: Path) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    weather_a_storm(seed, tmp_path / "a")
    weather_a_storm(seed, tmp_path / "b", AttackedStorm)


def weather_a_storm(seed: int, tmp_path: Path, kind: type[Storm] = Storm) -> None:
    with network(seed) as weather:
        storm = kind(weather, tmp_path)
        storm.begin()
        for _ in range(int(os.environ.get("VELA_STORM_EVENTS", "8"))):
            storm.blow()
            storm.check_state_fits_the_data_path()

        storm.calm_down()

        assert weather.loop.failures == [], storm.happened
        storm.check_state_fits_the_data_path()
        for machine in (storm.a, storm.b):
            assert [state for state, _ in machine.states().values()] == ["up"], (
                storm.happened,
                storm.a.states(),
                storm.b.states(),
            )
        (path_a,), (path_b,) = storm.a.data_paths.values(), storm.b.data_paths.values()
        assert path_a.attached is not None
        assert path_b.attached is not None
        assert path_a.mtu == path_b.mtu
        assert path_a.attached[1].remote_mac == path_b.local_mac
        assert path_b.attached[1].remote_mac == path_a.local_mac
