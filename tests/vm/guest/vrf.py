"""A VRF as underlay: the way to the remote is in a routing table of its own.

A circuit's key device names the VRF, or the interface in it. Without the key it works where velad
itself runs in the VRF (ip vrf exec), and where the main table knows a way to the remote and
udp_l3mdev_accept lets datagrams of the VRF in.
"""

from __future__ import annotations

from typing import Any

import pytest

from lab.autoconfigured import asking, asking_back, policy
from lab.copying import copy
from lab.daemon import Velad, started_together
from lab.fd_store import StoredVelad, fd_store
from lab.link import veth
from lab.load import ping
from lab.pings import Pings
from lab.quickstart import CONFIG_A, CONFIG_B, PEER_ADDRESSES, TAP_MTU
from lab.topology import Router, TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

FILE_BYTES = 4_000_000
VRF, TABLE = "red", "1010"
PATIENT: dict[str, Any] = {"device": VRF, "keepalive": 30.0}


@pytest.mark.parametrize("device", [VRF, "eth0"])
@pytest.mark.parametrize("source_port", ["auto", "listen"])
def test_circuit_with_the_vrf_as_device_works_and_needs_nothing_else(
    routers: TwoRouters, device: str, source_port: str
) -> None:
    """Both ends are in a VRF, so both are configured: strangers in a VRF are not answered."""
    for router in (routers.a, routers.b):
        _enslave(router)
    choice: dict[str, Any] = {"device": device, "source_port": source_port}
    left = Velad(routers.a.namespace, asking(routers.b.ipv4, **choice))
    right = Velad(routers.b.namespace, asking_back(routers.a.ipv4, **choice))

    _check(left, right)


def test_circuit_from_a_vrf_is_set_up_by_a_remote_outside(routers: TwoRouters) -> None:
    _enslave(routers.a)
    left = Velad(routers.a.namespace, asking(routers.b.ipv4, device=VRF))
    right = Velad(routers.b.namespace, policy())

    _check(left, right)


def test_stranger_in_a_vrf_of_a_circuit_is_not_answered(routers: TwoRouters) -> None:
    """B asks from an address that is no circuit's remote."""
    _enslave(routers.a)
    routers.b.underlay.add_address("10.201.0.99/24")
    left = Velad(routers.a.namespace, policy() + asking("10.201.0.98", device=VRF))
    right = Velad(routers.b.namespace, asking(routers.a.ipv4, name="vela5", bind="10.201.0.99"))
    with started_together(left, right):
        left.wait_for(lambda status: status["rx_dropped"]["control"] > 2, 20, "requests")

        assert right.circuit("vela5")["state"] == "connecting"
        assert [each["name"] for each in left.status()["circuits"]] == ["vela0"]


def test_circuits_in_and_outside_of_a_vrf_work_beside_each_other(routers: TwoRouters) -> None:
    """By two cables, one of them in a VRF at A."""
    for end, address in zip(
        veth(routers.a.namespace, "eth1", routers.b.namespace, "eth1"),
        ("10.202.0.1/24", "10.202.0.2/24"),
        strict=True,
    ):
        end.add_address(address)
        end.set_up()
    _enslave(routers.a)
    outside = asking(
        "10.202.0.2",
        name="vela1",
        id=2,
        addresses=["172.16.17.1/30"],
        peer={"addresses": ["172.16.17.2/30"]},
    )
    left = Velad(routers.a.namespace, asking(routers.b.ipv4, device=VRF) + outside)
    right = Velad(routers.b.namespace, policy(sources=["10.0.0.0/8"]))
    with started_together(left, right):
        for name, address in (("vela0", "172.16.16.2"), ("vela1", "172.16.17.2")):
            for velad in (left, right):
                velad.wait_for_state(name, "up", timeout_s=20)
            assert ping(routers.a.namespace, address, count=3).lost == 0


def test_vrf_that_comes_late_and_again_is_followed(routers: TwoRouters) -> None:
    left = Velad(routers.a.namespace, asking(routers.b.ipv4, device=VRF))
    right = Velad(routers.b.namespace, policy())
    reason = f"the interface {VRF} does not exist; waiting for it"
    with started_together(left, right):
        for _ in range(2):
            left.wait_for(lambda _: left.circuit("vela0")["reason"] == reason, 20, reason)

            _enslave(routers.a)

            left.wait_for_state("vela0", "up", timeout_s=30)
            assert ping(left.namespace, PEER_ADDRESSES[0], count=3).lost == 0
            routers.a.namespace.run("ip", "link", "delete", VRF)


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


@pytest.mark.parametrize("how", ["replaced", "restarted"])
def test_velad_with_a_circuit_in_a_vrf_is_succeeded_without_loss(
    routers: TwoRouters, how: str
) -> None:
    for router in (routers.a, routers.b):
        _enslave(router)
    with (
        fd_store() as store,
        Velad(routers.b.namespace, asking_back(routers.a.ipv4, **PATIENT)) as right,
        StoredVelad(routers.a.namespace, asking(routers.b.ipv4, **PATIENT), store) as left,
    ):
        for velad in (left, right):
            velad.wait_for_state("vela0", "up", timeout_s=20)
        eventually(
            lambda: sum(name.endswith(f"-{VRF}") for name in store.names) == 4,
            *(20, "the sockets of the VRF to be stored"),
        )
        flaps = right.circuit("vela0")["transitions"]
        with Pings([PEER_ADDRESSES[0]], 0.2, left.namespace) as pings:
            pings.await_answers(5)
            if how == "replaced":
                left.replace_by_hand()
            else:
                left.restart()
            pings.await_answers(5)
            pings.stop()

        assert pings.unanswered() == [[]]
        assert right.circuit("vela0")["transitions"] == flaps
