"""Somebody on the path without the key: hears all, sends anything from any address.

The real registry, circuits and sessions of two machines that share one key, on simulated time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from simulation import ROUTER_A, ROUTER_B, Machine, Network, network

from vela.address import Endpoint, IPAddress, Remote
from vela.signaling.codec import encode, read_header
from vela.signaling.messages import MessageType, Reject, RejectCode
from vela.signaling.signer import LocalKey
from vela.supervisor.config.records import AutoconfigureConfig, CircuitConfig, PeerConfig
from vela.supervisor.registry.takeovers import ASK_S, TIMES
from vela.wire import DEFAULT_PORT

KEY = LocalKey(b"shared by all machines of a network")
ATTACKER = ip_address("192.0.2.66")
ALLOWED = AutoconfigureConfig(networks=(ip_network("172.16.0.0/12"),))
CIRCUIT = CircuitConfig(
    name="vela0",
    id=1,
    remote=Remote(str(ROUTER_B)),
    addresses=(ip_interface("172.16.16.1/30"),),
    keepalive=1.0,
    peer=PeerConfig(addresses=(ip_interface("172.16.16.2/30"),)),
)
SEEDS = range(30)


def at(address: IPAddress) -> Endpoint:
    return Endpoint(address, DEFAULT_PORT)


class Attack:
    """A has a circuit toward B; both let whoever has the key set circuits up."""

    def __init__(self, net: Network, folder: Path, circuit: CircuitConfig = CIRCUIT) -> None:
        self.net, self.dice = net, net.dice
        self.circuit = circuit
        self.a = Machine(net, ROUTER_A, folder / "a", (circuit,), ALLOWED, KEY)
        self.b = Machine(net, ROUTER_B, folder / "b", (), ALLOWED, KEY)
        for machine in (self.a, self.b):
            machine.boot()

    def overheard(self, kind: MessageType, sender: IPAddress | None = None) -> list[bytes]:
        return [
            data
            for data, source, _ in self.net.overheard
            if read_header(data).type is kind and sender in (None, source.address)
        ]

    # What they can do with what was said; at random.

    def reflect(self) -> None:
        """Give a message back to where it came from."""
        data, source, to = self._any()
        self.net.forge(data, self.dice.choice((to, at(ATTACKER))), source)

    def replay(self) -> None:
        data, source, to = self._any()
        self.net.forge(data, source, to)

    def send_from_elsewhere(self) -> None:
        data, _, to = self._any()
        self.net.forge(data, at(ATTACKER), to)

    def pass_on(self) -> None:
        """Give an answer that the attacker had to the one who is to believe it."""
        had = [each for each in self.net.overheard if each[2].address == ATTACKER]
        if had:
            data, source, _ = self.dice.choice(had[-50:])
            other = ROUTER_A if source.address == ROUTER_B else ROUTER_B
            self.net.forge(data, source, at(other))

    def relay(self) -> None:
        """Send to one machine, in the attacker's own name, what another said last."""
        data, _, to = self.net.overheard[-1]
        self.net.forge(data, at(ATTACKER), to)

    events: tuple[Callable[[Attack], None], ...] = (
        reflect,
        replay,
        send_from_elsewhere,
        pass_on,
        relay,
    )

    def _any(self) -> tuple[bytes, Endpoint, Endpoint]:
        recent = self.net.overheard[-40:]
        return self.dice.choice(recent if self.dice.random() < 0.7 else self.net.overheard)

    def circuits(self) -> list[tuple[str, str]]:
        return [
            (name, state)
            for machine in (self.a, self.b)
            for name, (state, _) in machine.states().items()
        ]


@pytest.fixture(params=SEEDS)
def attack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Attack]:
    with network(request.param) as net:
        yield Attack(net, tmp_path)


@pytest.fixture
def calm(tmp_path: Path) -> Iterator[Attack]:
    with network(0) as net:
        yield Attack(net, tmp_path)


def downs(attack: Attack) -> list[tuple[str, int]]:
    """Return how often each data path was attached anew, and whether it has carrier."""
    return [
        (name, path.attachments + 100 * path.carrier)
        for machine in (attack.a, attack.b)
        for name, path in machine.data_paths.items()
    ]


def test_attacker_without_the_key_gets_no_circuit_and_takes_none_down(attack: Attack) -> None:
    attack.net.run(1)  # the handshake is not attacked: it may be delayed at most
    paths = downs(attack)
    reasons = carrier_losses(attack)

    for _ in range(200):
        attack.dice.choice(attack.events)(attack)
        attack.net.run(attack.dice.choice((0.01, 0.1, 0.5)))

    assert attack.circuits() == [("vela0", "up"), ("vela0", "up")]
    assert downs(attack) == paths
    assert reasons == []
    assert attack.net.loop.failures == []


