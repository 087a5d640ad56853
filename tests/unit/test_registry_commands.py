"""What operators and remotes do with circuits, on two simulated machines: see simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from simulation import ROUTER_A, ROUTER_B, Machine, Network, RecordingDataPath, network
from structlog.testing import capture_logs

from vela.address import Remote
from vela.errors import ConfigError, DeviceError
from vela.signaling.signer import LocalKey
from vela.supervisor.config.records import AutoconfigureConfig, CircuitConfig, PeerConfig
from vela.supervisor.registry.facts import HostFacts, KnownAddress, KnownRoute

ALLOWED = AutoconfigureConfig(
    sources=(ip_network("192.0.2.0/24"),), networks=(ip_network("172.16.0.0/12"),)
)
KEY = LocalKey(bytes(range(32)))


class Pair:
    """Router A, where circuits are commanded, and router B, which sets itself up."""

    def __init__(self, link: Network, folder: Path) -> None:
        self.link = link
        self.a = Machine(link, ROUTER_A, folder / "a", key=KEY)
        self.b = Machine(link, ROUTER_B, folder / "b", autoconfigure=ALLOWED, key=KEY)
        for machine in (self.a, self.b):
            machine.boot()

    def add(self, name: str, **settings: object) -> None:
        self.a.add(name, {"remote": str(ROUTER_B), **settings})
        self.link.run(3)

    def ids(self, machine: Machine) -> dict[str, int]:
        assert machine.registry is not None
        return {each.name: each.id for each in machine.registry.status()}

    def words(self, machine: Machine) -> dict[str, str]:
        return {name: state for name, (state, _) in machine.states().items()}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with network(1) as link:
        made = Pair(link, tmp_path)
        yield made
        assert link.loop.failures == []


def test_added_circuit_is_up_on_both_machines_with_the_next_free_id(pair: Pair) -> None:
    pair.add("vela0")
    pair.add("vela1", id=3)
    pair.add("vela2")

    assert pair.ids(pair.a) == {"vela0": 1, "vela1": 3, "vela2": 2}
    assert set(pair.words(pair.a).values()) == {"up"}
    assert sorted(pair.ids(pair.b).values()) == [1, 2, 3]
    assert set(pair.words(pair.b).values()) == {"up"}


@pytest.mark.parametrize("others", [True, False])
def test_circuit_deleted_while_the_other_machine_was_away_goes_there_when_it_is_back(
    tmp_path: Path, others: bool
) -> None:
    """The machine that deleted it lets nobody set up anything."""
    with network(1) as link:
        a = Machine(link, ROUTER_A, tmp_path / "a")
        b = Machine(link, ROUTER_B, tmp_path / "b", autoconfigure=ALLOWED)
        for machine in (a, b):
            machine.boot()
        for name in ("vela0", "vela1") if others else ("vela1",):
            a.add(name, {"remote": str(ROUTER_B)})
        link.run(120)
        b.crash()
        assert a.registry is not None
        a.registry.delete("vela1")
        link.run(5)

        b.boot()
        link.run(60)

        ids = [[each.id for each in machine.statuses()] for machine in (a, b)]
        assert ids == ([[1], [1]] if others else [[], []])
        assert link.loop.failures == []


def test_added_circuit_that_is_not_enabled_stays_down_until_it_is(pair: Pair) -> None:
    """As where [defaults] says so."""
    pair.add("vela0", enabled=False)

    assert pair.words(pair.a) == {"vela0": "disabled"}
    assert pair.words(pair.b) == {}


@pytest.mark.parametrize("number", [None, 1])
def test_circuit_whose_id_another_machine_has_there_gets_the_next_one_unless_it_was_chosen(
    pair: Pair, tmp_path: Path, number: int | None
) -> None:
    pair.add("vela0")
    pair.a.crash()
    # Behind the same NAT, as B sees it.
    other = Machine(pair.link, ROUTER_A, tmp_path / "other", key=KEY)
    other.boot()

    other.add("vela7", {"remote": str(ROUTER_B)} | ({} if number is None else {"id": number}))
    pair.link.run(5)

    [(state, reason)] = other.states().values()
    if number is None:
        assert (state, pair.ids(other)) == ("up", {"vela7": 2})
        assert sorted(pair.ids(pair.b).values()) == [1, 2]
        other.stop()
        other.boot()
        pair.link.run(5)
        assert (pair.words(other), pair.ids(other)) == ({"vela7": "up"}, {"vela7": 2})
    else:
        assert state == "rejected"
        assert reason.startswith("another machine set this circuit up")
        assert pair.ids(pair.b) == {"vela0": 1}


def test_ids_are_not_tried_for_ever(pair: Pair, tmp_path: Path) -> None:
    allowed = replace(ALLOWED, max_circuits_per_remote=64)
    pair.b.reload(replace(pair.b.config, autoconfigure=allowed))
    for number in range(20):
        pair.add(f"vela{number}")
    pair.a.crash()
    other = Machine(pair.link, ROUTER_A, tmp_path / "other", key=KEY)
    other.boot()

    other.add("vela7", {"remote": str(ROUTER_B)})
    pair.link.run(20)

    [(state, reason)] = other.states().values()
    assert (state, pair.ids(other)) == ("rejected", {"vela7": 17})
    assert reason.startswith("another machine set this circuit up")


def test_name_that_is_taken_is_refused(pair: Pair) -> None:
    pair.add("vela0")

    with pytest.raises(ConfigError, match="there is a circuit vela0 already"):
        pair.add("vela0", id=9)

    assert pair.ids(pair.a) == {"vela0": 1}


def test_remote_that_asks_for_a_name_that_is_taken_is_refused_in_words(pair: Pair) -> None:
    taken = CircuitConfig("vela0", 9, Remote("192.0.2.77"))
    pair.b.reload(replace(pair.b.config, circuits=(taken,)))

    pair.add("vela5", peer={"interface": "vela0"})

    state, reason = pair.a.states()["vela5"]
    assert state == "rejected"
    assert reason == "on the other end, there is a circuit vela0 already"


def test_deleted_circuit_is_gone_on_both_machines(pair: Pair) -> None:
    pair.add("vela0")
    assert pair.a.registry is not None
    pair.a.registry.delete("vela0")
    pair.link.run(3)

    assert pair.ids(pair.a) == pair.ids(pair.b) == {}


def test_circuit_that_others_set_up_is_deleted_there_while_it_is_up(pair: Pair) -> None:
    pair.add("vela0")
    assert pair.b.registry is not None

    with pytest.raises(
        ConfigError, match=r"was set up by 192\.0\.2\.1, and is up; delete it there"
    ):
        pair.b.registry.delete("vela0")

    pair.a.crash()
    pair.link.run(30)  # three keepalives, 5 s apart, are missed
    pair.b.registry.delete("vela0")
    assert pair.ids(pair.b) == {}


def test_circuits_of_commands_and_peers_outlive_restarts(pair: Pair) -> None:
    pair.add("vela0")
    for machine in (pair.a, pair.b):
        machine.crash()
        machine.boot()
    pair.link.run(5)

    assert pair.words(pair.a) == pair.words(pair.b) == {"vela0": "up"}


@pytest.mark.parametrize("end", ["a", "b"])
def test_disabled_circuit_stays_so_across_restarts_until_it_is_enabled(
    pair: Pair, end: str
) -> None:
    pair.add("vela0")
    machine = {"a": pair.a, "b": pair.b}[end]
    assert machine.registry is not None
    machine.registry.disable("vela0")
    pair.link.run(3)
    assert pair.words(machine) == {"vela0": "disabled"}

    machine.crash()
    machine.boot()
    pair.link.run(5)
    assert pair.words(machine) == {"vela0": "disabled"}

    machine.registry.enable("vela0")
    pair.link.run(40)
    assert pair.words(pair.a) == pair.words(pair.b) == {"vela0": "up"}


def test_circuit_of_the_file_that_was_disabled_and_changes_stays_disabled(pair: Pair) -> None:
    circuit = CircuitConfig("vela0", 1, Remote(str(ROUTER_B)), peer=PeerConfig(interface="vela0"))
    pair.a.reload(replace(pair.a.config, circuits=(circuit,)))
    pair.link.run(3)
    assert pair.a.registry is not None
    pair.a.registry.disable("vela0")

    pair.a.reload(replace(pair.a.config, circuits=(replace(circuit, keepalive=1.0),)))
    pair.link.run(3)

    assert pair.words(pair.a) == {"vela0": "disabled"}


def test_remote_with_several_addresses_is_tried_at_each(pair: Pair) -> None:
    pair.a.names["router.example.net"] = (ip_address("192.0.2.50"), ROUTER_B)
    pair.add("vela0", remote="router.example.net")
    pair.link.run(30)

    assert pair.words(pair.a) == {"vela0": "up"}
    path, _ = pair.a.data_paths["vela0"].attached or (None, None)
    assert path is not None
    assert path.endpoint.address == ROUTER_B


def test_name_that_moves_is_followed_by_the_same_circuit(pair: Pair) -> None:
    pair.a.names["router.example.net"] = (ROUTER_B,)
    pair.add("vela0", remote="router.example.net")
    assert pair.words(pair.a) == {"vela0": "up"}
    made = pair.a.data_paths["vela0"]

    pair.b.stop()
    elsewhere = Machine(
        pair.link,
        ip_address("192.0.2.3"),
        pair.b.config.daemon.state_directory,
        autoconfigure=ALLOWED,
        key=KEY,
    )
    pair.a.names["router.example.net"] = (ip_address("192.0.2.3"),)
    elsewhere.boot()
    pair.link.run(120)

    assert pair.words(pair.a) == {"vela0": "up"}
    assert pair.a.data_paths["vela0"] is made


def test_two_names_of_one_machine_cannot_share_an_id(pair: Pair) -> None:
    for name in ("one.example.net", "two.example.net"):
        pair.a.names[name] = (ROUTER_B,)
    pair.add("vela0", remote="one.example.net", id=1)
    pair.add("vela1", remote="two.example.net", id=1)

    assert pair.words(pair.a)["vela0"] == "up"
    state, reason = pair.a.states()["vela1"]
    assert state == "failed"
    assert reason == "vela0 already uses circuit id 1 toward 192.0.2.2"


def test_circuit_whose_agreement_cannot_be_carried_recovers_when_it_can(pair: Pair) -> None:
    pair.b.refusals["vela0"] = "no more sockets"
    pair.add("vela0", peer={"interface": "vela0", "addresses": ["172.16.0.2/30"]})
    state, reason = pair.a.states()["vela0"]
    assert (state, reason) == ("rejected", "on the other end, no more sockets")

    pair.b.refusals.clear()
    pair.link.run(60)

    assert pair.words(pair.a) == pair.words(pair.b) == {"vela0": "up"}
    config = pair.b.data_paths["vela0"].config
    assert config.addresses == (ip_interface("172.16.0.2/30"),)


def test_bridge_that_is_there_later_at_both_ends_widens_the_circuit(pair: Pair) -> None:
    pair.add("vela0")
    paths = [machine.data_paths["vela0"] for machine in (pair.a, pair.b)]
    assert [path.mtu for path in paths] == [1471, 1471]

    for path, mtus in zip(paths, ([1471, 1471], [1500, 1500]), strict=True):
        path.bridge_mtu = 1500
        pair.link.run(2)
        assert [path.mtu for path in paths] == mtus
    paths[0].bridge_mtu = None
    pair.link.run(2)

    assert [path.mtu for path in paths] == [1471, 1471]
    assert pair.words(pair.a) == pair.words(pair.b) == {"vela0": "up"}


def test_address_that_overlaps_is_refused_in_the_same_words_on_both_ends(pair: Pair) -> None:
    docker = KnownAddress(ip_interface("172.17.0.1/16"), ip_network("172.17.0.0/16"), "docker0")
    pair.b.known = HostFacts(addresses=(docker,))

    with capture_logs() as lines:
        pair.add("vela0", peer={"addresses": ["172.17.0.6/16"]})

    why = "on the other end, 172.17.0.6/16 overlaps with 172.17.0.1/16 of the interface docker0"
    assert pair.a.states()["vela0"] == ("rejected", why)
    assert why in {line.get("reason") for line in lines if line["event"] == "circuit_refused"}
    assert pair.ids(pair.b) == {}
    pair.b.known = HostFacts()
    pair.link.run(30)
    assert pair.words(pair.a) == {"vela0": "up"}


def test_overlap_of_the_operators_own_is_a_warning(pair: Pair) -> None:
    pair.a.known = HostFacts(routes=(KnownRoute(ip_network("172.24.0.0/16"), "eth0"),))

    with capture_logs() as lines:
        pair.add("vela0", addresses=["172.24.1.1/30"])

    assert pair.words(pair.a) == {"vela0": "up"}
    (warning,) = [line for line in lines if line["event"] == "addresses_overlap"]
    assert warning["log_level"] == "warning"
    assert warning["reason"] == "172.24.1.1/30 overlaps with the route to 172.24.0.0/16"


def test_circuit_that_was_never_used_goes_when_its_machine_is_silent(pair: Pair) -> None:
    """Also if this host restarts meanwhile: it is kept, and its silence is counted anew."""
    pair.add("vela0")
    pair.link.run(30)
    pair.a.crash()
    pair.link.run(200)
    pair.b.crash()
    pair.b.boot()
    pair.link.run(290)
    assert pair.words(pair.b) == {"vela0": "connecting"}

    pair.link.run(20)

    assert pair.words(pair.b) == {}
    pair.b.crash()
    pair.b.boot()
    assert pair.words(pair.b) == {}
    pair.a.boot()
    pair.link.run(40)
    assert pair.words(pair.b) == {"vela0": "up"}


def test_circuit_that_was_used_for_a_minute_is_kept_for_ever(pair: Pair) -> None:
    pair.add("vela0")
    pair.link.run(70)
    pair.a.crash()
    pair.link.run(1000)
    assert pair.words(pair.b) == {"vela0": "down"}

    pair.b.crash()
    pair.b.boot()
    pair.link.run(1000)

    assert set(pair.words(pair.b)) == {"vela0"}


def test_circuit_that_the_operator_took_down_is_not_silent(pair: Pair) -> None:
    pair.add("vela0")
    assert pair.b.registry is not None
    pair.b.registry.disable("vela0")

    pair.link.run(1000)

    assert pair.words(pair.b) == {"vela0": "disabled"}


def test_changes_that_come_too_often_wait_and_get_there(pair: Pair) -> None:
    pair.add("vela0", id=7)
    made = 0
    for change in range(40):
        before = pair.b.data_paths["vela0"]
        assert pair.a.registry is not None
        pair.a.registry.delete("vela0")
        pair.link.run(0.2)
        settings = {"id": 7, "peer": {"interface": "vela0", "mac": f"02:00:00:00:00:{change:02x}"}}
        pair.a.add("vela0", {"remote": str(ROUTER_B), **settings})
        pair.link.run(0.3)
        made += pair.b.data_paths.get("vela0") is not before

    assert made <= 5 + 20 / 5
    assert pair.words(pair.a) == {"vela0": "rejected"}
    pair.link.run(60)
    assert pair.words(pair.a) == {"vela0": "up"}
    assert pair.b.data_paths["vela0"].config.mac == bytes.fromhex("020000000027")


def test_unknown_name_suggests_a_near_one(pair: Pair) -> None:
    pair.add("vela0")
    pair.add("vela1")
    assert pair.a.registry is not None

    for command in (pair.a.registry.delete, pair.a.registry.disable, pair.a.registry.restart):
        with pytest.raises(ConfigError, match="no circuit vela00; did you mean vela0\\?"):
            command("vela00")


@pytest.mark.parametrize("remote", [str(ROUTER_A), "127.0.0.1", "::1", f"{ROUTER_A}:48621"])
def test_remote_that_is_this_machine_is_refused(pair: Pair, remote: str) -> None:
    assert pair.a.registry is not None

    with pytest.raises(ConfigError, match="is this machine; the remote is another machine"):
        pair.a.registry.add("vela7", {"remote": remote})

    assert pair.ids(pair.a) == {}


def test_other_port_of_this_machine_is_another_daemon(pair: Pair) -> None:
    pair.add("vela0", remote=f"{ROUTER_A}:48622")

    assert pair.words(pair.a) == {"vela0": "connecting"}


def test_name_that_leads_to_this_machine_fails_with_the_reason(pair: Pair) -> None:
    pair.a.names["router.example.net"] = (ROUTER_A,)

    pair.add("vela0", remote="router.example.net")

    state, reason = pair.a.states()["vela0"]
    assert (state, reason) == (
        "failed",
        "192.0.2.1 is this machine; the remote is another machine, or another port",
    )


def test_restarted_circuit_is_up_again_in_a_new_session_on_the_same_interface(pair: Pair) -> None:
    pair.add("vela0")
    before = pair.a.data_paths["vela0"]
    assert pair.a.registry is not None
    events: list[object] = []
    pair.a.registry.set_change_handler(lambda event: events.append(event["state"]))

    pair.a.registry.restart("vela0")
    pair.link.run(5)

    assert pair.words(pair.a) == pair.words(pair.b) == {"vela0": "up"}
    assert pair.a.data_paths["vela0"] is before
    assert events[0] == "disabled"
    assert events[-1] == "up"


def test_restart_of_what_is_down_says_how_to_undo_that(pair: Pair) -> None:
    pair.add("vela0")
    assert pair.a.registry is not None
    pair.a.registry.disable("vela0")

    with pytest.raises(ConfigError, match="administratively down; velactl up vela0 undoes that"):
        pair.a.registry.restart("vela0")


def test_circuit_that_the_file_disables_stays_so_until_the_file_says_otherwise(
    pair: Pair,
) -> None:
    off = CircuitConfig("vela0", 1, Remote(str(ROUTER_B)), enabled=False)
    pair.a.reload(replace(pair.a.config, circuits=(off,)))
    pair.link.run(3)
    assert pair.words(pair.a) == {"vela0": "disabled"}
    assert pair.words(pair.b) == {}
    assert pair.a.registry is not None
    with pytest.raises(ConfigError, match="the file says enabled = false; change that there"):
        pair.a.registry.enable("vela0")

    pair.a.crash()
    pair.a.boot()
    pair.link.run(3)
    assert pair.words(pair.a) == {"vela0": "disabled"}

    pair.a.reload(replace(pair.a.config, circuits=(replace(off, enabled=True),)))
    pair.link.run(3)
    assert pair.words(pair.a) == pair.words(pair.b) == {"vela0": "up"}


def test_changes_of_circuits_are_told_as_they_happen(pair: Pair) -> None:
    assert pair.a.registry is not None
    told: list[tuple[object, ...]] = []
    pair.a.registry.set_change_handler(
        lambda event: told.append((event["event"], event["circuit"], event["state"]))
    )

    pair.add("vela0")
    pair.a.registry.delete("vela0")

    assert told[0] == ("added", "vela0", "resolving")
    assert told[-2:] == [("state", "vela0", "up"), ("removed", "vela0", "up")]
    assert ("state", "vela0", "connecting") in told


def test_status_tells_since_when_and_how_often_it_was_up_or_down(pair: Pair) -> None:
    pair.add("vela0")
    pair.link.run(10)
    assert pair.a.registry is not None
    (status,) = pair.a.registry.status()
    assert status.transitions == 1
    assert 9 < status.since_seconds < 14

    pair.b.crash()
    pair.link.run(60)
    (status,) = pair.a.registry.status()
    assert (status.state, status.transitions) == ("down", 2)


def test_change_that_cannot_be_saved_is_not_made(pair: Pair) -> None:
    pair.add("vela0")
    pair.add("vela1")
    registry, state = pair.a.registry, pair.a.config.daemon.state_directory
    assert registry is not None
    registry.disable("vela1")
    pair.link.run(3)

    def everything() -> tuple[object, ...]:
        saved = (state / "circuits.json").read_text()
        return pair.words(pair.a), pair.words(pair.b), pair.ids(pair.a), saved

    before = everything()
    state.chmod(0o777)  # velad keeps nothing there
    changes: tuple[Callable[[], object], ...] = (
        lambda: pair.add("vela2"),
        lambda: registry.disable("vela0"),
        lambda: registry.disable("vela1"),  # nothing to do, and nothing saved
        lambda: registry.enable("vela0"),
        lambda: registry.enable("vela1"),
        lambda: registry.delete("vela0"),
        lambda: registry.delete("vela1"),
    )
    for change in changes:
        with pytest.raises(DeviceError, match="can be changed by others"):
            change()
        pair.link.run(3)
        assert everything() == before

    state.chmod(0o700)
    registry.delete("vela0")
    registry.enable("vela1")
    pair.link.run(3)
    assert pair.words(pair.a) == pair.words(pair.b) == {"vela1": "up"}


ONE, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


def wanting(mac: bytes, **changes: Any) -> CircuitConfig:
    """Return a circuit whose interface on the other machine has this MAC address."""
    peer = PeerConfig(interface="vela0", mac=mac)
    return replace(CircuitConfig("vela0", 1, Remote(str(ROUTER_B)), peer=peer), **changes)


@pytest.mark.parametrize("wanted", [wanting(OTHER), wanting(OTHER, id=2)], ids=["changed", "new"])
def test_circuit_of_a_peer_that_cannot_be_made_otherwise_is_restored_as_it_was(
    pair: Pair, wanted: CircuitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.a.reload(replace(pair.a.config, circuits=(wanting(ONE),)))
    pair.link.run(3)
    make = pair.b.make_data_path

    def fail(config: CircuitConfig, *arguments: Any, **more: Any) -> RecordingDataPath:
        if config.mac == OTHER:
            raise DeviceError("vela0 cannot be created: Cannot allocate memory")
        return make(config, *arguments, **more)

    assert pair.b.registry is not None
    pair.b.registry._maker.make_data_path = fail
    monkeypatch.setattr(RecordingDataPath, "change", lambda path, config, cpu: fail(config, cpu))
    with capture_logs() as lines:
        pair.a.reload(replace(pair.a.config, circuits=(wanted,)))
        pair.link.run(5)

    state, reason = pair.a.states()["vela0"]
    assert state == "rejected"
    assert reason == "on the other end, vela0 cannot be created: Cannot allocate memory"
    assert "circuit_not_set_up" in {line["event"] for line in lines}
    if wanted.id == 1:
        assert pair.b.data_paths["vela0"].config.mac == ONE
    # As soon as it can be, it is.
    pair.b.registry._maker.make_data_path = make
    monkeypatch.undo()
    pair.link.run(60)
    assert pair.words(pair.a) == {"vela0": "up"}
    assert pair.b.data_paths["vela0"].config.mac == OTHER


def test_circuit_of_a_peer_that_cannot_be_saved_is_refused_and_is_not_there(pair: Pair) -> None:
    state = pair.b.config.daemon.state_directory
    state.mkdir(parents=True, exist_ok=True)
    (state / "circuits.json").mkdir()

    pair.a.reload(replace(pair.a.config, circuits=(wanting(ONE),)))
    pair.link.run(3)

    state_word, reason = pair.a.states()["vela0"]
    assert state_word == "rejected"
    assert "circuits.json" in reason
    assert pair.ids(pair.b) == {}
    (state / "circuits.json").rmdir()
    pair.link.run(60)
    assert pair.words(pair.a) == {"vela0": "up"}


def test_circuit_whose_overlap_cannot_be_found_out_is_refused_with_the_reason(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(wanted: object) -> HostFacts:
        raise DeviceError("addresses cannot be listed: Cannot allocate memory")

    monkeypatch.setattr(pair.b, "facts", fail)
    circuit = wanting(ONE)
    assert circuit.peer is not None
    peer = replace(circuit.peer, addresses=(ip_interface("172.16.0.2/30"),))

    pair.a.reload(replace(pair.a.config, circuits=(replace(circuit, peer=peer),)))
    pair.link.run(3)

    state, reason = pair.a.states()["vela0"]
    assert (state, pair.ids(pair.b)) == ("rejected", {})
    assert reason == "on the other end, addresses cannot be listed: Cannot allocate memory"


def test_restart_makes_a_circuit_that_could_not_be_made_before(pair: Pair) -> None:
    make = pair.a.make_data_path
    assert pair.a.registry is not None

    def fail(config: CircuitConfig, *arguments: Any, **more: Any) -> RecordingDataPath:
        raise DeviceError("no more interfaces")

    pair.a.registry._maker.make_data_path = fail
    assert pair.a.reload(replace(pair.a.config, circuits=(wanting(ONE),))) == {
        "vela0": "no more interfaces"
    }
    for command in (pair.a.registry.disable, pair.a.registry.enable, pair.a.registry.delete):
        with pytest.raises(
            ConfigError, match="circuit vela0 does not exist at present: no more interfaces"
        ):
            command("vela0")
    with pytest.raises(DeviceError, match="no more interfaces"):
        pair.a.registry.restart("vela0")

    pair.a.registry._maker.make_data_path = make
    pair.a.registry.restart("vela0")
    pair.link.run(3)

    assert pair.words(pair.a) == {"vela0": "up"}


@pytest.mark.parametrize("enabled", [True, False])
def test_circuit_that_is_down_says_how_to_enable_it(pair: Pair, enabled: bool) -> None:
    pair.a.reload(replace(pair.a.config, circuits=(wanting(ONE, enabled=enabled),)))
    registry = pair.a.registry
    assert registry is not None
    if enabled:
        registry.disable("vela0")
        how = "velactl up vela0 undoes that"
    else:
        how = "the file says enabled = false; change that there, and reload"
        with pytest.raises(ConfigError, match=f"vela0 is administratively down; {how}"):
            registry.enable("vela0")

    for command in (registry.restart, lambda name: registry.switch(name, None)):
        with pytest.raises(ConfigError, match=f"vela0 is administratively down; {how}"):
            command("vela0")


def test_circuit_of_the_file_is_not_deleted_by_a_command(pair: Pair) -> None:
    pair.a.reload(replace(pair.a.config, circuits=(wanting(ONE),)))
    assert pair.a.registry is not None

    with pytest.raises(ConfigError, match="vela0 is in the configuration file; remove it there"):
        pair.a.registry.delete("vela0")

    assert pair.ids(pair.a) == {"vela0": 1}


def test_hooks_are_for_circuits_of_the_file(pair: Pair) -> None:
    for key in ("up", "down"):
        with pytest.raises(ConfigError, match="hooks are for circuits of the file"):
            pair.a.add("vela0", {"remote": str(ROUTER_B), key: "/bin/true"})

    assert pair.ids(pair.a) == {}
