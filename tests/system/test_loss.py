"""Loss that nftables puts into one direction, and what the status of both ends says of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import mean
from typing import Any

import pytest

from lab.autoconfigured import asking_for_each, circuit, ends, policy, wait_until_up
from lab.circuit import NAME, static_circuit
from lab.daemon import Velad
from lab.namespace import Namespace
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

# Ten requests a second, the most there are.
KEEPALIVE_S = 0.2
# Of the UDP payload behind the circuit id.
REQUEST, ANSWER = "@ih,8,16 0x4101", "@ih,8,16 0x4102"
ANY_FRAME = "@ih,0,8 != 0"
EACH_TENTH = "numgen inc mod 10 0"

Figure = Callable[[str], None]
Loss = dict[str, float | None]


def lose(receiver: Namespace, what: str, which: str) -> None:
    """Let a machine lose of what comes to velad; control messages come through."""
    receiver.run(
        *("nft", "-f", "-"),
        stdin="table inet loss {\n chain input {\n  type filter hook input priority 0;\n"
        f"  udp dport 48621 udp length > 10 {what} {which} counter drop\n }}\n}}\n",
    )


def loss_of(velad: Velad, name: str = NAME) -> Loss:
    found: Loss = velad.circuit(name)["loss"]
    return found


def wait_for_requests(seconds: float) -> None:
    """Let requests be sent: what is measured is what comes of them, and time alone makes them."""
    time.sleep(seconds)


@pytest.mark.parametrize(
    ("what", "tx", "rx"),
    [(REQUEST, 10.0, 0.0), (ANSWER, 0.0, 10.0)],
    ids=["requests", "answers"],
)
def test_each_tenth_that_is_lost_is_a_tenth_of_its_direction(
    routers: TwoRouters, what: str, tx: float, rx: float
) -> None:
    """A's requests get lost at B, their answers at A."""
    lossy = routers.b if what == REQUEST else routers.a
    lose(lossy.namespace, what, EACH_TENTH)
    with circuit(routers, keepalive=KEEPALIVE_S) as both:
        wait_for_requests(25)
        found, other = loss_of(both.a), loss_of(both.b)

    # Of some 200 requests, one more or less.
    assert found["tx_percent"] == pytest.approx(tx, abs=1.0)
    assert found["rx_percent"] == pytest.approx(rx, abs=1.0)
    assert found["round_trip_percent"] == pytest.approx(10, abs=1.0)
    # That of B's are other messages.
    for each in other.values():
        assert each == pytest.approx(0, abs=1.0)


COUNT = 16
REQUESTS = 3000
"""Of all circuits of one end together, at least."""


@pytest.mark.parametrize(
    ("direction", "percent"), [("ab", 10), ("ba", 10), ("ab", 1)], ids=["ab10", "ba10", "ab1"]
)
def test_loss_by_chance_is_found_in_its_direction_at_both_ends(
    routers: TwoRouters, direction: str, percent: int, figure: Figure
) -> None:
    """Within four standard deviations of the mean of all circuits: one in 16000 misses that."""
    names = [f"vela{number}" for number in range(1, COUNT + 1)]
    config = asking_for_each(routers.b.ipv4, names, keepalive=KEEPALIVE_S)
    lossy = routers.b if direction == "ab" else routers.a
    lose(lossy.namespace, ANY_FRAME, f"numgen random mod 100 < {percent}")
    with ends(routers, config, policy()) as both:
        for name in names:
            wait_until_up(both, a=name, b=name, timeout_s=20)
        wait_for_requests(25)
        found = [[each["loss"] for each in velad.status()["circuits"]] for velad in both]

    bound = 4 * 100 * math.sqrt(percent / 100 * (1 - percent / 100) / REQUESTS)
    for end, losses in zip("ab", found, strict=True):
        tx, rx = (
            mean(each[key] for each in losses if each[key] is not None)
            for key in ("tx_percent", "rx_percent")
        )
        lost, kept = (tx, rx) if end == direction[0] else (rx, tx)
        figure(
            f"{percent} % lost from {direction[0]} to {direction[1]}: {end} says "
            f"sent {tx:.2f} %, received {rx:.2f} %; bound {bound:.2f}"
        )
        assert lost == pytest.approx(percent, abs=bound)
        # At each edge of what was measured, a request may count for the other direction.
        assert kept < min(bound, 1.0)


@pytest.mark.parametrize("settings", [{}, {"keepalive": 5.0}], ids=["fast", "usual"])
def test_static_circuit_measures_round_trips_and_stays_as_it_is_without_answers(
    routers: TwoRouters, settings: dict[str, Any]
) -> None:
    with static_circuit(routers, **{"keepalive": KEEPALIVE_S} | settings) as two:
        a, b = two.a.velad, two.b.velad
        for velad in (a, b):
            found = eventually(
                lambda velad=velad: (
                    velad.circuit(NAME)["loss"]  # type: ignore[misc]
                    if velad.circuit(NAME)["loss"]["round_trip_percent"] is not None
                    else None
                ),
                60,
                "answers to be due",
            )
            assert found == {"tx_percent": None, "rx_percent": None, "round_trip_percent": 0.0}
            assert velad.circuit(NAME)["delay_ms"]["p50"] > 0

        lose(routers.b.namespace, REQUEST, "")
        eventually(lambda: loss_of(a)["round_trip_percent"] or 0, 60, "loss")

        assert a.circuit(NAME)["state"] == "unmonitored"
        assert a.circuit(NAME)["reason"] == ""
        # It answers, and so asks in vain no more than the other one does.
        assert loss_of(b)["round_trip_percent"] == 0.0
