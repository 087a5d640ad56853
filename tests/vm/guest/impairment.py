"""A path that loses, delays, reorders, duplicates and damages datagrams: by netem."""

from __future__ import annotations

import pytest

from lab.copying import copy
from lab.daemon import Velad, started_together
from lab.quickstart import CONFIG_A, CONFIG_B, PEER_ADDRESSES
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

FILE_BYTES = 2_000_000


@pytest.mark.parametrize(
    "impairment",
    [
        pytest.param("loss 3%", id="loss"),
        pytest.param("delay 20ms 4ms", id="delay"),
        pytest.param("delay 5ms reorder 75% 50%", id="reordering"),
        pytest.param("duplicate 20%", id="duplication"),
        pytest.param("corrupt 2%", id="damage"),
    ],
)
def test_circuit_comes_up_and_carries_a_file_unchanged(
    routers: TwoRouters, impairment: str
) -> None:
    for router in (routers.a, routers.b):
        router.namespace.run(
            *("tc", "qdisc", "replace", "dev", router.underlay.name, "root", "netem"),
            *impairment.split(),
        )
    a, b = routers.a.namespace, routers.b.namespace
    left, right = Velad(a, CONFIG_A), Velad(b, CONFIG_B)
    with started_together(left, right):
        for velad in (left, right):
            velad.wait_for_state("vela0", "up", timeout_s=20)

        copied = copy(a, b, PEER_ADDRESSES[0], FILE_BYTES, timeout_s=60)

        assert copied.received_digest == copied.sent_digest
        for velad in (left, right):
            circuit = velad.circuit("vela0")
            assert circuit["state"] == "up"
            assert circuit["worker"]["restarts"] == 0
