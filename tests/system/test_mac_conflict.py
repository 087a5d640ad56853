"""Two ends with one MAC address, as machines that were cloned have: no frame could arrive."""

from __future__ import annotations

import pytest

from lab.autoconfigured import asking, asking_back, ends, wait_until_up
from lab.circuit import ADDRESSES_A, NAME
from lab.load import ping
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

MAC = "02:00:5e:10:00:01"


@pytest.mark.parametrize("changed", [0, 1], ids=["a", "b"])
def test_ends_with_one_mac_address_say_so_and_come_up_when_one_gets_another(
    routers: TwoRouters, changed: int
) -> None:
    config_a = asking(routers.b.ipv4, mac=MAC, addresses=list(ADDRESSES_A))
    config_b = asking_back(routers.a.ipv4, mac=MAC)
    with ends(routers, config_a, config_b) as both:
        for velad in both:
            entry = velad.wait_for_state(NAME, "failed", "rejected")
            assert f"both ends have the MAC address {MAC}" in entry["reason"]
            codes = {"failed": "duplicate_mac", "rejected": "refused_mac"}
            assert entry["reason_code"] == codes[entry["state"]]
        assert ping(routers.a.namespace, "172.16.16.2", count=1).received == 0

        velad, config = ((both.a, config_a), (both.b, config_b))[changed]
        velad.configure(config.replace(MAC, "02:00:5e:10:00:02"))
        velad.reload()
        wait_until_up(both, timeout_s=30)
        assert ping(routers.a.namespace, "172.16.16.2", count=3).received == 3
