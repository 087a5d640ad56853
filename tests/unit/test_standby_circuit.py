"""Circuits with standby remotes, on three simulated machines: see simulation."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from simulation import ROUTER_A, ROUTER_B, Machine, Network, network

from vela.address import Remote
from vela.errors import ConfigError
from vela.signaling.codec import read_header
from vela.signaling.messages import MessageType
from vela.signaling.signer import LocalKey
from vela.supervisor.circuit.standby import DOUBT_S, GOOD_S, TRY_S
from vela.supervisor.config.records import AutoconfigureConfig, CircuitConfig, Config
from vela.supervisor.status import CircuitStatus

ROUTER_C = ip_address("192.0.2.3")
NAME = "vela0"
KEY = LocalKey(bytes(range(32)))
ALLOWED = AutoconfigureConfig(
    sources=(ip_network("192.0.2.0/24"),), networks=(ip_network("172.16.0.0/12"),)
)
KEEPALIVE_S = 1.0
LOST_S = 3.5 * KEEPALIVE_S


def listed(*hosts: str) -> Remote:
    primary, *standbys = map(Remote, hosts)
    return Remote(primary.host, standbys=tuple(standbys))


def circuit(*hosts: str, **settings: Any) -> CircuitConfig:
    remote = listed(*(hosts or (str(ROUTER_B), str(ROUTER_C))))
    return CircuitConfig(name=NAME, id=1, remote=remote, keepalive=KEEPALIVE_S, **settings)


class Three:
    """Router A, whose circuit has B for a primary and C for a standby."""

    def __init__(self, link: Network, folder: Path) -> None:
        self.link = link
        self.folder = folder
        self.b = Machine(link, ROUTER_B, folder / "b", autoconfigure=ALLOWED, key=KEY)
        self.c = Machine(link, ROUTER_C, folder / "c", autoconfigure=ALLOWED, key=KEY)
        for machine in (self.b, self.c):
            machine.boot()

    def begin(self, config: CircuitConfig | None = None, **settings: Any) -> None:
        autoconfigure = settings.pop("autoconfigure", ALLOWED)
        self.a = Machine(
            self.link,
            ROUTER_A,
            self.folder / "a",
            (config or circuit(**settings),),
            autoconfigure=autoconfigure,
            key=KEY,
        )
        self.a.names = {"router-b": (ROUTER_B,), "router-c": (ROUTER_C,)}
        self.a.boot()
        self.link.run(2)

    @property
    def status(self) -> CircuitStatus:
        assert self.a.registry is not None
        (found,) = self.a.registry.status()
        return found

    @property
    def shown(self) -> tuple[str, str]:
        return self.status.state, self.status.remote

    def states(self) -> list[tuple[str, str, bool]]:
        return [(each.name, each.state, each.current) for each in self.status.remotes]

    def switch(self, remote: str | None = None) -> str:
        assert self.a.registry is not None
        return self.a.registry.switch(NAME, remote)

    def until(self, shown: tuple[str, str], limit_s: float) -> float:
        """Return after how many seconds the circuit has this state and remote."""
        for tenth in range(round(10 * limit_s) + 1):
            if self.shown == shown:
                return tenth / 10
            self.link.run(0.1)
        raise AssertionError(f"{self.shown} is not {shown} after {limit_s} s: {self.status}")


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Three]:
    with network(1) as link:
        made = Three(link, tmp_path)
        yield made
        assert link.loop.failures == []


B, C = str(ROUTER_B), str(ROUTER_C)


def test_primary_carries_the_circuit_and_the_standby_knows_nothing(three: Three) -> None:
    three.begin()

    assert three.shown == ("up", B)
    assert three.states() == [(B, "up", True), (C, "standby", False)]
    assert three.status.reason == ""
    assert three.c.states() == {}
    assert not any(to.address == ROUTER_C for _, _, to in three.link.overheard)


def test_standby_stands_in_within_a_second_of_the_loss_and_the_interface_stays(
    three: Three,
) -> None:
    three.begin()
    path = three.a.data_paths[NAME]

    three.b.crash()
    taken_s = three.until(("up", C), 20)

    assert taken_s <= LOST_S + 1
    assert three.a.data_paths[NAME] is path
    assert not path.closed
    assert path.carrier
    assert three.states() == [(B, "lost", False), (C, "up", True)]
    assert three.status.reason.startswith(f"{C} stands in for {B}: three keepalives missed")
    assert three.status.remote_address == C


def test_primary_that_is_not_there_at_the_start_costs_seconds(three: Three) -> None:
    three.b.crash()
    three.begin()

    assert three.until(("up", C), 20) <= DOUBT_S + 1


def test_primary_whose_name_is_unknown_costs_a_second(three: Three) -> None:
    three.begin(circuit("nobody", "router-c"))

    assert three.shown == ("up", "router-c")
    assert three.status.remotes[0].reason == "nobody: no such name"


def test_primary_that_rejects_the_circuit_costs_a_second(three: Three) -> None:
    three.b.stop()
    three.b.config = Config(
        daemon=three.b.config.daemon,
        autoconfigure=AutoconfigureConfig(sources=ALLOWED.sources, max_circuits=0),
    )
    three.b.boot()
    three.begin()

    assert three.until(("up", C), 2) <= 1.0


def test_primary_gets_the_circuit_back_when_it_has_answered_for_a_while(three: Three) -> None:
    three.begin()
    three.b.crash()
    three.until(("up", C), 20)
    three.b.boot()
    three.link.run(10)

    assert three.shown == ("up", C)
    assert three.states() == [(B, "answers", False), (C, "up", True)]
    assert "answers again" in three.status.reason
    before = len(three.link.overheard)
    assert GOOD_S - 11 <= three.until(("up", B), 60) <= GOOD_S + 4
    assert three.status.reason == ""
    # The standby is told, keeps its end, and is told why when it asks to resume.
    three.link.run(5)
    assert three.c.states()[NAME] == (
        "down",
        "this end stands by: the other one uses another remote of its list",
    )
    said = [
        read_header(data).type
        for data, _, to in three.link.overheard[before:]
        if to.address == ROUTER_C
    ]
    assert MessageType.CLOSE in said


def test_asking_the_primary_begins_no_session_there(three: Three) -> None:
    three.b.crash()
    three.begin()
    three.until(("up", C), 20)
    three.b.boot()
    before = len(three.link.overheard)
    three.link.run(20)

    said = {
        read_header(data).type
        for data, _, to in three.link.overheard[before:]
        if to.address == ROUTER_B
    }
    assert said == {MessageType.REQUEST}
    assert three.b.states() == {}


def test_primary_that_answers_and_carries_no_frames_loses_the_circuit_again(three: Three) -> None:
    three.begin()
    three.b.crash()
    three.until(("up", C), 20)
    three.link.new_paths = {"silent": True}
    three.b.boot()
    three.link.run(GOOD_S + 2 * TRY_S)

    assert three.until(("up", C), TRY_S + 4) <= TRY_S + 4
    # Down when it died, and once for the trial.
    assert three.status.transitions == 5
    assert three.status.remotes[0].state in ("answers", "lost")


def test_both_remotes_lost_are_both_named_and_tried_in_turn(three: Three) -> None:
    three.begin()
    three.b.crash()
    three.c.crash()
    three.link.run(30)

    state, reason = three.a.states()[NAME]
    assert state == "down"
    assert reason.count("no answer from") == 2
    assert f"{B}: " in reason
    assert f"{C}: " in reason

    three.c.boot()
    assert three.until(("up", C), 20) <= 2 * DOUBT_S + 2


def test_switch_goes_to_the_next_remote_at_once_and_stays(three: Three) -> None:
    three.begin()

    assert three.switch() == C
    assert three.until(("up", C), 2) <= 0.5
    assert three.status.reason == f"{C} carries the circuit, as a command says"
    three.link.run(3 * GOOD_S)
    assert three.shown == ("up", C)
    assert three.b.states()[NAME][0] == "down"

    assert three.switch(B) == B
    assert three.until(("up", B), 2) <= 0.5
    assert three.status.reason == ""


def test_switch_to_a_dead_remote_comes_back(three: Three) -> None:
    three.begin()
    three.c.crash()

    path = three.a.data_paths[NAME]

    three.switch(C)
    three.link.run(0.5)
    assert (path.carrier, path.attached, three.status.remote_address) == (False, None, None)
    assert three.until(("up", B), 10) <= DOUBT_S + 1
    assert path.carrier
    assert three.status.remotes[1].reason


@pytest.mark.parametrize(
    ("hosts", "wanted", "mistake"),
    [
        ((B, C), "router9", "vela0 has no remote router9"),
        ((B,), None, "vela0 has no standby remote"),
    ],
)
def test_switch_that_makes_no_sense_is_refused(
    three: Three, hosts: tuple[str, ...], wanted: str | None, mistake: str
) -> None:
    three.begin(circuit(*hosts))

    with pytest.raises(ConfigError, match=mistake):
        three.switch(wanted)


def test_restart_begins_with_the_primary(three: Three) -> None:
    three.begin()
    three.switch(C)
    three.until(("up", C), 2)

    assert three.a.registry is not None
    three.a.registry.restart(NAME)

    assert three.until(("up", B), 3) <= 1
    assert three.status.reason == ""


def test_circuit_that_is_taken_down_tries_nothing(three: Three) -> None:
    three.begin()
    assert three.a.registry is not None
    three.a.registry.disable(NAME)
    three.link.run(30)

    assert three.shown == ("disabled", B)
    assert three.c.states() == {}


@pytest.mark.parametrize("survivor", [B, C])
def test_reload_that_keeps_the_remote_in_use_changes_nothing(three: Three, survivor: str) -> None:
    three.begin()
    three.switch(survivor) if survivor == C else None
    three.until(("up", survivor), 2)
    path = three.a.data_paths[NAME]
    attachments = path.attachments

    three.a.reload(
        Config(three.a.config.daemon, ALLOWED, circuits=(circuit("192.0.2.9", survivor),))
    )
    three.link.run(5)

    assert three.shown == ("up", survivor)
    assert (path.attachments, path.closed) == (attachments, False)
    assert [each.name for each in three.status.remotes] == ["192.0.2.9", survivor]


def test_reload_without_the_remote_in_use_goes_to_the_primary(three: Three) -> None:
    three.begin()
    path = three.a.data_paths[NAME]

    three.a.reload(Config(three.a.config.daemon, ALLOWED, circuits=(circuit(C),)))

    assert three.until(("up", C), 3) <= 1
    assert three.a.data_paths[NAME] is path
    three.link.run(2)
    assert three.b.states() == {}  # it was told that the circuit is deleted


def test_list_of_a_command_outlives_a_restart(three: Three) -> None:
    three.a = Machine(three.link, ROUTER_A, three.folder / "a", autoconfigure=ALLOWED, key=KEY)
    three.a.boot()
    three.a.add(NAME, {"remote": [B, C], "keepalive": KEEPALIVE_S})
    three.link.run(2)
    three.b.crash()
    three.until(("up", C), 20)

    three.a.stop()
    three.a.boot()

    assert [each.name for each in three.status.remotes] == [B, C]
    assert three.until(("up", C), 20) <= DOUBT_S + 1


def test_id_is_the_next_one_that_is_free_toward_all_remotes(three: Three) -> None:
    three.a = Machine(three.link, ROUTER_A, three.folder / "a", autoconfigure=ALLOWED, key=KEY)
    three.a.boot()
    three.a.add("vela1", {"remote": C})
    three.link.run(2)
    three.a.add(NAME, {"remote": [B, C]})
    three.a.add("vela2", {"remote": C})

    assert three.a.registry is not None
    assert [each.id for each in three.a.registry.status()] == [1, 2, 3]


def test_primary_that_dies_again_while_it_is_watched_has_to_be_good_anew(three: Three) -> None:
    three.begin()
    three.b.crash()
    three.until(("up", C), 20)
    three.b.boot()
    three.link.run(GOOD_S - 10)
    assert three.states()[0] == (B, "answers", False)

    three.b.crash()
    three.link.run(8)
    assert three.states()[0] == (B, "lost", False)
    assert three.status.reason == f"{C} stands in for {B}: no answer"
    three.b.boot()

    assert GOOD_S <= three.until(("up", B), 60) <= GOOD_S + 5


def test_reload_to_a_list_whose_primary_is_dead_goes_on_to_the_standby(three: Three) -> None:
    three.begin()

    three.a.reload(Config(three.a.config.daemon, ALLOWED, circuits=(circuit("192.0.2.9", C),)))

    assert three.until(("up", C), 10) <= DOUBT_S + 1


def test_standby_that_is_this_machine_is_refused(three: Three) -> None:
    three.begin()
    assert three.a.registry is not None

    with pytest.raises(ConfigError, match=f"{ROUTER_A} is this machine"):
        three.a.add("vela1", {"remote": [C, str(ROUTER_A)]})


def test_ends_that_are_all_configured_meet_where_the_list_says(three: Three) -> None:
    back = (CircuitConfig(name=NAME, id=1, remote=Remote(str(ROUTER_A)), keepalive=KEEPALIVE_S),)
    for machine in (three.b, three.c):
        machine.stop()
        machine.config = Config(daemon=machine.config.daemon, circuits=back)
        machine.boot()
    three.begin()
    three.link.run(5)

    assert three.shown == ("up", B)
    assert three.c.states()[NAME][0] == "down"
    three.b.crash()
    assert three.until(("up", C), 20) <= LOST_S + 1
    three.b.boot()
    assert three.until(("up", B), 60) <= GOOD_S + 5
    three.link.run(5)
    assert three.b.states()[NAME][0] == "up"
    assert three.c.states()[NAME][0] == "down"


def test_remote_that_takes_the_circuit_down_is_left(three: Three) -> None:
    three.begin()
    assert three.b.registry is not None

    three.b.registry.disable(NAME)

    assert three.until(("up", C), 5) <= 1
    three.b.registry.enable(NAME)
    three.link.run(2)
    assert three.shown == ("up", C)


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_lossy_network_does_not_keep_the_circuit_down(three: Three, loss: float) -> None:
    three.link.loss = loss
    three.begin()
    three.link.run(10)
    three.b.crash()
    three.until(("up", C), 40)


def test_deleted_circuit_asks_no_primary_any_more(three: Three) -> None:
    three.begin()
    three.b.crash()
    three.until(("up", C), 20)
    three.a.reload(Config(three.a.config.daemon, ALLOWED))
    three.link.run(2)
    before = len(three.link.overheard)

    three.link.run(30)

    assert len(three.link.overheard) == before
    assert three.c.states() == {}


def test_reload_that_puts_another_remote_first_gives_it_the_circuit_in_time(three: Three) -> None:
    three.begin(circuit(B))
    three.c.stop()

    three.a.reload(Config(three.a.config.daemon, ALLOWED, circuits=(circuit(C, B),)))

    assert three.shown == ("up", B)
    assert three.status.reason == (
        f"{B} stands in for {C}, which gets the circuit when it has answered for 30 s"
    )
    three.link.run(10)
    assert three.status.reason == f"{B} stands in for {C}: no answer"
    three.c.boot()
    assert GOOD_S <= three.until(("up", C), 60) <= GOOD_S + 5


def test_standby_that_a_reload_adds_takes_over_at_once(three: Three) -> None:
    three.begin(circuit(B))
    three.a.reload(Config(three.a.config.daemon, ALLOWED, circuits=(circuit(B, C),)))
    three.link.run(1)

    three.b.crash()

    assert three.until(("up", C), 20) <= LOST_S + 1
