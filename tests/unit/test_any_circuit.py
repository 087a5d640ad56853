"""Circuits whose remote is any, on simulated machines behind translators: see simulation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Interface, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from simulation import ROUTER_A, ROUTER_B, Machine, Network, RecordingDataPath, network

from vela.address import Endpoint, Remote
from vela.errors import ConfigError
from vela.signaling.admission import TAKE_OVER_AFTER_S
from vela.signaling.codec import read_header
from vela.signaling.messages import MessageType
from vela.signaling.signer import Key, LocalKey
from vela.supervisor.config.records import (
    AutoconfigureConfig,
    CircuitConfig,
    SourcePort,
)
from vela.supervisor.status import CircuitStatus

ROUTER_C = ip_address("192.0.2.3")
NAT1, NAT2 = ip_address("198.51.100.1"), ip_address("198.51.100.2")
NAME = "vela0"
KEY, OTHER_KEY = LocalKey(b"k" * 32), LocalKey(b"o" * 32)
ALLOWED = AutoconfigureConfig(sources=(ip_network("0.0.0.0/0"),))
KEEPALIVE_S = 1.0
LOST_S = 3.5 * KEEPALIVE_S
ANY = Remote("any")
WAITING = "waiting for the other end to call"


def circuit(remote: Remote = ANY, **settings: Any) -> CircuitConfig:
    plain: dict[str, Any] = {"id": 1, "name": NAME, "keepalive": KEEPALIVE_S}
    return CircuitConfig(remote=remote, **(plain | settings))


def calling(**settings: Any) -> CircuitConfig:
    return circuit(Remote(str(ROUTER_A)), **settings)


class Bench:
    """Router A, which is called; B and C call it, each from behind a translator."""

    def __init__(self, link: Network, folder: Path) -> None:
        self.link = link
        self.folder = folder
        link.nat[ROUTER_B] = Endpoint(NAT1, 40001)

    def machine(self, address: Any, *circuits: CircuitConfig, key: Key | None = KEY) -> Machine:
        return Machine(
            self.link, address, self.folder / str(address), circuits, autoconfigure=None, key=key
        )

    def begin(self, *called: CircuitConfig, key: Key | None = KEY) -> None:
        """Boot A, and B, which calls."""
        self.a = self.machine(ROUTER_A, *(called or (circuit(),)), key=key)
        self.a.boot()
        self.b = self.machine(ROUTER_B, calling(), key=key)
        self.b.boot()
        self.link.run(2)

    @property
    def status(self) -> CircuitStatus:
        return self.a.statuses()[0]

    @property
    def data_path(self) -> RecordingDataPath:
        return self.a.data_paths[NAME]

    @property
    def aim(self) -> Endpoint | None:
        """Where frames of A's circuit go."""
        attached = self.data_path.attached
        return None if attached is None else attached[0].endpoint

    def sent(self, kind: MessageType) -> int:
        """Return how many messages of a kind A has sent."""
        headers = (
            read_header(data)
            for data, source, _ in self.link.overheard
            if source.address == ROUTER_A
        )
        return sum(header.type is kind for header in headers)

    def until_up(self, machine: Machine, limit_s: float) -> float:
        return self.until(machine, "up", limit_s)

    def until(self, machine: Machine, state: str, limit_s: float) -> float:
        """Return after how many seconds the circuit has this state."""
        for tenth in range(round(10 * limit_s) + 1):
            if machine.states()[NAME][0] == state:
                return tenth / 10
            self.link.run(0.1)
        raise AssertionError(f"not {state} after {limit_s} s: {machine.states()}")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with network(1) as link:
        made = Bench(link, tmp_path)
        yield made
        assert link.loop.failures == []


def test_circuit_waits_and_says_so_and_sends_nothing(bench: Bench) -> None:
    bench.a = bench.machine(ROUTER_A, circuit())
    bench.a.boot()

    bench.link.run(400)

    status = bench.status
    assert (status.state, status.reason, status.reason_code) == (
        "connecting",
        WAITING,
        "awaiting_call",
    )
    assert (status.remote, status.remote_address, status.remote_port) == ("any", None, None)
    assert bench.link.overheard == []


