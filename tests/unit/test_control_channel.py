"""What signalling is told of the configuration, and which messages are read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import fields, replace
from ipaddress import IPv4Interface, ip_address, ip_network

import pytest

from vela.address import Endpoint, Family, IPAddress, Remote
from vela.linux.choice import UnderlayChoice
from vela.linux.steering import ControlSteering
from vela.signaling.messages import Header, Offer
from vela.signaling.policy import Policy
from vela.supervisor.circuit.setup import Origin
from vela.supervisor.config.records import (
    AutoconfigureConfig,
    CircuitConfig,
    PeerConfig,
    SourceRules,
)
from vela.supervisor.control_channel import ControlChannel, Expected, _policy_of
from vela.supervisor.demux import ControlHandler
from vela.supervisor.registry.requests import offer_of
from vela.supervisor.runtime.loop import EventLoop
from vela.supervisor.runtime.names import AnswerCallback, DelayCallback

NETWORK = ip_network("192.0.2.0/24")
ADDRESS = ip_address("192.0.2.1")
ADDRESSES = (IPv4Interface("172.16.16.2/30"),)


def test_policy_has_every_rule_of_the_table() -> None:
    config = AutoconfigureConfig(
        accept=False,
        sources=(NETWORK, "router1.example.net"),
        networks=(ip_network("172.16.0.0/12"),),
        bridges=("br-lan",),
        interfaces="vela?",
        max_circuits=3,
        max_circuits_per_remote=2,
    )

    policy = _policy_of(config, {})

    assert policy == Policy(False, (NETWORK,), config.networks, ("br-lan",), "vela?", 3, 2)
    # What else the table has is no rule that a request is judged by.
    rules = {each.name for each in fields(AutoconfigureConfig)} - {
        "key_file",
        "accept_ra",
        "packet_too_big",
        "peers",
        "encryption",
    }
    assert {each.name for each in fields(Policy)} - {"resolved"} == rules


def test_policy_without_sources_lets_whoever_has_the_key_ask() -> None:
    policy = _policy_of(AutoconfigureConfig(), {})

    assert policy.knows(ADDRESS, authenticated=True)
    assert not policy.knows(ADDRESS, authenticated=False)


def test_policy_with_names_alone_lets_nobody_ask_before_they_are_resolved() -> None:
    policy = _policy_of(AutoconfigureConfig(sources=("router1.example.net",)), {})

    assert not policy.knows(ADDRESS, authenticated=True)
    resolved = {"router1.example.net": (ADDRESS,)}
    policy = _policy_of(AutoconfigureConfig(sources=("router1.example.net",)), resolved)
    assert policy.knows(ADDRESS, authenticated=False)


def test_rules_for_a_name_are_those_of_its_addresses() -> None:
    rules = SourceRules("router1.example.net", bridges=("br1",), max_circuits=5)
    config = AutoconfigureConfig(sources=(NETWORK,), bridges=("br0",), per_source=(rules,))

    unknown = _policy_of(config, {}).limits(ADDRESS)
    known = _policy_of(config, {"router1.example.net": (ADDRESS,)})

    assert (unknown.bridges, unknown.max_circuits) == (("br0",), 16)
    assert (known.limits(ADDRESS).bridges, known.limits(ADDRESS).max_circuits) == (("br1",), 5)
    # Who has rules is not thereby let in.
    assert known.resolved == ()


def test_offer_is_what_the_configuration_gives_the_peer() -> None:
    peer = PeerConfig("vela1", ADDRESSES, "br-lan", bytes(6), checksum_offload=True)
    config = CircuitConfig("vela0", 1, Remote("192.0.2.1"), bridge="br-own", peer=peer)

    offer = offer_of(config, Origin.CONFIG, named_by_peer=False)

    assert offer == Offer("vela1", ADDRESSES, "br-lan", bytes(6))


def test_offer_of_a_peers_circuit_is_what_the_peer_once_wanted() -> None:
    config = CircuitConfig("vela0", 1, Remote("192.0.2.1"), addresses=ADDRESSES, bridge="br-lan")

    named = offer_of(config, Origin.PEER, named_by_peer=True)

    assert named == Offer("vela0", ADDRESSES, "br-lan", None)
    assert offer_of(config, Origin.PEER, named_by_peer=False) == replace(named, interface=None)


class Transport:
    """Takes what the channel tells it."""

    def __init__(self) -> None:
        self.expected = ControlSteering()
        self.handler: ControlHandler | None = None

    def set_control_handler(self, handler: ControlHandler) -> None:
        self.handler = handler

    def send_control(
        self,
        data: bytes,
        local_address: IPAddress,
        remote: Endpoint,
        choice: UnderlayChoice,
        *,
        dont_fragment: bool = False,
    ) -> None:
        raise AssertionError("nothing is to be sent")

    def expect_control(self, control: ControlSteering) -> None:
        self.expected = control


class Names:
    def ask(
        self,
        host: str,
        family: Family | None,
        callback: AnswerCallback,
        on_delay: DelayCallback | None = None,
    ) -> None:
        raise AssertionError("no name is to be asked for")


class Circuit:
    """A participant that counts what it is given."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def converses_with(self, address: IPAddress, header: Header) -> bool:
        return address == ADDRESS

    def receive_control(self, data: bytes, source: Endpoint, local_address: IPAddress) -> None:
        self.messages.append(data)


def message(circuit_id: int, receiver_nonce: int) -> bytes:
    return struct.pack("!BBBBQQQ", 0, 1, 5, circuit_id, 1, receiver_nonce, 7) + bytes(16)


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    made = EventLoop()
    yield made
    made.close()


def test_messages_that_a_session_expects_are_read_whatever_is_sent_in_its_remotes_name(
    loop: EventLoop,
) -> None:
    transport = Transport()
    channel = ControlChannel(loop, transport, Names(), 48621)
    flooded, other = Circuit(), Circuit()
    for circuit_id, circuit in ((1, flooded), (2, other)):
        channel.add(circuit_id, circuit)
        channel.expect(circuit, Expected((ADDRESS,), (circuit_id << 40,)))
    assert transport.expected == ControlSteering(
        frozenset({ADDRESS}), frozenset({1 << 40, 2 << 40})
    )
    assert transport.handler is not None

    # Another circuit's nonce helps nobody.
    for nonce in (0, 2 << 40):
        for _ in range(2000):
            transport.handler(message(1, nonce), Endpoint(ADDRESS, 48621), ADDRESS)
    read = len(flooded.messages)
    for _ in range(10):
        transport.handler(message(1, 1 << 40), Endpoint(ADDRESS, 48621), ADDRESS)
    transport.handler(message(2, 0), Endpoint(ADDRESS, 48621), ADDRESS)

    assert 600 <= read < 1200
    assert len(flooded.messages) == read + 10
    assert len(other.messages) == 1
    assert channel.dropped()["control_too_fast"] == 4000 - read
    channel.remove(1, flooded)
    assert transport.expected == ControlSteering(frozenset({ADDRESS}), frozenset({2 << 40}))
