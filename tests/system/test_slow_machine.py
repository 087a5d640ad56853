"""A machine on which velad does not get done at once what is due."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest
from many_circuits import CONFIG_A, CONFIG_B

from lab.cpu_quota import CpuQuota
from lab.daemon import Velad
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = [pytest.mark.alone, pytest.mark.needs_net_admin]

# Of one CPU, for both ends. With 150 of 255 circuits up a third of it is for keepalives and probes.
SHARE = 0.3
ENOUGH = 150
# Of both ends. In a collapse it is most of those that were up.
MOST_DOWNS = 10
TIMEOUT_S = 60.0


def changes(velad: Velad) -> Counter[str]:
    """Return how many circuits went into which state so far, as the log says."""
    return Counter(velad.logged("circuit_state_changed", "state"))


@pytest.mark.timeout(400)
@pytest.mark.skipif(not CpuQuota.is_available(), reason="no control groups for the CPU")
def test_circuits_that_are_up_stay_so_while_others_come_up(routers: TwoRouters) -> None:
    """Those that go down ask anew, which takes the time that the KEEPALIVEs of others need."""
    with CpuQuota(SHARE) as quota, ExitStack() as stack:
        a = Velad(routers.a.namespace, CONFIG_A, name="a")
        b = Velad(routers.b.namespace, CONFIG_B, name="b")
        for velad in (b, a):
            stack.callback(velad.close)
            velad.launch()
            quota.take(velad.pid)
            velad.await_ready()

        def downs() -> int:
            return sum(changes(each)["down"] for each in (a, b))

        eventually(
            lambda: downs() > MOST_DOWNS or all(changes(each)["up"] >= ENOUGH for each in (a, b)),
            TIMEOUT_S,
            f"{ENOUGH} circuits to be up",
            0.5,
        )
        assert downs() <= MOST_DOWNS