def test_remote_is_where_the_call_came_from(bench: Bench) -> None:
    bench.begin()

    status = bench.status
    assert (status.state, status.reason) == ("up", "")
    assert (status.remote, status.remote_address, status.remote_port) == ("any", str(NAT1), 40001)
    assert bench.aim == Endpoint(NAT1, 40001)
    assert bench.data_path.frames_from == 40001
    assert bench.data_path.carrier
    assert bench.b.states()[NAME] == ("up", "")
    assert bench.sent(MessageType.REQUEST) == 0


def test_call_is_answered_from_the_first_message_on_by_the_mtu_of_its_path(bench: Bench) -> None:
    bench.begin()

    assert bench.data_path.mtu == 1471
    assert bench.data_path.attachments == 1


@pytest.mark.parametrize("key", [OTHER_KEY, None])
def test_stranger_without_the_key_is_not_answered_and_changes_nothing(
    bench: Bench, key: Key | None
) -> None:
    bench.begin()
    before = bench.status
    stranger = bench.machine(ROUTER_C, calling(name="vela9"), key=key)
    stranger.boot()

    bench.link.run(5)

    to_stranger = [to for _, _, to in bench.link.overheard if to.address == ROUTER_C]
    assert to_stranger == []
    assert stranger.states()["vela9"][0] == "connecting"
    assert (bench.status.state, bench.status.transitions) == ("up", before.transitions)
    assert bench.a.channel.dropped()["control_tag"] >= 3
    assert [each.address for each in bench.a.channel.wrong_keys()] == [str(ROUTER_C)]


def test_stranger_without_the_key_is_not_answered_while_it_waits(bench: Bench) -> None:
    bench.a = bench.machine(ROUTER_A, circuit())
    bench.a.boot()
    stranger = bench.machine(ROUTER_B, calling(), key=OTHER_KEY)
    stranger.boot()

    bench.link.run(5)

    assert bench.sent(MessageType.ACKNOWLEDGE) == 0
    assert bench.status.reason == WAITING


def test_what_was_overheard_changes_nothing_from_wherever_it_is_sent_again(bench: Bench) -> None:
    bench.begin()
    heard = [data for data, _, to in bench.link.overheard if to.address == ROUTER_A]
    # What is still under way is new, whoever sends it first: see the next test.
    bench.link.run(0.01)
    where, transitions = bench.aim, bench.status.transitions

    for source in (Endpoint(ROUTER_C, 48621), Endpoint(NAT1, 40001), Endpoint(NAT1, 40002)):
        for data in heard:
            bench.link.forge(data, source, Endpoint(ROUTER_A, 48621))
    bench.link.run(10)

    assert bench.aim == where
    assert (bench.status.state, bench.status.transitions) == ("up", transitions)
    # A REQUEST is answered by a cookie, which nobody else can bring back.
    to_stranger = [data for data, _, to in bench.link.overheard if to.address == ROUTER_C]
    assert {read_header(data).type for data in to_stranger} <= {MessageType.ACKNOWLEDGE}


def test_message_that_somebody_else_sends_first_draws_no_frames(bench: Bench) -> None:
    """It is the remote's, and new. Only where the remote answers does anything go."""
    bench.begin()
    where = bench.aim
    bench.link.loss = 1.0  # what the remote says does not arrive
    bench.link.run(1.2 * KEEPALIVE_S)
    stolen = [data for data, source, _ in bench.link.overheard if source.address == NAT1][-1]
    bench.link.loss = 0.0

    bench.link.forge(stolen, Endpoint(ROUTER_C, 48621), Endpoint(ROUTER_A, 48621))
    bench.link.run(5)

    to_stranger = [data for data, _, to in bench.link.overheard if to.address == ROUTER_C]
    assert {read_header(data).type for data in to_stranger} == {MessageType.PROBE}
    assert bench.aim == where
    assert bench.status.state == "up"


