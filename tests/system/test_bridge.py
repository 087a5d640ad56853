"""A bridge that comes later than its circuit, or comes again: networkd or ifupdown makes it."""

from __future__ import annotations

import pytest

from lab.autoconfigured import Ends, asking, ends, master, policy
from lab.circuit import NAME
from lab.link import bridge
from lab.load import ping
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

BRIDGE = "br0"
WAITING = "the bridge br0 does not exist; waiting for it"


def make_bridge(routers: TwoRouters) -> None:
    bridge(routers.a.namespace, BRIDGE)
    routers.a.namespace.run("ip", "address", "add", "172.16.16.1/30", "dev", BRIDGE)


def wait_until_joined(both: Ends) -> None:
    namespace = both.a.namespace
    eventually(lambda: master(namespace, NAME) == BRIDGE, 5, f"{NAME} to join {BRIDGE}")
    both.a.wait_for(lambda status: status["circuits"][0]["reason"] == "", 5, "no reason")


def test_circuit_waits_for_its_bridge_and_joins_it_when_it_is_there(routers: TwoRouters) -> None:
    circuit = asking(routers.b.ipv4, addresses=[], bridge=BRIDGE)
    with ends(routers, circuit, policy()) as both:
        up = both.a.wait_for_state(NAME, "up")
        assert up["reason"] == WAITING
        assert f"{NAME}: {WAITING}" in both.a.control("status").stdout

        make_bridge(routers)

        wait_until_joined(both)
        ping(routers.a.namespace, "172.16.16.2")
        assert both.a.circuit(NAME)["state"] == "up"


def test_circuit_joins_a_bridge_that_was_deleted_and_made_again(routers: TwoRouters) -> None:
    make_bridge(routers)
    circuit = asking(routers.b.ipv4, addresses=[], bridge=BRIDGE)
    with ends(routers, circuit, policy()) as both:
        both.a.wait_for_state(NAME, "up")
        wait_until_joined(both)

        routers.a.namespace.run("ip", "link", "delete", BRIDGE)
        both.a.wait_for(lambda status: status["circuits"][0]["reason"] == WAITING, 5, WAITING)
        make_bridge(routers)

        wait_until_joined(both)
        ping(routers.a.namespace, "172.16.16.2")


def test_interface_that_is_removed_comes_back_without_its_bridge(routers: TwoRouters) -> None:
    make_bridge(routers)
    circuit = asking(routers.b.ipv4, addresses=[], bridge=BRIDGE)
    with ends(routers, circuit, policy()) as both:
        both.a.wait_for_state(NAME, "up")

        routers.a.namespace.run("ip", "link", "delete", BRIDGE)
        routers.a.namespace.run("ip", "link", "delete", NAME)

        both.a.wait_for(lambda status: status["circuits"][0]["reason"] == WAITING, 5, WAITING)
        make_bridge(routers)
        wait_until_joined(both)


def test_name_of_the_bridge_that_another_interface_takes_is_told(routers: TwoRouters) -> None:
    circuit = asking(routers.b.ipv4, addresses=[], bridge=BRIDGE)
    with ends(routers, circuit, policy()) as both:
        both.a.wait_for_state(NAME, "up")

        routers.a.namespace.run("ip", "tuntap", "add", BRIDGE, "mode", "tap")

        entry = both.a.wait_for_state(NAME, "failed")
        assert entry["reason"].startswith(f"{NAME}: cannot join it to {BRIDGE}: ")
        routers.a.namespace.run("ip", "link", "delete", BRIDGE)
        make_bridge(routers)
        wait_until_joined(both)
        both.a.wait_for_state(NAME, "up")
