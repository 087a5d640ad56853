"""The queues of a circuit under a stream that fills a slow wire: how long other frames wait."""

from __future__ import annotations

import time
from statistics import median

import pytest

from lab.circuit import Circuit, static_circuit
from lab.link import rx_bytes
from lab.load import BackgroundStream, ping
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

B = "172.16.16.2"
MEGABIT = 1e6
RATE = "100mbit"
# The wire's own queue is deep: what the socket holds fits in.
DEPTH = "400ms"
# 512 KiB in the socket take 43 ms, and what TCP gathers on top between two losses some more. With
# 2 MiB in the socket it would be 100 to 140 ms, and without losses 220.
LONGEST_MS = 80
PINGS = 40
# A machine that is busy with other things may well carry less, each time for a while.
TRIES = 4


def told(ends: Circuit) -> tuple[bool, bool]:
    """Return whether A has marked frames, and whether it has dropped any, for a queue's sake."""
    counters = ends.a.counters
    return counters["tx_marked"] > 0, counters["tx_dropped"]["backlog"] > 0


def wait_under_load(ends: Circuit) -> float:
    """Return the median round trip in ms; it may only count while the wire is full."""
    namespace, interface = ends.b.interface.namespace, ends.b.interface.name
    for _ in range(TRIES):
        before, began = rx_bytes(namespace, interface), time.monotonic()
        pings = ping(ends.a.interface.namespace, B, count=PINGS, interval_s=0.05)
        carried = 8 * (rx_bytes(namespace, interface) - before) / (time.monotonic() - began)
        if carried > 75 * MEGABIT and median(pings.rtt_ms) < LONGEST_MS:
            break
    assert carried > 75 * MEGABIT
    assert pings.lost == 0
    return median(pings.rtt_ms)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("engine", ["native", "python"])
@pytest.mark.parametrize("ecn", [False, True], ids=["without ecn", "with ecn"])
def test_stream_that_fills_the_wire_makes_no_long_queue(
    routers: TwoRouters, engine: str, ecn: bool
) -> None:
    routers.a.underlay.set_rate(RATE, latency=DEPTH)
    for router in (routers.a, routers.b):
        router.namespace.sysctl("net/ipv4/tcp_ecn", int(ecn))
    with static_circuit(routers, engine=engine) as ends:
        a, b = ends.a.interface.namespace, ends.b.interface.namespace
        with BackgroundStream(b, a, B, limit_s=120) as stream:
            eventually(lambda: told(ends) == (ecn, not ecn), 30, "the sender to be told")
            waited_ms = wait_under_load(ends)
            stream.check()
        assert told(ends) == (ecn, not ecn)

    assert waited_ms < LONGEST_MS