@pytest.mark.parametrize(
    "there", [Endpoint(NAT1, 40002), Endpoint(NAT2, 40001)], ids=["other port", "other address"]
)
def test_session_follows_a_translator_that_changes_its_mapping(
    bench: Bench, there: Endpoint
) -> None:
    bench.begin()
    data_path, transitions = bench.data_path, bench.status.transitions

    bench.link.nat[ROUTER_B] = there
    bench.link.run(3)

    assert bench.aim == there
    assert bench.data_path.frames_from == there.port
    assert bench.data_path is data_path
    assert (bench.status.remote_address, bench.status.remote_port) == (
        str(there.address),
        there.port,
    )
    for machine in (bench.a, bench.b):
        assert machine.states()[NAME] == ("up", "")
    bench.link.run(20)
    # Nobody has noticed.
    assert bench.status.transitions == transitions
    assert bench.sent(MessageType.REQUEST) == 0


def test_end_behind_a_translator_shows_where_it_is_before_its_next_keepalive(
    bench: Bench,
) -> None:
    """By the echo requests of each second, which are not answered any more."""
    slow = 60.0
    bench.a = bench.machine(ROUTER_A, circuit(keepalive=slow))
    bench.a.boot()
    bench.b = bench.machine(ROUTER_B, calling(keepalive=slow))
    bench.b.boot()
    # The search for the path's MTU is over: its probes would show it, too.
    bench.link.run(40)

    bench.link.nat[ROUTER_B] = Endpoint(NAT1, 40002)
    bench.link.run(3)

    assert bench.aim == Endpoint(NAT1, 40002)


def test_remote_that_restarts_has_the_circuit_again_at_once(bench: Bench) -> None:
    bench.begin()

    bench.b.crash()
    bench.b.boot()

    assert bench.until_up(bench.b, 3) < 2
    assert bench.until_up(bench.a, 1) < 1


def test_remote_that_restarts_behind_another_mapping_has_it_after_a_second(bench: Bench) -> None:
    bench.begin()

    bench.b.crash()
    bench.link.nat[ROUTER_B] = Endpoint(NAT2, 40005)
    bench.b.boot()

    assert bench.until_up(bench.b, 5) < 3
    bench.link.run(0.5)
    assert bench.aim == Endpoint(NAT2, 40005)


def test_copy_of_the_remote_does_not_get_the_circuit_while_the_remote_is_heard(
    bench: Bench,
) -> None:
    """It has the key, and knows the token: neither is a proof."""
    bench.begin()
    bench.link.nat[ROUTER_C] = Endpoint(NAT2, 40002)
    copy = bench.machine(ROUTER_C, calling())
    copy.config = replace(
        copy.config,
        daemon=replace(copy.config.daemon, state_directory=bench.b.config.daemon.state_directory),
    )
    copy.boot()

    bench.link.run(10)

    assert copy.states()[NAME][0] == "rejected"
    assert "still heard where it was" in copy.states()[NAME][1]
    assert bench.aim == Endpoint(NAT1, 40001)
    assert bench.b.states()[NAME] == ("up", "")
    assert bench.status.transitions == 1


def test_second_machine_with_the_key_is_told_and_the_first_stays(bench: Bench) -> None:
    bench.begin()
    bench.link.nat[ROUTER_C] = Endpoint(NAT1, 40002)
    second = bench.machine(ROUTER_C, calling())
    second.boot()

    bench.link.run(5)

    assert second.states()[NAME][0] == "rejected"
    assert "another machine has this circuit on the other end" in second.states()[NAME][1]
    assert bench.aim == Endpoint(NAT1, 40001)
    assert bench.b.states()[NAME] == ("up", "")
    assert bench.status.transitions == 1


def test_second_machine_has_the_circuit_when_the_first_was_silent_for_long(bench: Bench) -> None:
    bench.begin()
    bench.b.crash()
    second = bench.machine(ROUTER_C, calling())
    second.boot()

    assert bench.until_up(second, TAKE_OVER_AFTER_S + 60) > TAKE_OVER_AFTER_S - 5


def test_second_machine_has_the_circuit_when_the_first_said_goodbye(bench: Bench) -> None:
    bench.begin()
    bench.b.stop()
    second = bench.machine(ROUTER_C, calling())
    second.boot()

    assert bench.until_up(second, 5) < 3


