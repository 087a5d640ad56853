"""The supervisor's memory, where circuits come and go for years."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lab.daemon import Velad
from lab.process import resident_kb
from lab.topology import TwoRouters

pytestmark = pytest.mark.needs_net_admin

# What a circuit takes is 33 kB, and 23 kB more if it has a worker; of some things the last minutes
# are remembered, which 100 rounds fill.
WARM_UP, ROUNDS = 130, 100
MOST_KB = 1.5
# The allocator takes memory in steps of up to 1 MB. What leaks does so in each span.
MOST_SPANS = 4

STATIC = {"autoconfigure": False, "remote": "10.201.0.2", "peer": {"mac": "02:00:5e:00:00:09"}}
SOUGHT = {"remote": "10.201.0.99"}


@pytest.mark.parametrize("settings", [STATIC, SOUGHT], ids=["with a worker", "without"])
def test_memory_stays_flat_while_circuits_are_added_and_deleted(
    routers: TwoRouters, settings: dict[str, Any], figure: Callable[[str], None]
) -> None:
    with Velad(routers.a.namespace, "") as velad:
        made = velad.pid

        def rounds(count: int) -> None:
            for _ in range(count):
                asked = {"addresses": ["172.16.50.1/30"], **settings}
                added = velad.ask({"command": "add", "circuit": "x1", "settings": asked})
                assert "error" not in added, added
                if settings is STATIC:
                    velad.worker_pid("x1")
                velad.ask({"command": "delete", "circuit": "x1"})

        rounds(WARM_UP)
        grown_kb: list[float] = []
        while len(grown_kb) < MOST_SPANS and min(grown_kb, default=MOST_KB) >= MOST_KB:
            before = resident_kb(made)
            rounds(ROUNDS)
            grown_kb.append((resident_kb(made) - before) / ROUNDS)
        figure(f"{', '.join(f'{kb:.2f}' for kb in grown_kb)} kB a circuit that came and went")

    assert min(grown_kb) < MOST_KB
