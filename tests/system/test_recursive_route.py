"""Routes to the remote that lead into the circuit itself, as a routing protocol may learn them."""

from __future__ import annotations

import pytest

from lab.autoconfigured import asking, circuit, ends, policy, wait_until_up
from lab.circuit import NAME
from lab.counters import AtLeast
from lab.daemon import Velad
from lab.load import ping
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

ITSELF = "leads into the circuit itself"


def reason(velad: Velad, words: str, name: str = NAME) -> str:
    """Wait for a circuit that is down for a reason with these words, and return the reason."""
    velad.wait_for(lambda _: words in velad.circuit(name)["reason"], 5, f"a reason with {words!r}")
    entry = velad.circuit(name)
    assert entry["state"] == "down"
    assert entry["worker"] is None
    return str(entry["reason"])


def sent_into(velad: Velad) -> int:
    path = f"/sys/class/net/{NAME}/statistics/tx_packets"
    return int(velad.namespace.run("cat", path).stdout)


def test_route_into_the_circuit_is_named_and_not_used_until_it_is_gone(
    routers: TwoRouters,
) -> None:
    route = (f"{routers.b.ipv4}/32", "via", "172.16.16.2", "dev", NAME)
    with circuit(routers) as both:
        routers.a.namespace.run("ip", "route", "add", *route)

        assert reason(both.a, ITSELF) == f"the route {' '.join(route)} {ITSELF}"
        both.b.wait_for_state(NAME, "down")
        # The interface has no carrier, so that packets of the host do not go there either.
        before = sent_into(both.a)
        ping(routers.a.namespace, routers.b.ipv4, count=2)
        assert sent_into(both.a) == before

        routers.a.namespace.run("ip", "route", "delete", *route)

        wait_until_up(both, timeout_s=5)
        assert ping(routers.a.namespace, "172.16.16.2", count=2).received == 2


def test_circuit_carried_by_another_works_and_a_circle_of_both_does_not(
    routers: TwoRouters,
) -> None:
    inner = asking(
        routers.b.ipv6,
        name="vela1",
        id=2,
        addresses=["172.16.17.1/30"],
        peer={"addresses": ["172.16.17.2/30"]},
    )
    outer_route = (f"{routers.b.ipv6}/128", "via", "fd00:16::2", "dev", NAME)
    circle = (f"{routers.b.ipv4}/32", "via", "172.16.17.2", "dev", "vela1")
    run = routers.a.namespace.run
    with ends(routers, asking(routers.b.ipv4) + inner, policy()) as both:
        wait_until_up(both)
        wait_until_up(both, a="vela1", b="vela1")

        run("ip", "-6", "route", "add", *outer_route)
        assert ping(routers.a.namespace, "172.16.17.2", count=3).received == 3
        both.a.counted(NAME, tx_frames=AtLeast(3))
        assert both.a.circuit("vela1")["state"] == "up"

        run("ip", "route", "add", *circle)
        there_and_back = "leads into circuit vela1, and from there back"
        assert reason(both.a, there_and_back).startswith(f"the route {' '.join(circle)}")

        run("ip", "route", "delete", *circle)
        wait_until_up(both)
        wait_until_up(both, a="vela1", b="vela1")


def test_static_circuit_stops_where_its_route_leads_into_itself(routers: TwoRouters) -> None:
    table = asking(routers.b.ipv4, autoconfigure=False, peer={"interface": None, "addresses": None})
    run = routers.a.namespace.run
    with Velad(routers.a.namespace, table.split(f"[circuits.{NAME}.peer]")[0]) as velad:
        velad.wait_for_state(NAME, "unmonitored")

        run("ip", "route", "add", f"{routers.b.ipv4}/32", "dev", NAME)
        assert f"dev {NAME}" in reason(velad, ITSELF)
        run("ip", "route", "delete", f"{routers.b.ipv4}/32", "dev", NAME)

        velad.wait_for_state(NAME, "unmonitored", timeout_s=5)