def test_second_machine_gets_another_id_where_one_may_be_set_up(bench: Bench) -> None:
    bench.a = bench.machine(ROUTER_A, circuit())
    bench.a.config = replace(bench.a.config, autoconfigure=ALLOWED)
    bench.a.boot()
    bench.b = bench.machine(ROUTER_B, calling())
    bench.b.boot()
    bench.link.run(2)
    bench.link.nat[ROUTER_C] = Endpoint(NAT1, 40002)
    second = bench.machine(ROUTER_C)
    second.boot()

    second.add("vela7", {"remote": str(ROUTER_A)})
    bench.link.run(5)

    assert second.states()["vela7"] == ("up", "")
    assert sorted((each.id, each.origin) for each in bench.a.statuses()) == [
        (1, "config"),
        (2, "peer"),
    ]
    assert bench.b.states()[NAME] == ("up", "")


def test_two_circuits_with_keys_of_their_own_are_each_called_by_their_own(
    bench: Bench, tmp_path: Path
) -> None:
    """Behind one translator, and with [autoconfigure] under a third key."""
    for name, key in (("one", KEY), ("two", OTHER_KEY)):
        (tmp_path / name).write_bytes(key.key)
    bench.link.nat[ROUTER_C] = Endpoint(NAT1, 40002)
    bench.a = bench.machine(
        ROUTER_A,
        circuit(key_file=tmp_path / "one"),
        circuit(id=2, name="vela1", key_file=tmp_path / "two"),
        key=LocalKey(bytes(32)),
    )
    bench.a.config = replace(bench.a.config, autoconfigure=ALLOWED)
    bench.a.boot()
    bench.b = bench.machine(ROUTER_B, calling())
    second = bench.machine(ROUTER_C, calling(id=2), key=OTHER_KEY)
    for machine in (bench.b, second):
        machine.boot()
    bench.link.run(3)

    assert {name: state for name, (state, _) in bench.a.states().items()} == {
        NAME: "up",
        "vela1": "up",
    }
    ports = {each.name: each.remote_port for each in bench.a.statuses()}
    assert ports == {NAME: 40001, "vela1": 40002}


def test_machine_with_the_key_of_autoconfigure_is_told_that_the_id_is_taken_behind_its_nat(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "one").write_bytes(KEY.key)
    bench.link.nat[ROUTER_C] = Endpoint(NAT1, 40002)
    bench.a = bench.machine(ROUTER_A, circuit(key_file=tmp_path / "one"), key=OTHER_KEY)
    bench.a.config = replace(bench.a.config, autoconfigure=ALLOWED)
    bench.a.boot()
    bench.b = bench.machine(ROUTER_B, calling())
    bench.b.boot()
    bench.link.run(2)
    second = bench.machine(ROUTER_C, calling(), key=OTHER_KEY)
    second.boot()

    bench.link.run(5)

    assert second.states()[NAME][0] == "rejected"
    assert "another machine behind this address has the circuit id" in second.states()[NAME][1]
    assert bench.b.states()[NAME] == ("up", "")


def test_end_that_is_called_restarts_and_the_remote_calls_anew(bench: Bench) -> None:
    bench.begin()

    bench.a.crash()
    bench.a.boot()

    # The next keepalive is answered: there is no such session.
    assert bench.until_up(bench.a, 5) < 2 * KEEPALIVE_S
    assert bench.sent(MessageType.REQUEST) == 0


def test_end_that_was_taken_down_is_called_again_when_it_is_up(bench: Bench) -> None:
    bench.begin()
    assert bench.a.registry is not None

    bench.a.registry.disable(NAME)
    bench.link.run(3)
    assert (bench.status.state, bench.status.remote_address) == ("disabled", None)
    assert bench.b.states()[NAME][0] == "down"
    bench.a.registry.enable(NAME)

    assert bench.until_up(bench.a, 5) < 3


def test_circuit_that_is_lost_says_why_and_that_it_waits(bench: Bench) -> None:
    bench.begin()
    bench.b.crash()

    bench.link.run(LOST_S + 2)

    reason = bench.status.reason
    assert bench.status.state == "down"
    assert "keepalives missed" in reason
    assert reason.endswith(WAITING)
    assert not bench.data_path.carrier
    assert bench.sent(MessageType.REQUEST) == 0


