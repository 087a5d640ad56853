"""Pings to many addresses: what was not answered, and when it was asked."""

from __future__ import annotations

import time

import pytest

from lab.pings import Pings
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin


def test_pings_know_what_was_asked_while_nobody_answered(routers: TwoRouters) -> None:
    silent = "10.201.0.3"
    routers.b.underlay.add_address(f"{silent}/24")
    run = routers.b.namespace.run
    with Pings([routers.b.ipv4, silent], 0.02, routers.a.namespace) as pings:
        pings.await_answers(3)
        before = time.monotonic()
        run("ip", "address", "delete", f"{silent}/24", "dev", routers.b.underlay.name)
        asked = pings.asked()[1]
        while pings.asked()[1] < asked + 10:
            time.sleep(0.02)
        routers.b.underlay.add_address(f"{silent}/24")
        after = time.monotonic()
        pings.await_answers(3)
        pings.stop()

    answered, unanswered = pings.unanswered()
    assert answered == []
    assert len(unanswered) >= 10
    assert all(before <= at <= after for at in unanswered)
    assert pings.unanswered(after=after) == [[], []]
    assert pings.gaps()[1] >= 9 * 0.02


def test_answers_that_come_all_at_once_are_all_heard(routers: TwoRouters) -> None:
    """As after a gap, while the process waits for a CPU."""
    many = 3000
    pings = Pings([routers.b.ipv4], 0.02, routers.a.namespace)
    for _ in range(many):
        pings._send(0, time.monotonic())

    with pings:
        pings.await_answers(3)
        pings.stop()

    assert pings.asked()[0] > many
    assert pings.unanswered() == [[]]