def test_attacker_during_the_handshake_gets_no_circuit(attack: Attack) -> None:
    for _ in range(300):
        if attack.net.overheard:
            attack.dice.choice(attack.events)(attack)
        attack.net.run(attack.dice.choice((0.0005, 0.002, 0.1)))
    attack.net.run(5)

    assert attack.circuits() == [("vela0", "up"), ("vela0", "up")]
    assert attack.net.loop.failures == []


def carrier_losses(attack: Attack) -> list[str]:
    """Return a list that is filled with the data paths that lose carrier from now on."""
    lost: list[str] = []
    for machine in (attack.a, attack.b):
        for path in machine.data_paths.values():

            def set_carrier(carrier: bool, path: object = path) -> None:
                if not carrier:
                    lost.append(repr(path))

            path.set_carrier = set_carrier  # type: ignore[method-assign]
    return lost


def test_reflected_messages_bring_no_circuit_up_toward_who_reflects(tmp_path: Path) -> None:
    """The attacker has the remote's address and another one, and gives all from one to the other.

    B is not there.
    """
    with network(1) as net:
        a = Machine(net, ROUTER_A, tmp_path / "a", (CIRCUIT,), ALLOWED, KEY)
        a.boot()
        other = {ROUTER_B: at(ATTACKER), ATTACKER: at(ROUTER_B)}
        passed = 0
        for _ in range(2000):
            for data, _, to in net.overheard[passed:]:
                net.forge(data, other[to.address], at(ROUTER_A))
            passed = len(net.overheard)
            net.run(0.01)

        assert {name: state for name, (state, _) in a.states().items()} == {"vela0": "connecting"}
        assert a.channel.dropped()["control_reflected"] >= 10
        assert {read_header(data).type for data, _, _ in net.overheard} == {MessageType.REQUEST}


def test_two_circuits_with_one_key_and_id_are_not_joined_to_each_other(tmp_path: Path) -> None:
    """All that one sends is given to the other, as if from its remote."""
    remotes = ip_address("192.0.2.7"), ip_address("192.0.2.8")
    circuits = tuple(
        replace(CIRCUIT, name=f"vela{i}", remote=Remote(str(remote)), addresses=())
        for i, remote in enumerate(remotes)
    )
    with network(2) as net:
        a = Machine(net, ROUTER_A, tmp_path / "a", circuits, ALLOWED, KEY)
        a.boot()
        other = {remotes[0]: at(remotes[1]), remotes[1]: at(remotes[0])}
        passed = 0
        for _ in range(2000):
            for data, _, to in net.overheard[passed:]:
                net.forge(data, other[to.address], at(ROUTER_A))
            passed = len(net.overheard)
            net.run(0.01)

        assert {state for state, _ in a.states().values()} == {"connecting"}
        assert a.channel.dropped()["control_reflected"] >= 20


def stolen(attack: Attack, folder: Path) -> Machine:
    """Return another machine with the key, that asks B for A's circuit from its own address."""
    return Machine(attack.net, ATTACKER, folder / "c", (CIRCUIT,), None, KEY)


@pytest.mark.parametrize("gone", ["crash", "stop"])
def test_another_holder_of_the_key_gets_no_circuit_of_a_machine_that_is_away(
    calm: Attack, tmp_path: Path, gone: str
) -> None:
    calm.net.run(3)
    getattr(calm.a, gone)()
    calm.net.run(10)
    other = stolen(calm, tmp_path)
    other.boot()
    calm.net.run(60)

    [(state, reason)] = other.states().values()
    assert state == "rejected"
    assert "172.16.16.2" in reason or "vela0" in reason
    calm.a.boot()
    calm.net.run(30)
    assert calm.a.states() == {"vela0": ("up", "")}
    assert calm.b.data_paths["vela0"].carrier


def test_machine_that_comes_back_with_another_address_has_its_circuit_and_no_second_one(
    calm: Attack, tmp_path: Path
) -> None:
    calm.net.run(3)
    interface = calm.b.data_paths["vela0"]
    calm.a.crash()
    moved = Machine(
        calm.net,
        ip_address("192.0.2.7"),
        calm.a.config.daemon.state_directory,
        (CIRCUIT,),
        ALLOWED,
        KEY,
    )
    moved.boot()
    calm.net.run(60)

    assert moved.states() == {"vela0": ("up", "")}
    assert calm.b.states() == {"vela0": ("up", "")}
    assert calm.b.data_paths["vela0"] is interface
    assert interface.carrier
    assert interface.attached is not None
    assert str(interface.attached[0].endpoint.address) == "192.0.2.7"
    # B restarts, and still knows whose it is.
    calm.b.stop()
    moved.crash()
    calm.b.boot()
    calm.net.run(30)
    other = stolen(calm, tmp_path)
    other.boot()
    calm.net.run(30)
    assert [state for state, _ in other.states().values()] == ["rejected"]
    calm.a.boot()
    calm.net.run(30)
    assert calm.a.states() == {"vela0": ("up", "")}