def test_reload_from_an_address_to_any_and_back_keeps_the_session(bench: Bench) -> None:
    bench.a = bench.machine(ROUTER_A, circuit(Remote(str(NAT1))))
    bench.a.boot()
    bench.b = bench.machine(ROUTER_B, calling())
    bench.b.boot()
    bench.link.run(3)
    assert bench.status.state == "up"
    data_path, attachments = bench.data_path, bench.data_path.attachments
    transitions = bench.status.transitions

    for remote in (ANY, Remote(str(NAT1)), ANY):
        bench.a.reload(replace(bench.a.config, circuits=(circuit(remote),)))
        bench.link.run(5)
        assert bench.status.state == "up"
        assert bench.status.remote == str(remote)

    assert bench.data_path is data_path
    assert (bench.data_path.attachments, bench.status.transitions) == (attachments, transitions)
    # And it follows.
    bench.link.nat[ROUTER_B] = Endpoint(NAT2, 40009)
    bench.link.run(3)
    assert bench.aim == Endpoint(NAT2, 40009)


def test_reload_from_a_dead_address_to_any_waits(bench: Bench) -> None:
    bench.a = bench.machine(ROUTER_A, circuit(Remote("203.0.113.9")))
    bench.a.boot()
    bench.link.run(10)
    data_path, asked = bench.data_path, bench.sent(MessageType.REQUEST)

    bench.a.reload(replace(bench.a.config, circuits=(circuit(),)))
    bench.link.run(10)

    assert bench.status.reason == WAITING
    assert bench.sent(MessageType.REQUEST) == asked
    bench.b = bench.machine(ROUTER_B, calling())
    bench.b.boot()
    assert bench.until_up(bench.a, 5) < 3
    assert bench.data_path is data_path


def test_reload_from_any_to_another_address_leaves_the_one_that_called(bench: Bench) -> None:
    bench.begin()

    bench.a.reload(replace(bench.a.config, circuits=(circuit(Remote("203.0.113.9")),)))
    bench.link.run(5)

    assert bench.status.state == "down"
    assert bench.sent(MessageType.REQUEST) > 0
    assert bench.status.remote == "203.0.113.9"


def test_reload_from_any_that_nobody_called_to_an_address_asks_there(bench: Bench) -> None:
    bench.a = bench.machine(ROUTER_A, circuit())
    bench.a.boot()
    bench.link.run(1)
    bench.link.nat.clear()
    bench.b = bench.machine(ROUTER_B, circuit())
    bench.b.boot()

    bench.a.reload(replace(bench.a.config, circuits=(circuit(Remote(str(ROUTER_B))),)))

    assert bench.until_up(bench.a, 5) < 3


def test_bind_takes_calls_at_that_address_only(bench: Bench) -> None:
    bench.begin(circuit(bind=ip_address("192.0.2.77")))
    assert bench.status.reason == WAITING
    assert bench.sent(MessageType.ACKNOWLEDGE) == 0

    bench.a.reload(replace(bench.a.config, circuits=(circuit(bind=ROUTER_A),)))

    assert bench.until_up(bench.a, 5) < 3


def test_id_that_another_circuit_has_toward_the_caller_is_refused_with_the_reason(
    bench: Bench,
) -> None:
    """The other one is not there yet when the call comes, but knows the address."""
    bench.link.nat.clear()
    named = circuit(Remote("router-b"), name="vela5")
    bench.a = bench.machine(ROUTER_A, circuit(), named)
    bench.a.names = {"router-b": (NAT1,)}
    bench.a.boot()
    bench.link.run(1)
    bench.link.nat[ROUTER_B] = Endpoint(NAT1, 40001)
    bench.b = bench.machine(ROUTER_B, calling())
    bench.b.boot()
    bench.link.run(5)

    # What comes from there with the id is the one's that names the address.
    assert bench.a.states()["vela5"][0] == "up"
    assert bench.a.states()[NAME] == ("connecting", WAITING)


def test_circuit_does_not_move_to_where_another_one_has_the_id(bench: Bench) -> None:
    """A static one, which no control message is for. The remote hears why when it calls anew."""
    bench.link.nat.clear()
    static = circuit(Remote(str(NAT1)), name="vela5", autoconfigure=False)
    bench.a = bench.machine(ROUTER_A, circuit(), static)
    bench.a.boot()
    bench.b = bench.machine(ROUTER_B, calling())
    bench.b.boot()
    bench.link.run(3)
    assert bench.a.states()[NAME][0] == "up"

    bench.link.nat[ROUTER_B] = Endpoint(NAT1, 40001)
    bench.link.run(3)

    assert bench.aim is not None
    assert bench.aim.address == ROUTER_B
    bench.link.run(LOST_S + 5)
    assert bench.b.states()[NAME][0] == "rejected"
    assert f"vela5 already uses circuit id 1 toward {NAT1}" in bench.b.states()[NAME][1]
    assert bench.a.states()["vela5"][0] == "unmonitored"


