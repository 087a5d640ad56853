"""A negotiated circuit whose route gets another MTU while it is up."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.autoconfigured import asking, asking_back, circuit, ends, wait_until_up
from lab.circuit import NAME
from lab.daemon import Velad
from lab.dnsmasq import name_server
from lab.link import carrier_changes
from lab.load import ping
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin


def await_another_worker(velad: Velad, pid: int) -> int:
    velad.wait_for(
        lambda status: (status["circuits"][0]["worker"] or {}).get("pid") not in (None, pid),
        5,
        "another worker",
    )
    return velad.worker_pid(NAME)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("configured", "of_b", "of_a"),
    [(1400, 1500, 1428), (None, 1429, 1440)],
    ids=["configured", "the remote's is smaller"],
)
def test_worker_learns_of_the_routes_mtu_where_the_circuits_stays(
    routers: TwoRouters, configured: int | None, of_b: int, of_a: int
) -> None:
    a, b = routers.a, routers.b
    b.set_route_mtu(a.ipv4, of_b)
    with circuit(routers, mtu=configured) as both:
        pids = [velad.worker_pid(NAME) for velad in both]
        before = [
            (carrier_changes(velad.namespace, NAME), velad.log().count("circuit_state_changed"))
            for velad in both
        ]

        a.set_route_mtu(b.ipv4, of_a)
        narrow = await_another_worker(both.a, pids[0])
        if configured is not None:
            # 29 bytes more: one too many.
            assert ping(a.namespace, "172.16.16.2", count=3, size=1399).received == 3
            assert ping(a.namespace, "172.16.16.2", count=3, size=1400).received == 3
            both.a.counted(NAME, tx_fragmented=0, tx_pieced=3)
        a.set_route_mtu(b.ipv4, 1500)
        await_another_worker(both.a, narrow)

        assert [each.circuit(NAME)["mtu"] for each in both] == [1400, 1400]
        assert both.b.worker_pid(NAME) == pids[1]
        after = [
            (carrier_changes(velad.namespace, NAME), velad.log().count("circuit_state_changed"))
            for velad in both
        ]
        assert after == before


def test_mtu_that_is_announced_is_that_of_the_address_where_the_session_is(
    routers: TwoRouters, tmp_path: Path
) -> None:
    """A seeks B at its IPv6 address; B asks A at its IPv4 address, and only that is its remote."""
    routers.a.underlay.add_address("2001:db8:201::1/64")
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    routers.a.namespace.resolv_conf = resolv_conf
    config_b = asking_back(routers.a.ipv4)
    host = "router2.example.net"
    with (
        name_server(routers.a.namespace, f"{host},10.201.0.2,2001:db8:201::2"),
        ends(routers, asking(host), config_b) as both,
    ):
        wait_until_up(both)

        for velad in both:
            velad.wait_for(lambda status: status["circuits"][0]["mtu"] == 1471, 5, "1471")
        entry = both.a.circuit(NAME)
        assert (entry["state"], entry["family"]) == ("up", "ipv4")
