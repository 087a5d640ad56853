"""A VRF as underlay: the way to the remote is in a routing table of its own.

velad has no key for it. It works where velad itself runs in the VRF (ip vrf exec), and where
the main table knows a way to the remote and udp_l3mdev_accept lets datagrams of the VRF in.
"""

from __future__ import annotations

import pytest

from lab.copying import copy
from lab.daemon import Velad, started_together
from lab.load import ping
from lab.quickstart import CONFIG_A, CONFIG_B, PEER_ADDRESSES, TAP_MTU
from lab.topology import Router, TwoRouters

pytestmark = pytest.mark.needs_net_admin

FILE_BYTES = 4_000_000
VRF, TABLE = "red", "1010"


def test_velad_run_in_the_vrf_has_a_working_circuit(routers: TwoRouters) -> None:
    for router in (routers.a, routers.b):
        _enslave(router)
    prefix = ("ip", "vrf", "exec", VRF)
    left = Velad(routers.a.namespace, CONFIG_A, prefix=prefix)
    right = Velad(routers.b.namespace, CONFIG_B, prefix=prefix)

    _check(left, right)


def test_velad_outside_of_the_vrf_works_with_routes_and_l3mdev_accept(routers: TwoRouters) -> None:
    for router, remote in ((routers.a, routers.b), (routers.b, routers.a)):
        _enslave(router)
        router.namespace.sysctl("net/ipv4/udp_l3mdev_accept", 1)
        router.namespace.run("ip", "route", "add", f"{remote.ipv4}/32", "dev", "eth0")
    left = Velad(routers.a.namespace, CONFIG_A)
    right = Velad(routers.b.namespace, CONFIG_B)

    _check(left, right)


def _enslave(router: Router) -> None:
    namespace = router.namespace
    namespace.run("ip", "link", "add", VRF, "type", "vrf", "table", TABLE)
    namespace.run("ip", "link", "set", VRF, "up")
    namespace.run("ip", "link", "set", router.underlay.name, "master", VRF)


def _check(left: Velad, right: Velad) -> None:
    with started_together(left, right):
        for velad in (left, right):
            assert velad.wait_for_state("vela0", "up", timeout_s=20)["mtu"] == TAP_MTU

        pings = ping(left.namespace, PEER_ADDRESSES[0], count=3, size=TAP_MTU, dont_fragment=True)
        assert pings.lost == 0
        copied = copy(left.namespace, right.namespace, PEER_ADDRESSES[0], FILE_BYTES, timeout_s=60)
        assert copied.received_digest == copied.sent_digest