def test_stored_circuit_without_a_key_any_more_is_kept_and_not_open(bench: Bench) -> None:
    bench.a = bench.machine(ROUTER_A)
    bench.a.config = replace(
        bench.a.config, autoconfigure=replace(ALLOWED, key_file=Path("/etc/vela/key"))
    )
    bench.a.boot()
    bench.a.add(NAME, {"remote": "any", "keepalive": KEEPALIVE_S})
    bench.b = bench.machine(ROUTER_B, calling())
    bench.b.boot()
    bench.link.run(2)
    assert bench.status.state == "up"

    bench.a.key = None
    bench.a.reload(replace(bench.a.config, autoconfigure=None))
    bench.link.run(5)

    assert (bench.status.state, bench.status.reason_code) == ("failed", "no_key")
    bench.a.crash()
    bench.a.boot()
    bench.link.run(1)
    assert (bench.status.state, bench.status.reason_code) == ("failed", "no_key")
    bench.a.key = KEY
    bench.a.reload(replace(bench.a.config, autoconfigure=ALLOWED))
    assert bench.until_up(bench.a, 20) < 15


def test_circuit_of_a_command_needs_a_key(bench: Bench) -> None:
    bench.a = bench.machine(ROUTER_A, key=None)
    bench.a.boot()

    with pytest.raises(ConfigError, match="'any' needs a key, or anybody could call"):
        bench.a.add(NAME, {"remote": "any"})

    assert bench.a.states() == {}


def test_frames_leave_from_the_listening_port_to_a_translated_remote(bench: Bench) -> None:
    """Whatever source_port says: its translator lets in nothing else."""
    for source_port in (SourcePort.AUTO, 50123):
        bench.begin(circuit(source_port=source_port))
        attached = bench.data_path.attached
        assert attached is not None
        assert attached[1].source_port == 48621
        bench.a.crash()
        bench.b.crash()


def test_configured_mtu_is_that_of_both_ends(bench: Bench) -> None:
    bench.begin(circuit(mtu=1300, addresses=(IPv4Interface("172.16.16.1/30"),)))

    assert bench.data_path.mtu == 1300
    assert bench.b.data_paths[NAME].mtu == 1300


def test_circuit_that_was_taken_down_is_not_set_up_anew_for_who_calls(bench: Bench) -> None:
    bench.a = bench.machine(ROUTER_A, circuit())
    bench.a.config = replace(bench.a.config, autoconfigure=ALLOWED)
    bench.a.boot()
    assert bench.a.registry is not None
    bench.a.registry.disable(NAME)
    bench.b = bench.machine(ROUTER_B, calling())
    bench.b.boot()

    bench.link.run(5)

    assert [each.name for each in bench.a.statuses()] == [NAME]
    assert bench.b.states()[NAME] == ("down", f"{NAME} was taken down on the other end")


def test_machine_with_another_key_may_set_up_the_id_that_waits_for_its_caller(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "one").write_bytes(KEY.key)
    bench.a = bench.machine(ROUTER_A, circuit(key_file=tmp_path / "one"), key=OTHER_KEY)
    bench.a.config = replace(bench.a.config, autoconfigure=ALLOWED)
    bench.a.boot()
    second = bench.machine(ROUTER_C, calling(name="vela3"), key=OTHER_KEY)
    second.boot()
    bench.b = bench.machine(ROUTER_B, calling())
    bench.b.boot()

    bench.link.run(5)

    assert second.states()["vela3"] == ("up", "")
    assert bench.b.states()[NAME] == ("up", "")
    assert sorted(each.origin for each in bench.a.statuses()) == ["config", "peer"]


