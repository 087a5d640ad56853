"""What signalling is told of the configuration."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import IPv4Interface, ip_address, ip_network

from vela.address import Remote
from vela.signaling.messages import Offer
from vela.signaling.policy import Policy
from vela.supervisor.circuit.circuit import Origin
from vela.supervisor.config.records import AutoconfigureConfig, CircuitConfig, PeerConfig
from vela.supervisor.control_channel import _policy_of
from vela.supervisor.registry.requests import offer_of

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
    )

    policy = _policy_of(config)

    assert policy == Policy(False, (NETWORK,), config.networks, ("br-lan",), "vela?", 3)
    rules = {each.name for each in fields(AutoconfigureConfig)} - {"key_file"}
    assert {each.name for each in fields(Policy)} - {"resolved"} == rules


def test_policy_without_sources_lets_whoever_has_the_key_ask() -> None:
    policy = _policy_of(AutoconfigureConfig())

    assert policy.knows(ADDRESS, authenticated=True)
    assert not policy.knows(ADDRESS, authenticated=False)


def test_policy_with_names_alone_lets_nobody_ask_before_they_are_resolved() -> None:
    policy = _policy_of(AutoconfigureConfig(sources=("router1.example.net",)))

    assert not policy.knows(ADDRESS, authenticated=True)
    assert replace(policy, resolved=(ADDRESS,)).knows(ADDRESS, authenticated=False)


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