def moved(attack: Attack, address: str = "192.0.2.7") -> Machine:
    """Return a machine at another address that has all that A has."""
    folder = attack.a.config.daemon.state_directory
    return Machine(attack.net, ip_address(address), folder, (attack.circuit,), ALLOWED, KEY)


def remote_of(machine: Machine) -> str:
    attached = machine.data_paths["vela0"].attached
    return "" if attached is None else str(attached[0].endpoint.address)


def probes(attack: Attack) -> int:
    """Return how many B has sent, but for those of the path, which are larger."""
    return sum(len(data) == 128 for data in attack.overheard(MessageType.PROBE, ROUTER_B))


def test_machine_with_another_address_need_not_wait_until_the_former_one_is_down(
    tmp_path: Path,
) -> None:
    """Which takes 3.5 keepalive intervals."""
    with network(0) as net:
        calm = Attack(net, tmp_path, replace(CIRCUIT, keepalive=30.0))
        net.run(3)
        interface = calm.b.data_paths["vela0"]
        calm.a.crash()
        assert calm.b.states() == {"vela0": ("up", "")}
        back = moved(calm)
        back.boot()
        net.run(TIMES * ASK_S + 0.5)

        assert back.states() == calm.b.states() == {"vela0": ("up", "")}
        assert calm.b.data_paths["vela0"] is interface
        assert remote_of(calm.b) == "192.0.2.7"
        assert probes(calm) == TIMES
        assert net.loop.failures == []


def test_copy_of_a_machine_gets_no_circuit_that_is_up(attack: Attack) -> None:
    """It can say all that the machine says of itself, and is told so at once."""
    attack.net.run(3)
    paths, losses = downs(attack), carrier_losses(attack)
    copy = moved(attack)
    copy.boot()
    attack.net.run(3)

    assert [state for state, _ in copy.states().values()] == ["rejected"]
    # It asks again when what was found out may have changed.
    assert probes(attack) in (1, 2)
    attack.net.run(57)
    assert [state for state, _ in copy.states().values()] == ["rejected"]
    assert attack.circuits() == [("vela0", "up"), ("vela0", "up")]
    assert remote_of(attack.b) == str(ROUTER_A)
    assert downs(attack) == paths
    assert losses == []
    assert attack.net.loop.failures == []


def test_one_message_that_gets_lost_gives_no_circuit_away(attack: Attack) -> None:
    attack.net.run(3)
    copy = moved(attack)
    copy.boot()
    while not probes(attack):
        attack.net.run(0.0005)
    attack.net.silence(ROUTER_A)
    attack.net.run(ASK_S * (TIMES - 1.5))
    attack.net.silence(None)
    attack.net.run(3)

    assert [state for state, _ in copy.states().values()] == ["rejected"]
    assert remote_of(attack.b) == str(ROUTER_A)


def test_machine_that_takes_over_can_lose_the_circuit_in_the_same_way(attack: Attack) -> None:
    attack.net.run(3)
    for address in ("192.0.2.7", "192.0.2.8", "192.0.2.9"):
        for machine in list(attack.net.machines.values()):
            if machine is not attack.b:
                machine.crash()
        back = moved(attack, address)
        back.boot()
        attack.net.run(3)

        assert back.states() == attack.b.states() == {"vela0": ("up", "")}
        assert remote_of(attack.b) == address


def test_nobody_else_lets_a_remote_be_asked(calm: Attack, tmp_path: Path) -> None:
    calm.net.run(3)
    other = stolen(calm, tmp_path)
    other.boot()
    calm.net.run(10)

    assert [state for state, _ in other.states().values()] == ["rejected"]
    assert probes(calm) == 0


def test_machine_that_moves_and_wants_another_interface_gets_a_new_one(calm: Attack) -> None:
    calm.net.run(3)
    interface = calm.b.data_paths["vela0"]
    calm.a.crash()
    peer = replace(CIRCUIT.peer, mac=bytes.fromhex("02005e100077"))
    moved = Machine(
        calm.net,
        ip_address("192.0.2.7"),
        calm.a.config.daemon.state_directory,
        (replace(CIRCUIT, peer=peer),),
        ALLOWED,
        KEY,
    )
    moved.boot()
    calm.net.run(60)

    assert moved.states() == {"vela0": ("up", "")}
    assert interface.closed
    assert calm.b.data_paths["vela0"].local_mac == peer.mac


