"""A circuit with a queue on each CPU: each flow has a queue and stays in order."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

import pytest

from lab.autoconfigured import asking, asking_back, ends, wait_until_up
from lab.capture import Capture
from lab.circuit import NAME
from lab.flows import Flows, ports_by_flow
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

CPUS = [0, 1]


def test_flows_are_spread_over_two_queues_and_stay_in_order(routers: TwoRouters) -> None:
    with (
        ends(
            routers,
            asking(routers.b.ipv4, cpu=CPUS),
            asking_back(routers.a.ipv4, cpu=CPUS),
        ) as both,
        ExitStack() as stack,
    ):
        wait_until_up(both, timeout_s=20.0)
        with Capture(routers.b.underlay) as capture:
            flows = Flows(both, stack)
            flows.carry(2.0)
            os.kill(both.a.worker_pid(NAME), signal.SIGKILL)
            flows.carry(2.0)
            lost = flows.finish()
            ports = ports_by_flow(capture)

        print(f"{sum(map(len, flows.heard))} datagrams, {lost} lost")
        assert flows.overtaken() == 0
        first = both.a.circuit(NAME)["source_port"]
        assert set().union(*ports.values()) == {first, first + 1}
        assert {len(each) for each in ports.values()} == {1}
        for velad in both:
            circuit = velad.circuit(NAME)
            assert (circuit["worker"]["queues"], circuit["reason"]) == (2, "")
