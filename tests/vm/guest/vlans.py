"""VLANs across a circuit: children of the TAP, and a bridge that keeps VLANs apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lab.copying import copy
from lab.daemon import Velad, started_together
from lab.link import Interface, bridge, veth
from lab.load import ping
from lab.namespace import Namespace
from lab.pings import Pings
from lab.quickstart import CONFIG_A, CONFIG_B, TAP_MTU
from lab.topology import Router, TwoRouters

pytestmark = pytest.mark.needs_net_admin

FILE_BYTES = 4_000_000
RELOADED = ("keepalive = 2.0", "mtu = 1400", "cpu = 1", "clamp_mss = 1300")
"""Each of them alone: so the one before is taken back with it."""
PINGS, PING_INTERVAL_S = 100, 0.02
BRIDGED_A = """\
[circuits.vela0]
id = 1
remote = "10.201.0.2"
bridge = "br0"

[circuits.vela0.peer]
interface = "vela0"
bridge = "br0"
"""
BRIDGED_B = """\
[autoconfigure]
from = ["10.201.0.1"]
bridges = ["br0"]
"""


def test_vlan_children_of_both_taps_carry_full_size_packets_and_a_file(
    routers: TwoRouters,
) -> None:
    a, b = routers.a.namespace, routers.b.namespace
    left, right = Velad(a, CONFIG_A), Velad(b, CONFIG_B)
    with started_together(left, right):
        _add_children(left, right)

        assert ping(a, "192.0.2.2", count=3, size=TAP_MTU, dont_fragment=True).lost == 0
        copied = copy(a, b, "192.0.2.2", FILE_BYTES, timeout_s=60)

        assert copied.received_digest == copied.sent_digest
        assert right.circuit("vela0")["worker"]["restarts"] == 0


def test_route_into_a_vlan_of_the_circuit_is_named_and_not_used(routers: TwoRouters) -> None:
    run = routers.a.namespace.run
    left, right = Velad(routers.a.namespace, CONFIG_A), Velad(routers.b.namespace, CONFIG_B)
    with started_together(left, right):
        left.wait_for_state("vela0", "up", timeout_s=20)
        run("ip", "link", "add", "link", "vela0", "name", "vela0.10", "type", "vlan", "id", "10")
        run("ip", "link", "set", "vela0.10", "up")

        run("ip", "route", "add", f"{routers.b.ipv4}/32", "dev", "vela0.10")

        entry = left.wait_for_state("vela0", "down", timeout_s=10)
        assert entry["reason"] == (
            f"the route {routers.b.ipv4}/32 dev vela0.10 leads into the circuit itself"
        )
        run("ip", "link", "delete", "vela0.10")
        left.wait_for_state("vela0", "up", timeout_s=30)


def test_vlan_child_stays_through_reloads_and_its_pings_are_answered(
    routers: TwoRouters, record_property: Callable[[str, object], None]
) -> None:
    a, b = routers.a.namespace, routers.b.namespace
    left, right = Velad(a, CONFIG_A), Velad(b, CONFIG_B)
    table = "[circuits.vela0]\n"
    assert CONFIG_A.count(table) == 1
    with started_together(left, right):
        _add_children(left, right)
        before = _index(a)

        for key in RELOADED:
            with Pings(["192.0.2.2"], PING_INTERVAL_S, a) as pings:
                pings.await_answers(3)
                left.configure(CONFIG_A.replace(table, f"{table}{key}\n"))
                left.control("reload")
                pings.await_answers(PINGS)
                pings.stop()
            left.wait_for_state("vela0", "up", timeout_s=20)

            assert pings.unanswered() == [[]], key
            record_property(key, f"0 of {pings.asked()[0]} pings lost")
            assert _index(a) == before, key


def test_vlan_aware_bridges_join_hosts_of_one_vlan_and_no_others(routers: TwoRouters) -> None:
    for router in (routers.a, routers.b):
        bridge(router.namespace, "br0")
        router.namespace.run(
            *("ip", "link", "set", "br0", "type", "bridge"),
            *("vlan_filtering", "1", "vlan_default_pvid", "0"),
        )
    left = Velad(routers.a.namespace, BRIDGED_A)
    right = Velad(routers.b.namespace, BRIDGED_B)
    with (
        started_together(left, right),
        _host(routers.a, 10, "192.0.2.1/24") as ten,
        _host(routers.b, 10, "192.0.2.2/24") as other_ten,
        _host(routers.b, 20, "192.0.2.3/24"),
    ):
        for velad in (left, right):
            velad.wait_for_state("vela0", "up", timeout_s=20)
            for vlan in (10, 20):
                velad.namespace.run("bridge", "vlan", "add", "dev", "vela0", "vid", str(vlan))
        size = left.circuit("vela0")["mtu"]

        assert ping(ten, "192.0.2.2", count=3, size=size).lost == 0
        copied = copy(ten, other_ten, "192.0.2.2", FILE_BYTES, timeout_s=60)
        crossing = ping(ten, "192.0.2.3", count=2, timeout_s=1)

    assert copied.received_digest == copied.sent_digest
    assert crossing.received == 0


def _add_children(left: Velad, right: Velad) -> None:
    """Give each end's interface a child in VLAN 10, as soon as the circuit is up there."""
    for velad, address in ((left, "192.0.2.1/24"), (right, "192.0.2.2/24")):
        velad.wait_for_state("vela0", "up", timeout_s=20)
        vlan = ("type", "vlan", "id", "10")
        velad.namespace.run("ip", "link", "add", "link", "vela0", "name", "vela0.10", *vlan)
        child = Interface(velad.namespace, "vela0.10")
        child.add_address(address)
        child.set_up()


def _index(namespace: Namespace) -> str:
    """Return the number of the child."""
    return namespace.run("ip", "-o", "link", "show", "vela0.10").stdout.partition(":")[0]


@contextmanager
def _host(router: Router, vlan: int, address: str) -> Iterator[Namespace]:
    """A host on an access port of the router's bridge, with the MTU that circuits have."""
    with Namespace(f"host{vlan}") as host:
        port, end = veth(router.namespace, f"port{vlan}", host, "eth0", TAP_MTU)
        router.namespace.run("ip", "link", "set", port.name, "master", "br0")
        vid = ("vid", str(vlan), "pvid", "untagged")
        router.namespace.run("bridge", "vlan", "add", "dev", port.name, *vid)
        end.add_address(address)
        yield host
