"""Circuits on paths that let control messages pass, and frames not: two simulated machines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest
from simulation import ROUTER_A, ROUTER_B, Machine, Network, network

from vela.address import Remote
from vela.dataplane.echo import echo_request
from vela.dataplane.frame import ECHO_REPLY
from vela.errors import VelaError
from vela.reasons import Cause
from vela.signaling.messages import Capability
from vela.signaling.session import Session
from vela.signaling.signer import LocalKey
from vela.supervisor.circuit import terms
from vela.supervisor.config.records import (
    AutoconfigureConfig,
    CircuitConfig,
    PeerConfig,
    SourcePort,
)
from vela.supervisor.control_socket import Reply
from vela.supervisor.registry.pings import BURST, WAIT_S, Pings
from vela.supervisor.status import LossStatus
from vela.wire import DEFAULT_PORT

ALLOWED = AutoconfigureConfig(networks=(ip_network("172.16.0.0/12"),))
KEY = LocalKey(b"shared by all machines of a network")
UP = ("up", "")
NO_FRAMES = Cause.FRAMES_BLOCKED.say()
UP_BY_LISTENING = ("up", Cause.FROM_LISTENING_PORT.say())


def circuit(**changes: object) -> CircuitConfig:
    values: dict[str, object] = {
        "name": "vela0",
        "id": 1,
        "remote": Remote(str(ROUTER_B)),
        "addresses": (ip_interface("172.16.16.1/30"),),
        "keepalive": 1.0,
        "peer": PeerConfig(addresses=(ip_interface("172.16.16.2/30"),)),
    }
    return CircuitConfig(**{**values, **changes})  # type: ignore[arg-type]


class Ends:
    """A sets a circuit up on B. Data paths that are made meanwhile carry frames, or do not."""

    def __init__(self, net: Network, folder: Path, config: CircuitConfig) -> None:
        self.net = net
        self.a = Machine(net, ROUTER_A, folder / "a", (config,), None, KEY)
        self.b = Machine(net, ROUTER_B, folder / "b", (), ALLOWED, KEY)

    def boot(self, **state: bool) -> None:
        """state: of each data path."""
        self.net.new_paths = state
        for machine in (self.a, self.b):
            machine.boot()

    def set(self, **state: bool) -> None:
        self.net.new_paths = state
        for machine in (self.a, self.b):
            for path in machine.data_paths.values():
                for name, value in state.items():
                    setattr(path, name, value)

    def states(self) -> list[tuple[str, str]]:
        return [machine.states()["vela0"] for machine in (self.a, self.b)]

    def carriers(self) -> list[bool]:
        return [machine.data_paths["vela0"].carrier for machine in (self.a, self.b)]

    def ports(self) -> list[int | None]:
        profiles = (m.data_paths["vela0"].attached for m in (self.a, self.b))
        return [None if each is None else each[1].source_port for each in profiles]


@pytest.fixture
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    with network(1) as net:
        ends = Ends(net, tmp_path, getattr(request, "param", circuit()))
        yield ends
        assert net.loop.failures == []


def test_circuit_is_up_when_frames_cross_from_ports_of_their_own(ends: Ends) -> None:
    ends.boot()
    ends.net.run(1)

    assert ends.states() == [UP, UP]
    assert ends.carriers() == [True, True]
    assert ends.ports() == [None, None]


def test_circuit_whose_frames_do_not_cross_has_no_carrier_and_says_so(ends: Ends) -> None:
    ends.boot(silent=True)
    ends.net.run(1.5)
    assert ends.states() == [("connecting", "")] * 2
    assert ends.carriers() == [False, False]

    ends.net.run(8.5)
    assert ends.states() == [("connecting", NO_FRAMES)] * 2
    assert ends.carriers() == [False, False]

    ends.set(silent=False)
    ends.net.run(2)
    assert [state for state, _ in ends.states()] == ["up", "up"]
    assert ends.carriers() == [True, True]


def test_both_ends_fall_back_to_the_listening_port_by_themselves(ends: Ends) -> None:
    ends.boot(blocked=True)
    ends.net.run(4)

    assert ends.states() == [UP_BY_LISTENING] * 2
    assert ends.carriers() == [True, True]
    assert ends.ports() == [DEFAULT_PORT, DEFAULT_PORT]


@pytest.mark.parametrize("ends", [circuit(source_port=50007)], indirect=True)
def test_port_that_is_configured_stays(ends: Ends) -> None:
    ends.boot(blocked=True)
    ends.net.run(10)

    assert ends.ports() == [50007, DEFAULT_PORT]
    assert ends.states() == [("connecting", NO_FRAMES)] * 2


def test_circuit_goes_down_when_frames_cease_to_cross_and_up_when_they_cross_again(
    ends: Ends,
) -> None:
    ends.boot()
    ends.net.run(5)

    ends.set(silent=True)
    ends.net.run(2)
    assert ends.states() == [UP, UP]
    ends.net.run(2.5)
    assert ends.states() == [("down", NO_FRAMES)] * 2
    assert ends.carriers() == [False, False]

    ends.set(silent=False)
    ends.net.run(4)
    assert [state for state, _ in ends.states()] == ["up", "up"]
    assert ends.carriers() == [True, True]


def test_firewall_that_appears_later_is_noticed_and_the_listening_port_used(ends: Ends) -> None:
    ends.boot()
    ends.net.run(5)

    ends.set(blocked=True)
    ends.net.run(10)

    assert ends.states() == [UP_BY_LISTENING] * 2


def test_ports_of_their_own_are_tried_again_after_a_restart_of_the_circuit_by_hand(
    ends: Ends,
) -> None:
    ends.boot(blocked=True)
    ends.net.run(4)
    ends.set(blocked=False)

    for machine in (ends.a, ends.b):
        assert machine.registry is not None
        machine.registry.restart("vela0")
    ends.net.run(5)

    assert ends.states() == [UP, UP]
    assert ends.ports() == [None, None]


@pytest.mark.parametrize("ends", [circuit(source_port=SourcePort.LISTEN)], indirect=True)
def test_end_that_sends_from_the_listening_port_lets_the_other_one_fall_back(ends: Ends) -> None:
    ends.boot(blocked=True)
    ends.net.run(4)

    assert ends.states() == [UP_BY_LISTENING] * 2


def test_older_neighbour_is_up_by_control_messages_alone(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = terms.describe

    def describe_as_before(config: CircuitConfig, *rest: object, **more: object) -> object:
        description = describe(config, *rest, **more)  # type: ignore[arg-type]
        if config.peer.addresses:  # that of A
            return description
        return type(description)(
            **{
                **{name: getattr(description, name) for name in description.__slots__},
                "capabilities": description.capabilities & ~Capability.ECHO,
            }
        )

    monkeypatch.setattr("vela.supervisor.circuit.carriage.describe", describe_as_before)
    ends.boot(silent=True)
    ends.net.run(20)

    assert ends.states() == [UP, UP]
    assert ends.ports() == [None, None]
    assert [each.loss.round_trip_percent for each in ends.a.statuses()] == [None]


def test_lost_echoes_take_no_circuit_down(ends: Ends) -> None:
    ends.boot()
    ends.net.run(5)
    ends.net.echo_loss = 0.4

    for _ in range(600):
        ends.net.run(1)
        assert [state for state, _ in ends.states()] == ["up", "up"]


@pytest.mark.parametrize(
    ("echo_loss", "answer_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1), (0.2, 0.1)]
)
def test_loss_is_told_apart_by_direction(ends: Ends, echo_loss: float, answer_loss: float) -> None:
    """The loss is put into requests and answers of both ends; A asks four times a second.

    The bounds are four standard deviations: of 1200 requests, of 0.2 at most.
    """
    ends.boot()
    ends.net.run(5)
    ends.net.echo_loss, ends.net.answer_loss = echo_loss, answer_loss
    ends.net.run(310)

    for machine in (ends.a, ends.b):
        (circuit,) = machine.statuses()
        loss = circuit.loss
        bound = 100 * 4 * math.sqrt(0.2 * 0.8 / 1200) if echo_loss or answer_loss else 0.0
        assert loss.tx_percent == pytest.approx(100 * echo_loss, abs=bound)
        assert loss.rx_percent == pytest.approx(100 * answer_loss, abs=bound)
        both = 1 - (1 - echo_loss) * (1 - answer_loss)
        assert loss.round_trip_percent == pytest.approx(100 * both, abs=bound)
        if not echo_loss:
            assert loss.tx_percent is not None
            assert loss.tx_percent < 0.3  # one request at each edge of the window
        assert circuit.delay_ms.p50 == pytest.approx(1.0)


def test_older_neighbour_that_does_not_say_what_reached_it_leaves_the_direction_open(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_before(*args: object, **named: object) -> Session:
        return Session(*args, **{**named, "echoes_arrived": None})  # type: ignore[arg-type]

    monkeypatch.setattr("vela.supervisor.circuit.setup.Session", as_before)
    ends.boot()
    ends.net.run(5)
    ends.net.echo_loss = 0.5
    ends.net.run(60)

    (circuit,) = ends.a.statuses()
    assert (circuit.loss.tx_percent, circuit.loss.rx_percent) == (None, None)
    assert circuit.loss.round_trip_percent == pytest.approx(50, abs=15)


def test_loss_is_of_the_session_that_there_is(ends: Ends) -> None:
    ends.boot()
    ends.net.run(20)
    (before,) = ends.a.statuses()
    ends.b.crash()
    ends.net.run(10)
    (after,) = ends.a.statuses()

    assert before.loss == LossStatus(0.0, 0.0, 0.0)
    assert after.loss == LossStatus(None, None, None)


def test_circuit_that_is_taken_down_or_removed_asks_no_more(ends: Ends) -> None:
    ends.boot()
    ends.net.run(2)
    assert ends.a.registry is not None

    ends.a.registry.disable("vela0")
    ends.net.run(2)
    asked = ends.net.echoes
    ends.net.run(20)

    assert ends.net.echoes == asked


def test_pings_are_answered_or_given_up_and_bounded_for_all_clients_together(ends: Ends) -> None:
    ends.boot()
    ends.net.run(2)
    assert ends.a.registry is not None
    pings = Pings(ends.net.loop, ends.a.registry)
    replies: list[Reply] = []

    pings.ask("vela0", 100).then(replies.append)
    ends.net.run(1)
    ends.set(silent=True)
    pings.ask("vela0").then(replies.append)
    ends.net.run(WAIT_S + 1)
    assert replies == [{"rtt_ms": pytest.approx(1.0)}, {"rtt_ms": None}]

    for size in (0, -1, 65508, "64", True):
        with pytest.raises(VelaError, match="is no number of bytes"):
            pings.ask("vela0", size)
    with pytest.raises(VelaError, match="1472 bytes do not fit a datagram; 1471 do"):
        pings.ask("vela0", 1472)
    with pytest.raises(VelaError, match="there is no circuit vela1"):
        pings.ask("vela1")

    ends.net.run(2)
    asked = ends.net.echoes
    for _ in range(int(BURST)):
        pings.ask("vela0")
    with pytest.raises(VelaError, match="more than 200 pings a second"):
        pings.ask("vela0")
    assert ends.net.echoes - asked == BURST


def test_late_answer_to_a_ping_changes_nothing(ends: Ends) -> None:
    ends.boot()
    ends.net.run(2)
    assert ends.a.registry is not None
    path = ends.a.data_paths["vela0"]
    requests: list[bytes] = []
    path.send = requests.append
    replies: list[Reply] = []
    Pings(ends.net.loop, ends.a.registry).ask("vela0").then(replies.append)
    ends.net.run(WAIT_S + 1)

    for request in requests:
        path.on_echo(memoryview(bytes((*request[:2], ECHO_REPLY, *request[3:]))), 0.0)

    assert replies == [{"rtt_ms": None}]
    # Each answer counts once.
    assert not any(
        path.on_echo(memoryview(bytes((*request[:2], ECHO_REPLY, *request[3:]))), 0.0)
        for request in requests
    )


def test_answers_that_nobody_asked_for_change_nothing(ends: Ends) -> None:
    ends.boot(silent=True)
    ends.net.run(1)
    path = ends.a.data_paths["vela0"]

    for identifier in (bytes(8), b"\xff" * 8):
        answer = bytearray(echo_request(1, identifier, 1.0))
        answer[2] = ECHO_REPLY
        assert not path.on_echo(memoryview(answer), 0.0)
        assert not path.on_echo(memoryview(answer)[:18], 0.0)
    ends.net.run(1)

    assert ends.states() == [("connecting", "")] * 2