def test_flood_of_requests_without_the_key_does_not_end_the_session(bench: Bench) -> None:
    bench.begin()
    request = next(
        data
        for data, _, to in bench.link.overheard
        if to.address == ROUTER_A and read_header(data).type is MessageType.REQUEST
    )
    forged = request[:-1] + bytes([request[-1] ^ 1])
    transitions = bench.status.transitions

    for _ in range(20):
        for _ in range(200):
            bench.link.forge(forged, Endpoint(ROUTER_C, 48621), Endpoint(ROUTER_A, 48621))
        bench.link.run(0.5)

    assert (bench.status.state, bench.status.transitions) == ("up", transitions)
    assert bench.a.channel.dropped()["control_too_fast"] > 0


def test_remote_moves_while_another_session_is_sought_beside_it(
    bench: Bench, tmp_path: Path
) -> None:
    """As after a reload with another key."""
    keys = [tmp_path / "one", tmp_path / "two"]
    for path, key in zip(keys, (KEY, OTHER_KEY), strict=True):
        path.write_bytes(key.key)
    bench.begin(circuit(key_file=keys[0]))
    bench.a.reload(replace(bench.a.config, circuits=(circuit(key_file=keys[1]),)))

    bench.link.nat[ROUTER_B] = Endpoint(NAT2, 40007)
    bench.link.run(3)
    assert bench.aim == Endpoint(NAT2, 40007)
    bench.b.reload(replace(bench.b.config, circuits=(calling(key_file=keys[1]),)))
    bench.link.run(30)

    for machine in (bench.a, bench.b):
        assert machine.states()[NAME] == ("up", "")
    bench.link.nat[ROUTER_B] = Endpoint(NAT1, 40008)
    bench.link.run(3)
    assert bench.aim == Endpoint(NAT1, 40008)


@pytest.mark.parametrize("seed", range(25))
def test_circuit_comes_up_again_after_any_storm(tmp_path: Path, seed: int) -> None:
    """Loss, delay, copies, restarts of both ends, and a translator that maps anew."""
    with network(seed) as link:
        bench = Bench(link, tmp_path)
        bench.begin()
        dice, port = link.dice, 40001
        for _ in range(8):
            link.loss, link.duplication = dice.uniform(0, 0.4), 0.3
            link.longest_delay_s = dice.choice((0.002, 0.3, 1.0))
            machine = dice.choice((bench.a, bench.b))
            match dice.randrange(4):
                case 0:
                    machine.crash()
                    machine.boot()
                case 1:
                    machine.stop()
                    machine.boot()
                case _:
                    port += 1
                    link.nat[ROUTER_B] = Endpoint(dice.choice((NAT1, NAT2)), port)
            link.run(dice.uniform(0, 6))
        link.loss, link.duplication, link.longest_delay_s = 0.0, 0.0, 0.002

        for each in (bench.a, bench.b):
            bench.until_up(each, 35)
        link.run(10)

        assert bench.a.states()[NAME] == bench.b.states()[NAME] == ("up", "")
        assert bench.aim == link.nat[ROUTER_B]
        assert bench.data_path.carrier
        assert bench.sent(MessageType.REQUEST) == 0
        assert link.loop.failures == []


def test_circuit_that_cannot_be_carried_says_so_to_who_calls_and_is_tried_again(
    bench: Bench,
) -> None:
    bench.a = bench.machine(ROUTER_A, circuit())
    bench.a.refusals[NAME] = "no room"
    bench.a.boot()
    bench.b = bench.machine(ROUTER_B, calling())
    bench.b.boot()

    bench.link.run(5)

    assert bench.a.states()[NAME] == ("failed", "no room")
    assert bench.b.states()[NAME] == ("rejected", "on the other end, no room")
    bench.data_path.refusal = ""
    assert bench.until_up(bench.a, 65) < 61


def test_remote_that_names_this_machine_otherwise_calls_anew_at_once(bench: Bench) -> None:
    """It deletes the circuit with the former name, and has another token with the other one."""
    bench.begin()
    bench.b.names = {"hub": (ROUTER_A,)}

    bench.b.reload(replace(bench.b.config, circuits=(circuit(Remote("192.0.2.99")),)))
    bench.link.run(2)
    assert bench.status.state == "down"
    bench.b.reload(replace(bench.b.config, circuits=(circuit(Remote("hub")),)))

    assert bench.until_up(bench.a, 5) < 4
