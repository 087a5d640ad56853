"""What others do to a circuit's interface while it is up: what is put right, and what is shown."""

from __future__ import annotations

import json

import pytest

from lab.autoconfigured import addresses, asking, circuit, ends, master, policy, wait_until_up
from lab.circuit import ADDRESSES_A, NAME
from lab.daemon import Velad
from lab.link import Interface, bridge
from lab.load import ping
from lab.namespace import Namespace
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

REMOTE = ("172.16.16.2", "fd00:16::2")


def wait_for_reason(velad: Velad, reason: str) -> None:
    velad.wait_for(lambda _: velad.circuit(NAME)["reason"] == reason, 10, reason or "no reason")
    assert velad.circuit(NAME)["state"] == "up"


def passes(namespace: Namespace) -> bool:
    return all(ping(namespace, remote, count=2).received == 2 for remote in REMOTE)


def has_all_addresses(namespace: Namespace, name: str = NAME) -> bool:
    return set(ADDRESSES_A) <= addresses(namespace, name)


def test_interface_that_is_set_down_is_shown_and_has_all_addresses_when_it_is_up(
    routers: TwoRouters,
) -> None:
    """The kernel removes IPv6 addresses with it."""
    with circuit(routers) as both:
        namespace = routers.a.namespace
        namespace.run("ip", "link", "set", NAME, "down")
        wait_for_reason(both.a, f"its interface was set down; ip link set {NAME} up")

        namespace.run("ip", "link", "set", NAME, "up")

        wait_for_reason(both.a, "")
        eventually(lambda: has_all_addresses(namespace), 5, "the addresses")
        assert passes(namespace)

        # In one breath, so that nobody sees it down.
        namespace.run("sh", "-c", f"ip link set {NAME} down; ip link set {NAME} up")
        eventually(lambda: has_all_addresses(namespace), 5, "the addresses")
        eventually(lambda: passes(namespace), 5, "pings")


def test_interface_without_a_queue_is_shown_as_no_frame_leaves(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        namespace = routers.a.namespace
        namespace.run("ip", "link", "set", NAME, "txqueuelen", "0")

        said = "its interface was left without a queue, so no frame leaves; "
        wait_for_reason(both.a, f"{said}ip link set {NAME} txqueuelen 1000")
        assert ping(namespace, REMOTE[0], count=2).received == 0

        namespace.run("ip", "link", "set", NAME, "txqueuelen", "1000")
        wait_for_reason(both.a, "")
        eventually(lambda: passes(namespace), 5, "pings")


def test_interface_with_addresses_that_becomes_a_port_is_shown(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        namespace = routers.a.namespace
        bridge(namespace, "br7")
        namespace.run("ip", "link", "set", NAME, "master", "br7")

        where = "its interface was made a port of br7, where its own addresses do not answer"
        wait_for_reason(both.a, where)

        namespace.run("ip", "link", "set", NAME, "nomaster")
        wait_for_reason(both.a, "")
        eventually(lambda: passes(namespace), 5, "pings")


def test_address_that_is_removed_comes_back_and_foreign_ones_stay(routers: TwoRouters) -> None:
    with circuit(routers) as both:
        namespace = routers.a.namespace
        namespace.run("ip", "address", "add", "10.9.0.1/24", "dev", NAME)
        for address in ADDRESSES_A:
            namespace.run("ip", "address", "delete", address, "dev", NAME)

            eventually(lambda: has_all_addresses(namespace), 5, "the addresses")

        assert passes(namespace)
        assert "10.9.0.1/24" in addresses(namespace, NAME)
        namespace.run("ip", "address", "delete", "10.9.0.1/24", "dev", NAME)
        assert both.a.circuit(NAME)["reason"] == ""
        assert "10.9.0.1/24" not in addresses(namespace, NAME)


def test_mtu_that_is_too_small_for_ipv6_is_shown_and_addresses_come_back_with_a_larger_one(
    routers: TwoRouters,
) -> None:
    with circuit(routers) as both:
        interface = Interface(routers.a.namespace, NAME)
        interface.set_mtu(1000)
        wait_for_reason(
            both.a,
            "its interface was given an MTU of 1000, too small for IPv6; the circuit's is 1471",
        )
        assert addresses(routers.a.namespace, NAME) == {ADDRESSES_A[0]}

        interface.set_mtu(1471)

        wait_for_reason(both.a, "")
        eventually(lambda: has_all_addresses(routers.a.namespace), 5, "the addresses")
        assert passes(routers.a.namespace)


@pytest.mark.usefixtures("eager")
def test_renamed_interface_works_under_its_new_name_and_another_of_the_old_name_is_left_alone(
    routers: TwoRouters,
) -> None:
    with circuit(routers) as both:
        run = routers.a.namespace.run
        run("ip", "link", "set", NAME, "down")
        run("ip", "link", "set", NAME, "name", "lan0")
        run("ip", "link", "set", "lan0", "up")
        wait_for_reason(both.a, "its interface was renamed to lan0")
        run("ip", "tuntap", "add", NAME, "mode", "tap")

        eventually(lambda: has_all_addresses(routers.a.namespace, "lan0"), 5, "the addresses")
        eventually(lambda: passes(routers.a.namespace), 5, "pings")
        # What is set later is set of the circuit's own.
        routers.a.set_route_mtu(routers.b.ipv4, 1400)
        eventually(lambda: Interface(routers.a.namespace, "lan0").mtu == 1371, 10, "the MTU")
        both.a.configure(asking(routers.b.ipv4, description="of lan0", addresses=[ADDRESSES_A[0]]))
        both.a.control("reload")

        assert Interface(routers.a.namespace, NAME).mtu == 1500
        assert addresses(routers.a.namespace, "lan0") == {ADDRESSES_A[0]}
        (shown,) = json.loads(run("ip", "-j", "link", "show", "dev", "lan0").stdout)
        assert shown["ifalias"] == "of lan0"
        wait_for_reason(both.a, "its interface was renamed to lan0")


def test_interface_in_another_bridge_or_in_none_is_shown_and_left_there(
    routers: TwoRouters,
) -> None:
    namespace = routers.a.namespace
    for name in ("br0", "br1"):
        bridge(namespace, name)
    config = asking(routers.b.ipv4, addresses=[], bridge="br0")
    with ends(routers, config, policy()) as both:
        wait_until_up(both)
        wait_for_reason(both.a, "")

        namespace.run("ip", "link", "set", NAME, "master", "br1")
        wait_for_reason(both.a, "its interface was moved to br1 from the bridge br0")
        namespace.run("ip", "link", "set", NAME, "nomaster")
        wait_for_reason(both.a, "its interface was taken out of the bridge br0")
        assert master(namespace, NAME) is None

        namespace.run("ip", "link", "set", NAME, "master", "br0")
        wait_for_reason(both.a, "")


def test_interface_in_another_namespace_is_shown_and_carries_frames_there(
    routers: TwoRouters,
) -> None:
    with circuit(routers) as both, Namespace("other") as other:
        namespace = routers.a.namespace
        namespace.run("ip", "link", "set", NAME, "netns", other.name)
        wait_for_reason(both.a, "its interface is in another network namespace")

        other.run("ip", "address", "add", ADDRESSES_A[0], "dev", NAME)
        other.run("ip", "link", "set", NAME, "up")

        assert ping(other, REMOTE[0], count=2).received == 2
        other.run("ip", "link", "set", NAME, "netns", namespace.name)
        namespace.run("ip", "link", "set", NAME, "up")
        wait_for_reason(both.a, "")
        eventually(lambda: has_all_addresses(namespace), 5, "the addresses")
