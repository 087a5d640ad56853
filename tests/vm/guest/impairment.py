"""A path that loses, delays, reorders, duplicates and damages datagrams: by netem."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from lab.autoconfigured import asking, ends, policy, wait_until_up
from lab.circuit import NAME
from lab.copying import copy
from lab.daemon import Velad, started_together
from lab.link import Interface
from lab.quickstart import CONFIG_A, CONFIG_B, PEER_ADDRESSES
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

FILE_BYTES = 2_000_000
PROBING_S = 60

Note = Callable[[str, object], None]


def impair(interface: Interface, impairment: str) -> None:
    command = ("tc", "qdisc", "replace", "dev", interface.name, "root", "netem")
    interface.namespace.run(*command, *impairment.split())


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
        impair(router.underlay, impairment)
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


def test_delay_and_jitter_are_those_that_were_put_in(
    routers: TwoRouters, record_property: Note
) -> None:
    """20 ms and as much as 5 ms more or less, evenly spread, on the way out alone.

    Of these, two differ by 2 * 5 / 3 = 3.33 ms in the mean: the jitter of RFC 3550, whose estimate
    has a standard deviation of about 0.5 ms. An emulated machine adds delay and jitter of its own,
    which are measured first, and stands still now and then: only a median has a bound above.
    """
    found = []
    for impairment in ("", "delay 20ms 5ms"):
        if impairment:
            impair(routers.a.underlay, impairment)
        with ends(routers, asking(routers.b.ipv4, keepalive=None), policy()) as both:
            wait_until_up(both, timeout_s=20)
            time.sleep(PROBING_S)
            found.append([velad.circuit(NAME)["delay_ms"] for velad in both])
            record_property(impairment or "without", found[-1])

    for before, after in zip(*found, strict=True):
        assert 18.0 < after["p50"] < before["p50"] + 24.0
        assert after["p99"] > 23.0
        assert after["jitter"] > 1.8