def test_another_machine_at_the_same_address_gets_no_circuit_until_the_first_is_long_gone(
    calm: Attack, tmp_path: Path
) -> None:
    """Behind one NAT, say; or the same machine, set up anew without its state."""
    calm.net.run(3)
    other = Machine(calm.net, ROUTER_A, tmp_path / "c", (CIRCUIT,), None, KEY)
    calm.a.crash()
    other.boot()
    calm.net.run(50)
    [(state, reason)] = other.states().values()
    assert state == "rejected"
    assert "another machine set this circuit up" in reason

    other.stop()
    calm.net.machines[ROUTER_A] = calm.a
    calm.a.boot()
    calm.net.run(5)
    assert calm.a.states() == {"vela0": ("up", "")}
    calm.a.crash()
    calm.net.machines[ROUTER_A] = other
    other.boot()
    calm.net.run(120)
    assert other.states() == {"vela0": ("up", "")}


def test_machine_that_said_goodbye_can_come_back_without_its_identity(
    calm: Attack, tmp_path: Path
) -> None:
    calm.net.run(3)
    calm.a.stop()
    anew = Machine(calm.net, ROUTER_A, tmp_path / "anew", (CIRCUIT,), None, KEY)
    anew.boot()
    calm.net.run(5)

    assert anew.states() == {"vela0": ("up", "")}


def test_answer_about_an_unknown_session_that_an_attacker_had_is_not_taken(calm: Attack) -> None:
    calm.net.run(3)
    lost = carrier_losses(calm)
    keepalive = calm.overheard(MessageType.KEEPALIVE, ROUTER_A)[-1]
    before = len(calm.overheard(MessageType.REQUEST))

    calm.net.forge(keepalive, at(ATTACKER), at(ROUTER_B))
    calm.net.run(0.1)
    [answer] = [data for data, _, to in calm.net.overheard if to.address == ATTACKER]
    header = read_header(answer)
    assert header.type is MessageType.REJECT  # B has the key, and its tag is right
    for _ in range(3):
        calm.net.forge(answer, at(ROUTER_B), at(ROUTER_A))
        calm.net.run(0.1)

    assert lost == []
    assert calm.circuits() == [("vela0", "up"), ("vela0", "up")]
    assert len(calm.overheard(MessageType.REQUEST)) == before


def hint_for(attack: Attack) -> bytes:
    """Return what only a machine with the key can say about A's session, and with A's endpoint."""
    header = read_header(attack.overheard(MessageType.KEEPALIVE, ROUTER_A)[-1])
    answer = Reject(
        1,
        header.receiver_nonce,
        header.sender_nonce,
        header.counter,
        RejectCode.NO_SUCH_SESSION,
        "",
        seen=at(ROUTER_A),
    )
    return encode(answer, KEY)


def test_even_a_valid_answer_about_an_unknown_session_takes_none_down(calm: Attack) -> None:
    """As another machine with the key may give it. A asks beside, and the session goes on."""
    calm.net.run(3)
    lost = carrier_losses(calm)
    hint = hint_for(calm)
    before = len(calm.overheard(MessageType.REQUEST))

    for _ in range(50):
        calm.net.forge(hint, at(ROUTER_B), at(ROUTER_A))
        calm.net.run(0.01)
    calm.net.run(10)

    assert lost == []
    assert calm.circuits() == [("vela0", "up"), ("vela0", "up")]
    # B acknowledges that it has the session; and A asks no more often, whatever is sent.
    assert len(calm.overheard(MessageType.REQUEST)) - before == 3
    assert calm.overheard(MessageType.CONFIRM, ROUTER_A)[1:] == []


def test_valid_answer_about_an_unknown_session_while_the_remote_is_away_takes_none_down(
    calm: Attack,
) -> None:
    calm.net.run(3)
    lost = carrier_losses(calm)
    hint = hint_for(calm)
    calm.net.loss = 1.0

    calm.net.forge(hint, at(ROUTER_B), at(ROUTER_A))
    # Two keepalives are lost at most; of three the circuits would go down.
    calm.net.run(1.5)
    assert lost == []
    calm.net.loss = 0.0
    calm.net.run(3)

    assert lost == []
    assert calm.circuits() == [("vela0", "up"), ("vela0", "up")]
