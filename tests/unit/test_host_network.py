"""vela.supervisor.registry.host: what the kernel says of this machine, which needs no root."""

from __future__ import annotations

import socket
from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from vela.address import IPNetwork
from vela.linux import rtnetlink
from vela.linux.rtnetlink import Rtnetlink
from vela.supervisor.registry.facts import KnownAddress
from vela.supervisor.registry.host import FACTS_S, HostNetwork

LOOPBACK = KnownAddress(ip_interface("127.0.0.1/8"), ip_network("127.0.0.0/8"), "lo")
WANTED = (ip_network("10.9.0.0/30"),)
OTHERS = (ip_network("10.9.0.4/30"),)


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def network(clock: Clock) -> HostNetwork:
    return HostNetwork(clock.now)


def test_addresses_are_known_with_their_subnet_and_interface(network: HostNetwork) -> None:
    facts = network.facts(WANTED)

    assert LOOPBACK in facts.addresses
    names = {name for _, name in socket.if_nameindex()}
    assert {each.interface for each in facts.addresses} <= names
    assert {each.interface for each in facts.routes} <= names | {""}
    for each in facts.addresses:
        assert each.address.ip in each.subnet or each.subnet.num_addresses == 1


def test_kernel_is_asked_once_a_second_at_most(network: HostNetwork, clock: Clock) -> None:
    first = network.facts(WANTED)
    clock.seconds += FACTS_S - 0.01

    assert network.facts(WANTED) is first

    clock.seconds += 0.02
    assert network.facts(WANTED) is not first


def test_facts_stay_as_they_are_if_the_machine_does(network: HostNetwork, clock: Clock) -> None:
    first = network.facts(WANTED)
    clock.seconds += FACTS_S

    assert LOOPBACK in network.facts(OTHERS).addresses
    assert LOOPBACK in first.addresses


def test_complete_facts_are_those_of_all_networks(network: HostNetwork, clock: Clock) -> None:
    """They are complete where the machine has no more routes than are read at once."""
    first = network.facts(WANTED)

    assert network.facts(OTHERS) is first


def test_facts_that_are_not_complete_are_asked_for_by_other_networks(
    network: HostNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a router with a full table, of which the kernel is not asked for all."""
    ask = Rtnetlink.routes

    def ask_for_some(kernel: Rtnetlink, wanted: tuple[IPNetwork, ...]) -> Any:
        return ask(kernel, wanted)[0], False

    monkeypatch.setattr(Rtnetlink, "routes", ask_for_some)
    first = network.facts(WANTED)

    assert network.facts(WANTED) is first
    assert network.facts(OTHERS) is not first


def test_more_routes_by_hand_than_are_read_at_once_are_no_failure(
    network: HostNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those the first ones are known, and the one toward each wanted network."""
    monkeypatch.setattr(rtnetlink, "MAX_ROUTES", 0)

    assert LOOPBACK in network.facts(WANTED).addresses
